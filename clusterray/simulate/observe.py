"""What telescope, sky and detector make of a scene: PSF, pixels, noise."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from astropy.stats import gaussian_sigma_to_fwhm
from numpy.typing import NDArray
from scipy.signal import fftconvolve

__all__ = ["Exposure", "expose", "flux_counts", "noise_sigma", "psf_kernel"]

Floats = NDArray[np.float64]
_MOFFAT_BETA: Final = 3.0


@dataclass(frozen=True)
class Exposure:
    """Observing conditions of one tile in one band.

    `zero_point` is the AB magnitude of one count, `depth_mag` the 5σ point-source depth,
    `psf_fwhm_arcsec` that of a star as delivered (pixel included), `sky_mag` the sky's surface
    brightness per square arcsec, which sets how noise grows under bright objects.
    """

    band: str
    zero_point: float
    depth_mag: float
    psf_fwhm_arcsec: float
    sky_mag: float

    def sigma(self, pixel_arcsec: float) -> float:
        """Sky noise of one pixel, counts."""
        return noise_sigma(
            self.depth_mag,
            zero_point=self.zero_point,
            psf_fwhm_arcsec=self.psf_fwhm_arcsec,
            pixel_arcsec=pixel_arcsec,
        )

    def gain(self, pixel_arcsec: float) -> float:
        """Electrons per count: that at which the sky's Poisson noise is `sigma`."""
        sky = flux_counts(self.sky_mag, zero_point=self.zero_point) * pixel_arcsec**2
        return float(sky / self.sigma(pixel_arcsec) ** 2)


def flux_counts(mag: float | Floats, *, zero_point: float | Floats) -> Floats:
    """Convert an AB magnitude to counts: 10^(0.4 (zero point − mag))."""
    return np.asarray(10 ** (0.4 * (np.asarray(zero_point) - np.asarray(mag))), float)


def noise_sigma(
    depth_mag: float, *, zero_point: float, psf_fwhm_arcsec: float, pixel_arcsec: float
) -> float:
    """Noise of one pixel that gives a 5σ point-source depth.

    A matched Gaussian filter has σ_flux = σ_pixel √(4π) s, s the PSF's σ in pixels
    (King 1983, the noise-equivalent area).
    """
    s_px = psf_fwhm_arcsec / gaussian_sigma_to_fwhm / pixel_arcsec
    five_sigma = float(flux_counts(depth_mag, zero_point=zero_point))
    return float(five_sigma / 5 / np.sqrt(4 * np.pi * s_px**2))


def psf_kernel(fwhm_arcsec: float, *, sample_arcsec: float, pixel_arcsec: float) -> Floats:
    """Sample a round Moffat (β = 3) on odd (n, n) samples, sum 1.

    The width is that left after the variance of the detector pixel is taken out, so that stars
    come out with `fwhm_arcsec`, to about 5 %.
    """
    pixel_fwhm = gaussian_sigma_to_fwhm * pixel_arcsec / np.sqrt(12)
    fwhm = np.sqrt(max(fwhm_arcsec**2 - pixel_fwhm**2, (0.3 * fwhm_arcsec) ** 2))
    core = fwhm / (2 * np.sqrt(2 ** (1 / _MOFFAT_BETA) - 1))
    half = int(np.ceil(5 * fwhm / sample_arcsec))
    r2 = (np.arange(-half, half + 1) * sample_arcsec) ** 2
    kernel = (1 + (r2[:, None] + r2) / core**2) ** -_MOFFAT_BETA
    return np.asarray(kernel / kernel.sum(), float)


def expose(
    scene: NDArray[np.float32],
    exposure: Exposure,
    *,
    pixel_arcsec: float,
    supersampling: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """One band as delivered: PSF, binned to detector pixels, sky and source noise, sky taken off.

    Parameters
    ----------
    scene : (k·rows, k·columns) counts per sample, k = supersampling.
    """
    k = supersampling
    kernel = psf_kernel(
        exposure.psf_fwhm_arcsec, sample_arcsec=pixel_arcsec / k, pixel_arcsec=pixel_arcsec
    )
    blurred = fftconvolve(scene, kernel.astype(np.float32), mode="same")
    rows, columns = scene.shape[0] // k, scene.shape[1] // k
    image = blurred.reshape(rows, k, columns, k).sum(axis=(1, 3))
    variance = exposure.sigma(pixel_arcsec) ** 2 + np.maximum(image, 0) / exposure.gain(
        pixel_arcsec
    )
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(image + np.sqrt(variance) * noise, dtype=np.float32)
