"""From the bytes of a shard to the input of the network, on whatever device the tensors are.

Training and scoring both go through these functions, so that they cannot see different images.
"""

import torch
from torch.nn import functional

from clusterray.errors import InputError
from clusterray.schema import BLANK

__all__ = ["BLANK_BYTE", "stretch", "to_input", "to_noise_units", "unshuffle"]

BLANK_BYTE = 255
"""Both bytes of a zig-zagged BLANK: planes filled with it decode to no data."""


def unshuffle(
    planes: torch.Tensor, /, *, n_bands: int, height_px: int, width_px: int
) -> torch.Tensor:
    """Decode zig-zagged byte planes, the `image` column of a cutout shard.

    Parameters
    ----------
    planes : (n, 2·b·h·w) uint8: the low bytes of a cutout, then its high bytes.
    n_bands, height_px, width_px : the image layout.

    Returns
    -------
    (n, b, h, w) int16 on the same device; −32768 where there is no data.

    Raises
    ------
    InputError : the planes are not uint8, or have another length than the layout asks for.
    """
    expected = 2 * n_bands * height_px * width_px
    if planes.dtype != torch.uint8 or planes.ndim != 2 or planes.shape[1] != expected:
        raise InputError(
            f"byte planes are {planes.dtype}{list(planes.shape)}, expected "
            f"torch.uint8[n, {expected}] for {n_bands} bands of "
            f"{height_px}×{width_px} px; read the layout from the shard"
        )
    low, high = planes.view(planes.shape[0], 2, -1).unbind(1)
    # The high byte as a signed number keeps the sum inside int16.
    code = high.view(torch.int8).to(torch.int16) * 256 + low.to(torch.int16)
    pixels = ((code >> 1) & 0x7FFF) ^ -(code & 1)
    return pixels.view(-1, n_bands, height_px, width_px)


def to_noise_units(
    pixels: torch.Tensor, step: torch.Tensor, *, noise_sigma: torch.Tensor
) -> torch.Tensor:
    """Flux over noise sigma, NaN where there is no data.

    Parameters
    ----------
    pixels : (n, b, h, w) int16.
    step, noise_sigma : (n, b), nJy. A band whose values are not finite and positive has no data.

    Returns
    -------
    (n, b, h, w) float32, dimensionless.

    Raises
    ------
    InputError : shapes that do not belong together.
    """
    for name, values in (("step", step), ("noise_sigma", noise_sigma)):
        if pixels.ndim != 4 or values.shape != pixels.shape[:2]:
            raise InputError(
                f"{name} has shape {list(values.shape)} beside pixels of {list(pixels.shape)}; "
                "expected (n, bands) beside (n, bands, height, width)"
            )
    scale = step.float() / noise_sigma.float()
    scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.nan)
    flux = pixels.float() * scale[:, :, None, None]
    return flux.masked_fill_(pixels == BLANK, torch.nan)


def stretch(flux: torch.Tensor, /, *, softening: float, size_px: int | None) -> torch.Tensor:
    """Asinh stretch (Lupton, Gunn & Szalay 1999), no data to 0 (the sky), resize.

    Parameters
    ----------
    flux : (n, b, h, w) in units of the noise sigma, NaN where there is no data.
    softening : noise sigmas at which the stretch turns from linear to logarithmic.
    size_px : side of the output; None keeps the input's.

    Returns
    -------
    (n, b, size_px, size_px) float32, always finite.
    """
    x = torch.nan_to_num(flux / softening, nan=0.0)
    # asinh x = ±log1p(|x| + x²/(1 + √(1 + x²))); torch.asinh takes three times as long on a CPU.
    square = x * x
    image = torch.copysign(torch.log1p(x.abs() + square / (1 + torch.sqrt(1 + square))), x)
    if size_px is None or image.shape[-2:] == (size_px, size_px):
        return image
    shrinks = size_px < max(image.shape[-2:])
    return functional.interpolate(
        image, size=(size_px, size_px), mode="bilinear", antialias=shrinks
    )


def to_input(
    pixels: torch.Tensor,
    step: torch.Tensor,
    *,
    noise_sigma: torch.Tensor,
    softening: float,
    size_px: int | None,
) -> torch.Tensor:
    """Make the network's input of a batch of cutouts: `to_noise_units`, then `stretch`."""
    flux = to_noise_units(pixels, step, noise_sigma=noise_sigma)
    return stretch(flux, softening=softening, size_px=size_px)
