import io
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.data import DataContext, ExecutionResources
from ray.data.exceptions import ExecutionTimeoutError

from clusterray.engine import work
from clusterray.engine.host_memory import RegisteredStore, mapping_of, populate_store
from clusterray.engine.parcels import Parcel, pack, unpack
from clusterray.engine.telemetry import Progress
from clusterray.errors import ContractError, RunError

pytestmark = pytest.mark.usefixtures("ray_session")


class Echo:
    def __init__(self, refuse: int = -1, crash: int = -1) -> None:
        self.refuse, self.crash = refuse, crash

    def __call__(self, table: pa.Table) -> pa.Table:
        units = work.unit_column(table)
        if self.refuse in units:
            raise ContractError("shard 00042: column 'image' is wrong; ingest it again")
        if self.crash in units:
            raise ZeroDivisionError("division by zero in band 2")
        return pa.table({"unit": units, "batch": [len(units)] * len(units)})


class Send:
    def __call__(self, table: pa.Table) -> pa.Table:
        planes = np.full((64, 40_000), 7, np.uint8)
        data = pa.table({"row": np.arange(64)})
        return pack([Parcel(u, data, planes=planes) for u in work.unit_column(table)])


class Look:
    """Says where the pixels that reach it lie."""

    def __call__(self, table: pa.Table) -> pa.Table:
        units, files = [], []
        for parcel in unpack(table):
            assert (parcel.planes == 7).all()
            address = parcel.planes.__array_interface__["data"][0]
            found = mapping_of(address)
            units.append(parcel.unit)
            files.append(found[2] if found else "")
        return pa.table({"unit": units, "file": files})


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/maps")
def test_pixels_are_read_where_they_lie_in_the_object_store():
    stages = [
        work.Stage("send", Send, num_cpus=0.5),
        work.Stage("look", Look, num_cpus=0.5, calls=3),
    ]
    found = [r for t in work.run(6, stages, verb="t") for r in t.to_pylist()]
    assert sorted(r["unit"] for r in found) == list(range(6))
    assert all("/plasma" in r["file"] for r in found), found


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/maps")
def test_the_store_is_registered_before_anything_is_read_out_of_it():
    calls, called = [], threading.Event()

    def register(start, length, flags):
        calls.append((start, start + length))
        called.set()
        return True

    registered = RegisteredStore(register)
    registered.begin(populate_store())
    assert called.wait(timeout=30)
    stored = ray.get(ray.put(np.zeros(2**21, np.uint8)))
    assert registered.holds(stored)
    [(low, high)] = calls
    assert low <= stored.__array_interface__["data"][0] < high


class Make:
    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, table: pa.Table) -> pa.Table:
        [unit] = work.unit_column(table)
        (self.folder / f"made{unit}").touch()
        return pack([Parcel(unit, table, planes=np.full((50, 100_000), 7, np.uint8))])


class Late(Look):
    """Takes nothing before it is let, as a network that is still loaded."""

    def __init__(self, folder: str) -> None:
        while not (Path(folder) / "go").exists():
            time.sleep(0.05)


def settled(count, *, seconds):
    """The count when it has not changed for so long, once it is not 0."""
    last, since = 0, time.monotonic()
    while last == 0 or time.monotonic() - since < seconds:
        time.sleep(0.1)
        if (now := count()) != last:
            last, since = now, time.monotonic()
    return last


def test_what_waits_for_a_later_stage_may_fill_most_of_the_store(tmp_path, monkeypatch):
    """A third of it was kept empty for the outputs of stages that make next to nothing."""
    options = DataContext.get_current().execution_options
    limits = ExecutionResources(object_store_memory=200e6)
    monkeypatch.setattr(options, "resource_limits", limits)
    stages = [
        work.Stage("read", Make, {"folder": str(tmp_path)}, num_cpus=0.5),
        work.Stage("vit", Late, {"folder": str(tmp_path)}, num_cpus=0.5),
        work.Stage("finish", Echo, num_cpus=0.5),
    ]
    found = []

    def scored():
        found.extend(r for t in work.run(60, stages, verb="t") for r in t.to_pylist())

    run = threading.Thread(target=scored, daemon=True)
    run.start()
    try:
        made = settled(lambda: len(list(tmp_path.glob("made*"))), seconds=3)
    finally:
        (tmp_path / "go").touch()
    run.join(timeout=60)
    assert sorted(r["unit"] for r in found) == list(range(60))
    assert 0.7 < made * 5e6 / 200e6 < 1.0


@pytest.mark.parametrize("per_batch", [1, 3])
def test_every_unit_comes_back_once(per_batch):
    stages = [work.Stage("a", Echo, num_cpus=0.5), work.Stage("b", Echo, num_cpus=0.5)]
    found = [
        r for t in work.run(7, stages, verb="t", units_per_batch=per_batch) for r in t.to_pylist()
    ]
    assert sorted(r["unit"] for r in found) == list(range(7))
    assert max(r["batch"] for r in found) <= per_batch


def test_own_error_comes_out_of_a_worker_as_it_went_in():
    with pytest.raises(ContractError, match=r"^shard 00042: column 'image' is wrong; ingest it"):
        list(work.run(3, [work.Stage("a", Echo, {"refuse": 1}, num_cpus=0.5)], verb="t"))


def test_foreign_error_keeps_its_last_line():
    with pytest.raises(RunError, match=r"a worker failed: .*division by zero in band 2"):
        list(work.run(3, [work.Stage("a", Echo, {"crash": 1}, num_cpus=0.5)], verb="t"))


def test_a_failed_run_lets_go_of_its_actors():
    """While its error is still looked at, the next run has the CPUs."""
    for _ in range(2):
        with pytest.raises(ContractError) as caught:
            list(work.run(3, [work.Stage("a", Echo, {"refuse": 1}, num_cpus=1.5)], verb="t"))
    assert "MapWorker(MapBatches(Echo))" in caught.value.__notes__[0]


def test_a_run_in_which_nothing_moves_is_told_what_to_look_at():
    told = work.unwrap(ExecutionTimeoutError("Dataset execution made no progress"))
    assert isinstance(told, RunError)
    assert "min: no CPU or GPU is free" in str(told)


def test_progress_in_a_log_says_rate_and_end():
    stream = io.StringIO()
    progress = Progress("score", 2, unit="row groups", every_seconds=1000, stream=stream)
    progress.advance(rows=5)
    progress.advance(rows=5)
    assert stream.getvalue().count("\n") == 1
    assert "score: 2/2 row groups" in stream.getvalue()
    assert "rows/s" in stream.getvalue()
