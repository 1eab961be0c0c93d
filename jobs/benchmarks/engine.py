"""What the engine costs on CPUs: beside a plain loop at equal cores, and per row group.

The loop is `--cpus` processes that take whole row groups through the engine's own stages, one
after the other; both are timed from 30 % of the rows to the last one, so that start-up counts for
neither, and `ratio` is engine over loop (1 / 1.15 is the goal), each the median of `--repeats` runs
in turn. Then rows of next to no work (one band of 16×16, a network of one block) go through the
engine, ever more of them: what is left is the engine's own time per row group, and how the driver's
memory grows.
"""

import argparse
import json
import tempfile
from statistics import median
from typing import Any

from jobs.benchmarks.result import Result
from jobs.benchmarks.score import run_part, what_went_wrong

__all__ = ["NO_WORK", "add_arguments", "measure"]

_NETWORK = {
    "model": "vit_tiny_patch16_224",
    "model_options": {"depth": 1, "embed_dim": 24, "num_heads": 2},
    "dtype": "float32",
    "compile": False,
    "row_group_size": 512,
}
_WORK = {
    **_NETWORK, "bands": 5, "size": 128, "image_size": 64, "micro_batch": 64,
    "rows_per_shard": 2048, "features": "on",
}  # fmt: skip
NO_WORK = {
    **_NETWORK, "bands": 1, "size": 16, "image_size": 16, "micro_batch": 512,
    "rows_per_shard": 2048, "features": "off",
}  # fmt: skip
"""Cutouts of one band and 16×16 px, and a network of one block."""
_SLOWDOWN, _RSS_MB = 1.15, 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--rows", type=int, default=40_960, help="beside the loop")
    parser.add_argument("--repeats", type=int, default=3, help="of loop and engine")
    parser.add_argument(
        "--many", type=int, nargs="*", default=[10_240, 102_400, 1_024_000], help="of next to none"
    )
    parser.add_argument("--part-limit-s", type=float, default=900)
    parser.add_argument("--folder", help="where to put the files (default: a temporary folder)")


def measure(options: argparse.Namespace) -> Result:
    """Run loop and engine in turn, then the engine alone."""
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        works = [
            (kind, f"{kind} {turn}", _WORK, options.rows)
            for turn in range(options.repeats)
            for kind in ("loop", "engine")
        ]
        works += [("engine", f"{rows} rows", NO_WORK, rows) for rows in options.many]
        for kind, name, work, rows in works:
            asked = {**work, "rows": rows, "cpus": options.cpus, "folder": folder}
            parts[name] = run_part(kind, asked, limit=options.part_limit_s)
            print(f"{name}: {json.dumps(parts[name])}", flush=True)
    what_went_wrong(parts)
    return _result(options, parts)


def _result(options: argparse.Namespace, parts: dict[str, Any]) -> Result:
    engine, loop = (
        median(part["steady_per_s"] for name, part in parts.items() if name.startswith(kind))
        for kind in ("engine", "loop")
    )
    many = {int(name.split()[0]): part for name, part in parts.items() if "rows" in name}
    overhead = {}
    for rows, part in many.items():
        working = part["last_output_s"] - part["first_output_s"]
        free = options.cpus * working - sum(part["busy_s"].values())
        overhead[rows] = {
            "wall_ms_per_row_group": round(1e3 * working / part["row_groups"], 3),
            "core_ms_outside_stages_per_row_group": round(1e3 * free / part["row_groups"], 3),
            "core_us_outside_stages_per_row": round(1e6 * free / rows, 3),
            "driver_rss_mb": part["driver_rss_mb"][2],
        }
    goals = {f"engine ≤ {_SLOWDOWN} × loop": loop / engine <= _SLOWDOWN}
    if len(many) > 1:
        rss = [o["driver_rss_mb"] for o in overhead.values()]
        goals[f"driver's memory within {_RSS_MB} MB"] = max(rss) - min(rss) <= _RSS_MB
    for goal, met in goals.items():
        print(f"{'met   ' if met else 'MISSED'} {goal}")
    detail = {"parts": parts, "overhead": overhead, "goals": goals}
    return Result(engine, loop, "cutouts/s", detail)
