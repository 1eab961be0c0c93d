"""The lens network: a timm trunk over n bands, gated attention pooling, a linear head."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from clusterray.config import VisionSettings
from clusterray.errors import BundleError, ConfigError
from clusterray.vision.mil import GatedAttention
from clusterray.vision.trunk import build_trunk, freeze_layers, token_grid, tokens_of
from clusterray.vision.weights import load_into, load_weights

__all__ = ["Architecture", "LensViT", "VitOutput", "build", "freeze"]

_POOL_DIM = 128


class VitOutput(NamedTuple):
    """Per cutout: logit (n,), embedding (n, d), attention over tokens (n, tokens); float32."""

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
    """The lens network: a timm trunk, by default a ViT, its tokens pooled by gated attention.

    Of a ViT the tokens are its patches, of a convolutional or hierarchical network the pixels of
    its last feature map. The trunk may run in bfloat16 (autocast); pooling and head are float32
    always, because a difference of 0.01 in a logit reorders the top of a list of millions.

    Parameters
    ----------
    architecture : see `Architecture`. Nothing is fetched: weights are random until loaded.

    Raises
    ------
    ConfigError : a model or option that timm does not know, one that gives no grid of tokens, or
        an input side that it cannot take.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.settings = architecture
        size = {"n_bands": architecture.n_bands, "side_px": architecture.image_size_px}
        self.trunk: Any = build_trunk(architecture.model, architecture.model_options, **size)
        self.grid = token_grid(self.trunk, name=architecture.model, **size)
        self.pool = GatedAttention(self.grid.dim, architecture.pool_dim)
        self.head = nn.Linear(self.grid.dim, 1)

    @property
    def n_tokens(self) -> int:
        """Tokens of one image, the length of an attention map: rows × columns of `grid`."""
        return self.grid.n_tokens

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens (n, tokens, d) of (n, b, size, size) images from `preprocess.to_input`."""
        return tokens_of(self.trunk(images), self.grid)

    def decide(self, tokens: torch.Tensor) -> VitOutput:
        """Pool tokens (n, tokens, d) and score them, in float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            embedding, attention = self.pool(tokens.float())
            return VitOutput(self.head(embedding).squeeze(-1), embedding, attention)

    def forward(self, images: torch.Tensor) -> VitOutput:
        """Score (n, b, size, size) images from `preprocess.to_input`."""
        return self.decide(self.tokens(images))

    def train(self, mode: bool = True) -> Self:
        """Set training mode; what is frozen stays as in scoring, batch statistics and dropout."""
        super().train(mode)
        if all(p.requires_grad for p in self.trunk.parameters()):
            return self
        for module in self.trunk.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        return self

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


def build(
    settings: VisionSettings,
    *,
    n_bands: int,
    size_px: int,
    seed: int = 0,
    bands: Sequence[str] | None = None,
) -> LensViT:
    """Build the network to train: random weights from `seed`, or pretrained and partly frozen.

    Parameters
    ----------
    settings : the `vision` section.
    n_bands, size_px : of the cutouts; `size_px` is the input's side where the settings have none.
    bands : their names, by whose wavelengths weights of RGB images are given to them; None takes
        them as evenly spaced, blue to red.

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
        load_into(model.trunk, state, where=settings.weights, bands=bands)
    freeze(model, settings.freeze_blocks)
    return model


def freeze(model: LensViT, blocks: int) -> None:
    """Freeze the stem and the first whole `blocks` (stages, where the network has them).

    0 freezes nothing, all of them the whole trunk; pooling and head always learn.

    Raises
    ------
    ConfigError : more blocks than the network has.
    """
    freeze_layers(model.trunk, blocks, name=model.settings.model)
