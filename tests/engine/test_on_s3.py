"""The verbs on a real S3 server that fails now and then, and what they leave there."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.cloudpickle

from clusterray import storage
from clusterray.config import Config, resolve
from clusterray.engine import plan
from clusterray.engine.ingest import ingest
from clusterray.engine.ledger import read_shard
from clusterray.engine.nightly import nightly
from clusterray.engine.plan import list_shards
from clusterray.engine.published import latest
from clusterray.engine.rank import rank
from clusterray.engine.score import score
from clusterray.engine.search import TrialData
from clusterray.engine.search_space import SearchSpace
from clusterray.engine.sweep import Trial, sweep
from clusterray.errors import StorageError
from clusterray.sky import surveys
from tests.conftest import forget_clients
from tests.engine.tiny_survey import tiny_config
from tests.fault_proxy import FaultProxy, fault_proxy

NOW = datetime(2026, 11, 26, 22, tzinfo=UTC)


@pytest.fixture(scope="module")
def proxy(tiny, s3_server) -> Iterator[FaultProxy]:
    """All traffic of driver and workers goes through it."""
    with (
        fault_proxy(s3_server.env["AWS_ENDPOINT_URL"]) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", running.url)
        forget_clients()
        if ray.is_initialized():
            ray.shutdown()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield running
        ray.shutdown()
    forget_clients()


def upload(source: str, target: str) -> None:
    for path in Path(source).rglob("*"):
        if path.is_file():
            url = storage.join(target, str(path.relative_to(source)))
            storage.write_bytes(url, path.read_bytes())


@pytest.fixture(scope="module")
def remote(tiny: Config, proxy: FaultProxy) -> Config:
    """The tiny survey in the bucket: tiles, catalogue, labels, shards and bundle."""
    root = "s3://survey/tiny"
    upload(tiny.paths.shards, f"{root}/shards")
    upload(tiny.paths.bundle, f"{root}/bundle")
    upload(str(Path(tiny.paths.catalogue).parent), f"{root}/survey")
    return tiny_config(Path("/"), f"paths.root='{root}'", "paths.truth=''")


@pytest.fixture(autouse=True)
def _calm(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    proxy.calm()
    yield
    proxy.calm()
    monkeypatch.undo()
    forget_clients()


def test_a_night_on_a_slow_and_failing_store_ends_with_the_same_ranking_and_leaves_no_secret(
    tiny, remote, proxy, s3_server
):
    proxy.every(busy=41, drop=67, truncate=97)
    proxy.bytes_per_second = 3e6
    summary = nightly(remote, now=NOW)
    assert min(proxy.faults[kind] for kind in ("503", "drop", "truncate")) > 2
    proxy.calm()
    assert (summary.done, summary.rejected) == (3, 0)
    stands = latest(remote.paths.nightly)
    assert stands is not None
    ranking = storage.join(remote.paths.nightly, stands.folder, "ranking.parquet")
    assert storage.read_bytes(ranking) == Path(tiny.paths.ranking, "ranking.parquet").read_bytes()
    assert storage.list_files(f"{remote.paths.nightly}/claims", suffix=".json") == []
    again = nightly(remote, now=NOW)
    assert (again.done, again.skipped) == (0, 3)
    rank(remote)

    secrets = [s3_server.env[f"AWS_{k}"].encode() for k in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")]
    written = {e.url: storage.read_bytes(e.url) for e in storage.list_files("s3://survey/tiny")}
    assert len(written) > 40
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = {str(p): p.read_bytes() for p in session.rglob("*.*") if p.is_file()}
    assert any(p.endswith(".out") or p.endswith(".log") for p in logs)
    for name, content in {**written, **logs}.items():
        assert not any(secret in content for secret in secrets), name


def test_actors_that_take_two_row_groups_through_all_stages_write_the_same(
    tiny, remote, proxy, monkeypatch
):
    monkeypatch.setattr(plan, "_LONG_SECONDS", 0.0)
    paths = remote.paths.model_copy(update={"scores": "s3://survey/fused/scores"})
    proxy.every(busy=19, drop=31)
    cluster = remote.cluster.model_copy(update={"workers": None})
    summary = score(remote.model_copy(update={"paths": paths, "cluster": cluster}))
    assert min(proxy.faults[kind] for kind in ("503", "drop")) > 1
    proxy.calm()
    assert summary.forecast["pools"]["fused"]
    written = {storage.name_of(e.url): e.url for e in storage.list_files(f"{paths.scores}/rows")}
    undisturbed = {path.name: path for path in Path(tiny.paths.scores, "rows").iterdir()}
    assert written.keys() == undisturbed.keys()
    for name, url in written.items():
        assert storage.read_bytes(url) == undisturbed[name].read_bytes(), name


def test_what_travels_to_workers_holds_no_secret(remote, s3_server):
    survey = surveys.resolve(remote.survey)
    groups = [
        group
        for shard in list_shards(
            remote.paths.shards,
            bands=survey.band_names,
            size_px=survey.size_px,
            pixel_scale_arcsec=survey.pixel_scale_arcsec,
        )
        for group in shard.row_groups()
    ]
    from clusterray.engine.stages import FinishStage, ReadStage

    carried = ray.cloudpickle.dumps((remote, groups, ReadStage, FinishStage, storage.read_bytes))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert s3_server.env[key].encode() not in carried


def test_ingest_through_faults_makes_the_same_shards(tiny, remote, proxy):
    target = "s3://survey/again/shards"
    paths = remote.paths.model_copy(update={"shards": target})
    proxy.every(busy=13, drop=23)
    summary = ingest(remote.model_copy(update={"paths": paths}))
    assert proxy.faults["503"] > 3
    proxy.calm()
    assert (summary.done, summary.rows, summary.rejected) == (3, 72, 0)
    survey = surveys.resolve(tiny.survey)

    def footers(folder: str) -> list[str]:
        entries = storage.list_files(folder, suffix=".parquet", recursive=False)
        return [
            read_shard(e.url, bands=survey.band_names, size_px=survey.size_px).footer
            for e in entries
        ]

    assert footers(target) == footers(tiny.paths.shards)


VERBS = {"ingest": ingest, "score": score, "rank": rank, "nightly": nightly}


@pytest.mark.parametrize("verb", VERBS)
def test_wrong_keys_are_told_with_the_object(remote, s3_server, monkeypatch, verb):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "WRONG")
    forget_clients()
    try:
        with pytest.raises(StorageError, match=r"'s3://survey/.*access denied: check") as caught:
            VERBS[verb](remote)
    finally:
        monkeypatch.undo()
        forget_clients()
    for secret in ("WRONG", os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("verb", VERBS)
def test_a_bucket_that_is_not_there_is_told(remote, verb):
    root = "s3://nobucket/x"
    config = tiny_config(Path("/"), f"paths.root='{root}'", "paths.truth=''")
    with pytest.raises(StorageError, match=r"'s3://nobucket/x.*the bucket does not exist"):
        VERBS[verb](config)


@pytest.mark.parametrize("verb", ["score", "rank", "nightly"])
def test_a_store_that_stays_busy_ends_the_run_with_the_object_named(
    remote, proxy, monkeypatch, verb
):
    monkeypatch.setattr(storage, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(storage, "_CLIENT_ATTEMPTS", 1)
    forget_clients()
    proxy.every(busy=1)
    with pytest.raises(StorageError, match=r"'s3://survey/tiny/.*\(6 attempts\)"):
        VERBS[verb](remote)


def sweep_state(url: str, folder: Path) -> tuple[list[Trial], tuple[str, ...]]:
    rng = np.random.default_rng(8)
    data = TrialData(
        features=rng.normal(size=(120, 3)).astype(np.float32),
        s=(np.arange(120) < 24).astype(np.int8),
        fold=(np.arange(120) % 3).astype(np.int8),
        cell=np.arange(120),
        feature_names=("a", "b", "c"),
        scenario="single-sample",
        prior=0.3,
        unlabelled_prior=0.2,
        unlabelled_fraction=1.0,
        seed=1,
        options={},
    )
    space = SearchSpace.model_validate(
        {
            "model": "lightgbm",
            "objective": "auroc",
            "n_trials": 2,
            "parameters": {"num_leaves": {"low": 2, "high": 12}},
        }
    )
    config = resolve({"tune": {"storage": url}, "train": {"n_folds": 3}})
    return sweep(data, space, config=config, folder=str(folder), n_trials=2, name="sweep")


def test_tune_keeps_its_state_in_a_bucket_and_takes_it_up(proxy, tmp_path):
    proxy.every(busy=11)
    trials, notes = sweep_state("s3://survey/state", tmp_path)
    assert proxy.faults["503"] > 0
    assert ([t.number for t in trials], notes) == ([1, 2], ())
    there = {storage.name_of(e.url) for e in storage.list_files("s3://survey/state/sweep")}
    assert "tuner.pkl" in there
    judged = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")}
    again, _ = sweep_state("s3://survey/state", tmp_path)
    assert again == trials
    assert {p: p.stat().st_mtime_ns for p in judged} == judged


def test_tune_makes_no_bucket(proxy, tmp_path):
    with pytest.raises(StorageError, match=r"'s3://nobucket/state.*the bucket does not exist"):
        sweep_state("s3://nobucket/state", tmp_path)
