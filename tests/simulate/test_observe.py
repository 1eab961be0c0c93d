import copy
from dataclasses import replace

import numpy as np
import pytest
from astropy.modeling import fitting, models
from astropy.stats import mad_std
from lenstronomy.SimulationAPI.ObservationConfig.DES import DES
from lenstronomy.SimulationAPI.ObservationConfig.Euclid import Euclid
from lenstronomy.SimulationAPI.ObservationConfig.LSST import LSST
from scipy.integrate import quad
from scipy.signal import fftconvolve

from clusterray.config import SurveySettings
from clusterray.errors import ConfigError
from clusterray.simulate import observe, scene
from clusterray.simulate.frame import Frame
from clusterray.sky.surveys import PRESETS, resolve

PIXEL = 0.336
SURVEYS = ("demo", "hsc", "lsst", "des", "euclid")


@pytest.fixture(scope="module")
def law(demo_maker):
    return demo_maker.recipe.observation


@pytest.fixture(scope="module")
def nominal(survey_of, law):
    """A survey's own conditions, without scatter."""
    none = dict.fromkeys(("seeing_sigma_ln", "band_seeing_sigma_ln", "depth_sigma_mag"), 0.0)
    steady = law.model_copy(update=none)
    return lambda name: observe.conditions(survey_of(name), steady, seed=1, name="any")


def exposure(**changes):
    values = {
        "band": "r",
        "depth_mag": 25.2,
        "psf_fwhm_arcsec": 0.9,
        "sky_mag": 21.0,
        "moffat_beta": 3.0,
    }
    return observe.Exposure(**(values | changes))


