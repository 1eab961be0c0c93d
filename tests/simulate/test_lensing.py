import numpy as np
import pytest
from astropy import constants, units
from hypothesis import given, settings
from hypothesis import strategies as st
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.lens_model_extensions import LensModelExtensions
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver
from scipy.optimize import brentq

from clusterray.simulate import halo
from clusterray.simulate.lensing import (
    critical_curves,
    effective_radius_arcsec,
    grid_axis,
    image_positions,
    lens_plane,
)

Z_LENS, Z_SOURCE = 0.4, 1.2
AXIS = grid_axis(241, 0.25)


def round_nfw(m200_msun, concentration, z_source=Z_SOURCE):
    return halo.nfw(
        Z_LENS,
        z_source,
        m200_msun=m200_msun,
        concentration=concentration,
        axis_ratio=1.0,
        angle_rad=0.0,
    )


def sphere(sigma_v_km_s, z_source=Z_SOURCE):
    return halo.bcg(Z_LENS, z_source, sigma_v_km_s=sigma_v_km_s, axis_ratio=1.0, angle_rad=0.0)


def isothermal_radius(sigma_v_km_s, z_source=Z_SOURCE):
    """4π (σ/c)² D_ls/D_s, by astropy."""
    distance = halo.COSMOLOGY.angular_diameter_distance
    ratio = float(distance(Z_LENS, z_source) / distance(z_source))
    return np.degrees(4 * np.pi * (sigma_v_km_s * 1e3 / constants.c.value) ** 2 * ratio) * 3600


def nfw_convergence(m200_msun, concentration, theta_arcsec):
    """Convergence, and its mean inside, of a projected NFW (Bartelmann 1996), in astropy's units.

    For θ inside the scale radius.
    """
    cosmo = halo.COSMOLOGY
    d_l, d_s = (cosmo.angular_diameter_distance(z) for z in (Z_LENS, Z_SOURCE))
    d_ls = cosmo.angular_diameter_distance(Z_LENS, Z_SOURCE)
    critical = constants.c**2 / (4 * np.pi * constants.G) * d_s / (d_l * d_ls)
    mass = m200_msun * units.M_sun
    r200 = (3 * mass / (800 * np.pi * cosmo.critical_density(Z_LENS))) ** (1 / 3)
    r_s = r200 / concentration
    norm = mass / (np.log1p(concentration) - concentration / (1 + concentration))
    x = ((theta_arcsec * units.arcsec).to_value(units.rad) * d_l / r_s).to_value(units.one)
    bent = np.arccosh(1 / x) / np.sqrt(1 - x**2)
    local = norm / (2 * np.pi * r_s**2) * (bent - 1) / (1 - x**2)
    inside = norm * (np.log(x / 2) + bent) / (np.pi * (x * r_s) ** 2)
    return tuple((v / critical).to_value(units.one) for v in (local, inside))


@pytest.mark.parametrize("sigma", [600.0, 900.0, 1200.0])
def test_an_isothermal_sphere_has_the_closed_form_radius(sigma):
    plane = lens_plane(sphere(sigma), AXIS)
    found = effective_radius_arcsec(critical_curves(plane.source_plane(Z_SOURCE)))
    assert found == pytest.approx(isothermal_radius(sigma), rel=2e-3)


@pytest.mark.parametrize("z_source", [0.6, 0.9, 2.0])
def test_one_deflection_serves_all_source_redshifts(z_source):
    plane = lens_plane(sphere(1100.0), AXIS)
    found = effective_radius_arcsec(critical_curves(plane.source_plane(z_source)))
    assert found == pytest.approx(isothermal_radius(1100.0, z_source), rel=3e-3)
    own = lens_plane(sphere(1100.0, z_source), AXIS)
    assert plane.scale(z_source) * plane.alpha_arcsec == pytest.approx(own.alpha_arcsec, rel=1e-4)


@pytest.mark.parametrize("z", [0.1, Z_LENS])
def test_what_is_not_behind_is_not_deflected(z):
    plane = lens_plane(sphere(1100.0), AXIS)
    assert plane.scale(z) == 0
    x, y = np.meshgrid(AXIS, AXIS)
    assert (plane.source_plane(z).beta_arcsec == np.stack([x, y])).all()
    assert not critical_curves(plane.source_plane(z))
    assert effective_radius_arcsec([]) == 0


def test_an_isothermal_sphere_magnifies_by_its_closed_form():
    plane = lens_plane(sphere(800.0), AXIS)
    theta_e = isothermal_radius(800.0)
    theta = np.array([theta_e / 2, theta_e - 4, theta_e + 4, theta_e * 2])
    theta = AXIS[np.rint((theta - AXIS[0]) / 0.25).astype(int)]
    middle = np.zeros(4)
    for x, y in ((theta, middle), (middle, -theta), (-theta, middle)):
        found = plane.magnification(Z_SOURCE, x, y)
        assert found == pytest.approx(1 / (1 - theta_e / theta), rel=3e-3)


@pytest.mark.parametrize(("mass", "concentration"), [(6e14, 7.0), (1e15, 6.0), (1.5e15, 5.0)])
def test_an_nfw_halo_has_the_radius_of_its_projected_mass(mass, concentration):
    def excess(theta):
        return nfw_convergence(mass, concentration, theta)[1] - 1

    plane = lens_plane(round_nfw(mass, concentration), AXIS)
    found = effective_radius_arcsec(critical_curves(plane.source_plane(Z_SOURCE)))
    assert found == pytest.approx(brentq(excess, 0.01, 30.0), rel=0.01, abs=0.05)


