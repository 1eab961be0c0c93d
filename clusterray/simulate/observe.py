"""What telescope, sky and detector make of a scene: PSF, pixels, noise. Fluxes are in nJy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from astropy.stats import gaussian_sigma_to_fwhm
from numpy.typing import NDArray
from scipy import fft, ndimage

from clusterray.errors import ConfigError
from clusterray.provenance import seed_for
from clusterray.simulate.recipe import Observation
from clusterray.sky.photometry import NJY_ZERO_POINT
from clusterray.sky.surveys import Survey

__all__ = [
    "SKY_MAG",
    "ZERO_POINT",
    "Exposure",
    "blur",
    "completed",
    "conditions",
    "correlation_gain",
    "detect",
    "flux_njy",
    "noise_equivalent_px",
    "noise_sigma_njy",
    "optical_transfer",
]

Floats = NDArray[np.float64]
Image = NDArray[np.float32]

SKY_MAG: Final = {
    # lenstronomy's ObservationConfig; HSC has none there and is given DES' sky, a magnitude
    # darker in z and y, where DES' values hold its brighter nights.
    "lsst": {"u": 22.99, "g": 22.26, "r": 21.2, "i": 20.48, "z": 19.6, "y": 18.61},
    "des": {"g": 22.01, "r": 21.15, "i": 19.89, "z": 18.72, "Y": 17.96},
    "euclid": {"VIS": 22.3, "Y": 22.1, "J": 22.2, "H": 22.3},
    "hsc": {"g": 22.01, "r": 21.15, "i": 19.89, "z": 19.7, "y": 18.9},
    "demo": {"g": 22.0, "r": 21.2, "i": 20.3},
}
"""Surface brightness of the sky, AB mag per square arcsec: it sets how noise grows under light."""
ZERO_POINT: Final = {
    "hsc": {b: 27.0 for b in "grizy"},
    "lsst": {b: NJY_ZERO_POINT for b in "ugrizy"},
    "des": {b: 30.0 for b in "grizY"},
    "euclid": {"VIS": 24.6, "Y": 29.8, "J": 30.0, "H": 29.9},
    "demo": {"g": 29.9, "r": 30.0, "i": 30.1},
}
"""AB magnitude of one count in the tiles of a survey."""
_DEMO: Final = {"g": (0.90, 25.6), "r": (0.80, 25.3), "i": (0.75, 24.9)}
"""PSF FWHM (arcsec) and depth of the demo, a made survey that is known by its headers alone."""


@dataclass(frozen=True)
class Exposure:
    """Conditions in one band.

    `depth_mag` is the 5σ point-source depth, `psf_fwhm_arcsec` that of a star as delivered (pixel
    included), `sky_mag` the sky's surface brightness per square arcsec, `moffat_beta` the exponent
    of the PSF, None of a Gaussian one.
    """

    band: str
    depth_mag: float
    psf_fwhm_arcsec: float
    sky_mag: float
    moffat_beta: float | None = None

    def sigma_njy(self, pixel_arcsec: float) -> float:
        """Sky noise of one pixel."""
        return noise_sigma_njy(
            self.depth_mag,
            psf_fwhm_arcsec=self.psf_fwhm_arcsec,
            pixel_arcsec=pixel_arcsec,
            moffat_beta=self.moffat_beta,
        )

    def gain(self, pixel_arcsec: float) -> float:
        """Electrons per nJy: that at which the sky's Poisson noise is `sigma_njy`."""
        sky = float(flux_njy(self.sky_mag)) * pixel_arcsec**2
        return sky / self.sigma_njy(pixel_arcsec) ** 2


def completed(survey: Survey) -> Survey:
    """Give the survey with the PSF and depth of the demo's bands, where nothing else is set."""
    if survey.name != "demo":
        return survey
    bands = []
    for band in survey.bands:
        fwhm, depth = _DEMO.get(band.name, (None, None))
        bands.append(
            replace(
                band,
                psf_fwhm_arcsec=band.psf_fwhm_arcsec or fwhm,
                depth_mag=band.depth_mag or depth,
            )
        )
    return replace(survey, bands=tuple(bands))


