import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

from clusterray.simulate import halo, scene

PIXEL = 0.168


def axis(n, step):
    return (np.arange(n) - (n - 1) / 2) * step


def dense_image(galaxies, deflector, n_px, pixel, sub):
    """Straight lenstronomy rendering on an n_px² grid, sub² rays per pixel, unit total flux."""
    fine = axis(n_px * sub, pixel / sub)
    x, y = (a.ravel() for a in np.meshgrid(fine, fine))
    if deflector is not None:
        x, y = LensModel(list(deflector.profiles)).ray_shooting(x, y, list(deflector.parameters))
    e = (1 - galaxies.axis_ratio[0]) / (1 + galaxies.axis_ratio[0])
    angle = galaxies.angle_rad[0]
    light = LightModel(["SERSIC_ELLIPSE"])
    parameters = {
        "amp": 1.0,
        "R_sersic": galaxies.r_eff_arcsec[0],
        "n_sersic": galaxies.n_sersic[0],
        "e1": e * np.cos(2 * angle),
        "e2": e * np.sin(2 * angle),
        "center_x": galaxies.x_arcsec[0],
        "center_y": galaxies.y_arcsec[0],
    }
    image = light.surface_brightness(x, y, [parameters]) / light.total_flux([parameters])[0]
    image = image.reshape(n_px, sub, n_px, sub).mean(axis=(1, 3))
    return image * pixel**2


@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(9.5, 10.5),
    y=st.floats(9.5, 10.5),
    r_eff=st.floats(0.12, 1.2),
    n=st.floats(0.8, 4.0),
    q=st.floats(0.4, 1.0),
)
def test_flux_and_place_are_kept_wherever_the_galaxy_stands(make_galaxies, x, y, r_eff, n, q):
    canvas = np.zeros((2, 120, 120), dtype=np.float32)
    galaxy = make_galaxies(x, y, r_eff=r_eff, n=n, q=q)
    scene.paint(canvas, galaxy, np.array([[100.0, 300.0]]), pixel_arcsec=PIXEL)
    assert canvas.sum(axis=(1, 2)) == pytest.approx([100, 300], rel=5e-3)
    at = (np.arange(120) + 0.5) * PIXEL
    assert (canvas[0].sum(axis=0) * at).sum() / 100 == pytest.approx(x, abs=0.03)
    assert (canvas[0].sum(axis=1) * at).sum() / 100 == pytest.approx(y, abs=0.03)


def test_a_galaxy_across_the_edge_loses_only_what_is_outside(make_galaxies):
    canvas = np.zeros((1, 80, 80), dtype=np.float32)
    scene.paint(canvas, make_galaxies(0.0, 6.0, q=1.0), np.array([[10.0]]), pixel_arcsec=PIXEL)
    assert canvas.sum() == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize(("r_eff", "n"), [(0.3, 1.0), (0.6, 2.0)])
def test_an_unlensed_galaxy_is_its_profile_integrated_over_pixels(make_galaxies, r_eff, n):
    n_px = 81
    galaxy = make_galaxies(0.05, -0.03, r_eff=r_eff, n=n)
    centre = n_px * PIXEL / 2
    canvas = np.zeros((1, n_px, n_px), dtype=np.float32)
    scene.paint(canvas, galaxy.moved(centre, centre), np.ones((1, 1)), pixel_arcsec=PIXEL)
    expected = dense_image(galaxy, None, n_px, PIXEL, 15)
    # Ours ends at six effective radii and shares out what is cut off.
    expected *= canvas[0].sum() / expected[canvas[0] > 0].sum()
    assert np.abs(canvas[0] - expected).max() < 0.01 * expected.max()


def lensed(galaxies, deflector, *, n_px=190, k=2, sub=4, flux=None, pixel=2 * PIXEL):
    flux = np.ones((len(galaxies), 1)) if flux is None else flux
    canvas = np.zeros((flux.shape[1], n_px * k, n_px * k), dtype=np.float32)
    plane = scene.trace(deflector, axis(n_px, pixel), axis(n_px, pixel))
    scene.paint_lensed(canvas, plane, galaxies, flux, sub=sub)
    return canvas


@pytest.mark.parametrize(("x", "y", "r_eff"), [(1.0, 2.0, 0.25), (5.0, -4.0, 0.5)])
def test_a_lensed_galaxy_agrees_with_a_straight_rendering(make_galaxies, massive_lens, x, y, r_eff):
    galaxy = make_galaxies(x, y, r_eff=r_eff)
    found = lensed(galaxy, massive_lens, sub=6)[0]
    expected = dense_image(galaxy, massive_lens, 380, PIXEL, 3)
    assert found.sum() == pytest.approx(expected.sum(), rel=5e-3)
    # β jumps across the centre of the isothermal BCG, where no image forms.
    away = np.hypot(*np.meshgrid(axis(380, PIXEL), axis(380, PIXEL))) > 1.0
    assert np.abs(found - expected)[away].max() < 0.01 * expected.max()


def test_without_mass_lensed_light_is_unlensed_light(make_galaxies):
    galaxy = make_galaxies(1.3, -2.2, r_eff=0.4)
    found = lensed(galaxy, halo.Deflector(0.4, 1.2, (), ()))[0]
    canvas = np.zeros((1, 380, 380), dtype=np.float32)
    centre = 190 * PIXEL
    scene.paint(canvas, galaxy.moved(centre, centre), np.ones((1, 1)), pixel_arcsec=PIXEL)
    assert found.sum() == pytest.approx(1.0, rel=5e-3)
    assert np.abs(found - canvas[0]).max() < 0.02 * canvas.max()


def test_an_isothermal_sphere_magnifies_by_its_closed_form(make_galaxies):
    sphere = halo.bcg(0.4, 1.2, sigma_v_km_s=900.0, axis_ratio=1.0, angle_rad=0.0)
    theta_e = halo.einstein_radius_arcsec(sphere)
    found = lensed(make_galaxies(4.0, 0.0, r_eff=0.15, q=1.0), sphere, sub=8)
    assert found.sum() == pytest.approx(2 * theta_e / 4.0, rel=0.01)


def test_all_images_of_a_galaxy_have_its_colour(make_galaxies, massive_lens):
    canvas = lensed(make_galaxies(1.0, 1.0), massive_lens, flux=np.array([[2.0, 5.0, 11.0]]))
    lit = canvas[0] > 1e-4 * canvas[0].max()
    assert lit.sum() > 500
    assert canvas[1][lit] / canvas[0][lit] == pytest.approx(2.5, rel=1e-4)
    assert canvas[2][lit] / canvas[0][lit] == pytest.approx(5.5, rel=1e-4)


@given(x=st.floats(2.0, 8.0), y=st.floats(2.0, 8.0))
def test_points_keep_flux_and_centroid(x, y):
    canvas = np.zeros((1, 60, 60), dtype=np.float32)
    scene.paint_points(canvas, np.array([x]), np.array([y]), np.array([[7.0]]), pixel_arcsec=PIXEL)
    at = (np.arange(60) + 0.5) * PIXEL
    assert canvas.sum() == pytest.approx(7.0, rel=1e-5)
    assert (canvas[0].sum(axis=0) * at).sum() / 7 == pytest.approx(x, abs=1e-4)
    assert (canvas[0].sum(axis=1) * at).sum() / 7 == pytest.approx(y, abs=1e-4)
