import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

from clusterray.simulate import halo, sersic
from clusterray.simulate.lensing import grid_axis, lens_plane
from clusterray.simulate.observe import Exposure, blur

STEP = 0.168


def dense_image(galaxies, flux, axis, sub, deflector=None):
    """Straight lenstronomy rendering, sub² rays a sample, faded from 4 to 8 r_eff."""
    step, n = axis[1] - axis[0], len(axis)
    fine = grid_axis(n * sub, step / sub)
    x, y = (a.ravel() for a in np.meshgrid(fine, fine))
    if deflector is not None:
        x, y = LensModel(list(deflector.profiles)).ray_shooting(x, y, list(deflector.parameters))
    light = LightModel(["SERSIC_ELLIPSE"])
    image = np.zeros((n, n))
    for k in range(len(galaxies)):
        q, angle = galaxies.axis_ratio[k], galaxies.angle_rad[k]
        e = (1 - q) / (1 + q)
        r_eff, n_sersic = galaxies.r_eff_arcsec[k], galaxies.n_sersic[k]
        at = {"center_x": galaxies.x_arcsec[k], "center_y": galaxies.y_arcsec[k]}
        ellipse = {"e1": e * np.cos(2 * angle), "e2": e * np.sin(2 * angle)}
        shape = {"amp": 1.0, "R_sersic": r_eff, "n_sersic": n_sersic} | ellipse | at
        bright = light.surface_brightness(x, y, [shape])
        dx, dy = x - at["center_x"], y - at["center_y"]
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        bright *= fade(np.hypot(u * np.sqrt(q), v / np.sqrt(q)) / r_eff)
        # The flux that is left, by a fine sum over the circular profile.
        r = np.linspace(0, 8 * r_eff, 400_001)[1:]
        ring = light.surface_brightness(r, 0 * r, [shape | {"e1": 0.0, "e2": 0.0} | CENTRE])
        total = np.trapezoid(2 * np.pi * r * ring * fade(r / r_eff), r)
        image += flux[k] / total * bright.reshape(n, sub, n, sub).mean(axis=(1, 3)) * step**2
    return image


CENTRE = {"center_x": 0.0, "center_y": 0.0}


def fade(radius):
    """A raised cosine from 1 at 4 to 0 at 8."""
    return (1 + np.cos(np.pi * np.clip((radius - 4) / 4, 0, 1))) / 2


def as_seen(image, law, step):
    """Through a PSF of 0.75″ and binned by two, as the demo is."""
    psf = Exposure("i", 25.0, 0.75, 20.3, 3.0)
    return blur(image[None].astype(np.float32), [psf], law, step_arcsec=step, supersampling=2)[0]


def worst_pixel(found, expected, law, step=0.25):
    """Largest difference over the peak, both as seen."""
    found, expected = (as_seen(image, law, step) for image in (found, expected))
    worst = float(np.abs(found - expected).max() / expected.max())
    print(f"max pixel difference {100 * worst:.2f} % of peak")
    return worst


@pytest.fixture(scope="module")
def law(demo_maker):
    return demo_maker.recipe.observation


def painted(galaxies, flux, n, step=STEP):
    canvas = np.zeros((1, n, n), np.float32)
    centre = n * step / 2
    flux = np.asarray(flux, float)[:, None]
    sersic.add_galaxies(canvas, galaxies.moved(centre, centre), flux, step_arcsec=step)
    return canvas[0]


def lensed(galaxies, deflector, flux, *, n=380, step=STEP):
    plane = lens_plane(deflector, grid_axis(n, step))
    canvas = np.zeros((flux.shape[1], n, n), np.float32)
    sersic.add_lensed(canvas, plane, galaxies, flux)
    return canvas


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(9.5, 10.5),
    y=st.floats(9.5, 10.5),
    r_eff=st.floats(0.03, 1.0),
    n=st.floats(0.6, 4.0),
    q=st.floats(0.4, 1.0),
)
def test_flux_and_place_are_kept_wherever_the_galaxy_stands(make_galaxies, x, y, r_eff, n, q):
    canvas = np.zeros((2, 120, 120), np.float32)
    galaxy = make_galaxies(x, y, r_eff=r_eff, n=n, q=q)
    sersic.add_galaxies(canvas, galaxy, np.array([[100.0, 300.0]]), step_arcsec=STEP)
    assert canvas.sum(axis=(1, 2)) == pytest.approx([100, 300], rel=5e-3)
    at = (np.arange(120) + 0.5) * STEP
    assert (canvas[0].sum(axis=0) * at).sum() / 100 == pytest.approx(x, abs=0.04)
    assert (canvas[0].sum(axis=1) * at).sum() / 100 == pytest.approx(y, abs=0.04)


