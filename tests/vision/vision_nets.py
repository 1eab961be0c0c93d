"""A tiny, deterministic network and cutouts to feed it."""

import numpy as np

from clusterray.config import VisionSettings
from clusterray.vision import vit
from clusterray.vision.torchvision_ops import declare_missing

declare_missing()
# Where torchvision's library does not load, timm can be imported only now; tests take it from here.
import timm  # noqa: E402
import timm.models  # noqa: E402
import timm.optim  # noqa: E402, F401

SIZE_PX = 32
OPTIONS = {"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 8}


def tiny_settings(**changes):
    values = {
        "model": "vit_tiny_patch16_224",
        "model_options": OPTIONS,
        "image_size_px": SIZE_PX,
        "epochs": 2,
        "learning_rate": 1e-3,
        "augment": False,
    }
    return VisionSettings(**(values | changes))


def tiny(n_bands=3, seed=5, bands=None, **changes):
    settings = tiny_settings(**changes)
    return vit.build(settings, n_bands=n_bands, size_px=SIZE_PX, seed=seed, bands=bands)


def cutouts(n, n_bands=3, seed=0):
    """Noise of eight steps, and a bright ring in every fourth cutout (label 1)."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(scale=8, size=(n, n_bands, SIZE_PX, SIZE_PX))
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX] - (SIZE_PX - 1) / 2
    labels = (np.arange(n) % 4 == 0).astype(np.int8)
    pixels += 60 * (np.abs(np.hypot(x, y) - 9) < 2) * labels[:, None, None, None]
    step = np.full((n, n_bands), 0.125, np.float32)
    return pixels.round().astype(np.int16), step, np.ones((n, n_bands), np.float32), labels


def planes_of(pixels):
    """Zig-zag and byte planes, pixel by pixel with Python integers."""
    codes = [2 * v if v >= 0 else -2 * v - 1 for v in pixels.reshape(-1).tolist()]
    return np.array([c & 255 for c in codes] + [c >> 8 for c in codes], np.uint8)
