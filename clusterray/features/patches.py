"""Moments over the cells of an n×n grid, with masked pixels left out."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["moments", "patch_edges", "patch_sums", "rest_contrast"]

Floats = NDArray[np.float64]


@lru_cache(maxsize=64)
def patch_edges(length_px: int, grid: int) -> tuple[int, ...]:
    """Where the cells of an axis begin, and the axis' length.

    Mirror-symmetric, so that a flipped image has flipped patches; only an odd axis cut into an
    even number of cells has no such edges.
    """
    half = [int(i * length_px / grid + 0.5) for i in range(grid // 2 + 1)]
    mirrored = [length_px - e for e in reversed(half[: (grid + 1) // 2])]
    return (*half, *mirrored)


def patch_sums(planes: NDArray[Any], grid: int) -> NDArray[Any]:
    """Sum over each patch.

    Parameters
    ----------
    planes : (c, h, w), zero where masked.

    Returns
    -------
    (c, grid × grid) sums, patches in row order.
    """
    rows = patch_edges(planes.shape[1], grid)[:-1]
    columns = patch_edges(planes.shape[2], grid)[:-1]
    sums = np.add.reduceat(np.add.reduceat(planes, columns, axis=2), rows, axis=1)
    return np.asarray(sums.reshape(len(planes), grid * grid))


def moments(count: Floats, total: Floats, total_of_squares: Floats) -> tuple[Floats, Floats]:
    """Mean and population standard deviation from sums; NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        variance = total_of_squares / count - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0))


def rest_contrast(count: Floats, total: Floats, total_of_squares: Floats) -> Floats:
    """How each patch stands out from the others, in units of their pixels' scatter.

    Parameters
    ----------
    count, total, total_of_squares : (bands, patches) of pixels in units of the noise.

    Returns
    -------
    (bands, patches) of (mean − mean of the rest) / max(standard deviation of the rest, 1).
    """
    mean, _ = moments(count, total, total_of_squares)
    rest_mean, rest_std = moments(
        count.sum(axis=1, keepdims=True) - count,
        total.sum(axis=1, keepdims=True) - total,
        total_of_squares.sum(axis=1, keepdims=True) - total_of_squares,
    )
    return np.asarray((mean - rest_mean) / np.maximum(rest_std, 1.0))
