"""Cutout shards of pure noise: size against the entropy bound, decode rates on one core.

The baseline holds the same int16 pixels as a `fixed_shape_tensor` column, written and read with
pyarrow's defaults except for the row group size (ours) and the one thread (also ours).
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clusterray.sky import shards
from jobs.benchmarks.result import Result, seconds_each

__all__ = ["add_arguments", "measure"]

_BANDS = ("g", "r", "i", "z", "y")
_MAX_SIZE_OVER_ENTROPY = 1.05
_MIN_RATIO = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--cutouts", type=int, default=2048)
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--row-group-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where to put the files (default: a temporary folder)")


def measure(options: argparse.Namespace) -> Result:
    """Write both files, read each in turn, print a table."""
    _use_one_core()
    rng = np.random.default_rng(20260401)
    n, size = options.cutouts, options.size_px
    flux = rng.standard_normal((n, len(_BANDS), size, size), dtype=np.float32)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ours = str(Path(folder) / "shard.parquet")
        start = perf_counter()
        shards.write(
            ours,
            object_id=[f"noise-{i}" for i in range(n)],
            ra_deg=np.zeros(n),
            dec_deg=np.zeros(n),
            cutouts_nchw=flux,
            noise_sigma=np.ones((n, len(_BANDS))),
            bands=_BANDS,
            row_group_size=options.row_group_size,
        )
        write_rate = n / (perf_counter() - start)
        del flux
        batch = shards.read(ours, integers=True)
        counts, step = batch.cutouts_nchw, batch.step
        files = {"byte planes": ours}
        for codec in ("snappy", "zstd"):
            files[codec] = str(Path(folder) / f"tensor-{codec}.parquet")
            # snappy is pyarrow's default; zstd is shown because ours is compressed with it.
            _write_tensor(files[codec], counts, compression=codec, rows=options.row_group_size)
        bound = _entropy_bytes(counts) / n
        del batch, counts
        works: dict[str, Callable[[], object]] = {}
        for form in ("bytes", "int16", "float32"):
            works[f"byte planes {form}"] = _shard_reader(ours, form)
            for codec in ("snappy", "zstd"):
                works[f"{codec} {form}"] = _tensor_reader(files[codec], form, step)
        seconds = seconds_each(works, repeats=options.repeats)
        sizes = {name: os.path.getsize(path) / n for name, path in files.items()}
    rates = {name: n / taken for name, taken in seconds.items()}
    return _result(rates, sizes, bound, {"write_cutouts_per_s": write_rate, "cutouts": n})


def _use_one_core() -> None:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _write_tensor(path: str, counts: npt.NDArray[np.int16], *, compression: str, rows: int) -> None:
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(counts)
    pq.write_table(pa.table({"image": column}), path, compression=compression, row_group_size=rows)


def _shard_reader(path: str, form: str) -> Callable[[], None]:
    about = shards.describe(path)
    groups = range(len(about["row_groups"]))
    shape = (max(about["row_groups"]), len(about["bands"]), about["size_px"], about["size_px"])
    counts = np.empty(shape, np.int16)

    def read() -> None:
        for index in groups:
            table = shards.read_row_group(path, index, raw=True)
            if form == "int16":
                shards.pixels(table, out=counts[: len(table)])
            elif form == "float32":
                shards.batch(table)

    return read


def _tensor_reader(path: str, form: str, step: npt.NDArray[np.float32]) -> Callable[[], None]:
    def read() -> None:
        file = pq.ParquetFile(path)
        start = 0
        for index in range(file.num_row_groups):
            column = file.read_row_group(index, use_threads=False).column("image")
            if form != "bytes":
                counts = column.chunk(0).to_numpy_ndarray()
            if form == "float32":
                np.multiply(counts, step[start : start + len(counts), :, None, None])
                start += len(counts)

    return read


def _entropy_bytes(counts: npt.NDArray[np.int16]) -> float:
    """Shannon bound of pixels that are drawn independently, bytes."""
    seen = np.bincount(counts.view(np.uint16).ravel())
    share = seen[seen > 0] / counts.size
    return float(-(share * np.log2(share)).sum() * counts.size / 8)


def _result(
    rates: dict[str, float], sizes: dict[str, float], bound: float, more: dict[str, Any]
) -> Result:
    print(f"{'':24}{'kB/cutout':>12}{'to bytes':>12}{'to int16':>12}{'to float32':>12}  (one core)")
    for name, size in sizes.items():
        label = name if name == "byte planes" else f"fixed_shape_tensor {name}"
        shown = "".join(f"{rates[f'{name} {f}']:12,.0f}" for f in ("bytes", "int16", "float32"))
        print(f"{label:<24}{size / 1e3:12.2f}{shown}")
    value, baseline = rates["byte planes int16"], rates["snappy int16"]
    over = sizes["byte planes"] / bound
    print(f"entropy bound {bound / 1e3:.2f} kB: size is {over:.4f} of it")
    detail = {
        "cutouts_per_s": rates,
        "bytes_per_cutout": sizes,
        "entropy_bytes_per_cutout": bound,
        "size_over_entropy": over,
        "goals": {
            f"size ≤ {_MAX_SIZE_OVER_ENTROPY} × entropy": over <= _MAX_SIZE_OVER_ENTROPY,
            f"to int16 ≥ {_MIN_RATIO:g} × baseline": value / baseline >= _MIN_RATIO,
        },
        **more,
    }
    return Result(value=value, baseline=baseline, unit="cutouts/s", detail=detail)
