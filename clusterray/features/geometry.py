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


def _annulus_runs(height_px: int, width_px: int) -> tuple[NDArray[Any], ...]:
    """The annuli as runs of pixels; see `kernels.annuli`. Planes have a border of one pixel."""
    annulus = annulus_of_pixel(height_px, width_px)
    runs, starts = [], [0]
    for number in range(N_ANNULI):
        for y, inside in enumerate(annulus == number):
            steps = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]])))
            runs += [(y + 1, a + 1, b + 1) for a, b in steps.reshape(-1, 2)]
        starts.append(len(runs))
    # Unsigned: the compiled loop then need not ask for negative indices.
    columns = np.array(runs, np.uint32).reshape(-1, 3).T
    return (np.array(starts), *(np.ascontiguousarray(c) for c in columns))


@lru_cache(maxsize=16)
def layout(height_px: int, width_px: int, grid: int) -> tuple[Any, ...]:
    """What `kernels.measure` wants to know about the image: patches, annuli, position angles."""
    rows, columns = (np.array(patch_edges(length, grid)) for length in (height_px, width_px))
    y, x = _offsets(height_px, width_px)
    angle, anywhere = 2 * np.arctan2(y, x), np.hypot(x, y) > 0
    # The centre itself has no position angle, and counts as aligned with nothing.
    turned = ((anywhere * wave(angle)).astype(np.float32) for wave in (np.cos, np.sin))
    return (rows, columns, _annulus_runs(height_px, width_px), *turned)
