import numpy as np
import pytest
from astropy.modeling import fitting, models
from astropy.stats import mad_std
from scipy.signal import fftconvolve

from clusterray.simulate import observe, scene

PIXEL = 0.336


def exposure(**changes):
    values = {
        "band": "r",
        "zero_point": 30.0,
        "depth_mag": 25.2,
        "psf_fwhm_arcsec": 0.9,
        "sky_mag": 21.0,
    }
    return observe.Exposure(**(values | changes))


def exposed(canvas, conditions, seed=1):
    rng = np.random.default_rng(seed)
    return observe.expose(canvas, conditions, pixel_arcsec=PIXEL, supersampling=2, rng=rng)


@pytest.mark.parametrize("fwhm", [0.7, 0.85, 1.1])
@pytest.mark.parametrize("shift", [0.0, 0.11, 0.27])
def test_a_star_has_the_stated_width_and_flux(fwhm, shift):
    canvas = np.zeros((1, 164, 164), dtype=np.float32)
    centre = np.array([41 * PIXEL + shift])
    scene.paint_points(canvas, centre, centre, np.array([[1e6]]), pixel_arcsec=PIXEL / 2)
    image = exposed(canvas[0], exposure(psf_fwhm_arcsec=fwhm, depth_mag=40.0, sky_mag=18.0))
    assert image.sum() == pytest.approx(1e6, rel=5e-3)
    y, x = np.mgrid[:82, :82]
    peak = float(centre[0]) / PIXEL - 0.5
    start = models.Moffat2D(1e5, peak, peak, 2.0, 3.0)
    fit = fitting.TRFLSQFitter()(start, x, y, image)
    assert fit.fwhm * PIXEL == pytest.approx(fwhm, rel=0.06)
    assert (fit.x_0.value, fit.y_0.value) == pytest.approx((peak, peak), abs=0.02)


def test_blank_sky_has_the_stated_noise():
    conditions = exposure()
    image = exposed(np.zeros((600, 600), dtype=np.float32), conditions)
    assert mad_std(image) == pytest.approx(conditions.sigma(PIXEL), rel=0.02)
    assert abs(image.mean()) < 4 * conditions.sigma(PIXEL) / np.sqrt(image.size)


def test_the_five_sigma_depth_is_that_of_a_matched_filter():
    conditions = exposure()
    image = exposed(np.zeros((800, 800), dtype=np.float32), conditions)
    s_px = 0.9 / 2.3548 / PIXEL
    y, x = np.mgrid[-9:10, -9:10]
    psf = np.exp(-(x**2 + y**2) / (2 * s_px**2))
    psf /= psf.sum()
    flux = fftconvolve(image, psf / (psf**2).sum(), mode="valid")
    five_sigma_mag = 30.0 - 2.5 * np.log10(5 * flux.std())
    assert five_sigma_mag == pytest.approx(25.2, abs=0.1)


def test_bright_light_brings_its_own_noise():
    conditions = exposure()
    sky = float(observe.flux_counts(21.0, zero_point=30.0)) * PIXEL**2
    flat = np.full((400, 400), 3 * sky / 4, dtype=np.float32)
    image = exposed(flat, conditions)[40:-40, 40:-40]
    assert image.mean() == pytest.approx(3 * sky, rel=1e-2)
    assert image.std() == pytest.approx(2 * conditions.sigma(PIXEL), rel=0.03)


def test_counts_follow_the_zero_point():
    assert observe.flux_counts(27.5, zero_point=30.0) == pytest.approx(10.0)
    assert observe.flux_counts(20.0, zero_point=22.5) == pytest.approx(10.0)


def test_another_seed_is_another_sky():
    empty = np.zeros((20, 20), dtype=np.float32)
    assert (exposed(empty, exposure(), 1) == exposed(empty, exposure(), 1)).all()
    assert (exposed(empty, exposure(), 1) != exposed(empty, exposure(), 2)).any()
