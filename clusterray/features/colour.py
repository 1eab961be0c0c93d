"""Colours: asinh magnitude differences and noise-scaled flux differences."""

import numpy as np
from numpy.typing import NDArray

from clusterray.sky.photometry import NJY_ZERO_POINT

__all__ = ["asinh_colour", "asinh_magnitude", "flux_difference"]

Floats = NDArray[np.float64]

_POGSON = 2.5 / np.log(10.0)
_SOFTENING = 1.042
"""Lupton, Gunn & Szalay 1999, sect. 2: the softening that costs least is √1.0857 = 1.042 σ."""


def asinh_magnitude(flux_njy: Floats, *, sigma_njy: Floats) -> Floats:
    """Magnitude that stays defined, with finite variance, at zero and negative flux.

    m = 31.4 − (2.5/ln 10) [asinh(f/2b) + ln b] with b = 1.042 σ (Lupton, Gunn & Szalay 1999, AJ
    118, 1406, eq. 3); for f ≫ b the usual AB magnitude.

    Parameters
    ----------
    flux_njy, sigma_njy : any shape, flux density and its standard error (> 0).
    """
    softening = _SOFTENING * sigma_njy
    with np.errstate(divide="ignore", invalid="ignore"):
        luptitude = np.arcsinh(flux_njy / (2 * softening)) + np.log(softening)
    return np.asarray(NJY_ZERO_POINT - _POGSON * luptitude)


def asinh_colour(
    count: Floats, blue_njy: Floats, red_njy: Floats, *, blue_sigma: Floats, red_sigma: Floats
) -> Floats:
    """Colour of the mean flux of some pixels, softened at the noise of that mean.

    Parameters
    ----------
    count : number of pixels.
    blue_njy, red_njy : their mean flux in two bands, nJy.
    blue_sigma, red_sigma : noise of one pixel, nJy. All broadcast.

    Returns
    -------
    Magnitudes, blue minus red; NaN where there is no pixel.
    """
    root = np.sqrt(np.where(count > 0, count, np.nan))
    blue = asinh_magnitude(blue_njy, sigma_njy=blue_sigma / root)
    return blue - asinh_magnitude(red_njy, sigma_njy=red_sigma / root)


def flux_difference(
    count: Floats, blue_njy: Floats, red_njy: Floats, *, blue_sigma: Floats, red_sigma: Floats
) -> Floats:
    """Mean flux in the blue band minus that in the red, over the noise of one pixel's difference.

    Parameters and shapes are those of `asinh_colour`. NaN where there is no pixel.
    """
    number = np.where(count > 0, 1.0, np.nan)
    return np.asarray(number * (blue_njy - red_njy) / np.hypot(blue_sigma, red_sigma))
