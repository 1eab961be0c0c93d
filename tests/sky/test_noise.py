import numpy as np
import pytest
from scipy import ndimage

from clusterray.sky.noise import blank_sky


def crowd(size: int, n: int, *, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.zeros((size, size))
    for _ in range(n):
        r = np.hypot(x - rng.uniform(0, size), y - rng.uniform(0, size))
        image += 15 * rng.pareto(1.0) * np.exp(-r / rng.uniform(1.2, 3))
    return image


@pytest.mark.parametrize("n_sources", [0, 20])
@pytest.mark.parametrize("sky", [0.0, -3.0, 500.0])
def test_white_noise_is_measured_to_three_percent(n_sources, sky):
    noise = np.random.default_rng(2).normal(sky, 2.0, (128, 128))
    sigma, correlation = blank_sky((noise + crowd(128, n_sources, seed=3)).astype(np.float32))
    assert sigma == pytest.approx(2.0, rel=0.03)
    assert correlation == pytest.approx(0.0, abs=0.04)


def test_clipping_leaves_no_bias():
    noise = np.random.default_rng(1).normal(0.0, 2.0, (1024, 1024)).astype(np.float32)
    assert blank_sky(noise)[0] == pytest.approx(2.0, rel=0.005)


def test_correlated_noise_is_measured_per_pixel():
    white = np.random.default_rng(4).normal(size=(256, 256))
    image = ndimage.uniform_filter(white, (1, 2), mode="wrap") * np.sqrt(2)
    sigma, correlation = blank_sky(image.astype(np.float32))
    assert sigma == pytest.approx(1.0, rel=0.03)
    # Means of two neighbours: the variance of a 2×2 block mean is 3/8 of a pixel's, not 1/4.
    assert correlation == pytest.approx(np.sqrt(1.5) - 1, abs=0.04)


def test_missing_pixels_do_not_count():
    image = np.random.default_rng(5).normal(size=(128, 128)).astype(np.float32)
    image[:, :70] = np.nan
    assert blank_sky(image)[0] == pytest.approx(1.0, rel=0.04)


def test_scale_and_offset():
    image = (np.random.default_rng(6).normal(size=(64, 64)) + crowd(64, 5, seed=1)).astype(
        np.float32
    )
    sigma, correlation = blank_sky(image)
    scaled, same = blank_sky(image * np.float32(8) + np.float32(16))
    assert scaled == pytest.approx(8 * sigma, rel=1e-3)
    assert same == pytest.approx(correlation, abs=1e-3)


@pytest.mark.parametrize("value", [1e9, -1e9, 3e30])
def test_one_bad_pixel_does_not_make_the_rest_constant(value):
    image = np.random.default_rng(8).normal(size=(128, 128)).astype(np.float32)
    image[3, 4] = value
    sigma, correlation = blank_sky(image)
    assert sigma == pytest.approx(1.0, rel=0.03)
    assert correlation == pytest.approx(0.0, abs=0.04)


def test_an_image_without_noise_or_data():
    constant = np.full((64, 64), 7.3, np.float32)
    assert blank_sky(constant)[0] == 0.0
    rounded = constant + np.random.default_rng(9).normal(0, 1e-6, (64, 64)).astype(np.float32)
    assert blank_sky(rounded)[0] == 0.0
    constant[10, 10] = 1e4
    assert blank_sky(constant)[0] == 0.0
    few = np.full((64, 64), np.nan, np.float32)
    few[0, :50] = 1.0
    assert np.isnan(blank_sky(few)).all()


def test_without_blank_sky_the_noise_is_a_bound_and_the_correlation_unknown():
    y, x = np.mgrid[:64, :64]
    image = np.random.default_rng(7).normal(size=(64, 64)) + 500.0 * ((x % 8 == 0) & (y % 8 == 0))
    sigma, correlation = blank_sky(image.astype(np.float32))
    assert sigma == pytest.approx(1.0, rel=0.1)
    assert np.isnan(correlation)
