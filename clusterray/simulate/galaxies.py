"""Galaxies as light: luminosity functions, the red sequence, sizes and where they stand.

Offsets are in arcsec from a centre, on axes along the pixel columns and rows of the image.
"""

from dataclasses import dataclass, fields, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from clusterray.simulate import halo
from clusterray.simulate.spectra import Photometry

__all__ = [
    "Galaxies",
    "central",
    "characteristic_mag_i",
    "cluster_members",
    "field",
    "intracluster_light",
    "red_young_share",
    "schechter",
    "with_clumps",
]

Floats = NDArray[np.float64]

_DEEP_Z: Final = np.array([0.7, 0.8, 1.0, 1.2, 1.5, 2.0, 3.5])
_DEEP_MAG_I: Final = np.array([21.35, 21.8, 22.45, 22.95, 23.5, 24.2, 25.2])


@dataclass(frozen=True, eq=False)
class Galaxies:
    """Sérsic galaxies, one row each.

    `r_eff_arcsec` is the half-light radius on the geometric mean of the axes, `angle_rad` that of
    the major axis from +x, `z` the redshift, `young_share` the share of the observed i light that
    is star-forming, and `mag` (n, bands) total AB magnitudes.
    """

    x_arcsec: Floats
    y_arcsec: Floats
    r_eff_arcsec: Floats
    n_sersic: Floats
    axis_ratio: Floats
    angle_rad: Floats
    z: Floats
    young_share: Floats
    mag: Floats

    def __len__(self) -> int:
        """Count the galaxies."""
        return len(self.x_arcsec)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """Take the chosen rows."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def moved(self, dx_arcsec: float, dy_arcsec: float) -> Self:
        """Shift all positions."""
        return replace(self, x_arcsec=self.x_arcsec + dx_arcsec, y_arcsec=self.y_arcsec + dy_arcsec)

    @classmethod
    def join(cls, *parts: Self) -> Self:
        """Make one table of several."""
        names = [f.name for f in fields(cls)]
        return cls(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def characteristic_mag_i(z: float) -> float:
    """Give the SDSS i magnitude of an L* passive galaxy.

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


