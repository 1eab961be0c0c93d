"""One run of the engine over made shards, watched from outside.

A part of the score benchmark: ``python -m jobs.benchmarks.score_engine JSON ANSWER``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray

from clusterray import config as configs
from clusterray.config import Config
from clusterray.engine.score import score
from clusterray.engine.telemetry import RunSummary
from jobs.benchmarks.score_world import World, score_settings, world

__all__ = ["measure", "rates"]

_STEADY_FROM = 0.3
_KILLED = re.compile(r"memory pressure|OOM|due to insufficient memory", re.IGNORECASE)


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Score the shards; what came of it, with `failures` where it must not be trusted."""
    made = world(asked, features=asked["features"] == "on", rows=asked["rows"])
    settings = _config(asked, made)
    shutil.rmtree(settings.paths.scores, ignore_errors=True)
    if "gpus" in asked:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(k) for k in range(asked["gpus"]))
    free = shutil.disk_usage("/dev/shm").free / 1e9
    print(f"  engine: {json.dumps(asked)}; {free:.0f} GB of shared memory free", flush=True)
    submitted = time.time()
    with _Watch() as watch:
        summary = score(settings)
    answer = _figures(settings, summary, submitted=submitted)
    answer |= watch.figures(submitted + answer["first_output_s"])
    answer["failures"] = _failures(answer, watch)
    shutil.rmtree(settings.paths.scores)
    return answer


def _config(asked: dict[str, Any], made: World) -> Config:
    cluster = {
        "num_cpus": asked.get("cpus"),
        "object_store_gb": asked.get("store"),
        "actors_per_gpu": asked.get("actors"),
        "calls_per_gpu_actor": asked.get("calls"),
    }
    return configs.resolve(
        {
            "paths": {
                "root": asked["folder"],
                "shards": made.shards,
                "bundle": made.bundle,
                "scores": f"{asked['folder']}/scores",
            },
            "score": score_settings(asked).model_dump(),
            "cluster": {k: v for k, v in cluster.items() if v is not None},
        }
    )


def rates(scores: str, *, rows: int, begun: float) -> dict[str, Any]:
    """Rates by the times at which row groups were written; the steady one is of the last 70 %."""
    written = np.sort([entry.stat().st_mtime for entry in os.scandir(Path(scores, "rows"))])
    late = written[int(_STEADY_FROM * len(written)) :]
    steady = rows * (len(late) - 1) / len(written) / max(late[-1] - late[0], 1e-9)
    return {
        "rows": rows,
        "row_groups": len(written),
        "first_output_s": round(float(written[0]) - begun, 2),
        "last_output_s": round(float(written[-1]) - begun, 2),
        "steady_per_s": round(float(steady), 1),
    }


def _figures(settings: Config, summary: RunSummary, *, submitted: float) -> dict[str, Any]:
    receipts = os.scandir(Path(settings.paths.scores, "receipts"))
    wall = max(entry.stat().st_mtime for entry in receipts) - submitted
    return {
        **rates(settings.paths.scores, rows=summary.rows, begun=submitted),
        "rejected": summary.rejected,
        "wall_s": round(wall, 2),
        "per_s": round(summary.rows / wall, 1),
        "ended_s": round(time.time() - submitted, 2),
        "busy_s": summary.stage_seconds,
        "forecast": summary.forecast,
    }


def _family_seconds() -> float:
    """Processor time so far of this process and all that it started, Ray's own among them."""
    parents, ticks = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                # With those of children that ended.
                parents[int(folder.name)] = int(fields[1])
                ticks[int(folder.name)] = sum(int(v) for v in fields[11:15])
    family, before = {os.getpid()}, 0
    while len(family) > before:
        before = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    return sum(ticks[pid] for pid in family if pid in ticks) / os.sysconf("SC_CLK_TCK")


def _failures(answer: dict[str, Any], watch: "_Watch") -> list[str]:
    found = [f"node {name} died" for name in sorted(watch.dead)]
    if answer["spilled_bytes"]:
        found.append(f"{answer['spilled_bytes']} bytes were spilled to disk")
    for log in Path(watch.session, "logs").glob("raylet.*"):
        killed = [line for line in log.read_text(errors="replace").splitlines() if _is_kill(line)]
        found += killed[:1]
    return found


def _is_kill(line: str) -> bool:
    return "kill" in line.lower() and bool(_KILLED.search(line))


class _Watch:
    """Looks at processors, GPU, object store and driver every second while Ray runs."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.dead: set[str] = set()
        self.session, self.resources = "", dict[str, float]()
        self.begun, self.started = time.time(), float("nan")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=10)

    def _look(self) -> None:
        while not ray.is_initialized():
            if self._end.wait(0.05):
                return
        self.started = time.time()
        self.session = ray._private.worker._global_node.get_session_dir_path()
        self.resources = ray.cluster_resources()
        while not self._end.wait(1.0) and ray.is_initialized():
            # It may end while it is asked.
            with suppress(Exception):
                self.dead |= {n["NodeID"][:8] for n in ray.nodes() if not n["Alive"]}
                self.seen.append(_state())

    def figures(self, first_output: float) -> dict[str, Any]:
        """Peaks over all of the run, means from the first output on."""
        working = [s for s in self.seen if s["time"] >= first_output] or self.seen[-1:]
        first, last = working[0], working[-1]
        ticks = max(last["total"] - first["total"], 1.0)
        rss = [s["rss"] / 1e6 for s in working]
        gpu = float(np.mean([s["gpu"] for s in working]))
        return {
            "ray_start_s": round(self.started - self.begun, 2),
            "resources": {k: v for k, v in self.resources.items() if k in ("CPU", "GPU")},
            "spilled_bytes": int(max(s["spilled"] for s in self.seen)),
            "object_store_peak_gb": round(max(s["store"] for s in self.seen) / 1e9, 2),
            "driver_rss_mb": [round(rss[0]), round(max(rss)), round(rss[-1])],
            "cpu_busy": round((last["busy"] - first["busy"]) / ticks, 3),
            "cpu_s": round(last["family"], 1),
            "gpu_busy": None if np.isnan(gpu) else round(gpu, 3),
        }


def _state() -> dict[str, float]:
    spilled, store = _object_store()
    fields = [float(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "time": time.time(),
        "total": sum(fields),
        "busy": sum(fields) - fields[3] - fields[4],
        "family": _family_seconds(),
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "spilled": spilled,
        "store": store,
        "gpu": _gpu_busy(),
    }


def _object_store() -> tuple[float, float]:
    """Bytes spilled so far and bytes in use; Ray keeps them behind a private door (2.60)."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    stats = get_memory_info_reply(state).store_stats
    return float(stats.spilled_bytes_total), float(stats.object_store_bytes_used)


def _gpu_busy() -> float:
    """Mean share of time in which a kernel ran, over all GPUs; NaN without one."""
    if shutil.which("nvidia-smi") is None:
        return float("nan")
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return float(np.mean([float(v) for v in found])) / 100 if found else float("nan")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(measure(json.loads(sys.argv[1]))))
