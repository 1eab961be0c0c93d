from dataclasses import replace

import numpy as np
import pytest

from clusterray import schema
from clusterray.simulate import injection, scene, sersic
from clusterray.simulate.cutouts import CutoutMaker, truth_table
from clusterray.simulate.lensing import lens_plane
from clusterray.simulate.observe import SKY_MAG, Exposure, blur, flux_njy
from clusterray.sky import shards

NAN = float("nan")


def batch_of(maker, n=2, **changes):
    """Noise of the demo with known clusters in it; `changes` replace columns."""
    sky = np.random.default_rng(4).normal(0, 3.0, (n, 3, 128, 128)).astype(np.float32)
    sky[0, 1, :9] = np.nan
    columns = {
        "z_lens": [0.35] * n,
        "richness": [120.0] * n,
        "sigma_v_km_s": [NAN] * n,
        "l_x_erg_s": [NAN] * n,
        "psf_fwhm_arcsec": np.tile([0.9, 0.8, 0.75], (n, 1)),
    }
    table = shards.to_table(
        object_id=[f"c{k}" for k in range(n)],
        ra_deg=np.full(n, 150.0),
        dec_deg=np.linspace(0, 1, n),
        cutouts_nchw=sky,
        noise_sigma=np.full((n, 3), 3.0),
        bands=("g", "r", "i"),
        pixel_scale_arcsec=0.5,
        survey="demo",
        **(columns | changes),
    )
    return shards.batch(table)


@pytest.fixture(scope="module")
def batch(demo_maker):
    return batch_of(demo_maker)


@pytest.fixture(scope="module")
def pair(batch, demo_maker):
    made = injection.inject(batch, 0, demo_maker)
    assert not isinstance(made, str)
    return made


def test_a_pair_has_its_names_labels_and_truth(pair):
    assert (pair.lens_id, pair.twin_id) == ("c0+lens", "c0+off")
    lens, twin = truth_table(list(pair.truth), where="test").to_pylist()
    assert (lens["object_id"], lens["y"], lens["kind"], lens["twin_of"]) == (
        *("c0+lens", 1, "lens", "c0"),
    )
    assert (twin["object_id"], twin["y"], twin["kind"], twin["twin_of"]) == (
        *("c0+off", 0, "lens_off", "c0+lens"),
    )
    for name in ("z_lens", "z_source", "m200_msun", "richness", "theta_e_arcsec", "tries"):
        assert lens[name] == twin[name]
    assert lens["richness"] == 120
    assert lens["n_multiply_imaged"] >= 2
    assert twin["n_multiply_imaged"] == 0
    # λ 120 is 1.4e15 solar masses, with a scatter of 25 %.
    assert 0.4 < lens["m200_msun"] / 1.37e15 < 2.5


def test_without_photon_noise_the_light_is_simply_added(batch, demo_maker, monkeypatch):
    """In a bright sky as many electrons come per nJy as one likes."""
    seen = []
    paint = scene.paint_background

    def spy(system, frame, *, n_bands):
        seen.append(system)
        return paint(system, frame, n_bands=n_bands)

    monkeypatch.setattr(injection.scene, "paint_background", spy)
    for band in "gri":
        monkeypatch.setitem(SKY_MAG["demo"], band, -40.0)
    pair = injection.inject(batch, 0, demo_maker)
    lensed = next(s for s in seen if s.background.lensed)
    straight = next(s for s in seen if not s.background.lensed)
    frame, law = demo_maker.frame, demo_maker.recipe.observation
    flux = flux_njy(lensed.background.light.mag)
    canvases = np.zeros((2, 3, frame.n_samples, frame.n_samples), np.float32)
    plane = lens_plane(lensed.foreground.deflector, frame.axis_arcsec)
    sersic.add_lensed(canvases[0], plane, lensed.background.light, flux)
    moved = straight.background.light.moved(frame.centre_arcsec, frame.centre_arcsec)
    sersic.add_galaxies(canvases[1], moved, flux, step_arcsec=frame.step_arcsec)
    exposures = [
        Exposure(b, 25.0, w, 20.0, law.moffat_beta)
        for b, w in zip("gri", (0.9, 0.8, 0.75), strict=True)
    ]
    for image, canvas in zip((pair.lens, pair.twin), canvases, strict=True):
        light = blur(canvas, exposures, law, step_arcsec=0.25, supersampling=2)
        expected = batch.cutouts_nchw[0] + light[:, frame.kept(), frame.kept()]
        assert np.allclose(image, expected, atol=2e-3 * light.max(), rtol=1e-4, equal_nan=True)
    assert lensed.foreground.deflector.profiles == ("NFW_ELLIPSE_CSE", "SIE")


