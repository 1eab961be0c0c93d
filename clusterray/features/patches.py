"""What is said of the patches of a cutout, from the sums that the compiled loops give."""

from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import InputError
from clusterray.features.colour import asinh_colour, flux_difference
from clusterray.features.geometry import patch_areas
from clusterray.features.measurement import Measurement

__all__ = ["aggregate", "patch_positions", "patch_values", "rest_contrast"]

Floats = NDArray[np.float64]

_TOP = 3


def patch_values(found: Measurement, *, grid: int) -> Floats:
    """(n, patches, features) in the order of `image_registry.patch_features`.

    NaN where the registry says so.
    """
    number, mean, square = (found.patch[:, :, k] for k in range(3))
    count = np.where(number > 0, number, np.nan)
    seen = mean + 0 * count
    parts = [
        number / patch_areas(found.height_px, found.width_px, grid),
        seen,
        np.sqrt(square / count),
        found.patch[:, :, 3],
        rest_contrast(number, mean, square),
        *(found.patch[:, :, k] for k in (4, 5, 6)),
    ]
    blue, red = found.noise[:, :-1, None], found.noise[:, 1:, None]
    pairs = (found.pair[:, :, 0], found.pair[:, :, 1] * blue, found.pair[:, :, 2] * red)
    parts += [
        asinh_colour(*pairs, blue_sigma=blue, red_sigma=red),
        flux_difference(*pairs, blue_sigma=blue, red_sigma=red),
    ]
    return np.concatenate(parts, axis=1).swapaxes(1, 2)


def rest_contrast(number: Floats, mean: Floats, square: Floats) -> Floats:
    """How each patch stands out from the others, in units of their pixels' scatter.

    Parameters
    ----------
    number, mean, square : (…, patches) of pixels in units of the noise: how many, their mean, and
        their summed squared deviation from it.

    Returns
    -------
    (…, patches) of (mean − mean of the rest) / max(standard deviation of the rest, 1); NaN where a
    patch has no pixel, or the others have none.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        every = _sum(number)
        centre = (_sum(number * mean) / np.maximum(every, 1.0))[..., None]
        offset = mean - centre
        count = every[..., None] - number
        rest = -number * offset / count
        scatter = _sum(square + number * offset**2)[..., None] - square - number * offset**2
        spread = np.sqrt(np.maximum(scatter / count - rest**2, 0.0))
        contrast = (offset - rest) / np.maximum(spread, 1.0)
    return np.where((number > 0) & (count > 0), contrast, np.nan)


def _sum(values: Floats) -> Floats:
    """Sum over the last axis, one term after the other: numpy's own order depends on the shape."""
    return reduce(np.add, np.moveaxis(values, -1, 0))


def patch_positions(grid: int) -> Floats:
    """(patches, 3) centre of each patch: x, y and distance from the cutout's centre.

    In units of half the cutout's side; x and y from −1 to 1.
    """
    centre = (2 * np.arange(grid) + 1) / grid - 1
    y, x = (c.ravel() for c in np.meshgrid(centre, centre, indexing="ij"))
    return np.column_stack([x, y, np.hypot(x, y)])


def aggregate(
    scores: ArrayLike, *, n_patches: int, how: Literal["max", "top3"] = "max"
) -> NDArray[np.float64]:
    """Score of a cutout from the scores that a model of the patch table gives its patches.

    Parameters
    ----------
    scores : (n · n_patches,) in the order of the patch table, higher is more lens-like.
    how : "max" takes the best patch, "top3" the mean of the best three (or of all, if fewer).

    Returns
    -------
    (n,).

    Raises
    ------
    InputError : scores that are no whole number of cutouts, or another `how`.
    """
    flat = np.asarray(scores, np.float64)
    if n_patches < 1 or flat.ndim != 1 or len(flat) % n_patches:
        raise InputError(
            f"{flat.shape} scores are not those of whole cutouts of {n_patches} patches; give one "
            "score for each row of the patch table"
        )
    tops: dict[str, int] = {"max": 1, "top3": min(_TOP, n_patches)}
    if how not in tops:
        raise InputError(f"how is {how!r}, expected {' or '.join(map(repr, tops))}")
    best = np.sort(flat.reshape(-1, n_patches), axis=1)[:, -tops[how] :]
    return np.asarray(np.mean(best, axis=1))
