import numpy as np
import pytest

from clusterray.simulate import halo, truth
from clusterray.simulate.frame import Frame
from clusterray.simulate.lensing import lens_plane
from clusterray.simulate.observe import Exposure

FRAME = Frame.around(128, 0.5, sharpest_fwhm_arcsec=0.75)
EXPOSURES = tuple(
    Exposure(b, 25.5, w, 21.0, 3.0) for b, w in zip("gri", (0.9, 0.8, 0.75), strict=True)
)


@pytest.fixture(scope="module")
def criterion(demo_maker):
    return demo_maker.recipe.criterion


@pytest.fixture(scope="module")
def plane(massive_lens):
    return lens_plane(massive_lens, FRAME.axis_arcsec)


@pytest.fixture(scope="module")
def images_of(plane, criterion):
    def found(galaxies, *, lens=plane, exposures=EXPOSURES, **changes):
        law = criterion.model_copy(update=changes)
        return truth.find_images(galaxies, lens, FRAME, exposures, law)

    return found


def test_counts_of_a_hand_made_system(make_galaxies, images_of):
    # Inside the caustic; far outside it; inside but too faint; inside but not behind the lens.
    galaxies = make_galaxies(
        [1.0, 25.0, 1.0, 1.0],
        [0.5, 20.0, 0.5, 0.5],
        mag=np.array([[22.5], [22.5], [30.0], [22.5]]),
    )
    galaxies.z[3] = 0.3
    images = images_of(galaxies)
    assert images.multiple.tolist() == [0]
    assert images.count[0] >= 2
    assert images.count[[1, 3]].tolist() == [0, 0]
    assert images.count[2] == 0
    assert set(images.galaxy) == {0, 2}
    assert np.isnan(images.snr[images.galaxy == 2]).all()


def test_magnitudes_follow_the_magnification(make_galaxies, images_of):
    images = images_of(make_galaxies(1.0, 0.5, mag=23.0))
    assert images.mag == pytest.approx(23 - 2.5 * np.log10(np.abs(images.magnification)))
    assert (np.abs(images.x_arcsec) < 32).all()
    assert images.inside.all()


def test_images_outside_the_cutout_are_told_but_not_seen(make_galaxies, massive_lens, criterion):
    small = Frame.around(220, 0.5, sharpest_fwhm_arcsec=0.75, field_arcsec=24.0)
    plane = lens_plane(massive_lens, small.axis_arcsec)
    galaxy = make_galaxies(1.0, 0.5, mag=22.0)
    images = truth.find_images(galaxy, plane, small, EXPOSURES, criterion)
    far = np.maximum(np.abs(images.x_arcsec), np.abs(images.y_arcsec)) > 12
    assert far.any()
    assert (images.inside == ~far).all()
    assert np.isnan(images.snr[far]).all()


def test_a_ring_counts_as_more_than_one_image(make_galaxies, images_of):
    sphere = halo.bcg(0.35, 1.2, sigma_v_km_s=800.0, axis_ratio=0.98, angle_rad=0.0)
    ring = lens_plane(sphere, FRAME.axis_arcsec)
    assert images_of(make_galaxies(0.05, 0.03, mag=22.0), lens=ring).count[0] >= 2


def test_galaxy_scale_lensing_does_not_count(make_galaxies, images_of):
    galaxy_lens = halo.bcg(0.35, 1.2, sigma_v_km_s=200.0, axis_ratio=0.9, angle_rad=0.0)
    plane = lens_plane(galaxy_lens, FRAME.axis_arcsec)
    galaxy = make_galaxies(0.2, 0.1, mag=21.0)
    assert images_of(galaxy, lens=plane).count[0] == 1
    assert images_of(galaxy, lens=plane, min_separation_arcsec=0.5).count[0] >= 2


@pytest.mark.parametrize("band", [0, 1, 2])
def test_the_best_band_decides(make_galaxies, images_of, band):
    mag = np.full((1, 3), 30.0)
    mag[0, band] = 22.5
    images = images_of(make_galaxies(1.0, 0.5, mag=mag))
    assert images.count[0] >= 2
    assert images.band[0] == band