def conditions(survey: Survey, law: Observation, *, seed: int, name: str) -> tuple[Exposure, ...]:
    """Draw the conditions of one tile or cutout: a function of (seed, name).

    Raises
    ------
    ConfigError : a survey that cannot be simulated, or a band of unknown PSF or depth.
    """
    sky = SKY_MAG.get(survey.name, {})
    rng = np.random.default_rng(seed_for(seed, conditions=name))
    seeing = rng.lognormal(0, law.seeing_sigma_ln)
    drawn = []
    for band in survey.bands:
        for key, value in (
            ("psf_fwhm_arcsec", band.psf_fwhm_arcsec),
            ("depth_mag", band.depth_mag),
            ("sky_mag", sky.get(band.name)),
        ):
            if value is None:
                raise ConfigError(
                    f"survey '{survey.name}' cannot be simulated: {key} of band '{band.name}' is "
                    f"not known; choose one of {', '.join(SKY_MAG)}, or set survey.{key}"
                )
        assert band.psf_fwhm_arcsec is not None
        assert band.depth_mag is not None
        drawn.append(
            Exposure(
                band=band.name,
                depth_mag=float(band.depth_mag + rng.normal(0, law.depth_sigma_mag)),
                psf_fwhm_arcsec=float(
                    band.psf_fwhm_arcsec * seeing * rng.lognormal(0, law.band_seeing_sigma_ln)
                ),
                sky_mag=sky[band.name],
                moffat_beta=law.moffat_beta if law.psf == "moffat" else None,
            )
        )
    return tuple(drawn)


def flux_njy(mag: float | Floats) -> Floats:
    """Convert AB magnitudes to nJy."""
    return np.asarray(10 ** (0.4 * (NJY_ZERO_POINT - np.asarray(mag))), float)


def noise_equivalent_px(
    psf_fwhm_arcsec: float, *, pixel_arcsec: float, moffat_beta: float | None = None
) -> float:
    """Noise-equivalent area 1/Σp² of a PSF p, in pixels (King 1983).

    4π s² of a Gaussian of σ = s; π α² (2β − 1)/(β − 1)² of a Moffat (1 + r²/α²)^−β, whose wings
    make it 1.7 times that of a Gaussian of the same FWHM at β = 3.
    """
    fwhm = psf_fwhm_arcsec / pixel_arcsec
    if moffat_beta is None:
        return float(4 * np.pi * (fwhm / gaussian_sigma_to_fwhm) ** 2)
    alpha2 = fwhm**2 / (4 * (2 ** (1 / moffat_beta) - 1))
    return float(np.pi * alpha2 * (2 * moffat_beta - 1) / (moffat_beta - 1) ** 2)


def noise_sigma_njy(
    depth_mag: float,
    *,
    psf_fwhm_arcsec: float,
    pixel_arcsec: float,
    moffat_beta: float | None = None,
) -> float:
    """Noise of one pixel that gives a 5σ point-source depth.

    A matched filter has σ_flux = σ_pixel √A, A the PSF's `noise_equivalent_px`.
    """
    area = noise_equivalent_px(psf_fwhm_arcsec, pixel_arcsec=pixel_arcsec, moffat_beta=moffat_beta)
    return float(flux_njy(depth_mag) / 5 / np.sqrt(area))


def optical_transfer(
    exposure: Exposure,
    law: Observation,
    *,
    shape: tuple[int, int],
    step_arcsec: float,
    pixel_arcsec: float,
) -> NDArray[np.complex64]:
    """Fourier transform of the PSF on a grid of samples, sum 1, centred on sample (0, 0).

    The width is that left after the variance of the detector pixel is taken out, so that stars
    come out with the exposure's FWHM, to about 5 %.
    """
    pixel_fwhm = gaussian_sigma_to_fwhm * pixel_arcsec / np.sqrt(12)
    fwhm = exposure.psf_fwhm_arcsec
    fwhm = float(np.sqrt(max(fwhm**2 - pixel_fwhm**2, (0.3 * fwhm) ** 2)))
    axes = [np.minimum(k := np.arange(n), n - k) * step_arcsec for n in shape]
    r2 = axes[0][:, None] ** 2 + axes[1] ** 2
    if law.psf == "gaussian":
        kernel = np.exp(-0.5 * r2 / (fwhm / gaussian_sigma_to_fwhm) ** 2)
    else:
        core = fwhm / (2 * np.sqrt(2 ** (1 / law.moffat_beta) - 1))
        # An integer power of a Moffat costs a tenth of a real one.
        base = 1 + r2 / core**2
        beta = law.moffat_beta
        kernel = base ** -int(beta) if beta == int(beta) else base**-beta
        kernel[r2 > (8 * fwhm) ** 2] = 0.0
    return np.asarray(fft.rfft2((kernel / kernel.sum()).astype(np.float32)), np.complex64)


