import numpy as np
import pytest
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver

from clusterray.simulate import halo, images, scene

STEP = 0.336
N = 191
AXIS = (np.arange(N) - (N - 1) / 2) * STEP
SURVEY = {
    "noise_sigma": np.ones(1),
    "psf_fwhm_arcsec": np.array([0.8]),
    "min_snr": 5.0,
    "min_separation_arcsec": 2.0,
}


@pytest.fixture(scope="module")
def plane(massive_lens):
    return scene.trace(massive_lens, AXIS, AXIS)


@pytest.mark.parametrize(("x", "y"), [(0.5, 0.3), (2.0, 1.0), (5.0, -3.0), (7.0, 5.0)])
def test_image_positions_are_those_of_lenstronomy(massive_lens, plane, x, y):
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
    found = images.image_positions(plane, x, y) * STEP + AXIS[0]
    # The isothermal centre may or may not give one more, infinitely faint image.
    expected, found = (p[np.hypot(*p.T) > 0.7] for p in (expected, found))
    expected = expected[np.abs(expected).max(axis=1) < AXIS[-1]]
    assert len(found) == len(expected)
    distance = np.hypot(*(found[:, None] - expected[None]).T)
    assert distance.min(axis=0).max() < 0.1


def test_counts_of_a_hand_made_system(make_galaxies, plane):
    # Inside the caustic; far outside it; inside but too faint to be seen.
    galaxies = make_galaxies([1.0, 25.0, 1.0], [0.5, 20.0, 0.5])
    flux = np.array([[300.0], [300.0], [1.0]])
    counts = images.detected_images(plane, galaxies, flux, **SURVEY)
    assert counts[0] >= 2
    assert (counts[1:] < 2).all()


def test_a_ring_counts_as_more_than_one_image(make_galaxies):
    sphere = halo.cluster(halo.bcg(0.35, 1.2, sigma_v_km_s=800.0, axis_ratio=0.98, angle_rad=0.0))
    ring = scene.trace(sphere, AXIS, AXIS)
    counts = images.detected_images(ring, make_galaxies(0.05, 0.03), np.array([[900.0]]), **SURVEY)
    assert counts[0] >= 2


def test_galaxy_scale_lensing_does_not_count(make_galaxies):
    galaxy_lens = halo.bcg(0.35, 1.2, sigma_v_km_s=200.0, axis_ratio=0.9, angle_rad=0.0)
    plane = scene.trace(galaxy_lens, AXIS, AXIS)
    args = plane, make_galaxies(0.2, 0.1), np.array([[900.0]])
    assert images.detected_images(*args, **SURVEY)[0] == 1
    assert images.detected_images(*args, **SURVEY | {"min_separation_arcsec": 0.5})[0] >= 2


def test_the_best_band_decides(make_galaxies, plane):
    galaxies = make_galaxies(1.0, 0.5)
    two_bands = SURVEY | {"noise_sigma": np.ones(2), "psf_fwhm_arcsec": np.array([0.8, 0.8])}
    flux = np.array([[300.0, 1.0]])
    for order in ([0, 1], [1, 0]):
        assert images.detected_images(plane, galaxies, flux[:, order], **two_bands)[0] >= 2


def test_counts_grow_with_flux(make_galaxies, plane):
    flux = np.geomspace(1, 3000, 8)
    counts = [
        images.detected_images(plane, make_galaxies(1.0, 0.5), np.array([[f]]), **SURVEY)[0]
        for f in flux
    ]
    assert counts == sorted(counts)
    assert counts[0] < 2 <= counts[-1]