@settings(max_examples=15, deadline=None)
@given(r_eff=st.floats(1.0, 4.0), n=st.floats(0.6, 4.0), q=st.floats(0.25, 1.0))
def test_large_and_steep_galaxies_keep_their_flux(make_galaxies, r_eff, n, q):
    size = int(2.1 * 8 * r_eff / np.sqrt(q) / 0.25)
    image = painted(make_galaxies(0.07, -0.11, r_eff=r_eff, n=n, q=q), [50.0], size, 0.25)
    assert image.sum() == pytest.approx(50, rel=5e-3)


@settings(max_examples=15, deadline=None)
@given(r_eff=st.floats(0.05, 1.2), n=st.floats(0.6, 4.0), fwhm=st.floats(0.5, 1.1))
def test_psf_and_pixels_keep_the_flux(make_galaxies, law, r_eff, n, fwhm):
    step, size = 0.25, 2 * int((8 * 1.2 * 1.2 + 8 * fwhm) / 0.25)
    image = painted(make_galaxies(0.1, 0.04, r_eff=r_eff, n=n), [70.0], size, step)
    exposure = Exposure("r", 25.0, fwhm, 21.0, 3.0)
    seen = blur(image[None], [exposure], law, step_arcsec=step, supersampling=2)
    assert seen.sum() == pytest.approx(70, rel=5e-3)


def test_a_galaxy_across_the_edge_loses_only_what_is_outside(make_galaxies):
    canvas = np.zeros((1, 80, 80), np.float32)
    edge = make_galaxies(0.0, 6.0, q=1.0)
    sersic.add_galaxies(canvas, edge, np.array([[10.0]]), step_arcsec=STEP)
    assert canvas.sum() == pytest.approx(5.0, rel=0.01)
    sersic.add_galaxies(canvas, edge.moved(-30.0, 0.0), np.array([[10.0]]), step_arcsec=STEP)
    assert canvas.sum() == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize(
    ("r_eff", "n", "q"),
    [(0.12, 1.0, 0.7), (0.6, 2.0, 0.3), (1.2, 1.0, 0.08), (1.0, 4.0, 0.7), (3.0, 4.0, 0.8)],
)
def test_an_unlensed_galaxy_is_its_profile_integrated_over_pixels(make_galaxies, law, r_eff, n, q):
    galaxy = make_galaxies(0.05, -0.03, r_eff=r_eff, n=n, q=q)
    found = painted(galaxy, [1.0], 100, 0.25)
    expected = dense_image(galaxy, [1.0], grid_axis(100, 0.25), 20)
    assert worst_pixel(found, expected, law) < 0.01


@pytest.mark.parametrize(
    ("x", "y", "r_eff", "n"), [(1.0, 2.0, 0.25, 1.0), (2.0, 1.0, 0.1, 1.0), (3.0, 3.0, 0.7, 2.0)]
)
def test_a_lensed_galaxy_agrees_with_a_straight_rendering(
    make_galaxies, massive_lens, law, x, y, r_eff, n
):
    galaxy = make_galaxies(x, y, r_eff=r_eff, n=n)
    found = lensed(galaxy, massive_lens, np.ones((1, 1)), n=200, step=0.25)[0]
    expected = dense_image(galaxy, [1.0], grid_axis(200, 0.25), 6, massive_lens)
    assert found.sum() == pytest.approx(expected.sum(), rel=5e-3)
    assert worst_pixel(found, expected, law) < 0.01