def test_an_nfw_halo_magnifies_by_its_closed_form():
    theta = np.array([5.0, 10.0, 20.0, 28.0])
    kappa, inside = nfw_convergence(1.2e15, 6.0, theta)
    expected = 1 / ((1 - inside) * (1 + inside - 2 * kappa))
    found = lens_plane(round_nfw(1.2e15, 6.0), AXIS).magnification(Z_SOURCE, theta, 0 * theta)
    assert 1 / found == pytest.approx(1 / expected, abs=2e-3)


def test_magnification_is_held_on_a_critical_curve():
    theta_e = isothermal_radius(1000.0)
    plane = lens_plane(sphere(1000.0), grid_axis(241, theta_e / 40))
    found = plane.magnification(Z_SOURCE, np.array([theta_e]), np.zeros(1))
    assert 100 < abs(found[0]) <= 1e4


def test_critical_curve_has_the_area_of_lenstronomys(massive_lens):
    curves = LensModelExtensions(LensModel(list(massive_lens.profiles))).critical_curve_caustics(
        list(massive_lens.parameters), compute_window=80, grid_scale=0.4
    )
    x, y = max(curves[0], key=len), max(curves[1], key=len)
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    for axis in (AXIS, grid_axis(121, 0.75)):
        found = critical_curves(lens_plane(massive_lens, axis).source_plane(1.2))
        assert effective_radius_arcsec(found) == pytest.approx(np.sqrt(area / np.pi), rel=0.01)


def test_deflection_of_a_drawn_cluster_is_lenstronomys(lens, demo_maker):
    foreground = lens.system.foreground
    plane = foreground.plane(demo_maker.frame)
    x, y = np.meshgrid(plane.axis_arcsec, plane.axis_arcsec)
    expected = foreground.deflector.deflection(x, y)
    worst = np.hypot(*(plane.alpha_arcsec - expected)).max()
    print(f"max |Δα| = {worst:.5f} arcsec")
    assert {"NFW_ELLIPSE_CSE", "SIE", "PJAFFE"} == set(foreground.deflector.profiles)
    assert worst < 0.01


def test_jacobian_is_lenstronomys(massive_lens):
    axis = grid_axis(161, 0.25)
    found = lens_plane(massive_lens, axis).source_plane(1.2).jacobian
    x, y = np.meshgrid(axis, axis)
    f_xx, f_xy, f_yx, f_yy = LensModel(list(massive_lens.profiles)).hessian(
        x, y, list(massive_lens.parameters)
    )
    expected = np.array([[1 - f_xx, -f_xy], [-f_yx, 1 - f_yy]])
    # Differences over two samples: away from the isothermal centre.
    away = np.hypot(x, y) > 2
    assert np.abs(found - expected)[:, :, away].max() < 0.02


@pytest.mark.parametrize(("x", "y"), [(0.5, 0.3), (2.0, 1.0), (5.0, -3.0), (7.0, 5.0)])
def test_image_positions_are_those_of_lenstronomy(massive_lens, x, y):
    solver = LensEquationSolver(LensModel(list(massive_lens.profiles)))
    theta = solver.image_position_from_source(
        x,
        y,
        list(massive_lens.parameters),
        min_distance=0.25,
        search_window=62,
        precision_limit=1e-8,
        num_iter_max=200,
    )
    expected = np.stack(theta, axis=1)
    plane = lens_plane(massive_lens, AXIS)
    found, other = image_positions(plane, 1.2, np.array([x, 25.0]), np.array([y, 25.0]))
    assert len(other) <= 1
    # The isothermal centre may or may not give one more, infinitely faint image.
    expected, found = (p[np.hypot(*p.T) > 0.7] for p in (expected, found))
    expected = expected[np.abs(expected).max(axis=1) < AXIS[-1]]
    assert len(found) == len(expected)
    distance = np.hypot(*(found[:, None] - expected[None]).T)
    assert distance.min(axis=0).max() < 0.05


@settings(max_examples=25, deadline=None)
@given(sigma=st.floats(700, 950), share=st.floats(0.05, 0.9), phi=st.floats(0, 6.28))
def test_an_isothermal_sphere_has_two_images_a_diameter_apart(sigma, share, phi):
    plane = lens_plane(sphere(sigma), grid_axis(240, 0.25))
    theta_e = isothermal_radius(sigma)
    place = share * theta_e * np.array([[np.cos(phi)], [np.sin(phi)]])
    (found,) = image_positions(plane, Z_SOURCE, *place)
    # θ± = β ± θ_E, on either side; the singular centre may give one more.
    radii = np.hypot(*found.T)
    for expected in (theta_e * (1 - share), theta_e * (1 + share)):
        assert expected < 2 or np.abs(radii - expected).min() < 0.05
    inner = theta_e * (1 - share)
    assert abs(inner - 2) < 0.1 or (radii > 2).sum() == 1 + (inner > 2)


def test_an_unlensed_source_has_one_image_at_its_place():
    plane = lens_plane(halo.Deflector(Z_LENS, Z_SOURCE, (), ()), AXIS)
    x, y = np.array([1.234, -8.0]), np.array([5.6, 0.1])
    found = image_positions(plane, Z_SOURCE, x, y)
    assert [len(f) for f in found] == [1, 1]
    assert np.concatenate(found) == pytest.approx(np.stack([x, y], axis=1))
    assert image_positions(plane, Z_SOURCE, np.empty(0), np.empty(0)) == []
