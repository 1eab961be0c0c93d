"""A trunk that starts from simulated pairs instead of random weights, for `vision.weights`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
import torch

from clusterray import storage
from clusterray.config import Config
from clusterray.engine import pretrain_page, work
from clusterray.engine.ledger import open_run
from clusterray.engine.session import cluster_shape, session
from clusterray.engine.telemetry import Progress, RunSummary
from clusterray.provenance import digest, seed_for
from clusterray.simulate.cutouts import CutoutMaker
from clusterray.simulate.observe import completed
from clusterray.simulate.pairs import PairMaker
from clusterray.simulate.recipe import load
from clusterray.sky import shards, surveys
from clusterray.vision import lensiam, vit

__all__ = ["pretrain"]

_PAIRS_PER_SHARD: Final = 32


@dataclass(frozen=True)
class _Unit:
    name: str
    first: int
    last: int


class _MakePairs:
    """Actor: shards in which rows 2k and 2k + 1 are a pair."""

    def __init__(self, maker: PairMaker, units: Sequence[_Unit], folder: str) -> None:
        self.maker, self.units, self.folder = maker, units, folder

    def __call__(self, table: pa.Table) -> pa.Table:
        start, rows = time.monotonic(), 0
        for index in work.unit_column(table):
            unit = self.units[index]
            made = [c for i in range(unit.first, unit.last) for c in self.maker.make(i)]
            url = storage.join(self.folder, f"{unit.name}.parquet")
            shards.write_table(url, self.maker.maker.shard_table(made))
            rows += len(made)
        return pa.table({"rows": [rows], "seconds": [time.monotonic() - start]})


def pretrain(config: Config) -> RunSummary:
    """Simulate pairs that share their lens, and let the trunk learn from them without labels.

    Writes ``<root>/pretrained/trunk.safetensors``. The trunk starts from random weights, whatever
    `vision.weights` says: that is where the result goes. A run that is taken up again keeps the
    pairs that are there; the training itself begins anew. It runs in one task, on one GPU where
    there is one.

    Raises
    ------
    ConfigError : a recipe, survey or network that cannot be used.
    InputError : fewer pairs than a batch.
    RunError : the folder holds another run, or the representation collapsed.
    """
    start = time.monotonic()
    settings, survey = config.pretrain, surveys.resolve(config.survey)
    maker = CutoutMaker(completed(survey), load(config.simulate.recipe), config.seed)
    maker.check()
    vision = config.vision.model_copy(update={"weights": "", "freeze_blocks": 0})
    # Built once here, so that a network that cannot be built is told before anything is made.
    vit.build(vision, n_bands=len(survey.bands), size_px=survey.size_px)
    architecture = {"model", "model_options", "image_size_px", "asinh_softening"}
    key = {
        "seed": config.seed,
        "recipe": maker.recipe.digest(),
        "survey": config.survey.model_dump(mode="json"),
        "vision": vision.model_dump(mode="json", include=architecture),
        "pretrain": settings.model_dump(mode="json"),
    }
    folder = storage.join(config.paths.root, "pretrained")
    open_run(folder, key, config=config, verb="pretrain")
    trunk = storage.join(folder, "trunk.safetensors")
    units = [
        _Unit(f"P{k:05d}", first, min(first + _PAIRS_PER_SHARD, settings.n_pairs))
        for k, first in enumerate(range(0, settings.n_pairs, _PAIRS_PER_SHARD))
    ]
    pairs = storage.join(folder, "pairs")
    there = {storage.name_of(e.url) for e in storage.list_files(pairs, suffix=".parquet")}
    missing = [u for u in units if f"{u.name}.parquet" not in there]
    busy: dict[str, float] = {}
    if missing or not storage.exists(trunk):
        with session(config.cluster):
            busy["pairs"] = _make(missing, PairMaker(maker, settings.lens_share), pairs, config)
            busy["lensiam"] = _fit(folder, [f"{u.name}.parquet" for u in units], config)
    history = storage.read_json(storage.join(folder, "history.json"))
    sha256 = digest(storage.read_bytes(trunk))
    facts = {"recipe": maker.recipe.digest(), "settings": settings.model_dump(mode="json")}
    shown = shards.read_row_group(storage.join(pairs, f"{units[0].name}.parquet"), 0)
    html = pretrain_page.render(history, shown, facts=facts | {"trunk's SHA-256": sha256})
    storage.write_bytes(storage.join(folder, "pretrain.html"), html.encode())
    summary = RunSummary(
        verb="pretrain",
        unit="shards of pairs",
        done=len(missing),
        skipped=len(units) - len(missing),
        rows=2 * sum(u.last - u.first for u in missing),
        rejected=0,
        seconds=time.monotonic() - start,
        outputs={"trunk": trunk, "page": storage.join(folder, "pretrain.html")},
        stage_seconds={name: round(s, 2) for name, s in busy.items()},
        notes=(
            f"loss {history[0]['loss']:.3f} to {history[-1]['loss']:.3f}, spread "
            f"{history[-1]['spread']:.2f} (1 is healthy, 0 a collapse)",
            f"to start from it: vision.weights = '{storage.redact(trunk)}', "
            f"vision.weights_sha256 = '{sha256}'",
        ),
    )
    summary.write(storage.join(folder, "summary.json"))
    return summary


def _make(units: Sequence[_Unit], maker: PairMaker, folder: str, config: Config) -> float:
    if not units:
        return 0.0
    cpus, _ = cluster_shape()
    actors = min(config.cluster.workers or max(1, int(cpus)), len(units))
    stage = work.Stage(
        "pairs",
        _MakePairs,
        {"maker": maker, "units": units, "folder": folder},
        actors=actors,
        num_cpus=work.cpu_share(cpus, actors),
    )
    progress, busy = Progress("pretrain", len(units), unit="shards of pairs"), 0.0
    for table in work.run(len(units), [stage], verb="pretrain"):
        progress.advance(table.num_rows, rows=sum(table.column("rows").to_pylist()))
        busy += sum(table.column("seconds").to_pylist())
    return busy


def _fit(folder: str, names: list[str], config: Config) -> float:
    cpus, gpus = cluster_shape()
    progress = Progress("pretrain", config.pretrain.epochs, unit="epochs")
    task: Any = _learn.options(
        num_cpus=work.cpu_share(cpus, 1), num_gpus=1 if gpus >= 1 else 0, num_returns="streaming"
    ).remote(folder, names, config, max(1, int(cpus * 7 / 8)))
    start = time.monotonic()
    try:
        for reference in task:
            ray.get(reference)
            progress.advance()
    except Exception as error:
        raise work.unwrap(error) from error
    return time.monotonic() - start


@ray.remote
def _learn(folder: str, names: list[str], config: Config, threads: int) -> Any:
    """Train on the pairs and write the trunk; a generator of its epochs."""
    settings = config.pretrain
    batches = [shards.read(storage.join(folder, "pairs", n), integers=True) for n in names]
    pixels = np.concatenate([b.cutouts_nchw for b in batches])
    step = np.concatenate([b.step for b in batches])
    sigma = np.concatenate([b.noise_sigma for b in batches])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seed = seed_for(config.seed, purpose="pretrain")
    model = vit.build(
        config.vision.model_copy(update={"weights": "", "freeze_blocks": 0}),
        n_bands=pixels.shape[1],
        size_px=pixels.shape[2],
        seed=seed,
    )
    history: list[dict[str, Any]] = []
    for epoch in lensiam.fit(
        model,
        pixels.reshape(-1, 2, *pixels.shape[1:]),
        step=step.reshape(-1, 2, step.shape[1]),
        noise_sigma=sigma.reshape(-1, 2, sigma.shape[1]),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=seed,
        device=device,
        threads=threads if device == "cpu" else None,
    ):
        history.append(epoch.to_json())
        yield epoch.epoch
    storage.write_json(storage.join(folder, "history.json"), history)
    # Last, for it is what says that the run is done.
    storage.write_bytes(storage.join(folder, "trunk.safetensors"), lensiam.trunk_weights(model))
