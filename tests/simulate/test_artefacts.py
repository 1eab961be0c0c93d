import numpy as np
import pytest

from clusterray.simulate import artefacts
from clusterray.simulate.artefacts import Artefact
from clusterray.simulate.observe import Exposure, blur, flux_njy

PIXEL = 0.5
EXPOSURES = tuple(
    Exposure(b, 25.0, w, 21.0, 3.0) for b, w in zip("gri", (0.9, 0.8, 0.75), strict=True)
)
SIGMA = [e.sigma_njy(PIXEL) for e in EXPOSURES]


def before(artefact, n=129):
    image = np.zeros((3, n, n), np.float32)
    artefacts.add_before_noise(image, artefact, EXPOSURES, pixel_arcsec=PIXEL)
    return image


def after(artefact, n=129):
    image = np.zeros((3, n, n), np.float32)
    artefacts.add_after_noise(image, artefact, EXPOSURES, pixel_arcsec=PIXEL)
    return image


def offsets(artefact, n=129):
    y, x = (np.mgrid[:n, :n] - (n - 1) / 2) * PIXEL
    return x - artefact.x_arcsec, y - artefact.y_arcsec


@pytest.mark.parametrize("n_spikes", [4, 6])
def test_a_star_has_its_spikes_along_its_angle(n_spikes):
    star = Artefact(
        "star", x_arcsec=2.0, y_arcsec=-1.0, angle_rad=0.3, n_spikes=n_spikes, mag=np.full(3, 14.0)
    )
    image = before(star)[1]
    x, y = offsets(star)
    ring = np.abs(np.hypot(x, y) - 10) < 1.0
    phi = np.arctan2(y, x)[ring]
    wave = np.abs((image[ring] * np.exp(1j * n_spikes * phi)).sum()) / image[ring].sum()
    angle = np.angle((image[ring] * np.exp(1j * n_spikes * phi)).sum()) / n_spikes
    assert wave > 0.3
    assert (angle - 0.3 + np.pi / n_spikes) % (2 * np.pi / n_spikes) == pytest.approx(
        np.pi / n_spikes, abs=0.02
    )


def test_a_star_has_its_flux_in_every_band_and_a_wing():
    mag = np.array([15.0, 14.0, 13.5])
    star = Artefact("star", n_spikes=4, mag=mag)
    image = before(star)
    x, y = offsets(star)
    radius = np.hypot(x, y)
    inside = image[:, radius < 8].sum(axis=1)
    assert inside == pytest.approx(flux_njy(mag), rel=0.06)
    between = (np.abs(radius - 12) < 1) | (np.abs(radius - 24) < 1)
    off_spikes = np.abs(np.sin(2 * np.arctan2(y, x))) > 0.9
    near, far = (image[1][between & off_spikes & (np.abs(radius - r) < 1)].mean() for r in (12, 24))
    assert near / far == pytest.approx(4, rel=0.2)


def test_a_trail_runs_through_its_place_with_its_crest_and_the_psfs_width():
    trail = Artefact("trail", 1, 3.0, -4.0, angle_rad=0.6, size=9.0)
    image = before(trail)
    assert not image[[0, 2]].any()
    x, y = offsets(trail)
    across = y * np.cos(0.6) - x * np.sin(0.6)
    assert image[1].max() == pytest.approx(9 * SIGMA[1], rel=0.03)
    half = np.abs(across) < EXPOSURES[1].psf_fwhm_arcsec / 2
    assert (image[1][half] >= 0.49 * 9 * SIGMA[1]).all()
    assert (image[1][~half] <= 0.51 * 9 * SIGMA[1]).all()
    assert image[1][np.abs(across) > 3].max() < 1e-3 * SIGMA[1]


def test_beyond_a_gap_there_is_no_data():
    gap = Artefact("gap", 2, x_arcsec=5.0, y_arcsec=2.0, angle_rad=0.4)
    image = after(gap)
    x, y = offsets(gap)
    beyond = x * np.cos(0.4) + y * np.sin(0.4) > 0
    assert np.isnan(image[2][beyond]).all()
    assert np.isfinite(image[2][~beyond]).all()
    assert np.isfinite(image[:2]).all()


def test_cosmic_rays_are_thin_tracks_in_one_band_that_their_seed_draws():
    rays = Artefact("cosmic_rays", 0, size=50.0, n_spikes=12, seed=8)
    image = after(rays)
    assert not image[1:].any()
    hit = image[0][image[0] > 0] / SIGMA[0]
    assert 12 * 2 <= len(hit) + 12 <= 12 * 25 + 12
    assert hit.min() >= 0.2 * 50 * 0.999
    assert (image == after(rays)).all()
    assert (image != after(Artefact("cosmic_rays", 0, size=50.0, n_spikes=12, seed=9))).any()


def test_a_shift_moves_the_light_of_one_band(demo_maker):
    shift = Artefact("shift", 1, x_arcsec=0.83, y_arcsec=-0.46)
    canvas = np.zeros((3, 160, 160), np.float32)
    canvas[:, 80, 80] = 1.0
    image = blur(
        canvas,
        EXPOSURES,
        demo_maker.recipe.observation,
        step_arcsec=0.25,
        supersampling=2,
        shift_arcsec=artefacts.shifts_arcsec(shift, 3),
    )
    at = np.arange(80) * PIXEL
    x, y = (image.sum(axis=k) @ at / image.sum(axis=(1, 2)) for k in (1, 2))
    assert (x[1] - x[0], y[1] - y[0]) == pytest.approx((0.83, -0.46), abs=0.01)
    assert (x[2] - x[0], y[2] - y[0]) == pytest.approx((0, 0), abs=0.01)
    assert image.sum(axis=(1, 2)) == pytest.approx([1, 1, 1], rel=5e-3)


def test_a_blur_widens_one_band_and_leaves_its_sky():
    blurred = artefacts.mismatched(Artefact("blur", 2, size=1.8), EXPOSURES)
    assert blurred[:2] == EXPOSURES[:2]
    assert blurred[2].psf_fwhm_arcsec == pytest.approx(1.8 * 0.75)
    assert blurred[2].sigma_njy(PIXEL) == pytest.approx(SIGMA[2])
    assert blurred[2].gain(PIXEL) == pytest.approx(EXPOSURES[2].gain(PIXEL))
    assert blurred[2].moffat_beta == 3.0


@pytest.mark.parametrize("fault", [None, "shift", "blur"])
def test_other_faults_add_nothing(fault):
    artefact = fault and Artefact(fault, 1, 0.5, 0.5, size=2.0)
    assert not before(artefact).any()
    assert not after(artefact).any()
    if fault != "shift":
        assert artefacts.shifts_arcsec(artefact, 3) is None
    if fault != "blur":
        assert artefacts.mismatched(artefact, EXPOSURES) == EXPOSURES
