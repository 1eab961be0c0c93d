"""What a GPU computes beside what a CPU computes: `pytest -m gpu -s tests/vision/test_gpu.py`."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from clusterray.config import VisionSettings
from clusterray.vision import preprocess, training, vit
from clusterray.vision.augment import augment
from clusterray.vision.prediction import predict
from tests.vision.vision_nets import planes_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIDE_PX = 128


def sky(n, n_bands=5, seed=0):
    """Noise of eight steps and round sources; every other cutout has a ring, faint to bright."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(scale=8, size=(n, n_bands, SIDE_PX, SIDE_PX)).astype(np.float32)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    labels = (np.arange(n) % 2).astype(np.int8)
    for image, label in zip(pixels, labels, strict=True):
        for ring in (*(0.0,) * 5, *(rng.uniform(8, 20),) * int(label)):
            cy, cx = rng.uniform(30, SIDE_PX - 30, 2)
            shape = np.exp(-0.5 * ((np.hypot(y - cy, x - cx) - ring) / rng.uniform(1, 4)) ** 2)
            colours = 8 * 10 ** rng.uniform(0, 2) * rng.uniform(0.3, 1, n_bands)
            image += colours[:, None, None] * shape
    clipped = pixels.round().clip(-32767, 32767).astype(np.int16)
    step = np.full((n, n_bands), 0.125, np.float32)
    return clipped, step, np.ones((n, n_bands), np.float32), labels


def test_preprocessing_is_the_same_to_the_rounding_of_bfloat16():
    pixels, step, sigma, _ = sky(8)
    planes = torch.from_numpy(np.stack([planes_of(p) for p in pixels]))
    seen = {}
    for device in ("cpu", "cuda"):
        raw = preprocess.unshuffle(
            planes.to(device), n_bands=5, height_px=SIDE_PX, width_px=SIDE_PX
        )
        seen[device] = preprocess.to_input(
            raw,
            torch.from_numpy(step).to(device),
            noise_sigma=torch.from_numpy(sigma).to(device),
            softening=3.0,
            size_px=224,
        ).cpu()
    difference = (seen["cuda"] - seen["cpu"]).abs()
    print(f"[preprocess: max |GPU − CPU| = {float(difference.max()):.2e}]")
    # A value on the edge between two bfloat16 numbers may fall to either: one unit in the last
    # place, 2⁻⁸ of the value; one near zero is a difference of larger float32 numbers.
    a, b = (seen[d].bfloat16().float() for d in ("cpu", "cuda"))
    assert ((a - b).abs() <= a.abs() * 2**-7 + 1e-6).all()
    assert float((a != b).float().mean()) < 1e-3
    assert float(difference.max()) < 1e-4


class Loss(NamedTuple):
    objective: torch.Tensor
    risk: torch.Tensor


def cross_entropy(logits, labels):
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    return Loss(loss, loss)


def test_a_network_ranks_alike_on_cpu_in_float32_and_on_gpu_in_bfloat16():
    settings = VisionSettings(epochs=4, batch_size=64, augment=False)
    model = vit.build(settings, n_bands=5, size_px=SIDE_PX, seed=3)
    pixels, step, sigma, labels = sky(1024, seed=5)
    training.fit(
        model,
        pixels,
        step=step,
        noise_sigma=sigma,
        labels=labels,
        batches=lambda epoch: np.random.default_rng(epoch).permutation(1024).reshape(-1, 64),
        risk=cross_entropy,
        settings=settings,
        seed=1,
        device="cuda",
    )
    pixels, step, sigma, labels = sky(2048, seed=1)
    options = {"step": step, "noise_sigma": sigma, "micro_batch": 64}
    cpu = predict(model, pixels, **options).logit
    gpu = predict(model, pixels, device="cuda", dtype="bfloat16", **options).logit
    top = [set(np.argsort(-logit, kind="stable")[:500]) for logit in (cpu, gpu)]
    overlap = len(top[0] & top[1]) / 500
    print(
        f"[ViT-S/16 at 224 px, {len(cpu)} cutouts: max |Δlogit| = {np.abs(gpu - cpu).max():.4f}, "
        f"median {np.median(np.abs(gpu - cpu)):.4f}, where logits spread by {cpu.std():.3f} "
        f"(AUROC {roc_auc_score(labels, cpu):.3f}); top-500 overlap {100 * overlap:.1f} %]"
    )
    assert overlap >= 0.98


def test_augmentation_runs_on_the_device():
    pixels, step, sigma, _ = sky(16, seed=2)
    flux = preprocess.to_noise_units(
        *(torch.from_numpy(a).cuda() for a in (pixels, step)),
        noise_sigma=torch.from_numpy(sigma).cuda(),
    )
    one, two = (augment(flux, torch.Generator().manual_seed(4)) for _ in range(2))
    assert one.is_cuda
    torch.testing.assert_close(one, two, equal_nan=True, rtol=0, atol=0)
