from dataclasses import replace

import numpy as np
import pytest

from clusterray import schema
from clusterray.errors import ConfigError
from clusterray.simulate import sersic
from clusterray.simulate.cutouts import CutoutMaker, truth_table
from clusterray.simulate.lensing import image_positions
from clusterray.simulate.observe import blur, detect, flux_njy
from clusterray.sky import shards
from clusterray.sky.surveys import PRESETS

KINDS = ("lens", "cluster", "missing_band", "lens_off")


@pytest.fixture(scope="module")
def made(demo_maker):
    return [demo_maker.make(str(k), kind) for k, kind in enumerate(KINDS, 1)]


def test_a_cutout_depends_on_survey_recipe_seed_and_id_alone(demo_maker, made):
    fresh = CutoutMaker(demo_maker.survey, demo_maker.recipe, demo_maker.seed)
    for k in (3, 0, 2, 1):
        again = fresh.make(str(k + 1), KINDS[k])
        assert np.array_equal(again.image, made[k].image, equal_nan=True)
        assert again.exposures == made[k].exposures
        assert again.truth["arc_mask"] == made[k].truth["arc_mask"]
    other = CutoutMaker(demo_maker.survey, demo_maker.recipe, 12).make("2", "cluster")
    assert (other.image != made[1].image).any()
    assert fresh.position("1") == demo_maker.position("1") != fresh.position("2")


def test_rows_keep_the_promise_of_a_shard(demo_maker, made):
    table = demo_maker.shard_table(made)
    schema.check(table, schema.cutouts(("g", "r", "i"), 128, pixel_scale_arcsec=0.5), where="made")
    batch = shards.batch(table)
    assert batch.object_id.tolist() == ["1", "2", "3", "4"]
    assert batch.pixel_scale_arcsec == 0.5
    for k, one in enumerate(made):
        step = batch.step[k][:, None, None]
        stored, image = batch.cutouts_nchw[k], one.image
        assert (np.isnan(stored) == np.isnan(image)).all()
        bright = image > 32000 * step
        off = np.abs(stored - image) > 0.51 * step
        assert not (off & ~bright).any()
        assert batch.noise_sigma[k] == pytest.approx([e.sigma_njy(0.5) for e in one.exposures])
        assert batch.columns["depth_mag"][k] == pytest.approx([e.depth_mag for e in one.exposures])
        foreground = one.drawn.system.foreground
        assert batch.columns["z_lens"][k] == foreground.z_lambda
        assert batch.columns["richness"][k] == foreground.richness
    assert (batch.columns["noise_correlation"] == 0).all()


def test_truth_rows_are_a_table(made):
    table = truth_table([one.truth for one in made], where="test")
    assert table.schema.equals(schema.TRUTH)
    rows = table.to_pylist()
    assert [r["y"] for r in rows] == [1, 0, 0, 0]
    assert rows[1]["z_source"] is None
    assert rows[1]["image_x_arcsec"] is None
    assert len(rows[0]["arc_mask"]) == 128 * 128 // 8
    assert rows[3]["arc_mask"] is None


def test_images_of_a_lens_lie_on_its_arcs(made):
    row = made[0].truth
    mask = np.unpackbits(np.frombuffer(row["arc_mask"], np.uint8)).reshape(128, 128)
    bright = row["image_snr"] > 10
    assert bright.sum() >= 2
    j, i = (np.floor((row[f"image_{a}_arcsec"] + 32) / 0.5).astype(int) for a in "yx")
    assert mask[j[bright], i[bright]].all()
    assert 0 < mask.mean() < 0.3


def test_images_of_one_galaxy_have_one_colour_within_the_noise(demo_maker, lens, make_galaxies):
    """One galaxy of one profile behind a drawn lens, in equal PSFs, through the detector."""
    frame, law = demo_maker.frame, demo_maker.recipe.observation
    plane = lens.system.foreground.plane(frame)
    galaxy = make_galaxies(1.0, 0.5, z=1.2, r_eff=0.4, mag=np.array([[22.6, 22.0, 21.3]]))
    canvas = np.zeros((3, frame.n_samples, frame.n_samples), np.float32)
    sersic.add_lensed(canvas, plane, galaxy, flux_njy(galaxy.mag))
    exposures = [replace(e, psf_fwhm_arcsec=0.8) for e in demo_maker.exposures("1")]
    image = blur(canvas, exposures, law, step_arcsec=0.25, supersampling=2)
    (at,) = image_positions(plane, 1.2, galaxy.x_arcsec, galaxy.y_arcsec)
    at = at[np.argsort(-np.abs(plane.magnification(1.2, *at.T)))][:2]
    y, x = (np.mgrid[:136, :136] - 67.5) * 0.5
    near = [np.hypot(x - a, y - b) < 1.5 for a, b in at]
    exact = np.array([image[:, m].sum(axis=1, dtype=float) for m in near])
    true = flux_njy(galaxy.mag[0])
    assert exact / exact[:, :1] == pytest.approx(np.tile(true / true[0], (2, 1)), rel=1e-4)
    detect(image, exposures, law, pixel_arcsec=0.5, rng=np.random.default_rng(2))
    seen = np.array([image[:, m].sum(axis=1, dtype=float) for m in near])
    sky = np.array([[e.sigma_njy(0.5) * m.sum() ** 0.5 for e in exposures] for m in near])
    error = np.hypot(
        sky / seen,
        [[(e.gain(0.5) * f) ** -0.5 for e, f in zip(exposures, one, strict=True)] for one in seen],
    )
    colour = -2.5 * np.log10(seen[0] / seen[1])
    sigma = 1.086 * np.hypot(np.hypot(*error)[1:], np.hypot(*error)[:1])
    assert (np.abs(colour[1:] - colour[0]) < 4 * sigma).all()
    assert sigma.max() < 0.2


def test_a_survey_of_unknown_conditions_is_refused_at_once(demo_maker):
    with pytest.raises(ConfigError, match="'cfhtls' cannot be simulated"):
        CutoutMaker(PRESETS["cfhtls"], demo_maker.recipe, 1).check()
    demo_maker.check()


def test_positions_cover_the_sky_evenly_within_fifty_degrees(demo_maker):
    ra, dec = np.array([demo_maker.position(str(k)) for k in range(400)]).T
    assert np.abs(dec).max() <= 50
    assert (ra.min(), ra.max()) == pytest.approx((0, 360), abs=5)
    sine = np.sin(np.radians(dec)) / np.sin(np.radians(50))
    assert np.std(sine) == pytest.approx(1 / 3**0.5, rel=0.1)
