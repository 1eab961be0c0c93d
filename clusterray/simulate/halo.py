"""The mass of a lens cluster and what it does to light rays, through lenstronomy."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from lenstronomy.LensModel.lens_model import LensModel
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import InputError

__all__ = [
    "COSMOLOGY",
    "Deflector",
    "bcg",
    "cluster",
    "distance_ratio",
    "einstein_radius_arcsec",
    "ellipticity",
    "isothermal_radius_arcsec",
    "kpc_per_arcsec",
    "members",
    "nfw",
]

COSMOLOGY: Final = FlatLambdaCDM(H0=70.0, Om0=0.3)
_SPEED_OF_LIGHT_KM_S: Final = 299_792.458
_CORE_ARCSEC: Final = 0.05


@dataclass(frozen=True)
class Deflector:
    """Lens-plane mass as lenstronomy profiles, scaled to one source redshift."""

    z_lens: float
    z_source: float
    profiles: tuple[str, ...]
    parameters: tuple[dict[str, float], ...]

    def deflection(self, x_arcsec: ArrayLike, y_arcsec: ArrayLike) -> NDArray[np.float64]:
        """Reduced deflection angle.

        Parameters
        ----------
        x_arcsec, y_arcsec : same shape; offsets from the cluster centre.

        Returns
        -------
        (2, *shape) arcsec; the source lies at θ − α(θ).
        """
        x, y = np.broadcast_arrays(np.asarray(x_arcsec, float), np.asarray(y_arcsec, float))
        if not self.profiles:
            return np.zeros((2, *x.shape))
        model = _lens_model(self.profiles)
        alpha = model.alpha(x.ravel(), y.ravel(), [dict(p) for p in self.parameters])
        return np.asarray(alpha, float).reshape(2, *x.shape)


# Its profile objects hold tables only, never parameters.
@lru_cache(maxsize=64)
def _lens_model(profiles: tuple[str, ...]) -> Any:
    return LensModel(list(profiles))


@lru_cache(maxsize=1024)
def _lens_cosmo(z_lens: float, z_source: float) -> Any:
    if not 0 < z_lens < z_source:
        raise InputError(
            f"a lens at z {z_lens:.3f} cannot deflect light from z {z_source:.3f}; "
            "the source must lie behind the lens"
        )
    return LensCosmo(z_lens, z_source, cosmo=COSMOLOGY)


def distance_ratio(z_lens: float, z_source: float) -> float:
    """D_ls/D_s, dimensionless."""
    cosmo = _lens_cosmo(z_lens, z_source)
    return float(cosmo.dds / cosmo.ds)


@lru_cache(maxsize=4096)
def kpc_per_arcsec(z: float) -> float:
    """Proper kpc on one arcsec at redshift z."""
    return float(COSMOLOGY.kpc_proper_per_arcmin(z).value) / 60.0


def isothermal_radius_arcsec(sigma_v_km_s: float, d_ls_over_d_s: float) -> float:
    """Einstein radius of a singular isothermal sphere.

    θ_E = 4π (σ_v/c)² D_ls/D_s  (Narayan & Bartelmann 1996, eq. 37).
    """
    radians = 4 * np.pi * (sigma_v_km_s / _SPEED_OF_LIGHT_KM_S) ** 2 * d_ls_over_d_s
    return float(np.degrees(radians) * 3600.0)


def ellipticity(axis_ratio: float, angle_rad: float) -> dict[str, float]:
    """Lenstronomy's e1, e2 = (1−q)/(1+q) (cos 2φ, sin 2φ)."""
    e = (1 - axis_ratio) / (1 + axis_ratio)
    return {"e1": float(e * np.cos(2 * angle_rad)), "e2": float(e * np.sin(2 * angle_rad))}


def nfw(
    z_lens: float,
    z_source: float,
    *,
    m200_msun: float,
    concentration: float,
    axis_ratio: float,
    angle_rad: float,
) -> Deflector:
    """Build an NFW halo whose convergence is elliptical (Oguri 2021, by cored steep ellipsoids).

    Parameters
    ----------
    m200_msun : mass inside 200 × the critical density at z_lens.
    concentration : r200 over the scale radius.
    axis_ratio, angle_rad : of the convergence; angle of the major axis from +x.

    Raises
    ------
    InputError : z_source ≤ z_lens.
    """
    rs_arcsec, alpha_rs_arcsec = _lens_cosmo(z_lens, z_source).nfw_physical2angle(
        m200_msun, concentration
    )
    parameters = {"Rs": float(rs_arcsec), "alpha_Rs": float(alpha_rs_arcsec)}
    parameters |= ellipticity(axis_ratio, angle_rad)
    parameters |= {"center_x": 0.0, "center_y": 0.0}
    return Deflector(z_lens, z_source, ("NFW_ELLIPSE_CSE",), (parameters,))


