"""What lies between the clusters: field galaxies and stars."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from clusterray.simulate.galaxies import field
from clusterray.simulate.observe import flux_counts
from clusterray.simulate.scene import paint, paint_points

__all__ = ["paint_surroundings", "stars"]

Floats = NDArray[np.float64]
_FIELD_PER_ARCMIN2: Final = 30.0
_STARS_PER_ARCMIN2: Final = 1.2
_FAINTEST_MAG_I: Final = 25.5


def stars(n: int, *, rng: np.random.Generator) -> Floats:
    """(n, 3) g, r, i magnitudes of stars at high latitude, i from 17 to 23.

    Colours run along the stellar locus from F to M dwarfs (after Covey et al. 2007).
    """
    mag_i = 17.0 + 6.0 * rng.random(n) ** 0.7
    along = rng.random(n)
    g_r = np.interp(along, [0, 0.6, 1], [0.3, 1.35, 1.45]) + rng.normal(0, 0.03, n)
    r_i = np.interp(along, [0, 0.6, 1], [0.1, 0.55, 1.5]) + rng.normal(0, 0.03, n)
    return np.stack([mag_i + r_i + g_r, mag_i + r_i, mag_i], axis=1)


def paint_surroundings(
    canvas: NDArray[np.float32],
    zero_point: Floats,
    *,
    pixel_arcsec: float,
    rng: np.random.Generator,
) -> None:
    """Add field galaxies (30 per square arcmin to i = 25.5) and stars (1.2) all over a canvas.

    Parameters
    ----------
    canvas : (3, rows, columns) counts in g, r, i, with pixels of `pixel_arcsec`.
    zero_point : (3,) AB magnitude of one count.
    """
    width, height = canvas.shape[2] * pixel_arcsec, canvas.shape[1] * pixel_arcsec
    area_arcmin2 = width * height / 3600
    n = int(rng.poisson(_FIELD_PER_ARCMIN2 * area_arcmin2))
    galaxies = field(n, extent_arcsec=(width, height), faintest_mag_i=_FAINTEST_MAG_I, rng=rng)
    flux = flux_counts(galaxies.mag, zero_point=zero_point)
    paint(canvas, galaxies, flux, pixel_arcsec=pixel_arcsec)
    flux = flux_counts(
        stars(int(rng.poisson(_STARS_PER_ARCMIN2 * area_arcmin2)), rng=rng), zero_point=zero_point
    )
    x, y = rng.random((2, len(flux))) * np.array([[width], [height]])
    paint_points(canvas, x, y, flux, pixel_arcsec=pixel_arcsec)
