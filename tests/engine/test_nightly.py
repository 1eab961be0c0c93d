import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterray import schema, storage
from clusterray.config import Config
from clusterray.engine import nightly as module
from clusterray.engine.claim import claimed
from clusterray.engine.nightly import nightly
from clusterray.engine.published import latest, night_of
from clusterray.ensemble import bundle
from clusterray.errors import RunError
from clusterray.sky import catalogue, shards
from tests.engine.tiny_survey import TINY, tiny_config
from tests.ray.nodes import descendants, kill

pytestmark = pytest.mark.usefixtures("ray_session")
EVENING = datetime(2026, 11, 26, 22, tzinfo=UTC)


def at(night: int) -> datetime:
    return EVENING + timedelta(days=night)


def copied(tiny: Config, root: Path, *overrides: str) -> Config:
    """Shards and scores of the tiny survey in a place of their own; nothing published."""
    shutil.copytree(tiny.paths.shards, root / "shards")
    shutil.copytree(tiny.paths.scores, root / "scores")
    kept = (f"paths.{k}='{getattr(tiny.paths, k)}'" for k in ("bundle", "labels"))
    return tiny_config(root, *kept, "paths.truth=''", *overrides)


def forget(config: Config, name: str) -> None:
    """Take away what was scored of a shard."""
    for part in ("rows", "receipts", "rejects"):
        for path in Path(config.paths.scores, part).glob(f"{name}.*"):
            path.unlink()


def ranking(config: Config, night: str) -> bytes:
    return Path(config.paths.nightly, "nights", night, "ranking.parquet").read_bytes()


@given(st.datetimes(timezones=st.just(UTC)), st.floats(0, 23.9))
def test_a_night_lasts_from_noon_to_noon(moment, hour):
    if not 1900 < moment.year < 2200:
        return
    night = night_of(moment, day_starts_utc_hour=hour)
    starts = datetime.fromisoformat(night).replace(tzinfo=UTC) + timedelta(hours=hour)
    assert starts <= moment < starts + timedelta(days=1, seconds=1)


def test_evening_and_morning_are_one_night():
    for hour in (22, 26, 35):
        moment = datetime(2026, 11, 26, tzinfo=UTC) + timedelta(hours=hour)
        assert night_of(moment, day_starts_utc_hour=12) == "2026-11-26"


def test_nights_score_what_is_new_and_publish_when_complete(tiny, tmp_path):
    config = copied(tiny, tmp_path)
    last = sorted(Path(config.paths.shards).glob("*.parquet"))[-1]
    away = last.rename(tmp_path / last.name)
    forget(config, last.stem)
    first = nightly(config, now=at(0))
    assert (first.done, first.skipped, first.exit_code) == (2, 0, 0)
    stands = latest(config.paths.nightly)
    assert stands is not None
    assert (stands.night, stands.folder, len(stands.shards)) == (
        "2026-11-26",
        "nights/2026-11-26",
        2,
    )
    pointer = Path(config.paths.nightly, "latest.json").read_bytes()

    again = nightly(config, now=at(0) + timedelta(hours=5))
    assert again.done == 0 and "this night was published" in again.notes[0]
    idle = nightly(config, now=at(1))
    assert idle.done == 0 and "no shard is new since night 2026-11-26" in idle.notes[0]
    back = nightly(config, now=at(-3))
    assert "the later night 2026-11-26 was published" in back.notes[0]
    assert Path(config.paths.nightly, "latest.json").read_bytes() == pointer

    away.rename(last)
    second = nightly(config, now=at(2))
    assert (second.done, second.skipped, second.rows) == (1, 2, 24)
    assert ranking(config, "2026-11-28") == Path(tiny.paths.ranking, "ranking.parquet").read_bytes()
    assert len(pq.read_table(f"{config.paths.nightly}/nights/2026-11-26/ranking.parquet")) == 48
    pages = Path(config.paths.nightly, "nights", "2026-11-28")
    assert "By group" in (pages / "drift.html").read_text()
    index = Path(config.paths.nightly, "index.html").read_text()
    assert index.index("2026-11-28") < index.index("2026-11-26")
    table = schema.check(pq.read_table(pages / "drift.parquet"), schema.DRIFT, where="drift")
    measured = {(r["group"], r["quantity"], r["statistic"]) for r in table.to_pylist()}
    assert {
        ("psf", "psf_fwhm_arcsec_g", "psi"),
        ("depth", "depth_mag_r", "ks"),
        ("noise", "noise_sigma_i", "psi"),
        ("colour", "annulus_0_colour_g_r", "psi"),
        ("score", "logit_lightgbm", "ks"),
        ("score", "logit_stack", "psi"),
        ("run", "reject_rate", "value"),
        ("run", "latency_hours", "value"),
    } <= measured


