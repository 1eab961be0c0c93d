"""What is true of a system: which galaxies are multiply imaged, and whether a survey sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from astropy.stats import gaussian_sigma_to_fwhm
from numpy.typing import NDArray
from scipy import ndimage

from clusterray.simulate.frame import Frame
from clusterray.simulate.galaxies import Galaxies
from clusterray.simulate.lensing import LensPlane, image_positions
from clusterray.simulate.observe import Exposure, flux_njy
from clusterray.simulate.recipe import Criterion
from clusterray.simulate.sersic import add_lensed
from clusterray.simulate.system import System

__all__ = ["Images", "arc_mask", "find_images", "truth_row"]

Floats = NDArray[np.float64]
ISOPHOTE_SIGMA: Final = 1.5
# Fainter images, such as the central one of a cuspy halo, are not counter-images to look for.
_MIN_MAGNIFICATION: Final = 0.1


@dataclass(frozen=True, eq=False)
class Images:
    """Images of galaxies behind a lens: of those with two or more, one row each.

    `galaxy` names the galaxy by row, `mag` is the lensed AB magnitude in the band that shows the
    galaxy best, `snr` the isophotal S/N of where the image lies, NaN where it is not seen. `count`
    (galaxies,) is how many images of each galaxy a survey sees, `band` (galaxies,) its best band.
    """

    galaxy: NDArray[np.int64]
    x_arcsec: Floats
    y_arcsec: Floats
    magnification: Floats
    mag: Floats
    snr: Floats
    inside: NDArray[np.bool_]
    count: NDArray[np.int64]
    band: NDArray[np.int64]

    @property
    def multiple(self) -> NDArray[np.int64]:
        """Galaxies of which two or more images are seen."""
        return np.flatnonzero(self.count >= 2)


def find_images(
    galaxies: Galaxies,
    lens: LensPlane,
    frame: Frame,
    exposures: Sequence[Exposure],
    criterion: Criterion,
) -> Images:
    """Solve the lens equation for each galaxy, and look for its images in the noise.

    An image counts when it lies on an isophote (1.5 σ per pixel, in the band where the galaxy
    stands out most, after the PSF) whose signal-to-noise Σf/(σ√N) exceeds `min_snr`. Images that
    melt into one arc or ring count one by one. A galaxy whose images all lie closer together than
    `min_separation_arcsec` has one: that is a member galaxy's lensing, or none that is seen.
    """
    n = len(galaxies)
    sigma = np.array([e.sigma_njy(frame.pixel_arcsec) for e in exposures])
    fwhm = np.array([e.psf_fwhm_arcsec for e in exposures])
    flux = flux_njy(galaxies.mag)
    band = np.argmax(flux / (sigma * fwhm), axis=1) if n else np.zeros(0, np.int64)
    count = np.zeros(n, np.int64)
    rows: list[NDArray[Any]] = []
    for z in np.unique(galaxies.z):
        members = np.flatnonzero(galaxies.z == z)
        places = image_positions(
            lens, float(z), galaxies.x_arcsec[members], galaxies.y_arcsec[members]
        )
        for row, at in zip(members, places, strict=True):
            if len(at) < 2:
                continue
            b = int(band[row])
            image = _seen(galaxies.take(np.array([row])), flux[row, b], lens, frame, fwhm[b])
            snr = _isophotal_snr(image / sigma[b], at, frame)
            kept = at[snr > criterion.min_snr]
            count[row] = len(kept)
            if len(kept) > 1 and np.ptp(kept, axis=0).max() < criterion.min_separation_arcsec:
                count[row] = 1
            magnification = lens.magnification(float(z), *at.T)
            mag = galaxies.mag[row, b] - 2.5 * np.log10(np.abs(magnification))
            rows.append(np.column_stack([np.full(len(at), row), at, magnification, mag, snr]))
    table = np.concatenate(rows) if rows else np.empty((0, 6))
    x, y, magnification, mag, snr = table[:, 1:].T
    return Images(
        galaxy=table[:, 0].astype(np.int64),
        x_arcsec=x,
        y_arcsec=y,
        magnification=magnification,
        mag=mag,
        snr=snr,
        inside=np.maximum(np.abs(x), np.abs(y)) < frame.half_field_arcsec,
        count=count,
        band=np.asarray(band, np.int64),
    )


def _seen(galaxy: Galaxies, flux: float, lens: LensPlane, frame: Frame, fwhm: float) -> Floats:
    """(size, size) lensed flux per pixel in one band, after a Gaussian PSF."""
    canvas = np.zeros((1, frame.n_samples, frame.n_samples), np.float32)
    add_lensed(canvas, lens, galaxy, np.array([[flux]]))
    k = frame.supersampling
    n = frame.n_samples // k
    image = canvas.reshape(n, k, n, k).sum(axis=(1, 3))
    blurred = ndimage.gaussian_filter(
        image, fwhm / gaussian_sigma_to_fwhm / frame.pixel_arcsec, mode="constant"
    )
    return np.asarray(blurred[frame.kept(), frame.kept()], float)


def _isophotal_snr(significance: Floats, at: Floats, frame: Frame) -> Floats:
    """(n,) S/N of the isophote that each of (n, 2) places lies on, NaN where there is none."""
    segments, n = ndimage.label(significance > ISOPHOTE_SIGMA)
    labels = np.arange(1, n + 1)
    snr = np.full(n + 1, np.nan)
    if n:
        pixels = np.bincount(segments.ravel(), minlength=n + 1)[1:]
        snr[1:] = ndimage.sum_labels(significance, segments, labels) / np.sqrt(pixels)
    i, j = frame.pixel_of(at).T
    inside = (np.abs(at) < frame.half_field_arcsec).all(axis=1)
    out = np.full(len(at), np.nan)
    out[inside] = snr[segments[j[inside], i[inside]]]
    return out


def arc_mask(image: NDArray[np.float32], exposures: Sequence[Exposure], frame: Frame) -> Any:
    """(size, size) bool: where light (bands, size, size) alone stands 1.5 σ above the noise."""
    sigma = np.array([e.sigma_njy(frame.pixel_arcsec) for e in exposures])
    return (image > ISOPHOTE_SIGMA * sigma[:, None, None]).any(axis=0)


def truth_row(
    system: System,
    images: Images | None,
    n_field: int,
    *,
    exposures: Sequence[Exposure],
    frame: Frame,
    reference_z_source: float,
) -> dict[str, Any]:
    """One row of `schema.TRUTH`, but for the arc mask.

    Parameters
    ----------
    images : of the background cluster's members (or single source), where its light is deflected.
    n_field : multiply imaged field galaxies.
    """
    lens = system.foreground
    z_source = system.z_source
    behind = z_source is not None and z_source > lens.z_lens
    curves = lens.critical_curves(z_source if behind and z_source else reference_z_source)
    reference = lens.theta_e_arcsec(reference_z_source)
    theta_e = lens.theta_e_arcsec(z_source) if behind and z_source else reference
    sharpest = min(e.psf_fwhm_arcsec for e in exposures)
    row: dict[str, Any] = {
        "object_id": system.object_id,
        "y": system.y,
        "kind": system.kind,
        "z_lens": lens.z_lens,
        "z_source": z_source,
        "m200_msun": lens.m200_msun,
        "richness": lens.richness,
        "theta_e_arcsec": theta_e,
        "theta_e_reference_arcsec": reference,
        "theta_e_over_fwhm": theta_e / sharpest,
        "n_multiply_imaged": 0 if images is None else len(images.multiple),
        "n_field_multiply_imaged": n_field,
        "tries": system.tries,
        "critical_x_arcsec": _joined([c[:, 0] for c in curves]),
        "critical_y_arcsec": _joined([c[:, 1] for c in curves]),
    }
    lensed = system.source if system.background is None else system.background.members
    if images is not None and lensed is not None and len(images.multiple):
        row |= _of_images(images, lensed)
    return row


def _of_images(images: Images, lensed: Galaxies) -> dict[str, Any]:
    """Columns on the images of multiply imaged galaxies."""
    of_multiple = np.isin(images.galaxy, images.multiple)
    seen = np.where(of_multiple & images.inside, np.nan_to_num(images.snr), 0.0)
    best = int(np.argmax(seen))
    galaxy = int(images.galaxy[best])
    counted = of_multiple & (np.abs(images.magnification) > _MIN_MAGNIFICATION)
    own = counted & (images.galaxy == galaxy)
    return {
        "arc_snr": float(seen[best]),
        "source_mag": float(lensed.mag[galaxy, images.band[galaxy]]),
        "magnification": float(np.abs(images.magnification[own]).sum()),
        "share_outside": float(1 - images.inside[counted].mean()),
        "image_galaxy": images.galaxy[of_multiple],
        "image_x_arcsec": images.x_arcsec[of_multiple],
        "image_y_arcsec": images.y_arcsec[of_multiple],
        "image_magnification": images.magnification[of_multiple],
        "image_mag": images.mag[of_multiple],
        "image_snr": images.snr[of_multiple],
    }


def _joined(parts: list[Floats]) -> Floats:
    """Arrays one after another, with a NaN between them."""
    if not parts:
        return np.empty(0)
    return np.concatenate([np.append(p, np.nan) for p in parts])[:-1]