def star(one, law, *, flux=1.0, n=80, pixel=PIXEL, k=2, phase=(0.0, 0.0)):
    """A noise-free star near the middle, and its place in pixels."""
    canvas = np.zeros((1, n * k, n * k), np.float32)
    at = (n // 2 + np.asarray(phase)) * pixel
    scene.add_points(canvas, at[:1], at[1:], np.array([[flux]]), step_arcsec=pixel / k)
    image = observe.blur(canvas, [one], law, step_arcsec=pixel / k, supersampling=k)
    return image[0], at / pixel - 0.5


def sky(one, law, *, n=400, pixel=PIXEL, seed=1, light=0.0):
    image = np.full((1, n, n), light, np.float32)
    rng = np.random.default_rng(seed)
    return observe.detect(image, [one], law, pixel_arcsec=pixel, rng=rng)[0]


@pytest.mark.parametrize("psf", ["moffat", "gaussian"])
@pytest.mark.parametrize("fwhm", [0.7, 0.85, 1.1])
@pytest.mark.parametrize("phase", [(0.0, 0.0), (0.33, 0.81)])
def test_a_star_has_the_stated_width_flux_and_place(law, psf, fwhm, phase):
    law = law.model_copy(update={"psf": psf})
    image, at = star(exposure(psf_fwhm_arcsec=fwhm), law, flux=1e6, phase=phase)
    assert image.sum() == pytest.approx(1e6, rel=5e-3)
    y, x = np.mgrid[:80, :80]
    if psf == "moffat":
        fit = fitting.TRFLSQFitter()(models.Moffat2D(1e5, *at, 2.0, 3.0), x, y, image)
        width, place = fit.fwhm, (fit.x_0.value, fit.y_0.value)
    else:
        fit = fitting.TRFLSQFitter()(models.Gaussian2D(1e5, *at, 1.0, 1.0), x, y, image)
        width = (fit.x_fwhm * fit.y_fwhm) ** 0.5
        place = (fit.x_mean.value, fit.y_mean.value)
    assert width * PIXEL == pytest.approx(fwhm, rel=0.06)
    assert place == pytest.approx(tuple(at), abs=0.02)


def test_no_light_comes_round_the_edge(law):
    canvas = np.zeros((1, 160, 160), np.float32)
    canvas[0, 80, 1] = 1.0
    image = observe.blur(canvas, [exposure()], law, step_arcsec=PIXEL / 2, supersampling=2)[0]
    assert abs(image[:, 60:]).max() < 1e-6
    # On the edge a round PSF loses about half.
    assert 0.45 < image.sum() < 0.75


@pytest.mark.parametrize("beta", [None, 2.5, 3.0, 4.765])
def test_noise_equivalent_area_is_the_integral_of_the_squared_psf(beta):
    if beta is None:
        s = 0.9 / np.sqrt(8 * np.log(2))

        def psf(r):
            return np.exp(-(r**2) / (2 * s**2))
    else:
        alpha = 0.9 / 2 / np.sqrt(2 ** (1 / beta) - 1)

        def psf(r):
            return (1 + (r / alpha) ** 2) ** -beta

    assert psf(0.45) == pytest.approx(0.5)
    total = quad(lambda r: 2 * np.pi * r * psf(r), 0, np.inf)[0]
    squared = quad(lambda r: 2 * np.pi * r * psf(r) ** 2, 0, np.inf)[0]
    found = observe.noise_equivalent_px(0.9, pixel_arcsec=PIXEL, moffat_beta=beta)
    assert found == pytest.approx(total**2 / squared / PIXEL**2, rel=1e-6)


@pytest.mark.parametrize("name", SURVEYS)
def test_noise_and_depth_of_every_band_come_out_as_stated(nominal, law, name):
    """By the PSF's matched filter, and in an aperture of 0.68 FWHM with its own correction."""
    pixel = PRESETS[name].pixel_scale_arcsec
    conditions = nominal(name)
    sharpest = min(e.psf_fwhm_arcsec for e in conditions)
    frame = Frame.around(128, pixel, sharpest_fwhm_arcsec=sharpest)
    phases = np.random.default_rng(5).random((6, 2))
    for one in conditions:
        blank = sky(one, law, pixel=pixel, n=500)
        assert mad_std(blank) == pytest.approx(one.sigma_njy(pixel), rel=0.02)
        assert abs(blank.mean()) < 4 * one.sigma_njy(pixel) / blank.size**0.5
        depths = []
        for phase in phases:
            psf, at = star(one, law, n=64, pixel=pixel, k=frame.supersampling, phase=phase)
            aperture = disc(at, 0.68 * one.psf_fwhm_arcsec / pixel, n=64)
            middle = slice(20, 45)
            matched = psf / (psf**2).sum()
            corrected = aperture / (aperture * psf).sum()
            noise = [
                fftconvolve(blank, w[middle, middle][::-1, ::-1], mode="valid").std()
                for w in (matched, corrected)
            ]
            depths.append(observe.NJY_ZERO_POINT - 2.5 * np.log10(5 * np.array(noise)))
        off = np.mean(depths, axis=0) - one.depth_mag
        print(f"{name} {one.band}: depth off by {off[0]:+.3f} mag matched, {off[1]:+.3f} aperture")
        assert np.abs(off).max() < 0.1


def disc(at, radius_px, *, n, sub=10):
    """(n, n) share of each pixel inside a circle."""
    fine = (np.arange(n * sub) + 0.5) / sub - 0.5
    inside = (fine - at[0]) ** 2 + (fine[:, None] - at[1]) ** 2 < radius_px**2
    return inside.reshape(n, sub, n, sub).mean(axis=(1, 3))


def test_a_star_at_the_depth_has_a_signal_to_noise_of_five(law):
    one = exposure()
    psf, _ = star(one, law, n=64, phase=(0.3, 0.2))
    flux = float(observe.flux_njy(one.depth_mag))
    rng = np.random.default_rng(3)
    found = []
    for _ in range(400):
        image = (flux * psf)[None].astype(np.float32)
        observe.detect(image, [one], law, pixel_arcsec=PIXEL, rng=rng)
        found.append((image[0] * psf).sum() / (psf**2).sum())
    assert np.mean(found) == pytest.approx(flux, rel=0.04)
    assert np.mean(found) / np.std(found) == pytest.approx(5, rel=0.1)


def test_bright_light_brings_its_own_noise(law):
    one = exposure()
    brightness = float(observe.flux_njy(21.0)) * PIXEL**2
    image = sky(one, law, light=3 * brightness)
    assert image.mean() == pytest.approx(3 * brightness, rel=1e-2)
    assert image.std() == pytest.approx(2 * one.sigma_njy(PIXEL), rel=0.03)


def test_no_pixel_is_brighter_than_the_brightest_of_a_star_that_saturates(law):
    one = exposure(sky_mag=18.0)
    law = law.model_copy(update={"psf": "gaussian"})
    for fainter, clipped in ((0.3, False), (-0.3, True)):
        flux = float(observe.flux_njy(law.saturation_mag + fainter))
        image, _ = star(one, law, flux=flux, phase=(0.5, 0.5))
        seen = image[None].copy()
        observe.detect(seen, [one], law, pixel_arcsec=PIXEL, rng=np.random.default_rng(1))
        assert (seen.max() < 0.99 * image.max()) == clipped


@pytest.mark.parametrize("width", [0.0, 0.5, 0.8, 1.5])
def test_correlated_noise_gains_in_blocks_as_stated(law, width):
    law = law.model_copy(update={"correlated_noise_px": width})
    image = sky(exposure(), law, n=1000)
    blocks = image.reshape(500, 2, 500, 2).mean(axis=(1, 3))
    sigma = exposure().sigma_njy(PIXEL)
    assert image.std() == pytest.approx(sigma, rel=0.01)
    gain = blocks.std() / (sigma / 2) - 1
    assert gain == pytest.approx(observe.correlation_gain(law), abs=0.015)
    assert (gain > 0.1) == (width > 0.4)


def lenstronomys(name, band):
    made = {
        "lsst": lambda: LSST(band=band, psf_type="GAUSSIAN", coadd_years=10),
        "des": lambda: DES(band=band, psf_type="GAUSSIAN", coadd_years=6),
        "euclid": lambda: Euclid(band=band, psf_type="GAUSSIAN", coadd_years=6),
    }[name]()
    # It hands out a dictionary of its module.
    return copy.deepcopy(made.kwargs_single_band())


@pytest.mark.parametrize("name", ["lsst", "des", "euclid"])
def test_sky_and_seeing_are_lenstronomys(name):
    for band in PRESETS[name].bands:
        known = lenstronomys(name, band.name)
        assert observe.SKY_MAG[name][band.name] == pytest.approx(known["sky_brightness"], abs=0.006)
        assert band.psf_fwhm_arcsec == pytest.approx(known["seeing"], abs=0.006)


def test_zero_points_and_skies_name_the_bands_of_their_survey():
    for table in (observe.SKY_MAG, observe.ZERO_POINT):
        assert set(table) == set(SURVEYS)
        for name, values in table.items():
            assert tuple(values) == PRESETS[name].band_names


def test_fluxes_are_nanojansky():
    assert observe.flux_njy(31.4) == pytest.approx(1)
    assert observe.flux_njy(23.9) == pytest.approx(1000)


def test_conditions_scatter_as_the_recipe_says(survey_of, law):
    survey = survey_of("hsc")
    drawn = [observe.conditions(survey, law, seed=4, name=str(k)) for k in range(400)]
    width = np.log([[e.psf_fwhm_arcsec for e in one] for one in drawn])
    width -= np.log([b.psf_fwhm_arcsec for b in survey.bands])
    depth = np.array([[e.depth_mag for e in one] for one in drawn])
    assert np.std(width.mean(axis=1)) == pytest.approx(0.05, rel=0.15)
    assert np.std(width - width.mean(axis=1, keepdims=True)) == pytest.approx(0.027, rel=0.15)
    assert np.std(depth, axis=0) == pytest.approx([0.05] * 5, rel=0.15)
    again = observe.conditions(survey, law, seed=4, name="7")
    assert again == drawn[7] != drawn[8]
    assert all(e.moffat_beta == law.moffat_beta for e in again)
    gaussian = law.model_copy(update={"psf": "gaussian"})
    assert observe.conditions(survey, gaussian, seed=4, name="7")[0].moffat_beta is None


def test_only_the_demo_is_completed():
    demo = observe.completed(resolve(SurveySettings(name="demo")))
    assert [b.depth_mag for b in demo.bands] == [25.6, 25.3, 24.9]
    own = resolve(SurveySettings(name="demo", depth_mag={"r": 26.0}))
    assert observe.completed(own).band("r").depth_mag == 26.0
    assert observe.completed(PRESETS["hsc"]) is PRESETS["hsc"]


@pytest.mark.parametrize(
    ("survey", "message"),
    [
        (PRESETS["cfhtls"], "'cfhtls' cannot be simulated: psf_fwhm_arcsec of band 'g' is not kn"),
        (PRESETS["demo"], "'demo' cannot be simulated: psf_fwhm_arcsec of band 'g'"),
        (replace(PRESETS["hsc"], name="mine"), "'mine' cannot be simulated: sky_mag of band 'g'"),
    ],
)
def test_unknown_conditions_are_named(law, survey, message):
    with pytest.raises(ConfigError, match=message):
        observe.conditions(survey, law, seed=1, name="any")
