"""Simulation on Ray: resumable, the same whoever does the work, and lenses put into shards."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clusterray import config
from clusterray.config import Config
from clusterray.engine.simulate import simulate
from clusterray.errors import ConfigError, InputError, RunError
from clusterray.sky import catalogue, shards

pytestmark = pytest.mark.usefixtures("ray_session")
SETTINGS = (
    "simulate.output='shards'",
    "simulate.n_clusters=24",
    "simulate.rows_per_shard=4",
    "simulate.lens_fraction=0.25",
    "simulate.n_known=2",
    "simulate.gallery_per_class=1",
    "ingest.row_group_size=4",
)


def made_in(root: Path, *overrides: str) -> Config:
    places = (f"paths.root='{root}'", f"paths.truth='{root}/truth/truth.parquet'")
    return config.load(None, [*SETTINGS, *places, *overrides])


def digests(settings: Config) -> dict[str, str]:
    files = sorted(Path(settings.paths.shards).glob("*.parquet"))
    named = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    truth = Path(settings.paths.truth).read_bytes()
    labels = Path(settings.paths.labels).read_bytes()
    return named | {k: hashlib.sha256(v).hexdigest() for k, v in (("t", truth), ("l", labels))}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    settings = made_in(tmp_path_factory.mktemp("made"), "cluster.workers=2")
    return settings, simulate(settings)


def test_shards_truth_labels_and_gallery_agree(survey):
    settings, summary = survey
    assert (summary.done, summary.rows, summary.rejected) == (6, 24, 0)
    truth = {r["object_id"]: r for r in pq.read_table(settings.paths.truth).to_pylist()}
    assert sorted(truth, key=int) == [str(i) for i in range(1, 25)]
    ids = []
    for path in sorted(Path(settings.paths.shards).glob("*.parquet")):
        batch = shards.read(str(path))
        ids += batch.object_id.tolist()
        assert batch.cutouts_nchw.shape[1:] == (3, 128, 128)
        assert np.isfinite(batch.columns["psf_fwhm_arcsec"]).all()
    assert sorted(ids) == sorted(truth)
    labels = catalogue.read_labels(settings.paths.labels)
    known = labels["object_id"].to_pylist()
    assert len(known) == 2
    assert all(truth[i]["y"] == 1 for i in known)
    page = Path(summary.outputs["gallery"]).read_text()
    assert page.count("<li><div") == len({r["kind"] for r in truth.values()})


def test_what_is_missing_is_made_by_one_worker_with_the_same_bytes(survey, tmp_path):
    """As a run leaves it that was cut short after the third shard."""
    again = made_in(tmp_path, "cluster.workers=1")
    shutil.copytree(survey[0].paths.root, tmp_path, dirs_exist_ok=True)
    made = sorted(Path(again.paths.shards).glob("*.parquet"))
    for path in (Path(again.paths.truth), Path(again.paths.labels)):
        path.unlink()
    for lost in made[3:]:
        for path in tmp_path.rglob(f"{lost.stem}.*"):
            path.unlink()
    # A shard without its receipt may be half a shard.
    made[3].write_bytes(b"half of a shard")
    stood = {p: p.stat().st_mtime_ns for p in made[:3]}
    summary = simulate(again)
    assert (summary.done, summary.skipped) == (3, 3)
    assert {p: p.stat().st_mtime_ns for p in stood} == stood
    assert digests(again) == digests(survey[0])


def test_a_second_run_makes_nothing(survey):
    before = digests(survey[0])
    summary = simulate(survey[0])
    assert (summary.done, summary.skipped) == (0, 6)
    assert digests(survey[0]) == before


@pytest.mark.slow
def test_a_killed_run_goes_on_without_losing_or_repeating_a_system(survey, tmp_path):
    again = made_in(tmp_path)
    receipts = Path(again.paths.shards, "receipts")
    places = (f"paths.root='{tmp_path}'", f"paths.truth='{tmp_path}/truth/truth.parquet'")
    words = [w for o in (*SETTINGS, *places, "cluster.workers=1") for w in ("--set", o)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "clusterray.cli", "simulate", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(receipts.glob("*.json")) and time.monotonic() < deadline:
        assert driver.poll() is None, "the driver ended before anything was made"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    done = {p.name: p.stat().st_mtime_ns for p in receipts.glob("*.json")}
    assert 0 < len(done) < 6
    summary = simulate(again)
    # A worker may have finished the shard it held after its driver was gone.
    assert 0 < summary.done <= 6 - len(done)
    assert {n: (receipts / n).stat().st_mtime_ns for n in done} == done
    assert digests(again) == digests(survey[0])


def test_another_recipe_is_not_mixed_in(survey):
    other = survey[0].model_copy(
        update={"simulate": survey[0].simulate.model_copy(update={"lens_fraction": 0.5})}
    )
    with pytest.raises(RunError, match=r"holds another simulate run .*recipe"):
        simulate(other)


def test_lenses_are_put_into_shards_with_their_twins(survey, tmp_path):
    source, _ = survey
    settings = made_in(tmp_path, f"simulate.inject_into='{source.paths.shards}'")
    summary = simulate(settings)
    truth = pq.read_table(settings.paths.truth).to_pylist()
    lenses = {r["object_id"]: r for r in truth if r["y"] == 1}
    twins = {r["object_id"]: r for r in truth if r["y"] == 0}
    assert len(lenses) == len(twins) > 4
    assert summary.rejected + len(lenses) == 24
    rejects = [
        row
        for path in Path(settings.paths.shards, "rejects").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rejects) == summary.rejected
    assert all("multiply imaged" in r["reason"] for r in rejects)
    labels = {
        r["object_id"]: r["s"] for r in catalogue.read_labels(settings.paths.labels).to_pylist()
    }
    assert labels == {**dict.fromkeys(lenses, 1), **dict.fromkeys(twins, -1)}
    for twin in twins.values():
        assert lenses[twin["twin_of"]]["twin_of"] == twin["object_id"].removesuffix("+off")
    placed = {}
    for folder in (source.paths.shards, settings.paths.shards):
        for path in Path(folder).glob("*.parquet"):
            batch = shards.read(str(path))
            sky = zip(batch.columns["ra_deg"], batch.columns["dec_deg"], strict=True)
            placed |= dict(zip(batch.object_id.tolist(), sky, strict=True))
    for lens in lenses.values():
        twin = lens["object_id"].replace("+lens", "+off")
        assert placed[lens["object_id"]] == placed[twin] == placed[lens["twin_of"]]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("simulate.n_known=20",), ConfigError, "n_known is 20, but this seed and recipe make"),
        (("simulate.inject_into='{tmp}/none'",), InputError, "no shards in"),
        (("survey.name='cfhtls'",), ConfigError, "cannot be simulated"),
        (("survey.bands=['g','y']",), ConfigError, "band 'y'"),
        (("survey.size_px=20",), ConfigError, "field of 10″ cannot be simulated"),
        (("paths.truth=''",), ConfigError, "paths.truth is ''"),
        (("simulate.recipe='{tmp}/none.toml'",), ConfigError, "simulate.recipe"),
    ],
)
def test_what_cannot_be_made_is_refused_before_any_work(tmp_path, overrides, error, message):
    settings = made_in(tmp_path, *(o.format(tmp=tmp_path) for o in overrides))
    with pytest.raises(error, match=message):
        simulate(settings)
    assert not list(tmp_path.rglob("*.parquet"))
