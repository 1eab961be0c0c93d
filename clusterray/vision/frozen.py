"""A frozen trunk: its output is computed once, and only what comes behind it is trained.

Augmentation needs the trunk at every step; in its place each cutout may be kept in several of its
eight orientations.
"""

import hashlib
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusterray.vision.augment import dihedral, row_uniforms
from clusterray.vision.preprocess import to_input
from clusterray.vision.vit import LensViT

__all__ = ["TokenLearner", "encode", "frozen_blocks", "frozen_digest", "token_shape"]


def frozen_blocks(model: LensViT) -> int:
    """Leading blocks whose output never changes in training; 0 where the network has no such part.

    The parts of timm's plain vision transformers are known; others are trained as they are.
    """
    from timm.models.vision_transformer import VisionTransformer

    trunk: Any = model.trunk
    plain = getattr(type(trunk), "forward_features", None) is VisionTransformer.forward_features
    if not plain or not trunk.blocks or _learns(trunk.patch_embed) or trunk.pos_embed is None:
        return 0
    if trunk.pos_embed.requires_grad or _learns(trunk.norm_pre):
        return 0
    learning = [k for k, block in enumerate(trunk.blocks) if _learns(block)]
    return learning[0] if learning else len(trunk.blocks)


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def frozen_digest(model: LensViT, *, n_views: int) -> str:
    """Digest of all that the kept tokens depend on: frozen weights, input size, stretch, views."""
    n, found = frozen_blocks(model), hashlib.sha256()
    about = {**model.architecture(), "blocks": n, "views": n_views}
    found.update(json.dumps(about, sort_keys=True).encode())
    for name, values in sorted(model.trunk.state_dict().items()):
        block = name.split(".")[1] if name.startswith("blocks.") else ""
        if name.startswith("norm.") or (block and int(block) >= n):
            continue
        found.update(name.encode())
        found.update(values.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def token_shape(model: LensViT, *, n_views: int) -> tuple[int, int, int]:
    """Views, tokens (with those before the patches), and their length."""
    trunk: Any = model.trunk
    tokens = model.n_tokens + trunk.num_prefix_tokens
    return n_views, tokens, int(trunk.num_features)


@torch.no_grad()
def encode(
    model: LensViT, arrays: tuple[torch.Tensor, ...], *, n_views: int, half: bool
) -> torch.Tensor:
    """Tokens behind the frozen blocks, (n, views, tokens, d) float16 on the arrays' device.

    Parameters
    ----------
    model : in eval mode.
    arrays : pixels (n, b, h, w) int16, step and noise_sigma (n, b).
    n_views : orientations of the dihedral group, the first as it is.
    half : whether the trunk runs in bfloat16.
    """
    pixels, step, noise_sigma = arrays
    about, trunk = model.settings, model.trunk
    images = to_input(
        pixels,
        step,
        noise_sigma=noise_sigma,
        softening=about.asinh_softening,
        size_px=about.image_size_px,
    )
    views = []
    for k in range(n_views):
        turned = dihedral(images, torch.full((len(images),), k))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(turned)))
            views.append(trunk.blocks[: frozen_blocks(model)](x).half())
    return torch.stack(views, dim=1)


class TokenLearner(nn.Module):
    """What comes behind the frozen blocks, on rows of their tokens (views, tokens, d).

    Parameters
    ----------
    model : the whole network; its frozen part is not run.
    """

    def __init__(self, model: LensViT) -> None:
        super().__init__()
        self.model, self.n_frozen = model, frozen_blocks(model)

    def prepare(self, arrays: tuple[torch.Tensor, ...], seeds: NDArray[Any] | None) -> torch.Tensor:
        """Tokens (n, t, d) of the view that each row's seed takes, or of the first."""
        (tokens,) = arrays
        n, n_views = tokens.shape[:2]
        view = np.zeros(n, np.int64)
        if seeds is not None and n_views > 1:
            view = (n_views * row_uniforms(seeds, 1)[:, 0]).astype(np.int64)
        at = torch.from_numpy(view).to(tokens.device)
        return tokens[torch.arange(n, device=tokens.device), at].float()

    def twin(self, model: LensViT) -> "TokenLearner":
        """The same for other weights."""
        return TokenLearner(model)

    def embedding(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pooled (n, d) of prepared rows, float32."""
        trunk: Any = self.model.trunk
        x = trunk.norm(trunk.blocks[self.n_frozen :](tokens))[:, trunk.num_prefix_tokens :]
        with torch.autocast(tokens.device.type, enabled=False):
            pooled: torch.Tensor = self.model.pool(x.float())[0]
        return pooled

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (n,)."""
        pooled = self.embedding(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            logits: torch.Tensor = self.model.head(pooled).squeeze(-1)
        return logits