def test_what_has_no_data_stays_without(pair, batch):
    blank = np.isnan(batch.cutouts_nchw[0])
    assert blank.any()
    for image in (pair.lens, pair.twin):
        assert (np.isnan(image) == blank).all()


def test_light_brings_its_photon_noise(pair, batch):
    mask = np.unpackbits(np.frombuffer(pair.truth[0]["arc_mask"], np.uint8)).reshape(128, 128) > 0
    added = pair.lens - batch.cutouts_nchw[0]
    assert np.nanmin(added) < 0, "noise may take away"
    assert np.nanmedian(added[2][mask]) > 3.0
    assert np.nanmedian(np.abs(added[2][~mask])) < 1.0


def test_an_injection_depends_on_cutout_and_maker_alone(pair, batch, demo_maker):
    injection.inject(batch, 1, demo_maker)
    again = injection.inject(batch, 0, demo_maker)
    assert np.array_equal(again.lens, pair.lens, equal_nan=True)
    assert np.array_equal(again.twin, pair.twin, equal_nan=True)
    other = CutoutMaker(demo_maker.survey, demo_maker.recipe, 99)
    assert not np.array_equal(injection.inject(batch, 0, other).lens, pair.lens, equal_nan=True)


def test_rows_stand_where_their_source_stands(pair, batch, demo_maker):
    second = injection.inject(batch, 1, demo_maker)
    table = injection.pairs_table(batch, [pair, second], demo_maker)
    rows = shards.batch(
        schema.check(
            table, schema.cutouts(("g", "r", "i"), 128, pixel_scale_arcsec=0.5), where="injected"
        )
    )
    assert rows.object_id.tolist() == ["c0+lens", "c0+off", "c1+lens", "c1+off"]
    for name in ("ra_deg", "dec_deg", "z_lens", "richness", "psf_fwhm_arcsec", "coverage"):
        assert np.array_equal(rows.columns[name], np.repeat(batch.columns[name], 2, axis=0))
    assert (rows.noise_sigma == 3).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"z_lens": [NAN] * 2}, "z_lens is nan, expected 0.02 to 0.75"),
        ({"z_lens": [0.79] * 2}, "z_lens is 0.790, expected 0.02 to 0.75"),
        ({"richness": [NAN] * 2}, "no mass: richness, sigma_v_km_s and l_x_erg_s are all unknown"),
        ({"richness": [1.0] * 2}, "is that of no cluster, expected 3e13 to 5e15"),
        ({"richness": [8.0] * 2}, "none of 25 background clusters is multiply imaged behind M200"),
    ],
)
def test_cutouts_that_cannot_carry_a_lens_say_why(demo_maker, changes, reason):
    made = injection.inject(batch_of(demo_maker, **changes), 0, demo_maker)
    assert isinstance(made, str)
    assert reason in made


def test_an_unknown_psf_is_the_surveys_or_a_reason(demo_maker):
    unknown = batch_of(demo_maker, psf_fwhm_arcsec=np.full((2, 3), NAN))
    assert not isinstance(injection.inject(unknown, 0, demo_maker), str)
    bands = tuple(replace(b, psf_fwhm_arcsec=None) for b in demo_maker.survey.bands)
    blind = CutoutMaker(replace(demo_maker.survey, bands=bands), demo_maker.recipe, demo_maker.seed)
    found = injection.inject(unknown, 0, blind)
    assert found == "PSF of band g is unknown; set survey.psf_fwhm_arcsec.g"
