"""The lens network: a timm ViT over n bands, gated attention pooling, a linear head."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from clusterray.config import VisionSettings
from clusterray.errors import BundleError, ConfigError, did_you_mean
from clusterray.vision.mil import GatedAttention
from clusterray.vision.torchvision_ops import declare_missing
from clusterray.vision.weights import load_into, load_weights

__all__ = ["Architecture", "LensViT", "VitOutput", "build", "freeze"]

_RESERVED = ("img_size", "in_chans", "num_classes", "global_pool", "pretrained")
_POOL_DIM = 128


class VitOutput(NamedTuple):
    """Per cutout: logit (n,), embedding (n, d), attention over patches (n, tokens); float32."""

    logit: torch.Tensor
    embedding: torch.Tensor
    attention: torch.Tensor


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build the network again and to feed it the same way.

    `image_size_px` is the side of its input, `asinh_softening` the stretch it was trained under.
    """

    model: str
    model_options: Mapping[str, int | float | bool | str]
    n_bands: int
    image_size_px: int
    asinh_softening: float
    pool_dim: int = _POOL_DIM


class LensViT(nn.Module):
    """A timm vision transformer whose patch tokens are pooled by gated attention.

    The trunk may run in bfloat16 (autocast); pooling and head are float32 always, because a
    difference of 0.01 in a logit reorders the top of a list of millions.

    Parameters
    ----------
    architecture : see `Architecture`. Nothing is fetched: weights are random until loaded.

    Raises
    ------
    ConfigError : a model or option that timm does not know, one that is not a ViT, or an input
        side that is no multiple of the patch.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.settings = architecture
        self.trunk = _trunk(architecture)
        dim = int(self.trunk.num_features)
        self.pool = GatedAttention(dim, architecture.pool_dim)
        self.head = nn.Linear(dim, 1)

    @property
    def n_tokens(self) -> int:
        """Patches of one image, the length of an attention map."""
        return int(self.trunk.patch_embed.num_patches)

    def forward(self, images: torch.Tensor) -> VitOutput:
        """Score (n, b, size, size) images from `preprocess.to_input`."""
        tokens = self.trunk.forward_features(images)[:, self.trunk.num_prefix_tokens :]
        with torch.autocast(images.device.type, enabled=False):
            embedding, attention = self.pool(tokens.float())
            return VitOutput(self.head(embedding).squeeze(-1), embedding, attention)

    def architecture(self) -> dict[str, Any]:
        """Return the architecture as plain JSON values."""
        return {**asdict(self.settings), "model_options": dict(self.settings.model_options)}

    @classmethod
    def from_architecture(cls, values: Mapping[str, Any]) -> Self:
        """Build the network with random weights from what `architecture` returned.

        Raises
        ------
        BundleError : keys that another release wrote.
        """
        try:
            return cls(Architecture(**values))
        except TypeError as error:
            raise BundleError(
                f"network architecture {json.dumps(dict(values), default=str)}: {error}; "
                "it was written by another release: train again"
            ) from error

    def save(self) -> bytes:
        """All weights as safetensors."""
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        return safetensors.torch.save(state)

    @classmethod
    def load(cls, data: bytes, architecture: Mapping[str, Any]) -> Self:
        """Rebuild the network with the weights that `save` returned, ready to score.

        Raises
        ------
        BundleError : the bytes are no safetensors, or belong to another architecture.
        """
        model = cls.from_architecture(architecture)
        try:
            model.load_state_dict(safetensors.torch.load(data))
        except (SafetensorError, RuntimeError) as error:
            raise BundleError(
                f"network weights do not fit '{model.settings.model}' with "
                f"{model.settings.n_bands} bands at {model.settings.image_size_px} px: {error}"
            ) from error
        return model.eval()


def build(settings: VisionSettings, *, n_bands: int, size_px: int, seed: int = 0) -> LensViT:
    """Build the network to train: random weights from `seed`, or pretrained and partly frozen.

    Parameters
    ----------
    settings : the `vision` section.
    n_bands, size_px : of the cutouts; `size_px` is the input's side where the settings have none.

    Raises
    ------
    ConfigError : see `LensViT`; or blocks to freeze without pretrained weights.
    InputError : pretrained weights that do not fit, are pickled, or have another digest.
    """
    if settings.freeze_blocks and not settings.weights:
        raise ConfigError(
            f"vision.freeze_blocks is {settings.freeze_blocks} but vision.weights is empty: frozen "
            "random blocks never learn; give weights or set freeze_blocks = 0"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LensViT(
            Architecture(
                model=settings.model,
                model_options=settings.model_options,
                n_bands=n_bands,
                image_size_px=settings.image_size_px or size_px,
                asinh_softening=settings.asinh_softening,
            )
        )
    if settings.weights:
        state = load_weights(settings.weights, sha256=settings.weights_sha256)
        load_into(model.trunk, state, where=settings.weights)
    freeze(model, settings.freeze_blocks)
    return model


def freeze(model: LensViT, blocks: int) -> None:
    """Freeze the patch embedding and the first whole `blocks`; 0 freezes nothing.

    Raises
    ------
    ConfigError : more blocks than the network has.
    """
    trunk = model.trunk
    if not 0 <= blocks <= len(trunk.blocks):
        raise ConfigError(
            f"vision.freeze_blocks is {blocks}, but '{model.settings.model}' has "
            f"{len(trunk.blocks)} blocks; choose 0 to {len(trunk.blocks)}"
        )
    trunk.requires_grad_(True)
    if not blocks:
        return
    # What stands before and behind the blocks: only the last norm goes on learning.
    for name, parameter in trunk.named_parameters():
        if not name.startswith(("blocks.", "norm.")):
            parameter.requires_grad_(False)
    trunk.blocks[:blocks].requires_grad_(False)


def _trunk(architecture: Architecture) -> Any:
    declare_missing()
    import timm

    name = architecture.model
    options: dict[str, Any] = dict(architecture.model_options)
    taken = sorted(set(options) & set(_RESERVED))
    if taken:
        raise ConfigError(
            f"vision.model_options: '{taken[0]}' is set by clusterray itself; leave it out"
        )
    if not timm.is_model(name):
        raise ConfigError(
            f"vision.model '{name}' is not a timm model, {did_you_mean(name, timm.list_models())}"
        )
    side = architecture.image_size_px
    try:
        trunk: Any = timm.create_model(
            name,
            in_chans=architecture.n_bands,
            img_size=side,
            num_classes=0,
            global_pool="",
            **options,
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"vision.model '{name}' with {options} cannot be built: {error}"
        ) from error
    if not all(hasattr(trunk, a) for a in ("blocks", "patch_embed", "num_prefix_tokens")):
        raise ConfigError(
            f"vision.model '{name}' has no patch tokens to pool; choose a ViT such as "
            "'vit_small_patch16_224'"
        )
    patch = int(trunk.patch_embed.patch_size[0])
    if side % patch:
        raise ConfigError(
            f"the network's input is {side} px, no multiple of the {patch} px patches of '{name}'; "
            f"set vision.image_size_px = {patch * max(1, round(side / patch))}"
        )
    return trunk
