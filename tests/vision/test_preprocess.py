import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clusterray.errors import InputError
from clusterray.schema import BLANK
from clusterray.vision.preprocess import (
    BLANK_BYTE,
    stretch,
    to_input,
    to_noise_units,
    unshuffle,
)
from tests.vision.vision_nets import planes_of


@given(
    hnp.arrays(np.int16, (2, 2, 3, 4), elements=st.integers(-32768, 32767)),
)
@settings(max_examples=60, deadline=None)
def test_unshuffle_inverts_the_definition(pixels):
    planes = torch.from_numpy(np.stack([planes_of(p) for p in pixels]))
    decoded = unshuffle(planes, n_bands=2, height_px=3, width_px=4)
    assert decoded.dtype == torch.int16
    np.testing.assert_array_equal(decoded.numpy(), pixels)


def test_blank_byte_decodes_to_no_data():
    planes = torch.full((1, 2 * 9), BLANK_BYTE, dtype=torch.uint8)
    assert (unshuffle(planes, n_bands=1, height_px=3, width_px=3) == BLANK).all()


@pytest.mark.parametrize(
    "planes",
    [
        torch.zeros(2, 17, dtype=torch.uint8),
        torch.zeros(2, 18, dtype=torch.int16),
        torch.zeros(2, 1, 18, dtype=torch.uint8),
    ],
)
def test_unshuffle_refuses_other_layouts(planes):
    with pytest.raises(InputError, match=r"expected torch.uint8\[n, 18\]"):
        unshuffle(planes, n_bands=1, height_px=3, width_px=3)


def test_input_is_the_noise_scaled_asinh():
    rng = np.random.default_rng(1)
    pixels = rng.integers(-300, 32767, (3, 2, 8, 8)).astype(np.int16)
    pixels[0, 1, 2:4] = BLANK
    step = rng.uniform(0.5, 2, (3, 2)).astype(np.float32)
    sigma = rng.uniform(4, 9, (3, 2)).astype(np.float32)
    got = to_input(
        *map(torch.from_numpy, (pixels, step)),
        noise_sigma=torch.from_numpy(sigma),
        softening=3.0,
        size_px=None,
    )
    flux = pixels.astype(np.float64) * (step / sigma)[:, :, None, None].astype(np.float64)
    expected = np.where(pixels == BLANK, 0, np.arcsinh(flux / 3))
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-6, atol=1e-7)


def test_stretch_agrees_with_asinh_for_faint_pixels():
    flux = torch.tensor(np.geomspace(1e-6, 1e5, 400), dtype=torch.float32).view(1, 1, 20, 20)
    flux = torch.cat([flux, -flux])
    got = stretch(flux, softening=1.0, size_px=None).numpy()
    np.testing.assert_allclose(got, np.arcsinh(flux.numpy().astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("size_px", [8, 32])
def test_resize_keeps_a_constant_sky_and_the_centre(size_px):
    pixels = torch.full((1, 1, 16, 16), 80, dtype=torch.int16)
    ones = torch.ones(1, 1)
    image = to_input(pixels, ones / 8, noise_sigma=ones, softening=2.0, size_px=size_px)
    assert image.shape == (1, 1, size_px, size_px)
    np.testing.assert_allclose(image.numpy(), np.arcsinh(5.0), rtol=1e-6)
    pixels = torch.zeros(1, 1, 16, 16, dtype=torch.int16)
    pixels[..., 7:9, 7:9] = 100
    image = to_input(pixels, ones / 8, noise_sigma=ones, softening=2.0, size_px=size_px)[0, 0]
    x = torch.arange(size_px) + 0.5
    centre = (image.sum(0) * x).sum() / image.sum() / size_px
    assert float(centre) == pytest.approx(0.5, abs=1e-4)


def test_downsampling_is_antialiased():
    pixels = torch.zeros(1, 1, 32, 32, dtype=torch.int16)
    pixels[..., ::2] = 16
    ones = torch.ones(1, 1)
    image = to_input(pixels, ones / 8, noise_sigma=ones, softening=2.0, size_px=8)[0, 0, 2:6, 2:6]
    assert float(image.max() - image.min()) < 0.1 * float(image.mean())


@pytest.mark.parametrize(("step", "sigma"), [(1, 1), (np.nan, 1), (1, 0), (0, 1), (1, np.inf)])
def test_cutouts_without_data_stay_finite(step, sigma):
    blank = BLANK if (step, sigma) == (1, 1) else 50
    pixels = torch.full((2, 3, 8, 8), blank, dtype=torch.int16)
    image = to_input(
        pixels,
        torch.full((2, 3), float(step)),
        noise_sigma=torch.full((2, 3), float(sigma)),
        softening=3.0,
        size_px=16,
    )
    assert (image == 0).all()


def test_shapes_must_belong_together():
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.int16)
    with pytest.raises(InputError, match=r"noise_sigma has shape \[2, 2\].*\[2, 3, 4, 4\]"):
        to_noise_units(pixels, torch.ones(2, 3), noise_sigma=torch.ones(2, 2))
