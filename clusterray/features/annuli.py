"""Radial profile about the centre of the cutout: where the light and the blue light are."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterray.features.registry import N_ANNULI

__all__ = ["annulus_of_pixel", "annulus_sums", "blue_residual"]

Floats = NDArray[np.float64]

_RESIDUAL_SIGMA = 3.0
_CENTRE_SIGMA = 5.0


@lru_cache(maxsize=16)
def annulus_of_pixel(height_px: int, width_px: int) -> NDArray[np.intp]:
    """Which annulus each pixel centre lies in; N_ANNULI outside the inscribed circle.

    Returns
    -------
    (h × w,) flat.
    """
    rows, columns = np.indices((height_px, width_px))
    half = min(height_px, width_px) / 2
    radius = np.hypot(rows - (height_px - 1) / 2, columns - (width_px - 1) / 2) / half
    ring: NDArray[np.intp] = np.minimum(radius * N_ANNULI, N_ANNULI).astype(np.intp)
    return ring.ravel()


def annulus_sums(planes: NDArray[Any]) -> Floats:
    """Sum over each annulus.

    Parameters
    ----------
    planes : (c, h, w), zero where masked.

    Returns
    -------
    (c, N_ANNULI).
    """
    ring = annulus_of_pixel(*planes.shape[1:])
    sums = np.zeros((len(planes), N_ANNULI))
    for row, plane in enumerate(planes):
        sums[row] = np.bincount(ring, plane.ravel(), N_ANNULI + 1)[:N_ANNULI]
    return sums


def blue_residual(
    blue_njy: Floats,
    red_njy: Floats,
    usable: NDArray[np.bool_],
    *,
    blue_sigma_njy: float,
    red_sigma_njy: float,
) -> Floats:
    """Share of each annulus that is bluer than the centre, where lensed star-forming galaxies are.

    With α = F_blue/F_red of the innermost circle, light of the centre's colour cancels in
    f_blue − α f_red (after RingFinder: Gavazzi et al. 2014, ApJ 785, 144, sect. 3.1); pixels
    above 3 times √(σ_blue² + α² σ_red²) are counted. A negative α is taken for 0.

    Parameters
    ----------
    blue_njy, red_njy, usable : (h, w); fluxes zero where not usable in both.

    Returns
    -------
    (N_ANNULI,), NaN where no pixel is usable, and everywhere when the innermost circle has less
    than 5 σ in the red band.
    """
    count, blue_sum, red_sum = annulus_sums(np.stack([usable, blue_njy, red_njy]))
    if red_sum[0] <= _CENTRE_SIGMA * red_sigma_njy * np.sqrt(count[0]):
        return np.full(N_ANNULI, np.nan)
    alpha = max(blue_sum[0] / red_sum[0], 0.0)
    excess = blue_njy - alpha * red_njy > _RESIDUAL_SIGMA * np.hypot(
        blue_sigma_njy, alpha * red_sigma_njy
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(annulus_sums((excess & usable)[None].astype(np.float64))[0] / count)
