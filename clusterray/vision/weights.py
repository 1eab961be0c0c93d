"""Pretrained weights for a trunk: safetensors by URL, never a pickle, fitted to n bands."""

import hashlib
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.nn import functional

from clusterray import storage
from clusterray.errors import InputError

__all__ = ["inflate", "load_into", "load_weights"]

_PATCH_WEIGHT = "patch_embed.proj.weight"
_HEADS = ("head.", "head_dist.", "fc_norm.", "attn_pool.")


def load_weights(url: str, *, sha256: str = "") -> dict[str, torch.Tensor]:
    """Tensors by name from a safetensors file.

    Parameters
    ----------
    url : path or URL.
    sha256 : pinned digest of the file (hex); empty accepts any.

    Raises
    ------
    InputError : another digest than pinned, a pickle (which could run code and is never opened),
        or no safetensors at all.
    StorageError : the file cannot be read.
    """
    data = storage.read_bytes(url)
    where = storage.redact(url)
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256.strip().lower():
        raise InputError(
            f"weights '{where}' have SHA-256 {found}, expected {sha256}; "
            "fetch the pinned file or correct vision.weights_sha256"
        )
    if data[:2] == b"PK" or data[:1] == b"\x80":
        raise InputError(
            f"weights '{where}' are a PyTorch pickle, which can run code when opened; "
            "expected safetensors: convert them once on a machine you trust"
        )
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise InputError(f"weights '{where}' are no readable safetensors file: {error}") from error


def inflate(weight: torch.Tensor, n_bands: int) -> torch.Tensor:
    """Patch-embedding weights of RGB images for n bands in order blue to red.

    The three channels are turned to blue, green, red and interpolated linearly along the bands,
    then scaled so that an image equal in all bands gives the same tokens as a grey RGB one.

    Parameters
    ----------
    weight : (d, 3, p, p).

    Returns
    -------
    (d, n_bands, p, p).
    """
    d, channels, *patch = weight.shape
    blue_to_red = weight.flip(1).reshape(d, channels, -1).transpose(1, 2).float()
    bands = functional.interpolate(blue_to_red, size=n_bands, mode="linear", align_corners=True)
    if n_bands == 1:
        bands = blue_to_red.mean(-1, keepdim=True)
    bands = bands * (channels / n_bands)
    excess = (bands.sum(-1, keepdim=True) - blue_to_red.sum(-1, keepdim=True)) / n_bands
    return (bands - excess).transpose(1, 2).reshape(d, n_bands, *patch).to(weight.dtype)


def load_into(trunk: Any, state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Load weights into a timm ViT, resampling patches and positions to its size.

    Raises
    ------
    InputError : the weights lack a tensor of the trunk, or one has another shape.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    fitted = {k: v for k, v in state.items() if not k.startswith(_HEADS)}
    patch = fitted.get(_PATCH_WEIGHT)
    want = trunk.state_dict()
    n_bands = want[_PATCH_WEIGHT].shape[1]
    try:
        if patch is not None and patch.ndim == 4 and patch.shape[1] == 3:
            fitted[_PATCH_WEIGHT] = inflate(patch, n_bands)
        fitted = checkpoint_filter_fn(fitted, trunk)
        trunk.load_state_dict(fitted)
    except (RuntimeError, KeyError) as error:
        raise InputError(
            f"weights '{storage.redact(where)}' do not fit this network: {error}; "
            "choose vision.model and model_options to match them"
        ) from error
