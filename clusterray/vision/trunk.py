"""Trunks by their timm name: what they are built from, the tokens they give, their layers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clusterray.errors import ConfigError, did_you_mean
from clusterray.vision.torchvision_ops import declare_missing

__all__ = ["TokenGrid", "build_trunk", "freeze_layers", "layers", "token_grid", "tokens_of"]

_RESERVED = ("img_size", "in_chans", "num_classes", "global_pool", "pretrained")
_IN_A_BLOCK = re.compile(r"\.\d+\.|\d+\.")


@dataclass(frozen=True)
class TokenGrid:
    """What a trunk gives of one image: `rows` × `columns` tokens of length `dim`, row-major.

    `prefix` tokens (class, distillation, registers) stand before them. `layout` is "NLC", "NCHW"
    or "NHWC".
    """

    rows: int
    columns: int
    dim: int
    prefix: int
    layout: str

    @property
    def n_tokens(self) -> int:
        """Length of an attention map."""
        return self.rows * self.columns


def build_trunk(
    name: str, options: Mapping[str, int | float | bool | str], *, n_bands: int, side_px: int
) -> nn.Module:
    """A timm network without classifier and pooling, its weights random.

    Parameters
    ----------
    name : as `timm.list_models` has it.
    options : keyword arguments for it.
    side_px : side of the input; networks that do not depend on it ignore it.

    Raises
    ------
    ConfigError : a name or option that timm does not know, or one that is ours to set.
    """
    declare_missing()
    import timm

    taken = sorted(set(options) & set(_RESERVED))
    if taken:
        raise ConfigError(
            f"vision.model_options: '{taken[0]}' is set by clusterray itself; leave it out"
        )
    if not timm.is_model(name):
        raise ConfigError(
            f"vision.model '{name}' is not a timm model, {did_you_mean(name, timm.list_models())}"
        )
    given: dict[str, Any] = {
        **options,
        "in_chans": n_bands,
        "num_classes": 0,
        "global_pool": "",
        "img_size": side_px,
    }
    try:
        try:
            trunk = timm.create_model(name, **given)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            # Convolutional networks take any size.
            del given["img_size"]
            trunk = timm.create_model(name, **given)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"vision.model '{name}' with {dict(options)} cannot be built: {error}"
        ) from error
    return trunk  # type: ignore[no-any-return]


def token_grid(trunk: nn.Module, *, name: str, n_bands: int, side_px: int) -> TokenGrid:
    """Find out what a trunk gives, from an empty image.

    Raises
    ------
    ConfigError : an input side that the network cannot take, or an output that is no grid of
        tokens.
    """
    patch_embed: Any = getattr(trunk, "patch_embed", None)
    patch = getattr(patch_embed, "patch_size", None)
    if patch and side_px % int(patch[0]):
        raise ConfigError(
            f"the network's input is {side_px} px, no multiple of the {patch[0]} px patches of "
            f"'{name}'; set vision.image_size_px = {patch[0] * max(1, round(side_px / patch[0]))}"
        )
    was_training = trunk.training
    try:
        with torch.no_grad():
            out = trunk.eval()(torch.zeros(1, n_bands, side_px, side_px))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"vision.model '{name}' cannot take images of {side_px} px: {error}; set "
            "vision.image_size_px to a size it was made for"
        ) from error
    finally:
        trunk.train(was_training)
    prefix = int(getattr(trunk, "num_prefix_tokens", 0))
    if isinstance(out, torch.Tensor) and out.ndim == 3:
        n, dim = out.shape[1] - prefix, out.shape[2]
        side = round(n**0.5)
        if side * side == n and n:
            return TokenGrid(side, side, dim, prefix, "NLC")
    if isinstance(out, torch.Tensor) and out.ndim == 4:
        if str(getattr(trunk, "output_fmt", "NCHW")).endswith("NHWC"):
            return TokenGrid(out.shape[1], out.shape[2], out.shape[3], 0, "NHWC")
        return TokenGrid(out.shape[2], out.shape[3], out.shape[1], 0, "NCHW")
    shape = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    raise ConfigError(
        f"vision.model '{name}' gives {shape} of an image of {side_px} px, which is no grid of "
        "tokens to pool; choose a ViT such as 'vit_small_patch16_224', a ResNet or a ConvNeXt"
    )


def tokens_of(output: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """A trunk's output as (n, rows × columns, dim) tokens, row-major, without prefix tokens."""
    if grid.layout == "NLC":
        return output[:, grid.prefix :]
    if grid.layout == "NCHW":
        return output.flatten(2).transpose(1, 2)
    return output.flatten(1, 2)


def layers(trunk: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Parameter names by depth: the stem, then each block; whole stages where a network has them.

    By timm's `group_matcher`. What stands behind the last block (a norm) belongs to it, and what
    is added to the tokens before the first (positions, class token, registers) to the stem.
    """
    from timm.models import group_parameters

    matcher = trunk.group_matcher(coarse=True)  # type: ignore[operator]
    depth: dict[str, int] = group_parameters(trunk, matcher, reverse=True)
    found: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name, _ in trunk.named_parameters():
        early = "." not in name or name.startswith("norm_pre.")
        found[0 if early else depth[name]].append(name)
    found = [names for names in found if names]
    if len(found) > 2 and not any(_IN_A_BLOCK.search(n) for n in found[-1]):
        found[-2:] = [found[-2] + found[-1]]
    return tuple(tuple(names) for names in found)


def freeze_layers(trunk: nn.Module, n_blocks: int, *, name: str) -> None:
    """Freeze the stem and the first `n_blocks` of `layers`; all of them freeze the whole trunk.

    0 freezes nothing.

    Raises
    ------
    ConfigError : more blocks than the network has.
    """
    stem, *blocks = layers(trunk)
    if not 0 <= n_blocks <= len(blocks):
        raise ConfigError(
            f"vision.freeze_blocks is {n_blocks}, but '{name}' has {len(blocks)} blocks; choose 0 "
            f"to {len(blocks)} (a network in stages is frozen by the stage)"
        )
    trunk.requires_grad_(True)
    frozen = {*stem, *(n for block in blocks[:n_blocks] for n in block)} if n_blocks else set()
    for parameter_name, parameter in trunk.named_parameters():
        if parameter_name in frozen:
            parameter.requires_grad_(False)
