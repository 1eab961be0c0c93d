"""The mean over eight views: what a turned sky changes, and what no data changes."""

import numpy as np
import pytest
import torch

from clusterray.schema import BLANK
from clusterray.vision.augment import dihedral
from clusterray.vision.prediction import all_views, predict
from tests.vision.vision_nets import cutouts, tiny

PIXELS, STEP, SIGMA, _ = cutouts(12)


def scores(model, pixels=PIXELS, *, step=STEP, sigma=SIGMA, **options):
    return predict(
        model, pixels, step=step, noise_sigma=sigma, micro_batch=8, threads=1, **options
    )  # fmt: skip


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turning_the_sky_leaves_the_logit_and_turns_the_map(turns, mirrored):
    model = tiny().eval()
    turned = np.rot90(PIXELS, turns, (2, 3))
    turned = np.ascontiguousarray(turned[..., ::-1] if mirrored else turned)
    before, after = scores(model, views=8), scores(model, turned, views=8)
    np.testing.assert_allclose(after.logit, before.logit, atol=1e-5)
    np.testing.assert_allclose(after.embedding, before.embedding, atol=1e-5)
    expected = np.rot90(before.attention.reshape(-1, 4, 4), turns, (1, 2))
    expected = expected[..., ::-1] if mirrored else expected
    np.testing.assert_allclose(after.attention.reshape(-1, 4, 4), expected, atol=1e-5)
    # The law is the average's: one view does move.
    assert np.abs(scores(model, turned).logit - scores(model).logit).max() > 1e-3


def test_views_are_the_mean_over_the_eight_symmetries():
    model = tiny().eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = all_views(model, images)
        slow = [model(dihedral(images, torch.full((3,), k))) for k in range(8)]
    torch.testing.assert_close(got.logit, torch.stack([s.logit for s in slow]).mean(0))
    torch.testing.assert_close(got.embedding, torch.stack([s.embedding for s in slow]).mean(0))
    torch.testing.assert_close(got.attention.sum(1), torch.ones(3))


def test_one_view_of_a_turned_sky_correlates(capsys):
    """How far a network that was never shown rotations depends on them, for the record."""
    model = tiny().eval()
    pixels, step, sigma, _ = cutouts(64, seed=4)
    turned = np.ascontiguousarray(np.rot90(pixels, 1, (2, 3)))
    a, b = (scores(model, p, step=step, sigma=sigma).logit for p in (pixels, turned))
    correlation = np.corrcoef(a, b)[0, 1]
    with capsys.disabled():
        print(f"\n[one view: correlation of logits under 90° {correlation:.3f}]")
    assert -1 <= correlation < 1


@pytest.mark.parametrize("views", [1, 8])
def test_what_lies_under_no_data_does_not_move_the_logit(views):
    model = tiny().eval()
    pixels, sky = PIXELS.copy(), PIXELS.copy()
    pixels[:, 1] = BLANK
    pixels[:, :, 10:14] = BLANK
    sky[:, 1] = 0
    sky[:, :, 10:14] = 0
    known = scores(model, pixels, views=views).logit
    # No data is the sky's mean level: what an empty band would show without noise.
    np.testing.assert_array_equal(known, scores(model, sky, views=views).logit)
    for value in (1e6, np.nan, 0.0):
        step, sigma = STEP.copy(), SIGMA.copy()
        step[:, 1], sigma[:, 1] = value, 3 * value
        moved = scores(model, pixels, step=step, sigma=sigma, views=views).logit
        np.testing.assert_array_equal(moved, known)