def rewrite(path: Path, name: str, factor: float) -> None:
    """Scale one per-band column of a shard."""
    table = pq.read_table(path)
    index = table.schema.get_field_index(name)
    values = [[v * factor for v in row] for row in table[name].to_pylist()]
    column = pa.array(values, table.schema.field(index).type)
    shards.write_table(
        str(path), table.set_column(index, table.schema.field(index), column), row_group_size=6
    )


def test_bad_seeing_is_told_and_beyond_its_limit_is_status_3(tiny, tmp_path):
    config = copied(
        tiny,
        tmp_path,
        "nightly.max_psi={psf = 0.25, depth = 0.25}",
        "nightly.max_latency_hours=1",
    )
    nightly(config, now=at(0))
    first = sorted(Path(config.paths.shards).glob("*.parquet"))[0]
    rewrite(first, "psf_fwhm_arcsec", 3.0)
    old = time.time() - 7200
    os.utime(first, (old, old))
    summary = nightly(config, now=at(1))
    assert (summary.done, summary.exit_code) == (1, 3)
    said = " ".join(summary.exceeded)
    assert "PSI of psf_fwhm_arcsec_g (psf)" in said and "depth" not in said
    assert "latency_hours is 2" in said
    # It is complete, and says so where people look.
    stands = latest(config.paths.nightly)
    assert stands is not None and stands.night == "2026-11-27"
    assert list(stands.exceeded) == list(summary.exceeded)
    assert "Limits exceeded" in Path(config.paths.nightly, stands.folder, "drift.html").read_text()


def test_who_comes_second_says_so_and_leaves(tiny, tmp_path):
    config = copied(tiny, tmp_path)
    with claimed(f"{config.paths.nightly}/claims", expires_seconds=60):
        summary = nightly(config, now=at(0))
    assert (summary.done, summary.exit_code) == (0, 0)
    assert f"another run is at work (process {os.getpid()} on " in summary.notes[0]
    assert latest(config.paths.nightly) is None


def test_a_night_that_fails_leaves_the_pointer_and_is_taken_up_again(tiny, tmp_path, monkeypatch):
    config = copied(tiny, tmp_path)

    def fail(*args: object, **named: object) -> None:
        raise RunError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(module, "rank", fail)
        with pytest.raises(RunError, match="no space"):
            nightly(config, now=at(0))
    assert latest(config.paths.nightly) is None
    assert not list(Path(config.paths.nightly, "claims").glob("*.json"))
    assert nightly(config, now=at(0)).done == 3
    assert ranking(config, "2026-11-26") == Path(tiny.paths.ranking, "ranking.parquet").read_bytes()


def test_a_run_that_lost_its_claim_publishes_nothing(tiny, tmp_path, monkeypatch):
    config = copied(tiny, tmp_path)
    real = module.rank

    def lose(*args, **named):
        for claim in Path(config.paths.nightly, "claims").glob("*.json"):
            claim.unlink()
        return real(*args, **named)

    monkeypatch.setattr(module, "rank", lose)
    with pytest.raises(RunError, match="nothing was published"):
        nightly(config, now=at(0))
    assert latest(config.paths.nightly) is None


