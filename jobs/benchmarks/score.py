"""The engine end to end beside its own network: what of the GPU's speed reaches the scores.

Three things in one run, each in a process of its own: (a) the bare network on data already on the
device; (b) the same fed by a plain PyTorch loop from decoded memory; (c) the engine, from shards
to receipts, once for each ``--case``. Rates of the engine are those of its last 70 % of rows, by
the times at which the score files were written; `wall_s` is from submit to the last receipt.

It makes its own shards (one, and hard links to it), bundle and labels. The run fails if anything
was spilled to disk, a worker was killed for its memory, or a node died; what was measured is
printed all the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from clusterray.errors import InputError, RunError
from jobs.benchmarks.result import Result

__all__ = ["add_arguments", "measure", "run_part", "what_went_wrong"]

_CASE = {
    "rows": int, "size": int, "features": str, "cpus": int, "gpus": int, "actors": int,
    "calls": int, "store": float,
}  # fmt: skip
_GPU_CASES = (
    "rows=1000000,size=128,features=on,store=16",
    "rows=300000,size=128,features=off,store=16",
    "rows=150000,size=224,features=on,store=24",
)
_CPU_CASES = ("rows=4096,size=64,features=on", "rows=4096,size=64,features=off")
_TINY = '{"depth": 1, "embed_dim": 24, "num_heads": 2}'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen; what is not given is small on a machine without a GPU."""
    tiny = not torch.cuda.is_available()
    parser.add_argument(
        "--case",
        action="append",
        metavar="KEY=VALUE,…",
        help=f"one run of the engine, of {', '.join(_CASE)}; may be given several times, and "
        "'features' is on or off (default: " + "; ".join(_CPU_CASES if tiny else _GPU_CASES) + ")",
    )
    parser.add_argument("--bands", type=int, default=3 if tiny else 5)
    parser.add_argument("--model", default="vit_tiny_patch16_224" if tiny else _small())
    parser.add_argument("--model-options", type=json.loads, default=_TINY if tiny else "{}")
    parser.add_argument("--image-size", type=int, default=64 if tiny else 224)
    parser.add_argument("--micro-batch", type=int, default=64 if tiny else 512)
    parser.add_argument("--dtype", default="float32" if tiny else "bfloat16")
    parser.add_argument("--no-compile", action="store_true", help="run the network as it is")
    parser.add_argument("--rows-per-shard", type=int, default=1024 if tiny else 4096)
    parser.add_argument("--row-group-size", type=int, default=256 if tiny else 512)
    parser.add_argument("--skip-bare", action="store_true", help="measure the engine alone")
    parser.add_argument("--part-limit-s", type=float, default=240, help="of each part, wall time")
    parser.add_argument("--limit-s", type=float, default=520, help="begin no part after so long")
    parser.add_argument("--folder", help="where to put the files (default: a temporary folder)")
    parser.set_defaults(compile=not tiny)


def _small() -> str:
    return "vit_small_patch16_224"


def measure(options: argparse.Namespace) -> Result:
    """Run the parts one after the other; print each as it ends."""
    deadline = time.monotonic() + options.limit_s
    given = options.case or (_GPU_CASES if torch.cuda.is_available() else _CPU_CASES)
    cases = [_case(text) for text in given]
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shared = _shared(options, folder)
        sizes = list(dict.fromkeys(case["size"] for case in cases))
        works = [("bare", size, {"size": size}) for size in sizes if not options.skip_bare]
        works += [("engine", text, case) for text, case in zip(given, cases, strict=True)]
        for kind, label, asked in works:
            name = f"{kind} {label}"
            limit = min(options.part_limit_s, deadline - time.monotonic())
            parts[name] = run_part(kind, {**shared, **asked}, limit=limit)
            print(f"{name}: {json.dumps(parts[name])}", flush=True)
    return _result(cases, parts)


def _shared(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    names = (
        "bands", "model", "model_options", "image_size", "micro_batch", "dtype", "rows_per_shard",
        "row_group_size",
    )  # fmt: skip
    compiled = options.compile and not options.no_compile
    return {
        **{n: getattr(options, n) for n in names},
        "model_options": dict(options.model_options),
        "compile": compiled,
        "folder": folder,
    }


def _case(text: str) -> dict[str, Any]:
    case: dict[str, Any] = {"features": "on"}
    for word in text.split(","):
        key, _, value = word.partition("=")
        if key not in _CASE:
            raise InputError(f"--case {text}: no '{key}', expected {', '.join(_CASE)}")
        case[key] = _CASE[key](value)
    lacking = [key for key in ("rows", "size") if key not in case]
    if lacking or case["features"] not in ("on", "off"):
        raise InputError(f"--case {text}: give rows, size, and features=on or off")
    return case


def run_part(kind: str, asked: Mapping[str, Any], *, limit: float) -> dict[str, Any]:
    """Run one part in a process of its own; its last line is its answer."""
    if limit < 20:
        return {"error": "no time left for it"}
    command = [sys.executable, "-m", f"jobs.benchmarks.score_{kind}", json.dumps(asked)]
    answer = Path(asked["folder"]) / "answer.json"
    answer.unlink(missing_ok=True)
    start = time.monotonic()
    child = subprocess.Popen([*command, str(answer)])
    try:
        child.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return {"error": f"ended after {limit:.0f} s"}
    if not answer.exists():
        return {"error": f"it ended with status {child.returncode}; its output is above"}
    return {**json.loads(answer.read_text()), "part_s": round(time.monotonic() - start, 1)}


def _result(cases: Sequence[Mapping[str, Any]], parts: Mapping[str, Any]) -> Result:
    engine = [part for name, part in parts.items() if name.startswith("engine")]
    bare = {name.split()[1]: part for name, part in parts.items() if name.startswith("bare")}
    for case, part in zip(cases, engine, strict=True):
        whole = bare.get(str(case["size"]), {}).get("bare_per_s")
        if whole and "steady_per_s" in part:
            part["of_bare"] = round(part["steady_per_s"] / whole, 4)
    what_went_wrong(parts)
    first = engine[0]
    baseline = bare.get(str(cases[0]["size"]), {}).get("bare_per_s", first["steady_per_s"])
    return Result(first["steady_per_s"], baseline, "cutouts/s", {"parts": parts})


def what_went_wrong(parts: Mapping[str, Any]) -> None:
    """Print all parts and raise RunError if one of them failed or must not be trusted."""
    wrong = [
        f"{name}: {part.get('error') or '; '.join(part['failures'])}"
        for name, part in parts.items()
        if part.get("error") or part.get("failures")
    ]
    if wrong:
        print(json.dumps({"parts": parts}), flush=True)
        raise RunError("; ".join(wrong))
