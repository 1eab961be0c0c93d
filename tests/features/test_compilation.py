"""The machine code of the features' loops: the same whichever process compiled it."""

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest
from numba.core.registry import CPUDispatcher

from clusterray.features import kernels

FEATURES = """
import hashlib, numpy as np
from clusterray.config import FeatureSettings
from clusterray.features import cutout_features
rng = np.random.default_rng(1)
pixels = rng.normal(0, 40, (24, 3, 64, 64)).cumsum(axis=3).round().clip(-9e3, 9e3)
pixels = pixels.astype(np.int16)
pixels[::3, :, :5] = -32768
ones = np.ones((24, 3), np.float32)
found = cutout_features(
    pixels, step=ones / 8, noise_sigma=ones, bands=("g", "r", "i"), columns={},
    settings=FeatureSettings(),
)
print(hashlib.sha256(found.values.tobytes()).hexdigest())
"""


def loops() -> dict[str, CPUDispatcher]:
    modules = [
        importlib.import_module(f"{kernels.__name__}.{m.name}")
        for m in pkgutil.iter_modules(kernels.__path__)
    ]
    every = {f"{m.__name__}.{n}": v for m in modules for n, v in vars(m).items()}
    return {n: v for n, v in every.items() if isinstance(v, CPUDispatcher)}


def test_sums_in_any_order_are_compiled_into_the_loop_that_python_calls():
    found = loops()
    assert len(found) > 40
    resummed = {id(d) for d in found.values() if d.targetoptions["fastmath"]}
    for name, loop in found.items():
        entry = not loop.targetoptions["no_cpython_wrapper"]
        inlined = loop.targetoptions["forceinline"]
        assert inlined == (id(loop) in resummed and not entry), name
        function = loop.py_func
        called = {id(function.__globals__.get(n)) for n in function.__code__.co_names}
        if called & resummed:
            assert inlined or entry, f"{name} calls one of them"


@pytest.mark.slow
def test_what_was_just_compiled_gives_the_bits_of_what_was_kept(tmp_path):
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", FEATURES], env=env, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert any(tmp_path.rglob("*.nbc"))
    assert said[0] == said[1]