def test_counts_grow_with_flux(make_galaxies, images_of):
    counts = [images_of(make_galaxies(1.0, 0.5, mag=m)).count[0] for m in np.arange(29, 20, -1.0)]
    assert counts == sorted(counts)
    assert counts[0] < 2 <= counts[-1]


def test_signal_to_noise_grows_with_depth_less_than_the_noise_falls(make_galaxies, images_of):
    weak = halo.bcg(0.35, 1.2, sigma_v_km_s=400.0, axis_ratio=1.0, angle_rad=0.0)
    plane = lens_plane(weak, FRAME.axis_arcsec)
    galaxy = make_galaxies(1.0, 0.0, mag=22.0, r_eff=0.3)
    images = images_of(galaxy, lens=plane, min_separation_arcsec=0.0)
    two_deeper = tuple(Exposure(e.band, 27.5, e.psf_fwhm_arcsec, 21.0, 3.0) for e in EXPOSURES)
    deeper = images_of(galaxy, lens=plane, exposures=two_deeper, min_separation_arcsec=0.0)
    # Two magnitudes more depth: 6.3 times the S/N, less what the wider isophote adds in noise.
    assert 2 < np.nanmax(deeper.snr) / np.nanmax(images.snr) < 10 ** (0.4 * 2)


def test_no_galaxy_has_no_images(make_galaxies, images_of):
    empty = make_galaxies([0.0], [0.0]).take(np.zeros(1, bool))
    images = images_of(empty)
    assert len(images.multiple) == len(images.galaxy) == len(images.count) == 0


def test_the_arc_mask_marks_light_above_the_noise_in_any_band():
    sigma = [e.sigma_njy(0.5) for e in EXPOSURES]
    light = np.zeros((3, 128, 128), np.float32)
    light[0, 10, 20], light[2, 30, 40], light[1, 50, 60] = 1.6 * sigma[0], 9 * sigma[2], sigma[1]
    mask = truth.arc_mask(light, EXPOSURES, FRAME)
    assert np.argwhere(mask).tolist() == [[10, 20], [30, 40]]


def test_a_row_says_what_is_true_of_a_lens(lens, demo_maker):
    system, row = lens.system, lens.truth
    n, z_lens, z_source = row["n_multiply_imaged"], row["z_lens"], row["z_source"]
    assert (row["y"], row["kind"]) == (1, "lens")
    assert n >= 2
    assert z_lens == system.foreground.z_lens < 0.6 < 0.8 <= z_source == system.background.z
    assert len(set(row["image_galaxy"])) == n
    sharpest = min(e.psf_fwhm_arcsec for e in demo_maker.exposures("1"))
    assert row["theta_e_over_fwhm"] == pytest.approx(row["theta_e_arcsec"] / sharpest)
    assert row["arc_snr"] == np.nanmax(row["image_snr"]) > 5
    best = row["image_galaxy"][np.nanargmax(row["image_snr"])]
    of_best = row["image_galaxy"] == best
    unlensed = row["image_mag"] + 2.5 * np.log10(np.abs(row["image_magnification"]))
    assert row["source_mag"] == pytest.approx(unlensed[of_best])
    counted = np.abs(row["image_magnification"]) > 0.1
    total = np.abs(row["image_magnification"][of_best & counted]).sum()
    assert row["magnification"] == pytest.approx(total)
    outside = np.maximum(np.abs(row["image_x_arcsec"]), np.abs(row["image_y_arcsec"])) >= 32
    assert row["share_outside"] == pytest.approx(outside[counted].mean())


def test_the_critical_curve_of_a_row_encloses_its_radius(lens):
    x, y = lens.truth["critical_x_arcsec"], lens.truth["critical_y_arcsec"]
    gaps = np.flatnonzero(np.isnan(x))
    largest = slice(0, gaps[0] if len(gaps) else None)
    x, y = x[largest], y[largest]
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert lens.truth["theta_e_arcsec"] == pytest.approx(np.sqrt(area / np.pi))
