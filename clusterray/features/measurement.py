"""From a batch of cutouts, as stored or as floats, to the sums that pixel features are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import InputError
from clusterray.features.geometry import N_ANNULI, bin_factor, layout
from clusterray.schema import BLANK

__all__ = ["EDGE_SIGMA", "Measurement", "measure"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

EDGE_SIGMA = 4.0
"""Pure noise passes the edge threshold with probability exp(−EDGE_SIGMA²/2) = 3.4e-4."""

# White noise of variance 1 gives each Sobel component the variance Σ k² = 2 (1² + 2² + 1²) = 12,
# and the two are uncorrelated, so |∇|²/12 follows χ² with two degrees of freedom. Where resampling
# has correlated neighbours (ρ₁, ρ₂ at one and two pixels) the variance is
# (6 + 8ρ₁ + 2ρ₂) · 2 (1 − ρ₂), and a little more noise passes.
_SOBEL_NOISE_VARIANCE = 12.0
_BRIGHT_SIGMA, _RESIDUAL_SIGMA, _CENTRE_SIGMA = 3.0, 3.0, 5.0
_LIMITS = np.array(
    [EDGE_SIGMA**2 * _SOBEL_NOISE_VARIANCE, _BRIGHT_SIGMA, _RESIDUAL_SIGMA, _CENTRE_SIGMA],
    np.float32,
)
# Outside this range a float32 of the noise or of its inverse loses digits.
_NOISE_RANGE_NJY = (1e-36, 1e36)


@dataclass(frozen=True)
class Measurement:
    """Sums over the patches and annuli of n cutouts; `kernels.cutout.measure` says which.

    Pixels are counted and measured after binning, in units of the binned pixel's noise (n, bands),
    which `noise` gives in nJy.
    """

    patch: Floats
    pair: Floats
    ring: Floats
    ring_pair: Floats
    residual: Floats
    noise: Floats
    height_px: int
    width_px: int


def measure(
    cutouts_nchw: NDArray[Any],
    *,
    noise_sigma: ArrayLike,
    bands: Sequence[str],
    step: ArrayLike | None,
    mask: NDArray[np.bool_] | None,
    grid: int,
    max_size_px: int,
    annuli: bool = True,
) -> Measurement:
    """Run the compiled loops; arguments and errors are those of `image_features`.

    Without `annuli` only the sums over patches mean anything.
    """
    # Numba takes a second to import, and most commands do without.
    from clusterray.features.kernels import cutout

    pixels, steps = _pixels(cutouts_nchw, step, mask, bands=bands, grid=grid)
    n, n_bands, *size = pixels.shape
    factor = bin_factor(max(size), max_size_px)
    height, width = (length // factor for length in size)
    if min(height, width) < grid:
        raise InputError(
            f"cutouts of {size[0]}×{size[1]} px{f', binned {factor}×{factor},' * (factor > 1)} "
            f"cannot be cut into {grid}×{grid} patches; use larger cutouts, a smaller "
            "features.grid or a larger features.max_size_px"
        )
    noise, good = _noise(noise_sigma, (n, n_bands))
    found = Measurement(
        patch=np.empty((n, n_bands, 7, grid * grid)),
        pair=np.empty((n, n_bands - 1, 3, grid * grid)),
        ring=np.empty((n, n_bands, 4, N_ANNULI)),
        ring_pair=np.empty((n, n_bands - 1, 3, N_ANNULI)),
        residual=np.full((n, 6, N_ANNULI), np.nan),
        noise=noise * factor,
        height_px=height,
        width_px=width,
    )
    sums = (found.patch, found.pair, found.ring, found.ring_pair, found.residual)
    single = noise.astype(np.float32)
    cutout.measure(
        pixels, steps, single, factor, layout(height, width, grid), _LIMITS, *sums, annuli
    )
    _refuse_noise(np.asarray(noise_sigma), good, found)
    return found


def _pixels(
    cutouts: NDArray[Any],
    step: ArrayLike | None,
    mask: Bools | None,
    *,
    bands: Sequence[str],
    grid: int,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Contiguous int16 counts with their steps, or float32 flux densities with steps of 0."""
    if cutouts.ndim != 4 or cutouts.shape[1] != len(bands) or not bands:
        raise InputError(
            f"cutouts_nchw has shape {cutouts.shape}, expected (n, {len(bands)}, h, w) for bands "
            f"{', '.join(bands) or '(none)'}"
        )
    if grid < 1:
        raise InputError(f"grid is {grid}, expected at least 1 patch along each axis")
    counts = cutouts.dtype == np.int16
    if counts != (step is not None):
        raise InputError(
            f"cutouts_nchw is {cutouts.dtype} and step is {'given' if counts < 1 else 'missing'}: "
            "int16 counts need the step that shards.read(…, integers=True) gives beside them, "
            "flux densities have none"
        )
    steps = np.zeros(cutouts.shape[:2], np.float32)
    if step is not None:
        steps = np.ascontiguousarray(step, np.float32)
        if steps.shape != cutouts.shape[:2] or not (np.isfinite(steps) & (steps > 0)).all():
            raise InputError(
                f"step has shape {steps.shape}, expected {cutouts.shape[:2]}: finite and above 0, "
                "in nJy per count"
            )
    if mask is not None:
        cutouts = np.where(_every_band(mask, cutouts.shape), cutouts, BLANK if counts else np.nan)
    return np.ascontiguousarray(cutouts, np.int16 if counts else np.float32), steps


def _every_band(mask: Bools, shape: tuple[int, ...]) -> Bools:
    wanted = (shape, (shape[0], *shape[2:]))
    if mask.shape not in wanted or mask.dtype != bool:
        raise InputError(
            f"mask has shape {mask.shape} and type {mask.dtype}, expected bool of {wanted[0]} or "
            f"{wanted[1]}, true where a pixel may be used"
        )
    return mask if mask.ndim == 4 else mask[:, None]


def _noise(noise_sigma: ArrayLike, shape: tuple[int, ...]) -> tuple[Floats, Bools]:
    """The noise, 1 where it cannot be used, and where it can."""
    noise = np.asarray(noise_sigma, np.float64)
    if noise.shape != shape:
        raise InputError(
            f"noise_sigma has shape {noise.shape}, expected {shape}: (n, bands) in nJy"
        )
    low, high = _NOISE_RANGE_NJY
    good = (noise >= low) & (noise <= high)
    return np.where(good, noise, 1.0), good


def _refuse_noise(noise: NDArray[Any], good: Bools, found: Measurement) -> None:
    bad = np.argwhere(~good & (found.patch[:, :, 0].sum(axis=-1) > 0))
    if len(bad):
        row, band = bad[0]
        raise InputError(
            f"noise_sigma[{row}, {band}] is {noise[row, band]}, expected > 0 and finite (nJy) "
            f"where the band has pixels; {len(bad)} such values: reject these rows"
        )
