"""Augmentation that keeps photometry and geometry: what a survey could have seen instead.

It works on flux in units of the noise sigma, between `preprocess.to_noise_units` and
`preprocess.stretch`, on whatever device the batch is. Colours and Einstein radii are kept; hue,
contrast, channel, JPEG and free-crop transforms are left out because they change them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

__all__ = ["Augmentation", "augment", "augment_rows", "blur", "dihedral", "row_uniforms", "shift"]


@dataclass(frozen=True)
class Augmentation:
    """How far a cutout may be moved; every value is common to all bands of a cutout."""

    max_shift_px: int = 4
    max_blur_sigma_px: float = 0.8
    """Gaussian added to the PSF, sigma."""
    max_noise_increase: float = 0.3
    """Noise of a shallower survey: sigma grows by up to this fraction."""
    flux_scatter: float = 0.05


def augment(
    flux: torch.Tensor, generator: torch.Generator, *, limits: Augmentation = Augmentation()
) -> torch.Tensor:
    """One random version of each cutout.

    After blur and flux scaling white noise fills the sigma up to its new value, and the result is
    again in units of that sigma, as the pixels of a real, shallower survey would be.

    Parameters
    ----------
    flux : (n, b, h, w) in units of the noise sigma, NaN where there is no data; h = w.
    generator : on the CPU; draws what is done to each cutout, the same on every device, and seeds
        the noise, which the batch's own device draws.
    limits : the largest changes.

    Returns
    -------
    (n, b, h, w) in the same units; NaN also where a shift brought in pixels never observed.
    """
    n = flux.shape[0]

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    element = torch.randint(8, (n,), generator=generator)
    reach = 2 * limits.max_shift_px + 1
    offset = torch.randint(reach, (n, 2), generator=generator) - limits.max_shift_px
    gain = uniform(1 - limits.flux_scatter, 1 + limits.flux_scatter)
    blur_sigma = uniform(0, limits.max_blur_sigma_px)
    sigma = 1 + uniform(0, limits.max_noise_increase)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    device = torch.Generator(flux.device).manual_seed(seed)
    noise = torch.randn(flux.shape, generator=device, device=flux.device)
    return _version(flux, _Draws(element, offset, gain, blur_sigma, sigma), noise, limits)


def augment_rows(
    flux: torch.Tensor, seeds: NDArray[Any], *, limits: Augmentation = Augmentation()
) -> torch.Tensor:
    """One random version of each cutout, a function of that cutout and its own seed.

    So it does not matter which batch or process a cutout is in. The noise is drawn on the
    cutouts' device, and differs between kinds of device; all else is the same on every one.

    Parameters
    ----------
    flux, limits : as in `augment`.
    seeds : (n,) uint64.
    """
    u = row_uniforms(seeds, 6)
    reach = 2 * limits.max_shift_px + 1

    def between(column: int, low: float, high: float) -> torch.Tensor:
        return torch.from_numpy((low + (high - low) * u[:, column]).astype(np.float32))

    draws = _Draws(
        element=torch.from_numpy((8 * u[:, 0]).astype(np.int64)),
        offset=torch.from_numpy((reach * u[:, 1:3]).astype(np.int64)) - limits.max_shift_px,
        gain=between(3, 1 - limits.flux_scatter, 1 + limits.flux_scatter),
        blur_sigma=between(4, 0, limits.max_blur_sigma_px),
        sigma=between(5, 1, 1 + limits.max_noise_increase),
    )
    noise = torch.empty_like(flux)
    generator = torch.Generator(device=flux.device)
    for row, seed in zip(noise, np.asarray(seeds, np.uint64).tolist(), strict=True):
        row.normal_(generator=generator.manual_seed(seed >> 1))
    return _version(flux, draws, noise, limits)


def row_uniforms(seeds: NDArray[Any], n: int) -> NDArray[np.float64]:
    """(rows, n) numbers in [0, 1), those of a row from its seed (SplitMix64; Steele et al. 2014).

    Parameters
    ----------
    seeds : (rows,) uint64.
    """
    steps = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = np.asarray(seeds, np.uint64)[:, None] + steps
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)) * 2.0**-53)


class _Draws(NamedTuple):
    """What is drawn for each cutout; (n,), but `offset` (n, 2)."""

    element: torch.Tensor
    offset: torch.Tensor
    gain: torch.Tensor
    blur_sigma: torch.Tensor
    sigma: torch.Tensor


def _version(
    flux: torch.Tensor, draws: _Draws, noise: torch.Tensor, limits: Augmentation
) -> torch.Tensor:
    flux = shift(dihedral(flux, draws.element), draws.offset, max_shift_px=limits.max_shift_px)
    flux, noise_factor = blur(
        flux, draws.blur_sigma.to(flux.device), max_sigma_px=limits.max_blur_sigma_px
    )
    gain, sigma = draws.gain.to(flux.device), draws.sigma.to(flux.device)
    missing = (sigma**2 - (gain * noise_factor) ** 2).clamp(min=0).sqrt()
    return (flux * _wide(gain) + noise * _wide(missing)) / _wide(sigma)


def dihedral(flux: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
    """Rotate each cutout by 90° × (element mod 4), then mirror it where element ≥ 4.

    Parameters
    ----------
    flux : (n, b, h, h).
    element : (n,) integers 0 to 7.
    """
    side = flux.shape[-1]
    row, column = torch.meshgrid(*(torch.arange(side, device=flux.device),) * 2, indexing="ij")
    place = (row * side + column)[None]
    where = [torch.rot90(place, k % 4, (1, 2)) for k in range(8)]
    index = torch.cat([w.flip(2) if k >= 4 else w for k, w in enumerate(where)]).flatten(1)
    chosen = index[element.to(flux.device)][:, None].expand(-1, flux.shape[1], -1)
    return flux.flatten(2).gather(2, chosen).view_as(flux)


def shift(flux: torch.Tensor, offset_px: torch.Tensor, *, max_shift_px: int) -> torch.Tensor:
    """Move each cutout by whole pixels; what comes in from outside is NaN, nothing wraps.

    Parameters
    ----------
    flux : (n, b, h, w).
    offset_px : (n, 2) integers (down, right), at most `max_shift_px` in size.
    """
    _, _, height, width = flux.shape
    padded = functional.pad(flux, (max_shift_px,) * 4, value=torch.nan)
    start = max_shift_px - offset_px.to(flux.device)
    rows = start[:, :1] + torch.arange(height, device=flux.device)
    columns = start[:, 1:] + torch.arange(width, device=flux.device)
    index = torch.arange(len(flux), device=flux.device)[:, None, None]
    # Advanced indices around a slice put the band axis last.
    moved = padded[index, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def blur(
    flux: torch.Tensor, sigma_px: torch.Tensor, *, max_sigma_px: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve each cutout with a round Gaussian of its own width.

    Pixels without data take no part (normalised convolution) and stay NaN.

    Parameters
    ----------
    flux : (n, b, h, w).
    sigma_px : (n,) Gaussian sigma, at most `max_sigma_px`.

    Returns
    -------
    The blurred cutouts, and (n,) the factor by which white noise went down, √(Σ kernel²).
    """
    n, bands, height, width = flux.shape
    radius = max(1, round(4 * max_sigma_px))
    x = torch.arange(-radius, radius + 1, device=flux.device)
    kernel = torch.exp(-0.5 * (x / sigma_px.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    weights = kernel.repeat_interleave(bands, 0)

    def convolve(image: torch.Tensor) -> torch.Tensor:
        planes = functional.pad(image.reshape(1, n * bands, height, width), (radius,) * 4)
        planes = functional.conv2d(planes, weights[:, None, :, None], groups=n * bands)
        planes = functional.conv2d(planes, weights[:, None, None, :], groups=n * bands)
        return planes.reshape(n, bands, height, width)

    seen = torch.isfinite(flux)
    share = convolve(seen.float()).clamp(min=1e-6)
    smooth = convolve(flux.nan_to_num(nan=0.0)) / share
    return smooth.masked_fill(~seen, torch.nan), (kernel**2).sum(1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]
