"""Galaxies as light: luminosity functions, the red sequence, sizes and where they stand.

Offsets are in arcsec from a centre, on axes along the pixel columns and rows of the tile.
"""

from dataclasses import dataclass, fields
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from clusterray.simulate import halo

__all__ = [
    "BANDS",
    "Galaxies",
    "central",
    "characteristic_mag_i",
    "cluster_members",
    "colours",
    "field",
    "schechter",
]

Floats = NDArray[np.float64]
BANDS: Final = ("g", "r", "i")

# Observed colours of passive and star-forming galaxies, in steps of redshift: what templates
# (Bruzual & Charlot 2003, formed at z = 3) give, to about 0.1 mag.
_Z: Final = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5])
_RED_G_R: Final = np.array([0.95, 1.22, 1.48, 1.66, 1.76, 1.80, 1.82, 1.80, 1.65, 1.50, 1.30])
_RED_R_I: Final = np.array([0.40, 0.46, 0.54, 0.66, 0.84, 1.02, 1.15, 1.22, 1.16, 1.02, 0.85])
_BLUE_G_R: Final = np.array([0.50, 0.62, 0.72, 0.78, 0.78, 0.72, 0.66, 0.58, 0.42, 0.32, 0.25])
_BLUE_R_I: Final = np.array([0.25, 0.28, 0.32, 0.36, 0.40, 0.46, 0.52, 0.55, 0.52, 0.42, 0.30])
_DEEP_Z: Final = np.array([0.7, 0.8, 1.0, 1.2, 1.5])
_DEEP_MAG_I: Final = np.array([21.35, 21.8, 22.45, 22.95, 23.5])


