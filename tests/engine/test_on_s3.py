"""The verbs on a real S3 server that fails now and then, and what they leave there."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import ray
import ray.cloudpickle

from clusterray import storage
from clusterray.config import Config
from clusterray.engine.ingest import ingest
from clusterray.engine.ledger import read_shard
from clusterray.engine.nightly import nightly
from clusterray.engine.plan import list_shards
from clusterray.engine.published import latest
from clusterray.engine.rank import rank
from clusterray.engine.score import score
from clusterray.errors import StorageError
from clusterray.sky.surveys import resolve
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
def _calm(proxy: FaultProxy) -> Iterator[None]:
    proxy.calm()
    yield
    proxy.calm()


def test_a_night_through_faults_ends_with_the_same_ranking_and_leaves_no_secret(
    tiny, remote, proxy, s3_server
):
    proxy.every(busy=9, drop=17, truncate=23)
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


def test_what_travels_to_workers_holds_no_secret(remote, s3_server):
    survey = resolve(remote.survey)
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
    proxy.every(busy=7, drop=23)
    summary = ingest(remote.model_copy(update={"paths": paths}))
    assert proxy.faults["503"] > 3
    proxy.calm()
    assert (summary.done, summary.rows, summary.rejected) == (3, 72, 0)
    survey = resolve(tiny.survey)

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


def test_a_store_that_stays_busy_ends_the_run_with_the_object_named(remote, proxy, monkeypatch):
    monkeypatch.setattr(storage, "_FIRST_PAUSE_SECONDS", 0.01)
    proxy.every(busy=1)
    with pytest.raises(StorageError, match=r"'s3://survey/tiny/.*\(6 attempts\)"):
        score(remote)
