import numpy as np
import pytest
from astropy import constants, units
from hypothesis import given, settings
from hypothesis import strategies as st
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.lens_model_extensions import LensModelExtensions
from scipy.optimize import brentq

from clusterray.errors import InputError
from clusterray.simulate import halo

Z_LENS, Z_SOURCE = 0.4, 1.2


def round_nfw(m200_msun, concentration=5.0):
    return halo.nfw(
        Z_LENS,
        Z_SOURCE,
        m200_msun=m200_msun,
        concentration=concentration,
        axis_ratio=1.0,
        angle_rad=0.0,
    )


def nfw_einstein_radius(m200_msun, concentration):
    """Mean surface density of the projected NFW (Bartelmann 1996) = Σ_cr, in astropy's units."""
    cosmo = halo.COSMOLOGY
    d_l, d_s = (cosmo.angular_diameter_distance(z) for z in (Z_LENS, Z_SOURCE))
    d_ls = cosmo.angular_diameter_distance(Z_LENS, Z_SOURCE)
    critical = constants.c**2 / (4 * np.pi * constants.G) * d_s / (d_l * d_ls)
    mass = m200_msun * units.M_sun
    r200 = (3 * mass / (800 * np.pi * cosmo.critical_density(Z_LENS))) ** (1 / 3)
    r_s = r200 / concentration
    norm = mass / (np.log1p(concentration) - concentration / (1 + concentration))

    def excess(theta_arcsec):
        r = (theta_arcsec * units.arcsec).to_value(units.rad) * d_l
        x = float(r / r_s)
        inside = norm * (np.log(x / 2) + np.arccosh(1 / x) / np.sqrt(1 - x**2))
        return float(inside / (np.pi * r**2 * critical)) - 1

    return brentq(excess, 0.01, 30.0)


def test_isothermal_sphere_has_the_closed_form_radius():
    cosmo = halo.COSMOLOGY
    ratio = float(
        cosmo.angular_diameter_distance(Z_LENS, Z_SOURCE)
        / cosmo.angular_diameter_distance(Z_SOURCE)
    )
    expected = np.degrees(4 * np.pi * (1000e3 / constants.c.value) ** 2 * ratio) * 3600
    sphere = halo.bcg(Z_LENS, Z_SOURCE, sigma_v_km_s=1000.0, axis_ratio=1.0, angle_rad=0.0)
    assert halo.distance_ratio(Z_LENS, Z_SOURCE) == pytest.approx(ratio, rel=1e-3)
    assert halo.einstein_radius_arcsec(sphere) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("mass", "concentration"), [(6e14, 7.0), (1e15, 6.0), (1.5e15, 5.0)])
def test_nfw_radius_agrees_with_the_projected_mass(mass, concentration):
    expected = nfw_einstein_radius(mass, concentration)
    found = halo.einstein_radius_arcsec(round_nfw(mass, concentration))
    assert found == pytest.approx(expected, rel=0.02)


def test_effective_radius_is_that_of_the_critical_curve():
    deflector = halo.cluster(
        halo.nfw(
            Z_LENS, Z_SOURCE, m200_msun=1e15, concentration=6.0, axis_ratio=0.8, angle_rad=0.6
        ),
        halo.bcg(Z_LENS, Z_SOURCE, sigma_v_km_s=320.0, axis_ratio=0.8, angle_rad=0.6),
    )
    curves = LensModelExtensions(LensModel(list(deflector.profiles))).critical_curve_caustics(
        list(deflector.parameters), compute_window=80, grid_scale=0.4
    )
    x, y = max(curves[0], key=len), max(curves[1], key=len)
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    effective = halo.einstein_radius_arcsec(deflector)
    assert effective == pytest.approx(np.sqrt(area / np.pi), rel=0.05)


def test_members_bend_like_isothermal_spheres_inside_and_point_masses_outside_their_cut():
    sigma, cut_kpc = 220.0, 40.0
    member = halo.members(
        Z_LENS,
        Z_SOURCE,
        x_arcsec=np.array([3.0]),
        y_arcsec=np.array([-1.0]),
        sigma_v_km_s=np.array([sigma]),
        r_cut_kpc=np.array([cut_kpc]),
    )
    theta_e = halo.isothermal_radius_arcsec(sigma, halo.distance_ratio(Z_LENS, Z_SOURCE))
    # Elíasdóttir et al. 2007, appendix A, with the isothermal sphere's normalisation.
    core, cut = 0.05, cut_kpc / halo.kpc_per_arcsec(Z_LENS)
    for r in (0.1, 0.7, 5.0):
        expected = theta_e / r * (np.hypot(core, r) - core - np.hypot(cut, r) + cut)
        assert member.deflection(3.0 + r, -1.0)[0] == pytest.approx(expected, rel=1e-3)
    far = member.deflection(np.array([3.0 + 400.0, 3.0 + 800.0]), np.array([-1.0, -1.0]))[0]
    assert far[0] / far[1] == pytest.approx(2.0, rel=0.03)


def test_no_mass_bends_nothing():
    assert not halo.Deflector(0.4, 1.2, (), ()).deflection(np.ones((2, 3)), 0.0).any()
    assert halo.einstein_radius_arcsec(halo.Deflector(0.4, 1.2, (), ())) == 0.0


@settings(max_examples=15, deadline=None)
@given(mass=st.floats(3e14, 1.2e15), factor=st.floats(1.05, 2.0))
def test_more_mass_has_a_larger_radius(mass, factor):
    small, large = (halo.einstein_radius_arcsec(round_nfw(m)) for m in (mass, mass * factor))
    assert large > small or large == small == 0


@pytest.mark.parametrize("z_source", [0.4, 0.3])
def test_a_source_in_front_is_refused(z_source):
    with pytest.raises(InputError, match="must lie behind the lens"):
        halo.nfw(0.4, z_source, m200_msun=1e15, concentration=5.0, axis_ratio=1.0, angle_rad=0.0)


def test_deflectors_of_other_redshifts_do_not_add():
    other = halo.bcg(0.4, 1.3, sigma_v_km_s=300.0, axis_ratio=1.0, angle_rad=0.0)
    with pytest.raises(InputError, match="2 \\(z_lens, z_source\\) pairs"):
        halo.cluster(round_nfw(1e15), other)