def test_a_cluster_behind_a_drawn_lens_agrees_with_a_straight_rendering(lens, law):
    system = lens.system
    light = system.background.light
    bright = light.take(np.argsort(light.mag[:, 2], kind="stable")[:25])
    flux = 10 ** (-0.4 * (bright.mag[:, 2] - 24))
    axis = grid_axis(132, 0.25)
    plane = lens_plane(system.foreground.deflector, axis)
    canvas = np.zeros((1, 132, 132), np.float32)
    sersic.add_lensed(canvas, plane, bright, flux[:, None])
    # lenstronomy's deflections belong to the reference redshift.
    own = system.foreground.deflector
    scale = halo.distance_ratio(own.z_lens, system.background.z)
    scale /= halo.distance_ratio(own.z_lens, own.z_source)
    scaled = tuple(
        p | {k: v * scale for k, v in p.items() if k in ("alpha_Rs", "theta_E", "sigma0")}
        for p in own.parameters
    )
    straight = halo.Deflector(own.z_lens, system.background.z, own.profiles, scaled)
    expected = dense_image(bright, flux, axis, 4, straight)
    assert worst_pixel(canvas[0], expected, law) < 0.01
    assert canvas.sum() == pytest.approx(expected.sum(), rel=5e-3)


def test_without_mass_lensed_light_is_unlensed_light(make_galaxies):
    galaxy = make_galaxies(1.3, -2.2, r_eff=0.4)
    found = lensed(galaxy, halo.Deflector(0.4, 1.2, (), ()), np.ones((1, 1)), n=120)[0]
    expected = painted(galaxy, [1.0], 120)
    assert found.sum() == pytest.approx(1.0, rel=5e-3)
    assert np.abs(found - expected).max() < 0.01 * expected.max()


def test_what_is_not_behind_the_lens_goes_straight(make_galaxies, massive_lens):
    galaxy = make_galaxies(1.3, -2.2, r_eff=0.4, z=0.3)
    found = lensed(galaxy, massive_lens, np.ones((1, 1)), n=120)[0]
    assert np.abs(found - painted(galaxy, [1.0], 120)).max() < 0.01 * found.max()


def test_each_galaxy_is_deflected_as_its_redshift_demands(make_galaxies):
    near, far = (make_galaxies(1.5, 0.0, r_eff=0.15, q=1.0, z=z) for z in (0.6, 1.2))
    sphere = halo.bcg(0.4, 1.2, sigma_v_km_s=900.0, axis_ratio=1.0, angle_rad=0.0)
    together = lensed(near.join(near, far), sphere, np.array([[1.0, 0.0], [0.0, 1.0]]))
    for band, z in enumerate((0.6, 1.2)):
        theta_e = halo.isothermal_radius_arcsec(900.0, halo.distance_ratio(0.4, z))
        # Σ|μ| = 2 θ_E/β of a singular isothermal sphere.
        assert together[band].sum() == pytest.approx(2 * theta_e / 1.5, rel=0.02)


def test_all_images_of_a_galaxy_have_its_colour(make_galaxies, massive_lens):
    galaxy = make_galaxies(1.0, 1.0)
    canvas = lensed(galaxy, massive_lens, np.array([[2.0, 5.0, 11.0]]))
    lit = canvas[0] > 1e-4 * canvas[0].max()
    assert lit.sum() > 500
    assert canvas[1][lit] / canvas[0][lit] == pytest.approx(2.5, rel=1e-4)
    assert canvas[2][lit] / canvas[0][lit] == pytest.approx(5.5, rel=1e-4)


def test_surface_brightness_is_conserved(make_galaxies, massive_lens):
    galaxy = make_galaxies(1.0, 1.0, r_eff=1.5, n=0.6)
    arcs = lensed(galaxy, massive_lens, np.ones((1, 1)))[0]
    straight = painted(galaxy, [1.0], 120)
    assert arcs.max() == pytest.approx(straight.max(), rel=0.02)


def test_a_galaxy_ends_at_eight_effective_radii(make_galaxies):
    galaxy = make_galaxies(0.0, 0.0, r_eff=0.5, n=4.0, q=0.5, angle=0.0)
    assert sersic.reach_arcsec(galaxy) == pytest.approx(8 * 0.5 / np.sqrt(0.5))
    image = painted(galaxy, [1.0], 81)
    lit = np.argwhere(image > 0)
    assert np.ptp(lit[:, 1]) * STEP == pytest.approx(2 * 8 * 0.5 / np.sqrt(0.5), abs=2 * STEP)
    assert np.ptp(lit[:, 0]) * STEP == pytest.approx(2 * 8 * 0.5 * np.sqrt(0.5), abs=2 * STEP)
