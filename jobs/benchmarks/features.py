"""Features on one core: the patch set beside plain scikit-image and numpy, and the full set.

The plain implementation computes the same patch statistics with scikit-image's `sobel`,
`numpy.median` and the like, each band and patch by itself; both must agree, or the run fails. It
knows that co-occurrence contrast is a mean over neighbours: with `graycomatrix`, which is timed
beside it, it is slower still. The memory touch reads every pixel once and adds it up.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.feature import graycomatrix, graycoprops
from skimage.filters import sobel

from clusterray.config import CandidateSettings
from clusterray.errors import RunError
from clusterray.features import image_features
from clusterray.features.geometry import patch_edges
from clusterray.features.kernels.levels import level_of
from clusterray.features.measurement import EDGE_SIGMA
from clusterray.features.measurement import measure as measure_sums
from clusterray.features.patches import patch_values
from clusterray.features.segment_features import segment_features
from clusterray.sky.byte_planes import encode
from jobs.benchmarks.result import Result

__all__ = ["add_arguments", "measure", "plain_patches"]

_GRID = 3
_BANDS = ("g", "r", "i", "z", "y")
_MIN_RATIO, _PATCH_MS, _FULL_MS, _SEGMENT_MS = 30.0, 0.2, 0.3, 10.0
_START_S = 2.0
Floats = npt.NDArray[np.float64]
Texture = Callable[[npt.NDArray[np.uint8]], tuple[float, float]] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--cutouts", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)


def measure(options: argparse.Namespace) -> Result:
    """Time each set on made fields; value and baseline are cutouts/s of the patch set."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    n = options.cutouts
    small, wide, large = (_field(n, b, s) for b, s in ((3, 128), (5, 128), (5, 224)))
    few = max(2, n // 32)
    agreement = _agreement(small, rows=2)
    works: dict[str, tuple[Callable[[], object], int]] = {
        "plain patch set, 3 bands, 128 px": (lambda: plain_patches(*small, rows=few), few),
        "the same with graycomatrix": (
            lambda: plain_patches(*small, rows=2, texture=matrix_texture),
            2,
        ),
        "patch set, 3 bands, 128 px": (lambda: _patch_set(small), n),
        "full set, 3 bands, 128 px": (lambda: _full(small), n),
        "full set, 5 bands, 128 px": (lambda: _full(wide), n),
        "full set, 5 bands, 224 px": (lambda: _full(large), n),
        "memory touch, 3 bands, 128 px": (lambda: small[0].sum(dtype=np.int64), n),
        "segments, 3 bands, 128 px": (lambda: _segments(small, few), few),
        "segments, 5 bands, 224 px": (lambda: _segments(large, few), few),
    }
    taken = _processor_ms(works, repeats=options.repeats)
    for name, ms in taken.items():
        print(f"{name:36}{ms:9.3f} ms{1e3 / ms:12,.0f}/s")
    start = _warm_start_s()
    print(f"{'first call in a new process':36}{start:9.2f} s (numba imported, compiled before)")
    return _result(taken, agreement, start)


def _warm_start_s() -> float:
    """Time of the first call in a new process that finds compiled loops on disk, numba's too."""
    program = (
        "import time, numpy as np\n"
        "from clusterray.features import image_features\n"
        "start = time.perf_counter()\n"
        "image_features(np.ones((1, 3, 128, 128), np.int16), step=np.ones((1, 3)),"
        " noise_sigma=np.ones((1, 3)), bands=('g', 'r', 'i'))\n"
        "print(time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return float(done.stdout)


def _result(taken: dict[str, float], agreement: float, start: float) -> Result:
    patch, plain = (taken[f"{k}patch set, 3 bands, 128 px"] for k in ("", "plain "))
    full, large = (taken[f"full set, 5 bands, {size} px"] for size in (128, 224))
    segments = taken["segments, 3 bands, 128 px"]
    goals = {
        f"patch set ≥ {_MIN_RATIO:g} × plain": plain / patch >= _MIN_RATIO,
        f"patch set ≤ {_PATCH_MS} ms": patch <= _PATCH_MS,
        f"full set, 5 bands ≤ {_FULL_MS} ms": full <= _FULL_MS,
        "224 px ≤ twice 128 px": large <= 2 * full,
        f"segments ≤ {_SEGMENT_MS:g} ms": segments <= _SEGMENT_MS,
        f"warm start ≤ {_START_S:g} s": start <= _START_S,
    }
    for goal, met in goals.items():
        print(f"{'met   ' if met else 'MISSED'} {goal}")
    detail = {
        "processor_ms": taken,
        "warm_start_s": start,
        "largest_difference_from_plain": agreement,
        "goals": goals,
    }
    return Result(1e3 / patch, 1e3 / plain, "cutouts/s", detail)


def _processor_ms(
    works: dict[str, tuple[Callable[[], object], int]], *, repeats: int
) -> dict[str, float]:
    """Median processor time a cutout; the pieces take turns and the first round does not count."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, (work, rows) in works.items():
            start = process_time()
            work()
            if turn:
                taken[name].append((process_time() - start) / rows * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


Field = tuple[npt.NDArray[np.int16], npt.NDArray[np.float32], npt.NDArray[np.float32]]


def _field(n: int, bands: int, size: int) -> Field:
    """Counts, step and noise of noise with a cluster of galaxies in it."""
    rng = np.random.default_rng(20260401 + size + bands)
    y, x = np.indices((size, size), np.float32)
    flux = rng.standard_normal((n, bands, size, size), dtype=np.float32)
    for image in flux:
        for _ in range(30):
            x0, y0, peak, width = rng.uniform((0, 0, 0.5, 1), (size, size, 4, 3))
            colour = np.linspace(rng.uniform(0.2, 1), 1, bands)[:, None, None]
            near = np.exp(-np.hypot(x - x0, y - y0) / width)
            image += (np.exp(peak) * colour * near).astype(np.float32)
    noise = np.ones((n, bands), np.float32)
    counts, step, _ = encode(flux, noise)
    return counts, step, noise


def _patch_set(field: Field) -> Floats:
    counts, step, noise = field
    found = measure_sums(
        counts, noise_sigma=noise, bands=_BANDS[: counts.shape[1]], step=step, mask=None,
        grid=_GRID, max_size_px=128, annuli=False,
    )  # fmt: skip
    return patch_values(found, grid=_GRID)


def _full(field: Field) -> npt.NDArray[np.float32]:
    counts, step, noise = field
    bands = _BANDS[: counts.shape[1]]
    return image_features(counts, step=step, noise_sigma=noise, bands=bands).values


def _segments(field: Field, rows: int) -> None:
    counts, step, noise = (values[:rows] for values in field)
    segment_features(
        counts * step[:, :, None, None], noise_sigma=noise, bands=_BANDS[: counts.shape[1]],
        pixel_scale_arcsec=0.5, psf_fwhm_arcsec=np.linspace(0.9, 0.7, counts.shape[1])
        + np.zeros((rows, 1)), settings=CandidateSettings(),
    )  # fmt: skip


def plain_patches(
    counts: npt.NDArray[np.int16],
    step: npt.NDArray[np.float32],
    noise: npt.NDArray[np.float32],
    *,
    rows: int,
    texture: Texture = None,
) -> Floats:
    """Patch statistics as one writes them with scikit-image and numpy, (rows, patches, features).

    Columns in the order of `patch_values`. `texture` gives contrast and homogeneity of a patch of
    grey levels.
    """
    texture = texture or neighbour_texture
    edges = patch_edges(counts.shape[2], _GRID)
    cells = [
        (slice(a, b), slice(c, d))
        for a, b in itertools.pairwise(edges)
        for c, d in itertools.pairwise(edges)
    ]
    out = []
    for i in range(rows):
        image = counts[i] * (step[i] / noise[i])[:, None, None]
        sharp = np.stack([sobel(band) for band in image]) * 4 * np.sqrt(2)
        sharp = sharp > EDGE_SIGMA * np.sqrt(12)
        levels = np.floor(level_of(image) + 0.5).astype(np.uint8)
        out.append([_plain_patch(image, sharp, levels, noise[i], c, texture) for c in cells])
    return np.array(out)


def neighbour_texture(levels: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Contrast and homogeneity as means over pairs of neighbours."""
    off = np.concatenate([np.diff(levels.astype(float), axis=k).ravel() for k in (0, 1)]) ** 2
    return float(off.mean()), float((1 / (1 + off)).mean())


def matrix_texture(levels: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """The same from scikit-image's co-occurrence matrix."""
    matrix = graycomatrix(levels, [1], [0, np.pi / 2], levels=256, symmetric=True)
    both = matrix.sum(axis=3, keepdims=True)
    contrast, alike = (graycoprops(both, name)[0, 0] for name in ("contrast", "homogeneity"))
    return float(contrast), float(alike)


def _plain_patch(
    image: Floats,
    sharp: npt.NDArray[np.bool_],
    levels: npt.NDArray[np.uint8],
    noise: Any,
    cell: Any,
    texture: Any,
) -> list[float]:
    here = [band[cell] for band in image]
    outside = np.ones(image.shape[1:], bool)
    outside[cell] = False
    rest = [band[outside] for band in image]
    textures = np.array([texture(band[cell]) for band in levels])
    inner = np.zeros(image.shape[1:], bool)
    inner[1:-1, 1:-1] = True
    means = [band.mean() for band in here]
    softening = 2 * 1.042 / np.sqrt(here[0].size)
    magnitudes = [
        -2.5 / np.log(10) * (np.arcsinh(m / softening) + np.log(s))
        for m, s in zip(means, noise, strict=True)
    ]
    return [
        *(np.isfinite(band).mean() for band in here),
        *means,
        *(band.std() for band in here),
        *(np.median(band) for band in here),
        *((m - r.mean()) / max(r.std(), 1.0) for m, r in zip(means, rest, strict=True)),
        *textures[:, 0],
        *textures[:, 1],
        *(band[cell][inner[cell]].mean() for band in sharp),
        *(magnitudes[k] - magnitudes[k + 1] for k in range(len(here) - 1)),
        *(
            (means[k] * noise[k] - means[k + 1] * noise[k + 1]) / np.hypot(noise[k], noise[k + 1])
            for k in range(len(here) - 1)
        ),
    ]


def _agreement(field: Field, *, rows: int) -> float:
    """Largest difference from the plain implementation, relative to 1 or to the value."""
    plain = plain_patches(*field, rows=rows)
    ours = _patch_set(tuple(values[:rows] for values in field))
    matrix = plain_patches(*field, rows=rows, texture=matrix_texture)
    off = float(max((np.abs(p - ours) / np.maximum(np.abs(p), 1.0)).max() for p in (plain, matrix)))
    if not off < 1e-3:
        raise RunError(f"the plain implementation differs by {off:.2g}: they are not the same set")
    return off
