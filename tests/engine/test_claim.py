import json
import os
import threading
import time
from pathlib import Path

import fsspec
import pytest

from clusterray import storage
from clusterray.engine.claim import Claim, Holder, claimed
from clusterray.errors import RunError


def claims(folder: str) -> list[str]:
    return [e.url for e in storage.list_files(folder, suffix=".json")]


def leave(folder: Path, *, age_seconds: float, held: bool = True) -> Path:
    """The claim of a run on another machine, renewed so long ago."""
    path = folder / f"abc-000001-{'held' if held else 'trying'}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": "h", "pid": 7, "since": "then"}))
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


@pytest.fixture(params=["disk", "objects"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a disk, and in a store of whole objects whose listings are up to date."""
    if request.param == "disk":
        return str(tmp_path)
    store = fsspec.filesystem("memory")

    def put(url: str, data: bytes) -> None:
        # A stream to fsspec's memory shows an empty object before it is written; no PUT does.
        store.pipe_file(url.removeprefix("memory:/"), data)

    monkeypatch.setattr(storage, "write_bytes", put)
    return f"memory://{tmp_path.name}/claims"


def test_one_holds_and_the_other_is_told_who(folder):
    with claimed(folder, expires_seconds=60) as mine:
        assert isinstance(mine, Claim)
        with claimed(folder, expires_seconds=60) as other:
            assert isinstance(other, Holder)
            assert (other.pid, other.held) == (os.getpid(), True)
            assert f"process {os.getpid()} on " in str(other)
        mine.check()
    assert claims(folder) == []
    with claimed(folder, expires_seconds=60) as again:
        assert isinstance(again, Claim)


def contend(folder: str, n: int) -> tuple[int, int]:
    """Of n that come at once: how many held in all, and how many at most together."""
    inside, most, won, told = [0], [0], [], []
    guard, start = threading.Lock(), threading.Barrier(n)

    def one() -> None:
        start.wait()
        with claimed(folder, expires_seconds=60) as held:
            if isinstance(held, Holder):
                told.append(held)
            else:
                with guard:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    won.append(held)
                held.check()
                with guard:
                    inside[0] -= 1

    threads = [threading.Thread(target=one) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(told) == n
    return len(won), most[0]


def test_of_many_at_once_never_two_hold(folder):
    won, together = contend(folder, 8)
    assert won >= 1
    assert together == 1
    assert claims(folder) == []


def test_a_dead_runs_claim_expires_and_goes(tmp_path):
    stale = leave(tmp_path, age_seconds=61)
    with claimed(str(tmp_path), expires_seconds=60) as held:
        assert isinstance(held, Claim)
        assert not stale.exists()


def test_a_claim_that_is_not_old_enough_stands(tmp_path):
    fresh = leave(tmp_path, age_seconds=30)
    with claimed(str(tmp_path), expires_seconds=60) as held:
        assert held == Holder("h", 7, "then", "abc", True)
    assert claims(str(tmp_path)) == [str(fresh)]


def test_who_only_tries_is_waited_for(tmp_path, monkeypatch):
    trying = leave(tmp_path, age_seconds=0, held=False)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            trying.unlink()

    monkeypatch.setattr(time, "sleep", pause)
    with claimed(str(tmp_path), expires_seconds=60) as held:
        assert isinstance(held, Claim)
    assert len(pauses) == 2


def test_a_claim_is_renewed_while_it_is_held(tmp_path):
    with claimed(str(tmp_path), expires_seconds=2.0) as held:
        assert isinstance(held, Claim)
        before = held.url
        deadline = time.monotonic() + 60
        while storage.exists(before):
            assert time.monotonic() < deadline, "not renewed"
        held.check()
        assert len(claims(str(tmp_path))) == 1


@pytest.mark.parametrize("how", ["removed", "taken"])
def test_a_run_that_lost_its_claim_must_not_publish(tmp_path, how):
    with claimed(str(tmp_path), expires_seconds=600) as held:
        assert isinstance(held, Claim)
        if how == "removed":
            Path(held.url).unlink()
        else:
            leave(tmp_path, age_seconds=0)
        with pytest.raises(RunError, match="another may have taken over; nothing was published"):
            held.check()


def test_a_claim_that_cannot_be_read_stands_all_the_same(tmp_path):
    (tmp_path / "abc-000001-held.json").write_text("")
    with claimed(str(tmp_path), expires_seconds=60) as held:
        assert held == Holder("another node", 0, "just now", "abc", True)


@pytest.mark.parametrize("hours", [-30, 30])
def test_nodes_whose_clocks_differ_keep_each_other_out(tmp_path, monkeypatch, hours):
    """Ages are the storage's: neither does a fresh claim look dead, nor a dead one fresh."""
    real = time.time
    fresh = leave(tmp_path, age_seconds=30)
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    with claimed(str(tmp_path), expires_seconds=60) as held:
        assert isinstance(held, Holder)
    then = real() - 61
    os.utime(fresh, (then, then))
    with claimed(str(tmp_path), expires_seconds=60) as held:
        assert isinstance(held, Claim)
        assert held.clock_ahead_seconds / 3600 == pytest.approx(hours, abs=0.01)


def test_a_clock_that_is_right_is_not_ahead(folder):
    with claimed(folder, expires_seconds=60) as held:
        assert isinstance(held, Claim)
        assert abs(held.clock_ahead_seconds) < 30
