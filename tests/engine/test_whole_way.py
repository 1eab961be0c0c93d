"""From a simulated survey to a ranking, and every way of doing it again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clusterray import schema, storage
from clusterray.config import Config
from clusterray.engine.ingest import ingest
from clusterray.engine.ledger import Receipt
from clusterray.engine.rank import rank
from clusterray.engine.score import score
from clusterray.engine.simulate import simulate
from clusterray.engine.train import train
from clusterray.ensemble import bundle
from clusterray.errors import InputError, RunError
from clusterray.sky import shards
from tests.engine.tiny_survey import TINY, tiny_config

pytestmark = pytest.mark.usefixtures("ray_session")


def ranking_bytes(settings: Config) -> bytes:
    return Path(settings.paths.ranking, "ranking.parquet").read_bytes()


def rescored(settings: Config, root: Path, *overrides: str) -> Config:
    """The same shards and bundle, scored and ranked into another folder."""
    return tiny_config(
        root,
        f"paths.shards='{settings.paths.shards}'",
        f"paths.bundle='{settings.paths.bundle}'",
        f"paths.labels='{settings.paths.labels}'",
        f"paths.truth='{settings.paths.truth}'",
        *overrides,
    )


def test_every_object_is_ranked_once_and_training_rows_by_their_out_of_fold_score(tiny):
    table = pq.read_table(f"{tiny.paths.ranking}/ranking.parquet")
    assert sorted(table["object_id"].to_pylist(), key=int) == [str(i) for i in range(1, 73)]
    assert table["rank"].to_pylist() == list(range(1, 73))
    oof = {r["object_id"]: r for r in bundle.load(tiny.paths.bundle).oof.to_pylist()}
    trained = [r for r in table.to_pylist() if r["fold"] is not None and r["fold"] >= 0]
    assert len(trained) > 40
    for row in trained:
        for name in ("fold", "logit_lightgbm", "logit_vit", "logit_stack"):
            assert row[name] == oof[row["object_id"]][name]


def test_receipts_account_for_every_row(tiny):
    receipts = Receipt.read_all(tiny.paths.scores)
    assert sum(r.rows for r in receipts) == 72
    for receipt in receipts:
        receipt.reconcile()


@pytest.mark.parametrize(("workers", "per_batch"), [(1, 1), (2, 3)])
def test_ranking_is_the_same_bytes_whatever_workers_and_ray_batches(
    tiny, tmp_path, workers, per_batch
):
    again = rescored(
        tiny,
        tmp_path,
        f"cluster.workers={workers}",
        f"cluster.row_groups_per_batch={per_batch}",
    )
    assert score(again).done == 12
    rank(again)
    assert ranking_bytes(again) == ranking_bytes(tiny)


def test_second_run_of_every_step_does_nothing(tiny):
    before = ranking_bytes(tiny)
    for step in (simulate, ingest, train, score):
        summary = step(tiny)
        assert (summary.done, summary.rows if step is not train else 0) == (0, 0), summary
        assert summary.skipped > 0
    rank(tiny)
    assert ranking_bytes(tiny) == before


def test_killed_driver_costs_only_what_was_in_flight(tiny, tmp_path):
    again = rescored(tiny, tmp_path)
    rows = Path(again.paths.scores, "rows")
    overrides = [
        *TINY,
        *(f"paths.{k}='{v}'" for k, v in again.dump()["paths"].items() if k != "tiles"),
    ]
    command = [sys.executable, "-m", "clusterray.cli", "score"]
    command += [word for o in overrides for word in ("--set", o)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(rows.glob("*.parquet")) and time.monotonic() < deadline:
        assert driver.poll() is None, "the driver ended before anything was scored"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    done = {p.name: p.stat().st_mtime_ns for p in rows.glob("*.parquet")}
    assert 0 < len(done) < 12
    summary = score(again)
    # A worker may have finished the row group it held after its driver was gone.
    assert 0 < summary.done <= 12 - len(done)
    assert {n: (rows / n).stat().st_mtime_ns for n in done} == done
    rank(again)
    assert ranking_bytes(again) == ranking_bytes(tiny)


def test_rewritten_shard_is_scored_again_and_others_are_not(tiny, tmp_path):
    copied = tmp_path / "shards"
    shutil.copytree(tiny.paths.shards, copied)
    again = rescored(tiny, tmp_path, f"paths.shards='{copied}'")
    score(again)
    first = sorted(copied.glob("*.parquet"))[0]
    batch = shards.read(str(first))
    columns = {k: v for k, v in batch.columns.items() if k not in ("step", "clipped_fraction")}
    columns |= {"ra_deg": batch.columns["ra_deg"], "dec_deg": batch.columns["dec_deg"]}
    shards.write(
        str(first),
        object_id=batch.object_id,
        cutouts_nchw=batch.cutouts_nchw[:, :, ::-1],
        noise_sigma=batch.noise_sigma,
        bands=batch.bands,
        row_group_size=6,
        pixel_scale_arcsec=batch.pixel_scale_arcsec,
        **columns,
    )
    summary = score(again)
    assert (summary.done, summary.skipped) == (len(batch) // 6, 12 - len(batch) // 6)
    rank(again)
    assert pq.read_metadata(f"{again.paths.ranking}/ranking.parquet").num_rows == 72


def test_poison_row_costs_one_row(tiny, tmp_path):
    copied = tmp_path / "shards"
    shutil.copytree(tiny.paths.shards, copied)
    first = sorted(copied.glob("*.parquet"))[0]
    table = pq.read_table(first)
    sigma = table["noise_sigma"].to_pylist()
    sigma[4] = [float("nan")] * 3
    at = table.schema.get_field_index("noise_sigma")
    field = table.schema.field(at)
    table = table.set_column(at, field, pa.array(sigma, field.type))
    pq.write_table(table, first, row_group_size=6)
    poisoned = table["object_id"][4].as_py()
    limit = "score.max_reject_fraction=0.02"
    again = rescored(tiny, tmp_path, f"paths.shards='{copied}'", limit)
    assert score(again).rejected == 1
    rejects = [
        row
        for entry in storage.list_files(f"{again.paths.scores}/rejects")
        for row in schema.check(
            storage.read_table(entry.url), schema.REJECTS, where="rejects"
        ).to_pylist()
    ]
    assert [r["object_id"] for r in rejects] == [poisoned]
    assert "not finite" in rejects[0]["reason"]
    with pytest.raises(RunError, match="1 of 72 rows were rejected, more than"):
        score(rescored(tiny, tmp_path, f"paths.shards='{copied}'"))


def test_another_run_key_is_refused_with_the_difference(tiny):
    other = tiny.model_copy(update={"score": tiny.score.model_copy(update={"micro_batch": 3})})
    with pytest.raises(RunError, match=r"'micro_batch': 4.*there.*'micro_batch': 3"):
        score(other)


def test_training_needs_no_truth(tiny, tmp_path):
    """Truth is taken away; training from scratch gives the same bundle."""
    blind = tiny_config(
        tmp_path,
        f"paths.shards='{tiny.paths.shards}'",
        f"paths.labels='{tiny.paths.labels}'",
        f"paths.truth='{tmp_path}/nothing/truth.parquet'",
    )
    train(blind)
    ours, theirs = (bundle.load(c.paths.bundle) for c in (blind, tiny))
    assert ours.digest == theirs.digest


def break_shard(folder: Path, how: str) -> None:
    first = sorted(folder.glob("*.parquet"))[0]
    if how == "truncated":
        first.write_bytes(first.read_bytes()[:-100])
    elif how == "foreign":
        pq.write_table(pa.table({"x": [1, 2]}), first)
    elif how == "text":
        first.write_text("not Parquet at all")
    else:
        for path in folder.glob("*.parquet"):
            path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "is not a readable Parquet file"),
        ("foreign", "not a clusterray cutout shard"),
        ("text", "is not a readable Parquet file"),
        ("none", "no shards"),
    ],
)
def test_unusable_shards_are_named(tiny, tmp_path, how, message):
    copied = tmp_path / "shards"
    shutil.copytree(tiny.paths.shards, copied)
    break_shard(copied, how)
    with pytest.raises(Exception, match=message) as caught:
        score(rescored(tiny, tmp_path, f"paths.shards='{copied}'"))
    assert str(copied) in str(caught.value)


def test_shards_of_other_bands_are_refused(tiny, tmp_path):
    for path in sorted(Path(tiny.paths.shards).glob("*.parquet"))[:1]:
        batch = shards.read(str(path))
        shards.write(
            str(tmp_path / "shards" / path.name),
            object_id=batch.object_id,
            ra_deg=batch.columns["ra_deg"],
            dec_deg=batch.columns["dec_deg"],
            cutouts_nchw=batch.cutouts_nchw[:, ::-1],
            noise_sigma=batch.noise_sigma[:, ::-1],
            bands=batch.bands[::-1],
        )
    with pytest.raises(InputError, match=r"bands is \['i', 'r', 'g'\], expected \['g', 'r', 'i'\]"):
        score(rescored(tiny, tmp_path, f"paths.shards='{tmp_path}/shards'"))


def test_outputs_explain_themselves(tiny):
    for folder in (tiny.paths.shards, tiny.paths.scores, tiny.paths.ranking, tiny.paths.training):
        about = json.loads(Path(folder, "run.json").read_text())
        assert about["config"]["seed"] == tiny.seed
        assert about["versions"]["ray"]
        summary = json.loads(Path(folder, "summary.json").read_text())
        assert summary["seconds"] > 0
