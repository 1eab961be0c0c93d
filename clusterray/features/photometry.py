"""Fluxes that can be compared between bands: every band is brought to the widest PSF first."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import sep
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from clusterray.errors import InputError
from clusterray.features.colour import asinh_magnitude

__all__ = ["AperturePhotometry", "aperture_colours", "colours_of", "match_psf"]

Floats = NDArray[np.float64]

_POGSON = 2.5 / np.log(10.0)
_SOFTENING = 1.042
_FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
_REACH_SIGMA = 4.0


@dataclass(frozen=True)
class AperturePhotometry:
    """Flux and error (m, bands) in nJy, colour and error (m, bands − 1) in mag; NaN: not known."""

    flux_njy: Floats
    flux_error_njy: Floats
    colour: Floats
    colour_error: Floats


def colours_of(flux_njy: Floats, error_njy: Floats) -> tuple[Floats, Floats]:
    """Asinh colours of adjacent bands with errors propagated from those of the fluxes.

    σ_m = (2.5/ln 10) σ_f / √(f² + 4b²) with b = 1.042 σ_f, the derivative of the asinh magnitude
    (Lupton, Gunn & Szalay 1999, AJ 118, 1406, eq. 3); errors of two bands are independent.

    Parameters
    ----------
    flux_njy, error_njy : (m, bands), blue to red; NaN where not known.

    Returns
    -------
    colour, error : (m, bands − 1) mag.
    """
    magnitude = asinh_magnitude(flux_njy, sigma_njy=error_njy)
    error = _POGSON * error_njy / np.hypot(flux_njy, 2 * _SOFTENING * error_njy)
    return magnitude[:, :-1] - magnitude[:, 1:], np.hypot(error[:, :-1], error[:, 1:])


def match_psf(planes: NDArray[Any], psf_fwhm_px: ArrayLike) -> NDArray[np.float32]:
    """Convolve each band with the Gaussian that brings its PSF to the width of the widest.

    Parameters
    ----------
    planes : (bands, h, w) flux, finite.
    psf_fwhm_px : (bands,) FWHM; bands of Gaussian PSFs then have one and the same.

    Raises
    ------
    InputError : widths that are not positive numbers, one for each band.
    """
    fwhm = np.asarray(psf_fwhm_px, np.float64)
    if fwhm.shape != (len(planes),) or not (np.isfinite(fwhm) & (fwhm > 0)).all():
        raise InputError(
            f"psf_fwhm_px is {fwhm.tolist()}, expected {len(planes)} positive widths; without "
            "them bands cannot be matched"
        )
    matched = np.array(planes, np.float32)
    for band, sigma in enumerate(_kernel_sigma(fwhm)):
        if sigma > 0:
            ndimage.gaussian_filter(
                planes[band], sigma, output=matched[band], mode="constant", truncate=_REACH_SIGMA
            )
    return matched


def _kernel_sigma(fwhm_px: Floats) -> Floats:
    return np.asarray(np.sqrt(fwhm_px.max() ** 2 - fwhm_px**2) / _FWHM_PER_SIGMA)


def aperture_colours(
    cutout_chw: NDArray[Any],
    *,
    noise_sigma: ArrayLike,
    psf_fwhm_px: ArrayLike,
    x_px: ArrayLike,
    y_px: ArrayLike,
    radius_px: float,
) -> AperturePhotometry:
    """Colours in one fixed round aperture, after matching the PSFs of the bands.

    The error is that of white noise under the aperture convolved with the band's kernel.

    Parameters
    ----------
    cutout_chw : (bands, h, w) flux, nJy; not finite where there is no data.
    noise_sigma : (bands,) noise of a pixel, nJy.
    psf_fwhm_px : (bands,).
    x_px, y_px : (m,) centres, pixel (0, 0) being the centre of the first pixel.

    Returns
    -------
    NaN in bands where the aperture, or what the kernel brings into it, meets an unusable pixel.

    Raises
    ------
    InputError : PSF widths that are not positive, or an aperture of no size.
    """
    if not radius_px > 0:
        raise InputError(f"radius_px is {radius_px}, expected above 0")
    usable = np.isfinite(cutout_chw)
    fwhm = np.asarray(psf_fwhm_px, np.float64)
    noise = np.asarray(noise_sigma, np.float64)
    matched = match_psf(np.where(usable, cutout_chw, 0).astype(np.float32), fwhm)
    x, y = (np.atleast_1d(np.asarray(v, np.float64)) for v in (x_px, y_px))
    flux = np.full((len(x), len(matched)), np.nan)
    for band, (plane, sigma) in enumerate(zip(matched, _kernel_sigma(fwhm), strict=True)):
        missing = (~usable[band]).astype(np.float32)
        sums, _, _ = sep.sum_circle(plane, x, y, radius_px)
        bad, _, cut = sep.sum_circle(missing, x, y, radius_px + _REACH_SIGMA * sigma)
        inside = (bad == 0) & (cut & sep.APER_TRUNC == 0)
        flux[inside, band] = sums[inside]
    effective = [_noise_pixels(radius_px, float(s)) for s in _kernel_sigma(fwhm)]
    error = np.where(np.isfinite(flux), noise * np.sqrt(effective), np.nan)
    return AperturePhotometry(flux, error, *colours_of(flux, error))


@lru_cache(maxsize=64)
def _noise_pixels(radius_px: float, sigma_px: float) -> float:
    """Σ w² over pixels of the aperture convolved with a kernel: its variance in units of σ²."""
    half = int(np.ceil(radius_px + _REACH_SIGMA * sigma_px)) + 2
    single = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    # SEP's own share of each pixel in the aperture, by symmetry from apertures about each pixel.
    single[half, half] = 1.0
    y, x = np.indices(single.shape).reshape(2, -1).astype(np.float64)
    weights, _, _ = sep.sum_circle(single, x, y, radius_px)
    spread = ndimage.gaussian_filter(
        weights.reshape(single.shape), sigma_px, mode="constant", truncate=_REACH_SIGMA
    )
    return float((spread**2).sum())
