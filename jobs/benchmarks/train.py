"""The engine's training of the lens network beside a bare PyTorch loop on images in memory.

The bare loop has the same network, batch, precision and optimizer, and nothing else: its images
are stretched beforehand and stay on the device, and there is no augmentation, no averaged weights,
no clipping, no checkpoint. The engine does all of that, from gathered files, as `clusterray train`
does. A few cutouts are made and stand for all rows; every row is read and trained on.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from clusterray import config as configs
from clusterray import storage
from clusterray.config import Config
from clusterray.engine.fit_context import FitContext
from clusterray.engine.network_fit import log_url
from clusterray.engine.run_fits import run_fits
from clusterray.engine.sample_rows import SampleRows
from clusterray.engine.session import session
from clusterray.sky import shards
from clusterray.vision import vit
from clusterray.vision.learner import CutoutLearner
from clusterray.vision.training import cpu_threads
from jobs.benchmarks.result import Result

__all__ = ["add_arguments", "measure"]

_BANDS = ("g", "r", "i", "z", "y")
_UNIQUE = 256
_MIN_SHARE = 0.7
_MAX_SECONDS = 120.0
_WARM_STEPS = 8
_LEARNING_RATE = 3e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen; the defaults are the target's on a GPU and small on a CPU."""
    gpu = torch.cuda.is_available()
    parser.add_argument("--rows", type=int, default=20_000 if gpu else 512)
    parser.add_argument("--epochs", type=int, default=10 if gpu else 3)
    parser.add_argument("--bands", type=int, default=5 if gpu else 3)
    parser.add_argument("--size-px", type=int, default=224 if gpu else 64, help="of the cutouts")
    parser.add_argument("--image-size-px", type=int, default=224 if gpu else 64)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--depth", type=int, default=0 if gpu else 2, help="0: the model's own")
    parser.add_argument("--batch", type=int, default=256 if gpu else 32)
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a GPU if any")
    parser.add_argument("--no-augment", action="store_true")
    parser.add_argument("--streamed", action="store_true", help="through Ray Data, not in memory")
    parser.add_argument("--folder", help="where to put the files (default: a temporary folder)")


