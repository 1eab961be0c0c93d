"""Where patches and annuli lie in an image of a given size."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["N_ANNULI", "annulus_of_pixel", "bin_factor", "layout", "patch_areas", "patch_edges"]

N_ANNULI = 5
"""Annuli of equal width that fill the circle inscribed in the cutout."""


def bin_factor(size_px: int, max_size_px: int) -> int:
    """Smallest whole k for which blocks of k × k pixels make an image of at most this size."""
    return -(-size_px // max_size_px)


@lru_cache(maxsize=64)
def patch_edges(length_px: int, grid: int) -> tuple[int, ...]:
    """Where the cells of an axis begin, and the axis' length.

    Mirror-symmetric, so that a flipped image has flipped patches; only an odd axis cut into an
    even number of cells has no such edges.
    """
    half = [int(i * length_px / grid + 0.5) for i in range(grid // 2 + 1)]
    mirrored = [length_px - e for e in reversed(half[: (grid + 1) // 2])]
    return (*half, *mirrored)


def patch_areas(height_px: int, width_px: int, grid: int) -> NDArray[np.int64]:
    """(grid × grid) pixels of each patch, in row order."""
    rows, columns = (np.diff(patch_edges(length, grid)) for length in (height_px, width_px))
    return np.outer(rows, columns).ravel()


@lru_cache(maxsize=16)
def annulus_of_pixel(height_px: int, width_px: int) -> NDArray[np.intp]:
    """(h, w) which annulus each pixel centre lies in; N_ANNULI outside the inscribed circle."""
    rows, columns = _offsets(height_px, width_px)
    radius = np.hypot(rows, columns) / (min(height_px, width_px) / 2)
    annulus: NDArray[np.intp] = np.minimum(radius * N_ANNULI, N_ANNULI).astype(np.intp)
    return annulus


def _offsets(height_px: int, width_px: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rows, columns = np.indices((height_px, width_px))
    return rows - (height_px - 1) / 2, columns - (width_px - 1) / 2


def _annuli(height_px: int, width_px: int) -> tuple[NDArray[Any], ...]:
    """The annuli on a folded image; see `kernels.annuli`."""
    annulus = annulus_of_pixel(height_px, width_px)
    quarter = annulus[(height_px - 1) // 2 :: -1, : (width_px + 1) // 2]
    rows = [np.flatnonzero((quarter == number).any(axis=1)) for number in range(N_ANNULI)]
    ends = np.array([row[-1] + 1 if len(row) else 0 for row in rows]) * quarter.shape[1]
    areas = np.bincount(annulus.ravel(), minlength=N_ANNULI)[:N_ANNULI].astype(np.float64)
    return np.ascontiguousarray(quarter, np.int32).ravel(), ends, areas


@lru_cache(maxsize=16)
def layout(height_px: int, width_px: int, grid: int) -> tuple[Any, ...]:
    """What `kernels.measure` wants to know about the image: patches, annuli, position angles."""
    rows, columns = (np.array(patch_edges(length, grid)) for length in (height_px, width_px))
    y, x = _offsets(height_px, width_px)
    angle, anywhere = 2 * np.arctan2(y, x), np.hypot(x, y) > 0
    # The centre itself has no position angle, and counts as aligned with nothing.
    turned = ((anywhere * wave(angle)).astype(np.float32) for wave in (np.cos, np.sin))
    return (rows, columns, _annuli(height_px, width_px), *turned)