def red_young_share(z: float | Floats) -> Floats:
    """Share of young light on the red sequence: little, but the more the earlier it is seen.

    The passive template does not evolve; this keeps its r − i near that of the observed sequence.
    """
    return np.asarray(0.01 + 0.09 * np.clip(np.asarray(z, float) - 0.5, 0.0, 1.0))


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
    photometry: Photometry,
    red_fraction: float,
    core_kpc: float,
    outer_kpc: float,
    elongation: tuple[float, float],
    limits: tuple[float, float],
    rng: np.random.Generator,
) -> Galaxies:
    """Draw members of a cluster at z around its centre, brightest first.

    Surface density ∝ 1/(1 + (R/core)²), stretched along the halo; luminosities from a Schechter
    function with α = −0.9; red ones on the red sequence (slope −0.02 per mag in the bluest colour,
    scatter 0.05 mag), blue ones discs of any share of young light; sizes 3.5 kpc (L/L*)^0.55 red
    and 4.5 kpc (L/L*)^0.3 blue with 0.15 dex (after Shen et al. 2003; 0.75 of it beyond z 0.7).

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
    young = np.where(red, red_young_share(z), rng.uniform(0.3, 1.0, n))
    mag_i = characteristic_mag_i(z) - 2.5 * np.log10(light)
    size_kpc = np.where(red, 3.5 * light**0.55, 4.5 * light**0.3) * (0.75 if z > 0.7 else 1.0)
    size_kpc *= 10 ** rng.normal(0, 0.15, n)
    return Galaxies(
        x_arcsec=u * cos - v * sin,
        y_arcsec=u * sin + v * cos,
        r_eff_arcsec=np.clip(size_kpc, 0.8, None) / halo.kpc_per_arcsec(z),
        n_sersic=np.where(red, rng.uniform(2.5, 4.0, n), rng.uniform(0.8, 1.3, n)),
        axis_ratio=np.where(red, rng.uniform(0.55, 1.0, n), rng.uniform(0.25, 1.0, n)),
        angle_rad=rng.random(n) * np.pi,
        z=np.full(n, z),
        young_share=young,
        mag=photometry.magnitudes(mag_i, z=z, young_share=young)
        + _colour_scatter(red, light, len(photometry.bands), rng),
    )


def _colour_scatter(
    red: NDArray[np.bool_], light: Floats, n_bands: int, rng: np.random.Generator
) -> Floats:
    """(n, bands) offsets: scatter of the sequence, and its tilt.

    The brighter are redder: by 0.02 a magnitude in the bluest colour, by half as much in each next.
    """
    scatter = rng.normal(size=(len(red), n_bands)) * np.where(red, 0.035, 0.08)[:, None]
    tilt = 0.1 * np.log10(light)[:, None] * 0.5 ** np.arange(n_bands) * red[:, None]
    return np.asarray(scatter + tilt, float)


def central(
    z: float,
    *,
    photometry: Photometry,
    luminosity: float,
    axis_ratio: float,
    angle_rad: float,
    rng: np.random.Generator,
) -> Galaxies:
    """Draw the central galaxy: n = 4, on the red sequence, 18 kpc (L/5 L*)^0.8."""
    size_kpc = 18.0 * (luminosity / 5.0) ** 0.8 * 10 ** rng.normal(0, 0.1)
    mag_i = characteristic_mag_i(z) - 2.5 * np.log10(luminosity)
    young = red_young_share(z)
    return _single(
        0.0,
        0.0,
        r_eff_arcsec=size_kpc / halo.kpc_per_arcsec(z),
        n_sersic=4.0,
        axis_ratio=axis_ratio,
        angle_rad=angle_rad,
        z=z,
        young_share=float(young),
        mag=photometry.magnitudes(mag_i, z=z, young_share=young)
        + rng.normal(0, 0.03, (1, len(photometry.bands))),
    )


def _single(x_arcsec: float, y_arcsec: float, *, mag: Floats, **values: float) -> Galaxies:
    arrays = {k: np.array([v], float) for k, v in values.items()}
    return Galaxies(x_arcsec=np.array([x_arcsec]), y_arcsec=np.array([y_arcsec]), mag=mag, **arrays)


def intracluster_light(
    bcg: Galaxies, members: Galaxies, *, share: float, axis_ratio: float, rng: np.random.Generator
) -> Galaxies:
    """Draw the light between the galaxies: an exponential of 60 to 140 kpc around the BCG.

    It has the BCG's colours and `share` of the light of BCG, members and itself together
    (Montes 2022, a review: 5 to 30 %, by definition; half-light radii of some 100 kpc).
    """
    total = (10 ** (-0.4 * bcg.mag)).sum(axis=0) + (10 ** (-0.4 * members.mag)).sum(axis=0)
    light = total.mean() * share / (1 - share)
    offset = -2.5 * np.log10(light / (10 ** (-0.4 * bcg.mag)).mean())
    return _single(
        0.0,
        0.0,
        r_eff_arcsec=float(rng.uniform(60.0, 140.0)) / halo.kpc_per_arcsec(float(bcg.z[0])),
        n_sersic=1.0,
        axis_ratio=axis_ratio,
        angle_rad=float(bcg.angle_rad[0]),
        z=float(bcg.z[0]),
        young_share=float(bcg.young_share[0]),
        mag=bcg.mag + offset,
    )


def field(
    n: int,
    *,
    extent_arcsec: tuple[float, float],
    faintest_mag_i: float,
    photometry: Photometry,
    rng: np.random.Generator,
) -> Galaxies:
    """Draw galaxies of the field, uniform over a rectangle from (0, 0).

    Counts dN/di ∝ 10^(0.35 i) from i = 18; redshift log-normal about 0.25 + 0.16 (i − 20); a
    quarter red. Nothing is lensed here.
    """
    span = 10 ** (0.35 * (faintest_mag_i - 18.0)) - 1.0
    mag_i = 18.0 + np.log10(1.0 + rng.random(n) * span) / 0.35
    z = np.clip(
        np.clip(0.25 + 0.16 * (mag_i - 20), 0.1, None) * rng.lognormal(0, 0.4, n), 0.08, 3.0
    )
    red = rng.random(n) < 0.25
    young = np.where(red, red_young_share(z), rng.uniform(0.3, 1.0, n))
    size = 0.45 * 10 ** (-0.08 * (mag_i - 22)) * 10 ** rng.normal(0, 0.15, n)
    return Galaxies(
        x_arcsec=rng.random(n) * extent_arcsec[0],
        y_arcsec=rng.random(n) * extent_arcsec[1],
        r_eff_arcsec=np.clip(size, 0.12, 2.0),
        n_sersic=np.where(red, rng.uniform(2.0, 4.0, n), rng.uniform(0.8, 1.4, n)),
        axis_ratio=rng.uniform(0.2, 1.0, n),
        angle_rad=rng.random(n) * np.pi,
        z=z,
        young_share=young,
        mag=photometry.magnitudes(mag_i, z=z, young_share=young)
        + rng.normal(0, 0.08, (n, len(photometry.bands))),
    )


def with_clumps(
    galaxies: Galaxies, *, share: Floats, photometry: Photometry, rng: np.random.Generator
) -> Galaxies:
    """Break part of the light of star-forming galaxies into clumps; total i light stays.

    Three to eight exponential knots each, of 0.06 r_eff (0.03″ at least), as young as light can be,
    spread like the disc (after Elmegreen et al. 2005, clump clusters). Smooth discs make smooth
    arcs, which real blue arcs are not.

    Parameters
    ----------
    share : (n,) share of the i light in clumps, used where more than half of the light is young.

    Returns
    -------
    The smooth galaxies, in order, followed by all clumps.
    """
    clumpy = np.flatnonzero(galaxies.young_share > 0.5)
    number = rng.integers(3, 9, len(clumpy))
    host = np.repeat(clumpy, number)
    weight = rng.exponential(size=len(host))
    total = np.bincount(host, weight, minlength=len(galaxies))[host]
    part = share[host] * weight / total
    radius = galaxies.r_eff_arcsec[host] * np.sqrt(rng.exponential(0.7, len(host)))
    phi, q = rng.random(len(host)) * 2 * np.pi, galaxies.axis_ratio[host]
    u, v = radius * np.cos(phi) / np.sqrt(q), radius * np.sin(phi) * np.sqrt(q)
    cos, sin = np.cos(galaxies.angle_rad[host]), np.sin(galaxies.angle_rad[host])
    # The clumps' i light, from the hosts' own magnitudes: young light is bluer than the mix.
    young = photometry.magnitudes(np.zeros(len(host)), z=galaxies.z[host], young_share=1.0)
    mixed = photometry.magnitudes(
        np.zeros(len(host)), z=galaxies.z[host], young_share=galaxies.young_share[host]
    )
    clumps = Galaxies(
        x_arcsec=galaxies.x_arcsec[host] + u * cos - v * sin,
        y_arcsec=galaxies.y_arcsec[host] + u * sin + v * cos,
        r_eff_arcsec=np.clip(0.06 * galaxies.r_eff_arcsec[host], 0.03, None),
        n_sersic=np.ones(len(host)),
        axis_ratio=np.ones(len(host)),
        angle_rad=np.zeros(len(host)),
        z=galaxies.z[host],
        young_share=np.ones(len(host)),
        mag=galaxies.mag[host] + young - mixed - 2.5 * np.log10(part)[:, None],
    )
    left = np.ones(len(galaxies))
    left[clumpy] -= share[clumpy]
    return Galaxies.join(
        replace(galaxies, mag=galaxies.mag - 2.5 * np.log10(left)[:, None]), clumps
    )
