"""The contract of DESIGN: θ_E within 5 %, colours within 0.01 mag, after any augmentation."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from clusterray.vision.augment import Augmentation, augment, blur, dihedral, shift

SIZE = 64
RADIUS_PX = 14.0


def ring_image(n=1, colours=(1.0, 2.0, 3.5)):
    """A bright ring around the centre, in units of the noise sigma."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    profile = np.exp(-0.5 * ((np.hypot(x, y) - RADIUS_PX) / 2) ** 2)
    image = 100 * np.asarray(colours)[:, None, None] * profile
    return torch.tensor(np.repeat(image[None], n, 0), dtype=torch.float32)


def measure(flux):
    """Einstein radius (px, flux-weighted about the ring's own centre) and colours (mag)."""
    image = np.nan_to_num(flux.numpy().astype(np.float64))
    light = image.sum(1)
    y, x = np.mgrid[:SIZE, :SIZE]
    total = light.sum((1, 2))
    cy, cx = ((light * c).sum((1, 2)) / total for c in (y, x))
    radius = np.hypot(y - cy[:, None, None], x - cx[:, None, None])
    mean_radius = (light * radius * (radius < 26)).sum((1, 2)) / (light * (radius < 26)).sum((1, 2))
    bands = (image * (radius < 26)[:, None]).sum((2, 3))
    return mean_radius, -2.5 * np.log10(bands[:, :-1] / bands[:, 1:])


def breaks_contract(transform, n=24):
    before_radius, before_colour = measure(ring_image(n))
    radius, colour = measure(transform(ring_image(n)))
    return (
        np.abs(radius / before_radius - 1).max() > 0.05
        or np.abs(colour - before_colour).max() > 0.01
    )


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(4))
def test_augmentation_keeps_the_contract(seed):
    assert not breaks_contract(lambda f: augment(f, rng(seed)))


def hue_jitter(flux):
    return flux * torch.tensor([1.0, 1.02, 1.0])[:, None, None]


def free_crop(flux):
    side = round(0.9 * SIZE)
    cropped = flux[..., 3 : 3 + side, 3 : 3 + side]
    return torch.nn.functional.interpolate(cropped, size=(SIZE, SIZE), mode="bilinear")


def contrast(flux):
    return flux**1.1


def band_swap(flux):
    return flux[:, [1, 0, 2]]


@pytest.mark.parametrize("forbidden", [hue_jitter, free_crop, contrast, band_swap])
def test_forbidden_transforms_break_the_contract(forbidden):
    assert breaks_contract(forbidden)


def test_augmentation_changes_every_cutout_and_depends_on_the_generator_alone():
    flux = ring_image(6)
    a, b, c = augment(flux, rng(1)), augment(flux, rng(1)), augment(flux, rng(2))
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert not torch.allclose(a, c, equal_nan=True)
    assert all(not torch.allclose(x, y, equal_nan=True) for x, y in zip(a, flux, strict=True))
    torch.testing.assert_close(flux, ring_image(6), rtol=0, atol=0)


def test_noise_stays_one_sigma():
    flux = torch.randn(32, 2, 64, 64, generator=rng(7))
    std = augment(flux, rng(8)).numpy()
    per_cutout = np.nanstd(std, axis=(1, 2, 3))
    np.testing.assert_allclose(per_cutout, 1, atol=0.04)


def test_flux_scales_in_common_and_within_its_limit():
    limits = Augmentation(0, 1e-6, 0.0, 0.05)
    ratio = augment(ring_image(200), rng(4), limits=limits).sum((2, 3)) / ring_image(200).sum(
        (2, 3)
    )
    assert float(ratio.min()) > 0.94
    assert float(ratio.max()) < 1.06
    assert float(ratio[:, 2].std()) == pytest.approx(0.1 / np.sqrt(12), rel=0.2)
    # Noise was added to reach one sigma where the flux went down: bands agree only to its level.
    assert float((ratio[:, 1] / ratio[:, 2] - 1).abs().max()) < 0.003


@pytest.mark.parametrize("element", range(8))
def test_dihedral_agrees_with_numpy(element):
    flux = torch.arange(2 * 3 * 25.0).view(2, 3, 5, 5)
    expected = np.rot90(flux.numpy(), element % 4, (2, 3))
    expected = expected[..., ::-1] if element >= 4 else expected
    got = dihedral(flux, torch.tensor([element, 0]))
    np.testing.assert_array_equal(got[0].numpy(), expected[0])
    np.testing.assert_array_equal(got[1].numpy(), flux[1].numpy())


def test_dihedral_elements_are_all_different():
    flux = torch.arange(25.0).view(1, 1, 5, 5).repeat(8, 1, 1, 1)
    assert len({tuple(v.flatten().tolist()) for v in dihedral(flux, torch.arange(8))}) == 8


@pytest.mark.parametrize("offset", [(0, 0), (2, -1), (-3, 3)])
def test_shift_moves_and_fills_with_no_data(offset):
    flux = torch.arange(2 * 3 * 49.0).view(2, 3, 7, 7)
    got = shift(flux, torch.tensor([offset, (0, 0)]), max_shift_px=3).numpy()
    expected = ndimage.shift(flux[0].numpy(), (0, *offset), order=0, cval=np.nan)
    np.testing.assert_array_equal(got[0], expected)
    np.testing.assert_array_equal(got[1], flux[1].numpy())


def test_blur_agrees_with_scipy_and_reports_the_noise():
    flux = torch.randn(2, 2, 64, 64, generator=rng(5))
    got, factor = blur(flux, torch.tensor([0.5, 0.8]), max_sigma_px=0.8)
    for i, sigma in enumerate((0.5, 0.8)):
        expected = ndimage.gaussian_filter(flux[i].numpy(), (0, sigma, sigma), radius=3)
        np.testing.assert_allclose(got[i, :, 8:-8, 8:-8], expected[:, 8:-8, 8:-8], atol=2e-5)
        assert float(got[i].std()) == pytest.approx(float(factor[i]), rel=0.03)


def test_blur_keeps_masked_pixels_masked_and_others_finite():
    flux = torch.ones(1, 1, 20, 20)
    flux[..., :9] = torch.nan
    got, _ = blur(flux, torch.tensor([0.8]), max_sigma_px=0.8)
    assert torch.isnan(got[..., :9]).all()
    np.testing.assert_allclose(got[..., 9:], 1, rtol=1e-5)


def test_no_blur_is_the_identity():
    flux = torch.randn(1, 1, 20, 20, generator=rng(6))
    got, factor = blur(flux, torch.zeros(1), max_sigma_px=0.8)
    np.testing.assert_allclose(got, flux, atol=1e-6)
    assert float(factor) == pytest.approx(1)
