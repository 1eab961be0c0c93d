"""Texture and edges of an image in units of its noise."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clusterray.features.patches import patch_edges, patch_sums

__all__ = ["EDGE_SIGMA", "edge_density", "glcm_contrast", "quantise", "sobel_squared", "texture"]

EDGE_SIGMA = 4.0
"""Pure noise passes the edge threshold with probability exp(−EDGE_SIGMA²/2) = 3.4e-4."""

_SOBEL_NOISE_VARIANCE = 12.0
_FAINTEST_SIGMA, _BRIGHTEST_SIGMA, _SOFTENING_SIGMA = -3.0, 1000.0, 3.0


def quantise(planes_sigma: NDArray[np.float32]) -> NDArray[np.int32]:
    """Grey levels 0…255 of an asinh stretch from −3 to 1000 σ, softened at 3 σ; beyond, clipped.

    Parameters
    ----------
    planes_sigma : (c, h, w) flux over noise, finite.
    """
    low, high = np.arcsinh(np.array([_FAINTEST_SIGMA, _BRIGHTEST_SIGMA]) / _SOFTENING_SIGMA)
    stretched = np.arcsinh(planes_sigma / np.float32(_SOFTENING_SIGMA))
    levels = (stretched - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.int32)


def glcm_contrast(
    levels: NDArray[np.int32], usable: NDArray[np.bool_], grid: int, *, axis: int
) -> NDArray[np.float64]:
    """Contrast of the symmetric grey-level co-occurrence matrix at distance 1, for each patch.

    Σ_ij P_ij (i − j)² (Haralick et al. 1973, f2) is the mean of the squared level difference over
    the pairs that P counts, so no matrix is formed. Pairs lie inside one patch, both usable.

    Parameters
    ----------
    levels : (c, h, w) grey levels; usable : (c, h, w).
    axis : 2 for angle 0 (horizontal pairs), 1 for angle 90°.

    Returns
    -------
    (c, grid × grid), NaN where a patch has no pair.
    """
    ahead = [slice(None)] * 3
    behind = [slice(None)] * 3
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    paired = np.zeros(usable.shape, bool)
    paired[tuple(behind)] = usable[tuple(ahead)] & usable[tuple(behind)]
    last_of_patch = np.array(patch_edges(levels.shape[axis], grid)[1:]) - 1
    across: list[Any] = [slice(None)] * 3
    across[axis] = last_of_patch
    paired[tuple(across)] = False
    squared = np.zeros(levels.shape, np.int64)
    squared[tuple(behind)] = (levels[tuple(ahead)] - levels[tuple(behind)]) ** 2
    squared *= paired
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(patch_sums(squared, grid) / patch_sums(paired.astype(np.int64), grid))


def texture(
    planes_sigma: NDArray[np.float32], usable: NDArray[np.bool_], grid: int
) -> NDArray[np.float64]:
    """Mean of the contrast at 0° and 90°: one direction alone would change as the image turns.

    Where a patch has pairs in one direction only, that one.

    Returns
    -------
    (c, grid × grid), NaN where a patch has no pair at all.
    """
    levels = quantise(planes_sigma)
    flat, upright = (glcm_contrast(levels, usable, grid, axis=axis) for axis in (2, 1))
    flat, upright = (
        np.where(np.isnan(flat), upright, flat),
        np.where(np.isnan(upright), flat, upright),
    )
    return np.asarray((flat + upright) / 2)


def sobel_squared(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared length of the Sobel gradient, kernels [−1 0 1] ⊗ [1 2 1] without normalisation."""
    total = np.zeros_like(planes)
    with np.errstate(over="ignore", invalid="ignore"):
        for along, across in ((1, 2), (2, 1)):
            slope = ndimage.correlate1d(planes, [-1.0, 0.0, 1.0], axis=along, mode="nearest")
            total += ndimage.correlate1d(slope, [1.0, 2.0, 1.0], axis=across, mode="nearest") ** 2
    return total


def edge_density(
    planes_sigma: NDArray[np.float32], usable: NDArray[np.bool_], grid: int
) -> NDArray[np.float64]:
    """Share of each patch's pixels whose Sobel gradient exceeds what noise gives.

    White noise of variance 1 gives each Sobel component the variance Σ k² = 2(1² + 2² + 1²) = 12,
    and the two are uncorrelated, so |∇|²/12 follows χ² with two degrees of freedom and exceeds k²
    with probability exp(−k²/2). Where resampling has correlated neighbours (ρ₁, ρ₂ at one and two
    pixels) the variance is (6 + 8ρ₁ + 2ρ₂) · 2(1 − ρ₂), and a little more noise passes.
    Only pixels whose whole 3×3 neighbourhood is usable count; the outermost pixels never do.

    Parameters
    ----------
    planes_sigma : (c, h, w) flux over noise, zero where not usable; usable : (c, h, w).

    Returns
    -------
    (c, grid × grid), NaN where a patch has no such pixel.
    """
    whole = np.zeros(usable.shape, bool)
    rows = usable[:, :-2] & usable[:, 1:-1] & usable[:, 2:]
    whole[:, 1:-1, 1:-1] = rows[:, :, :-2] & rows[:, :, 1:-1] & rows[:, :, 2:]
    threshold = np.float32(EDGE_SIGMA**2 * _SOBEL_NOISE_VARIANCE)
    edges = (sobel_squared(planes_sigma) > threshold) & whole
    with np.errstate(invalid="ignore", divide="ignore"):
        share = patch_sums(edges.astype(np.int64), grid) / patch_sums(whole.astype(np.int64), grid)
    return np.asarray(share)