def test_a_bundle_without_a_reference_says_so(tiny, tmp_path):
    config = copied(tiny, tmp_path)
    bare = tmp_path / "bundle"
    shutil.copytree(tiny.paths.bundle, bare)
    (bare / "drift.parquet").unlink()
    manifest = json.loads((bare / "manifest.json").read_text())
    del manifest["files"]["drift.parquet"]
    (bare / "manifest.json").write_text(json.dumps(manifest))
    # What changes no score is no part of the bundle's digest.
    assert bundle.load(str(bare)).digest == bundle.load(tiny.paths.bundle).digest
    paths = config.paths.model_copy(update={"bundle": str(bare)})
    summary = nightly(config.model_copy(update={"paths": paths}), now=at(0))
    assert "the bundle has no reference: drift not measured" in summary.notes
    page = Path(config.paths.nightly, "nights/2026-11-26/drift.html").read_text()
    assert "No reference: drift not measured" in page


def test_the_reference_is_that_of_the_unlabelled_training_rows(tiny):
    reference = bundle.load(tiny.paths.bundle).drift_reference
    assert reference is not None
    rows = {(r["group"], r["quantity"]): r for r in reference.to_pylist()}
    known = set(catalogue.read_labels(tiny.paths.labels)["object_id"].to_pylist())
    psf = {
        i: row[0]
        for path in Path(tiny.paths.shards).glob("*.parquet")
        for i, row in zip(
            pq.read_table(path)["object_id"].to_pylist(),
            pq.read_table(path)["psf_fwhm_arcsec"].to_pylist(),
            strict=True,
        )
    }
    want = sorted(v for i, v in psf.items() if i not in known)
    assert rows["psf", "psf_fwhm_arcsec_g"]["sorted"] == pytest.approx(want)
    assert rows["score", "logit_stack"]["n"] == len(want)


def test_a_damaged_pointer_is_named(tiny, tmp_path):
    config = copied(tiny, tmp_path)
    storage.write_json(f"{config.paths.nightly}/latest.json", {"night": 3})
    with pytest.raises(RunError, match=r"latest\.json' is damaged"):
        nightly(config, now=at(0))


@pytest.mark.parametrize(("hours", "way"), [(-30, "behind"), (30, "ahead of")])
def test_a_node_whose_clock_is_wrong_publishes_no_night(tiny, tmp_path, monkeypatch, hours, way):
    config = copied(tiny, tmp_path)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    with pytest.raises(RunError, match=rf"is 30\.0 h {way} that of paths\.nightly.* set it"):
        nightly(config, now=at(0))
    assert latest(config.paths.nightly) is None
    assert not list(Path(config.paths.nightly, "claims").glob("*.json"))


@contextmanager
def night_in_a_process(config: Config, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`clusterray nightly` as a process with a local Ray of its own; ended with all it started."""
    places = (f"paths.{k}='{v}'" for k, v in config.dump()["paths"].items() if k != "tiles")
    words = [word for o in (*TINY, *places) for word in ("--set", o)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "clusterray.cli", "nightly", *words],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        kill(process.pid, *descendants(process.pid))
        process.wait()


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "it is not there"
        time.sleep(0.005)


def test_of_two_processes_one_publishes_and_a_killed_night_is_taken_up(tiny, tmp_path):
    config = copied(tiny, tmp_path)
    rows, claims = Path(config.paths.scores, "rows"), Path(config.paths.nightly, "claims")
    shutil.rmtree(rows)
    shutil.rmtree(Path(config.paths.scores, "receipts"))
    with night_in_a_process(config, tmp_path / "first.log") as first:
        wait_for("*-held.json", claims, first)
        with night_in_a_process(config, tmp_path / "second.log") as second:
            assert second.wait(timeout=120) == 0
        assert first.poll() is None
        said = (tmp_path / "second.log").read_text()
        assert f"another run is at work (process {first.pid} on " in said
        wait_for("*.parquet", rows, first)
    assert latest(config.paths.nightly) is None
    stood = {p.name: p.stat().st_mtime_ns for p in rows.glob("*.parquet")}
    assert nightly(config, now=at(0)).done == 0
    (claim,) = claims.glob("*.json")
    dead = time.time() - 3600
    os.utime(claim, (dead, dead))
    assert nightly(config, now=at(0)).done == 3
    assert ranking(config, "2026-11-26") == Path(tiny.paths.ranking, "ranking.parquet").read_bytes()
    assert {n: (rows / n).stat().st_mtime_ns for n in stood} == stood
    assert not list(claims.glob("*.json"))