@dataclass(frozen=True, eq=False)
class Galaxies:
    """Sérsic galaxies, one row each.

    `r_eff_arcsec` is the half-light radius on the geometric mean of the axes, `angle_rad` that of
    the major axis from +x, and `mag` (n, bands) total AB magnitudes in the order of `BANDS`.
    """

    x_arcsec: Floats
    y_arcsec: Floats
    r_eff_arcsec: Floats
    n_sersic: Floats
    axis_ratio: Floats
    angle_rad: Floats
    mag: Floats

    def __len__(self) -> int:
        """Count the galaxies."""
        return len(self.x_arcsec)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """Take the chosen rows."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def moved(self, dx_arcsec: float, dy_arcsec: float) -> Self:
        """Shift all positions."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["x_arcsec"] = self.x_arcsec + dx_arcsec
        values["y_arcsec"] = self.y_arcsec + dy_arcsec
        return type(self)(**values)

    @classmethod
    def join(cls, *parts: Self) -> Self:
        """Make one table of several."""
        names = [f.name for f in fields(cls)]
        return cls(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def characteristic_mag_i(z: float) -> float:
    """Give the i magnitude of an L* passive galaxy.

    Up to z = 0.7 the fit of Rykoff et al. (2014, eq. 9); beyond, a passively evolving template
    joined to it, good to about 0.2 mag.
    """
    ln = np.log(z)
    if z <= 0.5:
        value = 22.44 + 3.36 * ln + 0.273 * ln**2 - 0.0618 * ln**3 - 0.0227 * ln**4
    elif z <= 0.7:
        value = 22.94 + 3.08 * ln - 11.22 * ln**2 - 27.11 * ln**3 - 18.02 * ln**4
    else:
        value = np.interp(z, _DEEP_Z, _DEEP_MAG_I)
    return float(value)


def colours(z: float | Floats, *, red: bool) -> Floats:
    """(…, 2) observed g−r and r−i at redshift z: red sequence, or star-forming galaxies."""
    tables = (_RED_G_R, _RED_R_I) if red else (_BLUE_G_R, _BLUE_R_I)
    return np.stack([np.interp(z, _Z, t) for t in tables], axis=-1)


def _magnitudes(mag_i: Floats, colour: Floats) -> Floats:
    mag_r = mag_i + colour[..., 1]
    return np.stack([mag_r + colour[..., 0], mag_r, mag_i], axis=-1)


def schechter(
    n: int, *, alpha: float, faintest: float, brightest: float, rng: np.random.Generator
) -> Floats:
    """(n,) luminosities in L* from φ(L) ∝ L^α e^−L between two limits (Schechter 1976)."""
    grid = np.geomspace(faintest, brightest, 512)
    density = grid ** (alpha + 1) * np.exp(-grid)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.asarray(np.interp(rng.random(n) * cumulative[-1], cumulative, grid), float)


def cluster_members(
    n: int,
    z: float,
    *,
    red_fraction: float,
    core_kpc: float,
    outer_kpc: float,
    elongation: tuple[float, float],
    limits: tuple[float, float],
    rng: np.random.Generator,
) -> Galaxies:
    """Draw members of a cluster at z around its centre, brightest first.

    Surface density ∝ 1/(1 + (R/core)²), stretched along the halo; luminosities from a Schechter
    function with α = −0.9; red ones on the red sequence (slope −0.02 per mag, scatter 0.05 mag),
    blue ones exponential discs with 0.15 mag of scatter; sizes 3.5 kpc (L/L*)^0.55 red and
    4.5 kpc (L/L*)^0.3 blue with 0.15 dex (after Shen et al. 2003, and 0.75 smaller beyond z 0.7).

    Parameters
    ----------
    elongation : axis ratio and angle (rad) of their distribution.
    limits : faintest and brightest luminosity, in L*.
    """
    light = np.sort(schechter(n, alpha=-0.9, faintest=limits[0], brightest=limits[1], rng=rng))[
        ::-1
    ]
    red = rng.random(n) < red_fraction
    span = np.log1p((outer_kpc / core_kpc) ** 2)
    radius = core_kpc * np.sqrt(np.expm1(rng.random(n) * span)) / halo.kpc_per_arcsec(z)
    phi = rng.random(n) * 2 * np.pi
    u, v = radius * np.cos(phi), radius * np.sin(phi) * elongation[0]
    cos, sin = np.cos(elongation[1]), np.sin(elongation[1])
    mag_i = characteristic_mag_i(z) - 2.5 * np.log10(light)
    colour = np.where(red[:, None], colours(z, red=True), colours(z, red=False))
    colour = colour + rng.normal(size=(n, 2)) * np.where(red, 0.05, 0.15)[:, None]
    colour[:, 0] += np.where(red, 0.05 * np.log10(light), 0.0)
    size_kpc = np.where(red, 3.5 * light**0.55, 4.5 * light**0.3) * (0.75 if z > 0.7 else 1.0)
    size_kpc *= 10 ** rng.normal(0, 0.15, n)
    return Galaxies(
        x_arcsec=u * cos - v * sin,
        y_arcsec=u * sin + v * cos,
        r_eff_arcsec=np.clip(size_kpc, 0.8, None) / halo.kpc_per_arcsec(z),
        n_sersic=np.where(red, rng.uniform(2.5, 4.0, n), rng.uniform(0.8, 1.3, n)),
        axis_ratio=np.where(red, rng.uniform(0.55, 1.0, n), rng.uniform(0.3, 1.0, n)),
        angle_rad=rng.random(n) * np.pi,
        mag=_magnitudes(mag_i, colour),
    )


def central(
    z: float, *, luminosity: float, axis_ratio: float, angle_rad: float, rng: np.random.Generator
) -> Galaxies:
    """Draw the central galaxy: n = 4, on the red sequence, 18 kpc (L/5 L*)^0.8."""
    size_kpc = 18.0 * (luminosity / 5.0) ** 0.8 * 10 ** rng.normal(0, 0.1)
    mag_i = np.array([characteristic_mag_i(z) - 2.5 * np.log10(luminosity)])
    colour = colours(z, red=True)[None] + rng.normal(0, 0.04, (1, 2))
    return Galaxies(
        x_arcsec=np.zeros(1),
        y_arcsec=np.zeros(1),
        r_eff_arcsec=np.array([size_kpc / halo.kpc_per_arcsec(z)]),
        n_sersic=np.array([4.0]),
        axis_ratio=np.array([axis_ratio]),
        angle_rad=np.array([angle_rad]),
        mag=_magnitudes(mag_i, colour),
    )


def field(
    n: int, *, extent_arcsec: tuple[float, float], faintest_mag_i: float, rng: np.random.Generator
) -> Galaxies:
    """Draw galaxies of the field, uniform over a rectangle from (0, 0).

    Counts dN/di ∝ 10^(0.35 i) from i = 18; redshift drawn about 0.25 + 0.16 (i − 20); a quarter
    red. Not lensed: see `population` for what is.
    """
    span = 10 ** (0.35 * (faintest_mag_i - 18.0)) - 1.0
    mag_i = 18.0 + np.log10(1.0 + rng.random(n) * span) / 0.35
    z = np.clip((0.25 + 0.16 * (mag_i - 20)) * rng.lognormal(0, 0.4, n), 0.1, 1.5)
    red = rng.random(n) < 0.25
    colour = np.where(red[:, None], colours(z, red=True), colours(z, red=False))
    size = 0.45 * 10 ** (-0.08 * (mag_i - 22)) * 10 ** rng.normal(0, 0.15, n)
    return Galaxies(
        x_arcsec=rng.random(n) * extent_arcsec[0],
        y_arcsec=rng.random(n) * extent_arcsec[1],
        r_eff_arcsec=np.clip(size, 0.12, 2.0),
        n_sersic=np.where(red, rng.uniform(2.0, 4.0, n), rng.uniform(0.8, 1.4, n)),
        axis_ratio=rng.uniform(0.25, 1.0, n),
        angle_rad=rng.random(n) * np.pi,
        mag=_magnitudes(mag_i, colour + rng.normal(0, 0.12, (n, 2))),
    )