def measure(options: argparse.Namespace) -> Result:
    """Time both in turn; value and baseline are rows/s in the steady state, per all processes."""
    settings = _settings(options)
    cutouts = _cutouts(options)
    bare = _bare(settings, cutouts, options)
    pieces = _pieces(settings, cutouts, options)
    print(f"bare loop: {bare:,.0f} rows/s; per batch: {_shown(pieces)}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        context = _context(folder, settings, cutouts, options)
        with session(settings.cluster):
            start = time.perf_counter()
            list(run_fits(context, [("vit", 0)]))
            seconds = time.perf_counter() - start
        epochs = storage.read_json(log_url(folder, "vit", 0))["epochs"]
    steady = epochs[1:] or epochs
    rate = sum(e["rows"] for e in steady) / sum(e["seconds"] for e in steady)
    trained = sum(e["rows"] for e in epochs)
    print(f"engine: {rate:,.0f} rows/s; {trained:,} rows in {seconds:.1f} s from start to scores")
    baseline = bare * options.workers
    goals = {f"steady state ≥ {_MIN_SHARE:.0%} of bare": rate >= _MIN_SHARE * baseline}
    if options.rows >= 20_000 and options.epochs >= 10:
        goals[f"all in ≤ {_MAX_SECONDS:.0f} s"] = seconds <= _MAX_SECONDS
    for goal, met in goals.items():
        print(f"{'met   ' if met else 'MISSED'} {goal}")
    detail = {
        "options": vars(options),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seconds_from_start_to_scores": seconds,
        "rows_trained": trained,
        "rows_per_second_by_epoch": [e["rows"] / e["seconds"] for e in epochs],
        "milliseconds_per_batch": pieces,
        "bare_rows_per_second_of_one_process": bare,
        "goals": goals,
    }
    return Result(value=rate, baseline=baseline, unit="rows/s", detail=detail)


def _settings(options: argparse.Namespace) -> Config:
    return configs.resolve(
        {
            "vision": {
                "model": options.model,
                "model_options": {"depth": options.depth} if options.depth else {},
                "image_size_px": options.image_size_px,
                "epochs": options.epochs,
                "batch_size": options.batch,
                "augment": not options.no_augment,
                "learning_rate": _LEARNING_RATE,
                "workers": options.workers,
            },
            "score": {"micro_batch": min(64, options.batch), "dtype": _dtype()},
        }
    )


def _dtype() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _cutouts(options: argparse.Namespace) -> Any:
    rng = np.random.default_rng(20260401)
    n = min(_UNIQUE, options.rows)
    shape = (n, options.bands, options.size_px, options.size_px)
    flux = rng.standard_normal(shape, dtype=np.float32)
    middle = options.size_px // 2
    flux[::4, :, middle - 4 : middle + 4, middle - 4 : middle + 4] += 5
    sigma = np.ones((n, options.bands), np.float32)
    counts, step, _ = shards.encode(flux, sigma)
    return counts, step, sigma


def _learner(settings: Config, options: argparse.Namespace) -> CutoutLearner:
    model = vit.build(settings.vision, n_bands=options.bands, size_px=options.size_px, seed=1)
    return CutoutLearner(model.to(_device()), augmented=settings.vision.augment)


def _bare(settings: Config, cutouts: Any, options: argparse.Namespace) -> float:
    """Rows per second of one process: forward, loss, backward, AdamW."""
    device, learner = _device(), _learner(settings, options)
    with torch.no_grad():
        arrays = tuple(torch.from_numpy(a).to(device) for a in cutouts)
        images = learner.prepare(arrays, None)
    target = (torch.arange(len(images), device=device) % 4 == 0).float()
    optimizer = torch.optim.AdamW(
        learner.parameters(), lr=_LEARNING_RATE, fused=device == "cuda" or None
    )
    learner.train()
    batches = options.rows // options.batch
    steps = max(_WARM_STEPS, min(batches * options.epochs, 100 if device == "cuda" else batches))
    rng = torch.Generator().manual_seed(0)
    with cpu_threads(1 if device == "cpu" else None):
        for step in range(_WARM_STEPS + steps):
            if step == _WARM_STEPS:
                start = _now()
            rows = torch.randint(len(images), (options.batch,), generator=rng).to(device)
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = learner(images[rows])
            functional.binary_cross_entropy_with_logits(logits, target[rows]).backward()
            optimizer.step()
        return steps * options.batch / (_now() - start)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _pieces(settings: Config, cutouts: Any, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of what the engine does to a batch before the network sees it."""
    learner, device = _learner(settings, options), _device()
    rows = np.arange(options.batch) % len(cutouts[0])
    arrays = tuple(torch.from_numpy(a[rows]).to(device) for a in cutouts)
    seeds = np.arange(options.batch, dtype=np.uint64)
    works = {"stretch": None, "augment and stretch": seeds}
    taken = {}
    with torch.no_grad(), cpu_threads(1 if device == "cpu" else None):
        for name, given in works.items():
            learner.prepare(arrays, given)
            start = _now()
            for _ in range(5):
                learner.prepare(arrays, given)
            taken[name] = (_now() - start) / 5 * 1e3
    del learner, arrays
    if device == "cuda":
        # The fit's own process wants the room.
        torch.cuda.empty_cache()
    return taken


def _shown(pieces: dict[str, float]) -> str:
    return ", ".join(f"{name} {ms:.1f} ms" for name, ms in pieces.items())


def _context(
    folder: str, settings: Config, cutouts: Any, options: argparse.Namespace
) -> FitContext:
    counts, step, sigma = cutouts
    n, names = len(counts), _BANDS[: options.bands]
    table = shards.to_table(
        object_id=[str(k) for k in range(n)],
        ra_deg=np.zeros(n),
        dec_deg=np.zeros(n),
        cutouts_nchw=counts * step[:, :, None, None],
        noise_sigma=sigma,
        bands=names,
    )
    url = str(Path(folder) / "rows.parquet")
    shards.write_table(url, table)
    files = -(-options.rows // n)
    total = files * n
    rows = SampleRows(
        np.array([f"{k:08d}" for k in range(total)]),
        (url,) * files,
        (n,) * files,
        np.arange(total),
        (options.bands, options.size_px, options.size_px),
        streamed=options.streamed,
    )
    # Half a percent is left out, and scored; one row in a hundred is a known lens.
    s = (np.arange(total) % 100 == 0).astype(np.int8)
    context = FitContext(
        config=settings,
        folder=folder,
        groups=(),
        bands=names,
        size_px=options.size_px,
        feature_names=(),
        unlabelled_fraction=1.0,
        prior=0.02,
        s=s,
        fold=(np.arange(total) % 200 != 7).astype(np.int8),
        cell=np.arange(total) % 997,
    )
    return replace(context, rows=rows)
