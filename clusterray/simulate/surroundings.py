"""What lies between and behind the clusters: field galaxies and stars."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from clusterray.simulate.galaxies import Galaxies, field
from clusterray.simulate.recipe import SurroundingsRecipe
from clusterray.simulate.spectra import Photometry

__all__ = ["draw_field", "draw_stars"]

Floats = NDArray[np.float64]
_FAINTEST_MAG_I: Final = 25.5


def draw_field(
    extent_arcsec: tuple[float, float],
    law: SurroundingsRecipe,
    *,
    photometry: Photometry,
    rng: np.random.Generator,
) -> Galaxies:
    """Draw field galaxies to i = 25.5, uniform over a rectangle about (0, 0)."""
    width, height = extent_arcsec
    n = int(rng.poisson(law.galaxies_per_arcmin2 * width * height / 3600))
    drawn = field(
        n,
        extent_arcsec=extent_arcsec,
        faintest_mag_i=_FAINTEST_MAG_I,
        photometry=photometry,
        rng=rng,
    )
    return drawn.moved(-width / 2, -height / 2)


def draw_stars(
    extent_arcsec: tuple[float, float],
    law: SurroundingsRecipe,
    *,
    photometry: Photometry,
    rng: np.random.Generator,
) -> tuple[Floats, Floats, Floats]:
    """Draw stars at high latitude, i from 17 to 23, over a rectangle about (0, 0).

    Returns
    -------
    (n,) x, (n,) y in arcsec and (n, bands) AB magnitudes.
    """
    width, height = extent_arcsec
    n = int(rng.poisson(law.stars_per_arcmin2 * width * height / 3600))
    mag = photometry.star_magnitudes(
        17.0 + 6.0 * rng.random(n) ** 0.7, temperature_k=rng.uniform(3200, 7200, n)
    )
    x, y = (rng.random((2, n)) - 0.5) * np.array([[width], [height]])
    return x, y, mag
