"""Which galaxies are multiply imaged, and whether a survey would see it."""

from typing import Final

import numpy as np
from astropy.stats import gaussian_sigma_to_fwhm
from numpy.typing import NDArray
from scipy import ndimage

from clusterray.simulate.galaxies import Galaxies
from clusterray.simulate.scene import SourcePlane, paint_lensed

__all__ = ["detected_images", "image_positions"]

Floats = NDArray[np.float64]
_ISOPHOTE_SIGMA: Final = 1.5


def image_positions(plane: SourcePlane, x_arcsec: float, y_arcsec: float) -> Floats:
    """Images of a point source: the lens equation solved on a triangulated grid.

    Each grid cell is cut into two triangles; an image lies in every triangle whose map to the
    source plane holds the source (Schneider, Ehlers & Falco 1992, sect. 10.3). Images less than
    about a cell apart can be missed.

    Returns
    -------
    (n, 2) grid column and row, fractional.
    """
    bx, by = plane.beta_arcsec[0] - x_arcsec, plane.beta_arcsec[1] - y_arcsec
    crossed = _straddles(bx) & _straddles(by)
    j, i = np.nonzero(crossed)
    found = []
    # The corner of each triangle, then the neighbours along its row and along its column.
    for corner, along in ((0, 1), (1, 0)):
        p = np.stack([bx[j + corner, i + corner], by[j + corner, i + corner]])
        u = np.stack([bx[j + corner, i + along], by[j + corner, i + along]]) - p
        v = np.stack([bx[j + along, i + corner], by[j + along, i + corner]]) - p
        det = u[0] * v[1] - u[1] * v[0]
        det = np.where(det == 0, np.nan, det)
        s = (-p[0] * v[1] + p[1] * v[0]) / det
        t = (-u[0] * p[1] + u[1] * p[0]) / det
        ok = (s >= 0) & (t >= 0) & (s + t < 1)
        sign = along - corner
        found.append(np.stack([i + corner + sign * s, j + corner + sign * t], axis=1)[ok])
    return np.concatenate(found)


def _straddles(values: Floats) -> NDArray[np.bool_]:
    corners = np.stack([values[:-1, :-1], values[1:, :-1], values[:-1, 1:], values[1:, 1:]])
    return np.asarray((corners.min(axis=0) <= 0) & (corners.max(axis=0) >= 0))


def detected_images(
    plane: SourcePlane,
    galaxies: Galaxies,
    flux: Floats,
    *,
    noise_sigma: Floats,
    psf_fwhm_arcsec: Floats,
    min_snr: float,
    min_separation_arcsec: float,
) -> NDArray[np.int64]:
    """How many images of each galaxy a survey sees inside the grid.

    An image counts when it lies on an isophote (1.5 σ per pixel, in the band where the galaxy
    stands out most, after the PSF) whose signal-to-noise Σf/(σ√N) exceeds `min_snr`. Images that
    melt into one arc or ring count one by one. A galaxy whose images all lie closer together than
    `min_separation_arcsec` has one: that is a member galaxy's lensing, or none that is seen.

    Parameters
    ----------
    flux : (n, bands) unlensed flux.
    noise_sigma : (bands,) noise in one pixel of the plane, unit of `flux`.
    psf_fwhm_arcsec : (bands,)

    Returns
    -------
    (n,) counts; 0 where no image is detected or the grid holds a single one.
    """
    counts = np.zeros(len(galaxies), dtype=np.int64)
    for row in range(len(galaxies)):
        at = image_positions(plane, float(galaxies.x_arcsec[row]), float(galaxies.y_arcsec[row]))
        if len(at) < 2:
            continue
        band = int(np.argmax(flux[row] / (noise_sigma * psf_fwhm_arcsec)))
        image = np.zeros((1, *plane.beta_arcsec.shape[1:]), dtype=np.float32)
        one = np.array([row])
        paint_lensed(image, plane, galaxies.take(one), flux[one][:, [band]], sub=4)
        blur = psf_fwhm_arcsec[band] / gaussian_sigma_to_fwhm / plane.pixel_arcsec
        seen = ndimage.gaussian_filter(image[0], blur, mode="constant") / noise_sigma[band]
        segments, n = ndimage.label(seen > _ISOPHOTE_SIGMA)
        labels = np.arange(1, n + 1)
        pixels = ndimage.sum_labels(np.ones_like(seen), segments, labels)
        bright = np.zeros(n + 1, dtype=bool)
        bright[1:] = ndimage.sum_labels(seen, segments, labels) > min_snr * np.sqrt(pixels)
        i, j = np.rint(at).astype(int).T
        kept = at[bright[segments[j, i]]]
        counts[row] = len(kept)
        if (
            len(kept) > 1
            and np.ptp(kept, axis=0).max() * plane.pixel_arcsec < min_separation_arcsec
        ):
            counts[row] = 1
    return counts
