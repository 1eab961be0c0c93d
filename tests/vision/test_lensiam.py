"""Learning from pairs without labels, and how it fails where it should."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from torch.nn import functional

from clusterray.errors import InputError, RunError
from clusterray.vision import lensiam
from clusterray.vision.preprocess import stretch, to_noise_units
from tests.vision.vision_nets import SIZE_PX, tiny


def pairs(n=64, n_bands=3, seed=0):
    """Two noisy views of a ring of the pair's own radius, before skies of their own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX] - (SIZE_PX - 1) / 2
    radius = rng.uniform(3, 13, n)
    ring = 80 * np.exp(-0.5 * (np.hypot(x, y) - radius[:, None, None]) ** 2 / 2)
    pixels = rng.normal(scale=8, size=(n, 2, n_bands, SIZE_PX, SIZE_PX)) + ring[:, None, None]
    for image in pixels.reshape(-1, n_bands, SIZE_PX, SIZE_PX):
        cy, cx = rng.uniform(-12, 12, 2)
        image += 60 * np.exp(-0.5 * (np.hypot(x - cx, y - cy) / 1.5) ** 2)
    step = np.full((n, 2, n_bands), 0.125, np.float32)
    return pixels.round().astype(np.int16), step, np.ones_like(step), radius


def run(model, *, n=64, **changes):
    pixels, step, sigma, _ = pairs(n)
    options = {"epochs": 12, "batch_size": 16, "learning_rate": 2e-3, "seed": 4, "dim": 32}
    return list(
        lensiam.fit(model, pixels, step=step, noise_sigma=sigma, threads=1, **(options | changes))
    )


def test_loss_falls_and_nothing_collapses():
    model = tiny()
    head = model.head.weight.detach().clone()
    history = run(model)
    assert [e.epoch for e in history] == list(range(12))
    assert history[-1].loss < history[0].loss - 0.3
    assert min(e.spread for e in history) > 0.4
    assert torch.equal(model.head.weight, head)
    assert not model.training


def unexplained(model):
    """Share of the variance of a ring's radius that the mean token does not give linearly."""
    seen = []
    for seed in (9, 10):
        pixels, step, sigma, radius = pairs(96, seed=seed)
        arrays = [torch.from_numpy(a[:, 0]) for a in (pixels, step, sigma)]
        flux = to_noise_units(*arrays[:2], noise_sigma=arrays[2])
        with torch.no_grad():
            tokens = model.tokens(stretch(flux, softening=3.0, size_px=SIZE_PX)).mean(1)
        seen.append((tokens.numpy(), radius))
    return 1 - RidgeCV(np.logspace(-3, 3, 7)).fit(*seen[0]).score(*seen[1])


def test_the_trunk_comes_to_know_the_lens():
    model = tiny()
    before = unexplained(model.eval())
    run(model, n=128, epochs=20)
    assert unexplained(model) < 0.7 * before


def no_stop_gradient(first, second):
    (p1, z1), (p2, z2) = first, second
    similarity = functional.cosine_similarity
    return -0.5 * (similarity(p1, z2).mean() + similarity(p2, z1).mean())


def no_predictor(first, second):
    (_, z1), (_, z2) = first, second
    similarity = functional.cosine_similarity
    return -0.5 * (similarity(z1, z2.detach()).mean() + similarity(z2, z1.detach()).mean())


@pytest.mark.parametrize("loss", [no_stop_gradient, no_predictor])
def test_without_its_two_tricks_it_collapses_and_says_so(monkeypatch, loss):
    monkeypatch.setattr(lensiam, "symmetric_loss", loss)
    model = tiny()
    with pytest.raises(RunError, match=r"collapsed in epoch \d+, spread 0\.[012]"):
        run(model, epochs=25, learning_rate=1e-2)
    assert not model.training


def test_the_loss_is_the_papers():
    torch.manual_seed(0)
    p1, z1, p2, z2 = torch.randn(4, 5, 8, dtype=torch.float64, requires_grad=True).unbind(0)
    loss = lensiam.symmetric_loss((p1, z1), (p2, z2))
    p, z = (np.stack([a.detach().numpy() for a in pair]) for pair in ((p1, p2), (z2, z1)))
    cosine = (p * z).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(z, axis=-1)
    assert loss.item() == pytest.approx(-cosine.mean(), rel=1e-12)


def test_spread_tells_a_sphere_from_a_point():
    torch.manual_seed(0)
    assert lensiam.spread(torch.randn(4000, 64)) == pytest.approx(1, abs=0.02)
    assert lensiam.spread(torch.randn(1, 64).expand(50, -1)) == pytest.approx(0, abs=1e-5)
    assert lensiam.spread(torch.randn(50, 64) * 0.01 + 1) < 0.05


def test_the_trunk_goes_into_a_network_to_train(tmp_path):
    model = tiny(seed=1)
    run(model, epochs=1)
    path = tmp_path / "trunk.safetensors"
    path.write_bytes(lensiam.trunk_weights(model))
    again = tiny(seed=2, weights=str(path))
    for name, value in model.trunk.state_dict().items():
        assert torch.equal(value, again.trunk.state_dict()[name])


def test_a_fit_is_a_function_of_its_seed():
    a, b, c = (tiny() for _ in range(3))
    assert [e.loss for e in run(a, epochs=2)] == [e.loss for e in run(b, epochs=2)]
    run(c, epochs=2, seed=5)
    assert lensiam.trunk_weights(a) == lensiam.trunk_weights(b) != lensiam.trunk_weights(c)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pixels": np.zeros((8, 3, SIZE_PX, SIZE_PX), np.int16)}, r"expected int16\[n, 2, 3"),
        ({"step": np.ones((8, 3), np.float32)}, r"step has shape \(8, 3\), expected \(8, 2, 3\)"),
        ({"batch_size": 9}, "8 pairs in batches of 9.*pretrain.n_pairs"),
        ({"noise_sigma": np.ones((7, 2, 3))}, "noise_sigma has shape"),
    ],
)
def test_bad_input(change, match):
    pixels, step, sigma, _ = pairs(8)
    given = {"pixels": pixels, "step": step, "noise_sigma": sigma, "batch_size": 4} | change
    with pytest.raises(InputError, match=match):
        list(
            lensiam.fit(
                tiny(), given.pop("pixels"), epochs=1, learning_rate=1e-3, seed=0, dim=32, **given
            )
        )  # fmt: skip