def blur(
    scene: Image,
    exposures: Sequence[Exposure],
    law: Observation,
    *,
    step_arcsec: float,
    supersampling: int,
    shift_arcsec: Floats | None = None,
) -> Image:
    """Through the PSF of each band, and binned to detector pixels.

    Parameters
    ----------
    scene : (bands, k·rows, k·columns) flux per sample, k = supersampling.
    shift_arcsec : (bands, 2) displacement along columns and rows, where bands are misaligned.

    Returns
    -------
    (bands, rows, columns)
    """
    k = supersampling
    bands, height, width = scene.shape
    # Wide enough that no light comes round the edge.
    reach = 8 * max(e.psf_fwhm_arcsec for e in exposures) / step_arcsec
    shape = tuple(fft.next_fast_len(int(n + reach), real=True) for n in (height, width))
    out = np.empty((bands, height // k, width // k), np.float32)
    for b, exposure in enumerate(exposures):
        transfer = optical_transfer(
            exposure,
            law,
            shape=(shape[0], shape[1]),
            step_arcsec=step_arcsec,
            pixel_arcsec=step_arcsec * k,
        )
        if shift_arcsec is not None and shift_arcsec[b].any():
            fx, fy = np.fft.rfftfreq(shape[1]), np.fft.fftfreq(shape[0])
            dx, dy = shift_arcsec[b] / step_arcsec
            transfer = transfer * np.exp(-2j * np.pi * (fx * dx + fy[:, None] * dy))
        light = fft.irfft2(fft.rfft2(scene[b], s=shape) * transfer.astype(np.complex64), s=shape)[
            :height, :width
        ]
        out[b] = light.reshape(height // k, k, width // k, k).sum(axis=(1, 3))
    return out


def correlation_gain(law: Observation) -> float:
    """σ of 2×2 block means of the noise over what white noise would give, minus 1."""
    if not law.correlated_noise_px:
        return 0.0
    kernel = _noise_kernel(law)
    auto = ndimage.convolve(np.pad(kernel, len(kernel)), kernel[::-1, ::-1], mode="constant")
    c = auto.shape[0] // 2
    near = auto[c : c + 2, c : c + 2] / auto[c, c]
    return float(np.sqrt(1 + near[0, 1] + near[1, 0] + near[1, 1]) - 1)


def _noise_kernel(law: Observation) -> Floats:
    half = int(np.ceil(4 * law.correlated_noise_px))
    k = np.arange(-half, half + 1)
    one = np.exp(-0.5 * (k / law.correlated_noise_px) ** 2)
    kernel = one[:, None] * one
    return np.asarray(kernel / np.sqrt((kernel**2).sum()), float)


def detect(
    image: Image,
    exposures: Sequence[Exposure],
    law: Observation,
    *,
    pixel_arcsec: float,
    rng: np.random.Generator,
) -> Image:
    """Sky and source noise, and saturation; the sky is taken off.

    Parameters
    ----------
    image : (bands, rows, columns) flux per pixel, changed in place and given back.
    """
    for b, exposure in enumerate(exposures):
        noise = rng.standard_normal(image.shape[1:], dtype=np.float32)
        if law.correlated_noise_px:
            noise = ndimage.gaussian_filter(noise, law.correlated_noise_px, mode="wrap")
            noise /= np.float32(noise.std())
        sigma, gain = exposure.sigma_njy(pixel_arcsec), exposure.gain(pixel_arcsec)
        noise *= np.sqrt(sigma**2 + np.maximum(image[b], 0) / gain, dtype=np.float32)
        image[b] += noise
        np.minimum(image[b], _full_well(exposure, law, pixel_arcsec), out=image[b])
    return image


def _full_well(exposure: Exposure, law: Observation, pixel_arcsec: float) -> np.float32:
    """Flux in the brightest pixel of a star of the saturation magnitude."""
    core = exposure.psf_fwhm_arcsec / gaussian_sigma_to_fwhm
    share = min(1.0, pixel_arcsec**2 / (2 * np.pi * core**2))
    return np.float32(flux_njy(law.saturation_mag) * share)
