"""What detectors, optics and pipelines add to an image that is none of the sky's doing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from astropy.stats import gaussian_sigma_to_fwhm
from numpy.typing import NDArray

from clusterray.simulate.observe import Exposure, flux_njy

__all__ = ["Artefact", "add_after_noise", "add_before_noise", "mismatched", "shifts_arcsec"]

Floats = NDArray[np.float64]
Image = NDArray[np.float32]

_WING_ARCSEC: Final = 1.2
_SPIKE_SHARE: Final = 0.004


@dataclass(frozen=True, eq=False)
class Artefact:
    """One fault of one cutout, in one band where it is not that of all.

    star: at (`x_arcsec`, `y_arcsec`) from the centre, `mag` (bands,), with `n_spikes` along
    `angle_rad`. trail: through that place along `angle_rad`, `size` σ at its crest. cosmic_rays:
    `n_spikes` tracks of up to `size` σ, from `seed`. gap: no data beyond a line through that
    place, normal to `angle_rad`. shift: by (`x_arcsec`, `y_arcsec`). blur: FWHM times `size`.
    """

    fault: Literal["star", "trail", "cosmic_rays", "gap", "shift", "blur"]
    band: int = 0
    x_arcsec: float = 0.0
    y_arcsec: float = 0.0
    angle_rad: float = 0.0
    size: float = 0.0
    n_spikes: int = 0
    mag: Floats | None = None
    seed: int = 0


def shifts_arcsec(artefact: Artefact | None, n_bands: int) -> Floats | None:
    """(bands, 2) displacement of each band, or None."""
    if artefact is None or artefact.fault != "shift":
        return None
    shift = np.zeros((n_bands, 2))
    shift[artefact.band] = artefact.x_arcsec, artefact.y_arcsec
    return shift


def mismatched(artefact: Artefact | None, exposures: Sequence[Exposure]) -> tuple[Exposure, ...]:
    """Give the exposures with the PSF of one band widened, if that is the fault.

    The sky's noise stays what it was, so the depth of that band drops with its sharpness.
    """
    if artefact is None or artefact.fault != "blur":
        return tuple(exposures)
    out = list(exposures)
    one = out[artefact.band]
    out[artefact.band] = replace(
        one,
        depth_mag=one.depth_mag - 2.5 * float(np.log10(artefact.size)),
        psf_fwhm_arcsec=one.psf_fwhm_arcsec * artefact.size,
    )
    return tuple(out)


def add_before_noise(
    image: Image, artefact: Artefact | None, exposures: Sequence[Exposure], *, pixel_arcsec: float
) -> None:
    """Add what brings light of its own: a star with wings and spikes, a satellite's trail."""
    if artefact is None or artefact.fault not in ("star", "trail"):
        return
    x, y = _offsets(image, artefact, pixel_arcsec)
    cos, sin = np.cos(artefact.angle_rad), np.sin(artefact.angle_rad)
    across = y * cos - x * sin
    if artefact.fault == "trail":
        exposure = exposures[artefact.band]
        width = exposure.psf_fwhm_arcsec / gaussian_sigma_to_fwhm
        crest = artefact.size * exposure.sigma_njy(pixel_arcsec)
        image[artefact.band] += (crest * np.exp(-0.5 * (across / width) ** 2)).astype(np.float32)
        return
    assert artefact.mag is not None
    radius = np.hypot(x, y)
    for b, (exposure, mag) in enumerate(zip(exposures, artefact.mag, strict=True)):
        flux = float(flux_njy(float(mag))) * pixel_arcsec**2
        core = exposure.psf_fwhm_arcsec / (2 * np.sqrt(2 ** (1 / 2.5) - 1))
        light = 1.5 / (np.pi * core**2) * (1 + (radius / core) ** 2) ** -2.5
        # The aureole of optics and air: a tenth of a per cent at 10 FWHM (King 1971), to r^-2.
        light += 2e-3 / (np.pi * _WING_ARCSEC**2) / (1 + (radius / _WING_ARCSEC) ** 2)
        light += _spikes(artefact, x, y, width=0.6 * exposure.psf_fwhm_arcsec)
        image[b] += (flux * light).astype(np.float32)


def _spikes(artefact: Artefact, x: Floats, y: Floats, *, width: float) -> Floats:
    """Diffraction spikes of a spider: as wide as the PSF, falling with distance."""
    light = np.zeros_like(x)
    for k in range(artefact.n_spikes // 2):
        angle = artefact.angle_rad + k * 2 * np.pi / artefact.n_spikes
        along = np.abs(x * np.cos(angle) + y * np.sin(angle))
        across = y * np.cos(angle) - x * np.sin(angle)
        light += _SPIKE_SHARE * np.exp(-0.5 * (across / width) ** 2 - along / 12.0) / (1 + along)
    return light


def add_after_noise(
    image: Image, artefact: Artefact | None, exposures: Sequence[Exposure], *, pixel_arcsec: float
) -> None:
    """Add what no PSF has touched: cosmic rays; and take away what was never observed."""
    if artefact is None:
        return
    if artefact.fault == "gap":
        x, y = _offsets(image, artefact, pixel_arcsec)
        beyond = x * np.cos(artefact.angle_rad) + y * np.sin(artefact.angle_rad) > 0
        image[artefact.band][beyond] = np.nan
    elif artefact.fault == "cosmic_rays":
        rng = np.random.default_rng(artefact.seed)
        rows, columns = image.shape[1:]
        sigma = exposures[artefact.band].sigma_njy(pixel_arcsec)
        for _ in range(artefact.n_spikes):
            length = int(rng.integers(2, 25))
            angle, at = rng.uniform(0, 2 * np.pi), rng.random(2) * (rows, columns)
            step = np.arange(length)
            j = np.clip((at[0] + step * np.sin(angle)).astype(int), 0, rows - 1)
            i = np.clip((at[1] + step * np.cos(angle)).astype(int), 0, columns - 1)
            image[artefact.band, j, i] += np.float32(sigma * artefact.size * rng.uniform(0.2, 1.0))


def _offsets(image: Image, artefact: Artefact, pixel_arcsec: float) -> tuple[Floats, Floats]:
    rows, columns = image.shape[1:]
    x, y = np.meshgrid(
        (np.arange(columns) - (columns - 1) / 2) * pixel_arcsec - artefact.x_arcsec,
        (np.arange(rows) - (rows - 1) / 2) * pixel_arcsec - artefact.y_arcsec,
    )
    return x, y
