"""The noise of an image's own pixels, measured on its blank sky."""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["blank_sky"]

_CLIP: Final = 3.0
# The standard deviation of a unit Gaussian cut off at ±3 σ.
_CLIPPED_SIGMA: Final = 0.986578
_SMOOTH_PX: Final = 5
_DETECT: Final = 3.0
_MIN_PIXELS: Final = 100
_MIN_BLANK: Final = 0.05
# Scatter below this share of the values is that of float32 arithmetic.
_ROUNDING: Final = 1e-6


def blank_sky(image: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Noise per pixel and its correlation, on pixels without sources.

    Sources are what stands above the sky by 3 σ after a 5×5 box mean (which also catches the faint
    wings and the light between galaxies), grown by 2 px; the rest is clipped at 3 σ about its
    median. σ is corrected for the clipping of a Gaussian.

    Parameters
    ----------
    image : (h, w), NaN where there is no data.

    Returns
    -------
    sigma : in the units of the image; NaN with fewer than 100 pixels of data, 0 for a constant.
    correlation : σ of 2×2 block means over the σ/2 of white noise, minus 1. NaN where sources leave
        less than 5 % of the image (or 100 pixels) blank; σ is then the spread of the fainter half
        of all pixels, an upper bound.
    """
    blank = np.isfinite(image)
    if np.count_nonzero(blank) < _MIN_PIXELS:
        return float("nan"), float("nan")
    values = image[blank]
    sky, spread = _centre(values)
    # The median, not the largest value: one hot pixel must not make a good image look constant.
    if spread <= _ROUNDING * float(np.median(np.abs(values))):
        return 0.0, float("nan")
    blank &= ~_sources(np.where(blank, image - sky, 0.0), blank)
    if np.count_nonzero(blank) < max(_MIN_PIXELS, _MIN_BLANK * image.size):
        return spread, float("nan")
    sky, spread = _centre(image[blank])
    residual = np.where(blank, image - sky, np.nan)
    sigma = _clipped(residual, spread)
    h, w = (n // 2 * 2 for n in image.shape)
    blocks = residual[:h, :w].reshape(h // 2, 2, w // 2, 2).mean(axis=(1, 3))
    if not sigma > 0 or np.count_nonzero(np.isfinite(blocks)) < _MIN_PIXELS:
        return sigma, float("nan")
    return sigma, _clipped(blocks, sigma) / (sigma / 2) - 1


def _sources(flux: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    smooth = ndimage.uniform_filter(flux, _SMOOTH_PX, mode="constant")
    sky, spread = _centre(smooth[valid])
    found = smooth > sky + _DETECT * spread
    return ndimage.maximum_filter(found, _SMOOTH_PX)  # type: ignore[no-any-return]


def _centre(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Median, and the σ of the fainter half about it, which sources hardly reach."""
    median = float(np.median(values))
    below = values[values < median]
    return median, float(1.4826 * np.median(median - below)) if len(below) else 0.0


def _clipped(residual: npt.NDArray[np.float32], sigma: float) -> float:
    values = residual[np.isfinite(residual)]
    for _ in range(10):
        kept = values[np.abs(values) <= _CLIP * sigma]
        new = float(kept.std(dtype=np.float64)) / _CLIPPED_SIGMA if len(kept) else 0.0
        if abs(new - sigma) <= 1e-3 * sigma:
            return new
        sigma = new
    return sigma