def bcg(
    z_lens: float, z_source: float, *, sigma_v_km_s: float, axis_ratio: float, angle_rad: float
) -> Deflector:
    """Build the central galaxy as a singular isothermal ellipsoid."""
    ratio = distance_ratio(z_lens, z_source)
    parameters = {"theta_E": isothermal_radius_arcsec(sigma_v_km_s, ratio)}
    parameters |= ellipticity(axis_ratio, angle_rad)
    parameters |= {"center_x": 0.0, "center_y": 0.0}
    return Deflector(z_lens, z_source, ("SIE",), (parameters,))


def members(
    z_lens: float,
    z_source: float,
    *,
    x_arcsec: NDArray[np.float64],
    y_arcsec: NDArray[np.float64],
    sigma_v_km_s: NDArray[np.float64],
    r_cut_kpc: NDArray[np.float64],
) -> Deflector:
    """Build member galaxies as truncated isothermal spheres (dual pseudo-isothermal).

    Inside r_cut the deflection is that of the singular isothermal sphere of the same σ_v:
    Σ₀ r_core r_cut/(r_cut − r_core) = θ_E/2 (Elíasdóttir et al. 2007, appendix A). Without the cut
    the members' mass would add to the halo's all the way out.

    Parameters
    ----------
    x_arcsec, y_arcsec, sigma_v_km_s, r_cut_kpc : (n,), one per member.
    """
    ratio = distance_ratio(z_lens, z_source)
    scale = kpc_per_arcsec(z_lens)
    parameters = []
    for x, y, sigma, r_kpc in zip(x_arcsec, y_arcsec, sigma_v_km_s, r_cut_kpc, strict=True):
        r_cut = max(float(r_kpc) / scale, 2 * _CORE_ARCSEC)
        theta_e = isothermal_radius_arcsec(float(sigma), ratio)
        sigma0 = theta_e / 2 * (r_cut - _CORE_ARCSEC) / (r_cut * _CORE_ARCSEC)
        parameters.append(
            {
                "sigma0": sigma0,
                "Ra": _CORE_ARCSEC,
                "Rs": r_cut,
                "center_x": float(x),
                "center_y": float(y),
            }
        )
    return Deflector(z_lens, z_source, ("PJAFFE",) * len(parameters), tuple(parameters))


def cluster(*parts: Deflector) -> Deflector:
    """Add deflectors of one lens plane, for one source plane.

    Raises
    ------
    InputError : the parts do not share their redshifts.
    """
    planes = {(p.z_lens, p.z_source) for p in parts}
    if len(planes) != 1:
        raise InputError(
            f"deflectors of {len(planes)} (z_lens, z_source) pairs cannot be added, expected one "
            "pair; build every part for the same redshifts"
        )
    z_lens, z_source = planes.pop()
    return Deflector(
        z_lens,
        z_source,
        tuple(name for p in parts for name in p.profiles),
        tuple(values for p in parts for values in p.parameters),
    )


def einstein_radius_arcsec(deflector: Deflector, *, max_arcsec: float = 60.0) -> float:
    """Effective Einstein radius about the centre: where the mean convergence inside is 1.

    By Gauss's theorem the mean convergence inside R is ⟨α·r̂⟩(R)/R, the mean over the circle
    (Schneider, Kochanek & Wambsganss 2006, part 1, eq. 23). The outermost crossing counts.

    Returns
    -------
    arcsec; 0 where the mass is nowhere critical.
    """
    radius = np.geomspace(0.05, max_arcsec, 80)
    angle = np.arange(64) * (2 * np.pi / 64)
    cos, sin = np.cos(angle), np.sin(angle)
    alpha = deflector.deflection(radius[:, None] * cos, radius[:, None] * sin)
    excess = (alpha[0] * cos + alpha[1] * sin).mean(axis=1) / radius - 1.0
    inside = np.flatnonzero(excess > 0)
    if not inside.size:
        return 0.0
    last = int(inside[-1])
    if last == len(radius) - 1:
        return float(radius[-1])
    share = excess[last] / (excess[last] - excess[last + 1])
    return float(radius[last] * (radius[last + 1] / radius[last]) ** share)
