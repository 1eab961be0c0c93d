"""The engine's own stages in a plain loop of some processes, each taking whole row groups.

A part of the engine benchmark: ``python -m jobs.benchmarks.score_loop JSON ANSWER``.
"""

import json
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa

from clusterray.engine.plan import list_shards
from clusterray.engine.session import WORKER_MEMORY
from clusterray.engine.stages import FinishStage, ReadStage, VitStage, wanted_features
from clusterray.ensemble import bundle as bundles
from jobs.benchmarks.score_engine import rates
from jobs.benchmarks.score_world import score_settings, world

__all__ = ["measure"]

_stages: list[Any] = []


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Score all row groups in `asked["cpus"]` processes; rates as the engine's are taken."""
    made = world(asked, features=asked["features"] == "on", rows=asked["rows"])
    bundle = bundles.load(made.bundle)
    groups = [
        group
        for shard in list_shards(made.shards, bands=bundle.bands, size_px=bundle.size_px)
        for group in shard.row_groups()
    ]
    scores = f"{asked['folder']}/loop"
    # As the engine's workers have it; else each process would have a thread for every core.
    os.environ.update(WORKER_MEMORY, OMP_NUM_THREADS="1")
    begun = time.time()
    with ProcessPoolExecutor(
        asked["cpus"],
        mp_context=get_context("spawn"),
        initializer=_begin,
        initargs=(made.bundle, groups, asked, scores),
    ) as pool:
        cpu = sum(pool.map(_work, range(len(groups))))
    answer = rates(scores, rows=sum(group.rows for group in groups), begun=begun)
    shutil.rmtree(scores)
    return {**answer, "cpu_s": round(cpu, 2), "failures": []}


def _begin(bundle_url: str, groups: list[Any], asked: dict[str, Any], scores: str) -> None:
    bundle, settings = bundles.load(bundle_url), score_settings(asked)
    _stages.append(ReadStage(groups, wanted_features(bundle), keep_pixels=True))
    _stages.append(VitStage(bundle_url, settings, "cpu"))
    _stages.append(FinishStage(bundle_url, groups, settings, scores))


def _work(unit: int) -> float:
    start = time.process_time()
    table = pa.table({"unit": pa.array([unit], pa.int64())})
    for stage in _stages:
        table = stage(table)
    return time.process_time() - start


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(measure(json.loads(sys.argv[1]))))
