"""Einstein-radius proxies from what a cluster catalogue knows."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.constants import speed_of_light

# Every actor of a run imports this module, and astropy takes it seconds.
if TYPE_CHECKING:
    from astropy.cosmology import FlatLambdaCDM

__all__ = [
    "SOURCES",
    "SOURCE_DISPERSION",
    "SOURCE_RICHNESS",
    "SOURCE_UNKNOWN",
    "SOURCE_XRAY",
    "SURVEYS",
    "best_proxy",
    "dispersion_from_m500",
    "distance_ratio",
    "m500_from_luminosity",
    "nfw_m200_over_m500",
    "survey_code",
    "theta_e_from_dispersion",
    "theta_e_from_luminosity",
    "theta_e_from_richness",
]

Floats = NDArray[np.float64]

SOURCE_UNKNOWN, SOURCE_RICHNESS, SOURCE_XRAY, SOURCE_DISPERSION = range(4)
SOURCES = ("unknown", "richness", "X-ray", "dispersion")
"""What the codes above are called."""

SURVEYS = ("demo", "hsc", "lsst", "des", "euclid", "cfhtls")
"""Surveys by their code in the feature table. Models know the codes: append, never reorder."""

_ARCSEC_PER_RADIAN = 206264.80624709636
_CONCENTRATION = 4.0
"""c200 of a massive cluster at z ≈ 0.4 (Duffy et al. 2008); 3 or 6 moves M200/M500 by 7 %."""


@lru_cache(maxsize=1)
def _cosmology() -> "FlatLambdaCDM":
    from astropy.cosmology import FlatLambdaCDM

    return FlatLambdaCDM(H0=70.0, Om0=0.3)


def _known(values: Floats) -> NDArray[np.bool_]:
    return np.isfinite(values) & (values > 0)


def distance_ratio(z_lens: Floats, *, source_redshift: float) -> Floats:
    """D_ls/D_s in flat ΛCDM (H0 70 km/s/Mpc, Ωm 0.3).

    Where space is flat, D_ls/D_s = 1 − χ(z_l)/χ(z_s) of the comoving distances χ (Hogg 1999,
    eq. 19).

    Parameters
    ----------
    z_lens : (n,) redshifts.

    Returns
    -------
    (n,), NaN where the redshift is unknown, not positive, or not in front of the source.
    """
    ratio = np.full(z_lens.shape, np.nan)
    usable = _known(z_lens) & (z_lens < source_redshift)
    if usable.any():
        distance = _cosmology().comoving_distance
        ratio[usable] = 1.0 - (distance(z_lens[usable]) / distance(source_redshift)).value
    return ratio


def theta_e_from_richness(richness: Floats, z_lens: Floats, *, source_redshift: float) -> Floats:
    """Rule of this project: 10″ (λ/50)^0.4 √((1+z)/1.4).

    It rises with z while D_ls/D_s falls: a ranking aid, calibrated at z ≈ 0.4, not a lens model.

    Returns
    -------
    (n,) arcsec, NaN where richness or redshift is unknown or the cluster is behind the source.
    """
    known = _known(richness) & _known(z_lens) & (z_lens < source_redshift)
    with np.errstate(invalid="ignore"):
        theta = 10.0 * (richness / 50.0) ** 0.4 * np.sqrt((1.0 + z_lens) / 1.4)
    return np.where(known, theta, np.nan)


def theta_e_from_dispersion(
    sigma_v_km_s: Floats, z_lens: Floats, *, source_redshift: float
) -> Floats:
    """Einstein radius of a singular isothermal sphere.

    θ_E = 4π (σ_v/c)² D_ls/D_s  (Narayan & Bartelmann 1996, eq. 37).

    Returns
    -------
    (n,) arcsec, NaN where an input is unknown or the cluster is behind the source.
    """
    speed_of_light_km_s = speed_of_light / 1e3
    known = np.where(_known(sigma_v_km_s), sigma_v_km_s, np.nan)
    ratio = distance_ratio(z_lens, source_redshift=source_redshift)
    theta = 4 * np.pi * (known / speed_of_light_km_s) ** 2 * ratio
    return np.asarray(theta * _ARCSEC_PER_RADIAN)


def m500_from_luminosity(l_x_erg_s: Floats, z_lens: Floats) -> Floats:
    """M500 (solar masses) of a cluster of X-ray luminosity L500 in 0.1–2.4 keV.

    E(z)^(−7/3) L/10⁴⁴ erg/s = 10^0.274 (M500/3e14)^1.64  (Piffaretti et al. 2011, A&A 534, A109,
    eq. 2, after Arnaud et al. 2010). NaN where luminosity or redshift is unknown.
    """
    known = _known(l_x_erg_s) & _known(z_lens)
    expansion = _cosmology().efunc(np.where(known, z_lens, 0.0))
    luminosity = np.where(known, l_x_erg_s, np.nan) / 1e44 * expansion ** (-7 / 3)
    return np.asarray(3e14 * (luminosity / 10**0.274) ** (1 / 1.64))


@lru_cache(maxsize=8)
def nfw_m200_over_m500(concentration: float = _CONCENTRATION) -> float:
    """M200/M500 of an NFW halo of concentration c200 (Navarro, Frenk & White 1997, eq. 1)."""
    from scipy.optimize import brentq

    def enclosed(x: float) -> float:
        return float(np.log1p(x) - x / (1 + x))

    def excess(x: float) -> float:
        return enclosed(x) / x**3 - 2.5 * enclosed(concentration) / concentration**3

    return enclosed(concentration) / enclosed(float(brentq(excess, 1e-3, concentration)))


def dispersion_from_m500(m500_msun: Floats, z_lens: Floats) -> Floats:
    """Line-of-sight velocity dispersion (km/s) of a cluster's dark matter.

    σ = 1082.9 (h(z) M200/1e15)^0.3361 with h(z) = H(z)/(100 km/s/Mpc)  (Evrard et al. 2008, ApJ
    672, 122, eq. 4 and 6); M200 from M500 for an NFW halo with c200 = 4.
    """
    hubble = 0.7 * _cosmology().efunc(np.where(_known(z_lens), z_lens, 0.0))
    m200 = m500_msun * nfw_m200_over_m500()
    return np.asarray(1082.9 * (hubble * m200 / 1e15) ** 0.3361)


def theta_e_from_luminosity(l_x_erg_s: Floats, z_lens: Floats, *, source_redshift: float) -> Floats:
    """Einstein radius from X-ray luminosity by way of M500 and the velocity dispersion.

    Returns
    -------
    (n,) arcsec, NaN where an input is unknown or the cluster is behind the source.
    """
    sigma = dispersion_from_m500(m500_from_luminosity(l_x_erg_s, z_lens), z_lens)
    return theta_e_from_dispersion(sigma, z_lens, source_redshift=source_redshift)


def best_proxy(
    *, richness: Floats, xray: Floats, dispersion: Floats
) -> tuple[Floats, NDArray[np.int8]]:
    """Most direct known proxy: dispersion, else X-ray, else richness.

    Parameters
    ----------
    richness, xray, dispersion : (n,) Einstein radii, arcsec, NaN where unknown.

    Returns
    -------
    (n,) arcsec, NaN where none is known, and the code of where each comes from.
    """
    best = np.full(richness.shape, np.nan)
    source = np.full(richness.shape, SOURCE_UNKNOWN, np.int8)
    for code, theta in (
        (SOURCE_RICHNESS, richness),
        (SOURCE_XRAY, xray),
        (SOURCE_DISPERSION, dispersion),
    ):
        known = np.isfinite(theta)
        best[known], source[known] = theta[known], code
    return best, source


def survey_code(names: Sequence[str | None]) -> Floats:
    """(n,) code of each survey in `SURVEYS`, NaN for any other and for none."""
    codes = {name: float(code) for code, name in enumerate(SURVEYS)}
    return np.array([codes.get(str(name), np.nan) for name in names], np.float64)
