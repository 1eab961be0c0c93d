"""From a simulated survey to a ranking, and every way of doing it again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from clusterray import schema, storage
from clusterray.config import Config
from clusterray.engine.features import features
from clusterray.engine.ingest import ingest
from clusterray.engine.ledger import Receipt
from clusterray.engine.rank import rank
from clusterray.engine.score import score
from clusterray.engine.simulate import simulate
from clusterray.engine.train import train
from clusterray.ensemble import bundle
from clusterray.errors import ConfigError, InputError, RunError
from clusterray.sky import shards, tiles
from clusterray.sky.surveys import resolve
from tests.engine.tiny_survey import TINY, tiny_config

pytestmark = pytest.mark.usefixtures("ray_session")


def ranking_bytes(settings: Config) -> bytes:
    return Path(settings.paths.ranking, "ranking.parquet").read_bytes()


def rescored(settings: Config, root: Path, *overrides: str) -> Config:
    """The same shards and bundle, scored and ranked into another folder, without truth."""
    return tiny_config(
        root,
        f"paths.shards='{settings.paths.shards}'",
        f"paths.bundle='{settings.paths.bundle}'",
        f"paths.labels='{settings.paths.labels}'",
        "paths.truth=''",
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
        for name in ("fold", "logit_lightgbm", "logit_stack"):
            assert row[name] == oof[row["object_id"]][name]


def test_receipts_account_for_every_row(tiny):
    receipts = Receipt.read_all(tiny.paths.scores)
    assert sum(r.rows for r in receipts) == 72
    for receipt in receipts:
        receipt.reconcile()


def test_ranking_is_the_same_bytes_whatever_workers_and_ray_batches(tiny, tmp_path):
    assert storage.read_json(f"{tiny.paths.scores}/summary.json")["forecast"]["pools"]["read"] == 1
    again = rescored(tiny, tmp_path, "cluster.workers=2", "cluster.row_groups_per_batch=3")
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


@pytest.mark.slow
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
    shutil.copytree(tiny.paths.scores, tmp_path / "scores")
    again = rescored(tiny, tmp_path, f"paths.shards='{copied}'")
    assert score(again).skipped == 12
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


def poison(settings: Config, copied: Path) -> str:
    """Copy the shards and make one row of the first unusable; returns its id."""
    shutil.copytree(settings.paths.shards, copied)
    first = sorted(copied.glob("*.parquet"))[0]
    table = pq.read_table(first)
    sigma = table["noise_sigma"].to_pylist()
    sigma[4] = [float("nan")] * 3
    at = table.schema.get_field_index("noise_sigma")
    field = table.schema.field(at)
    table = table.set_column(at, field, pa.array(sigma, field.type))
    pq.write_table(table, first, row_group_size=6)
    return str(table["object_id"][4])


def test_poison_row_costs_one_row(tiny, tmp_path):
    copied = tmp_path / "shards"
    poisoned = poison(tiny, copied)
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


def test_features_are_written_once_and_their_rejects_counted_ever_after(tiny, tmp_path):
    poisoned = poison(tiny, tmp_path / "shards")
    settings = tiny_config(tmp_path)
    first, second = features(settings), features(settings)
    assert (first.done, first.skipped, first.rows, first.rejected) == (12, 0, 71, 1)
    assert (second.done, second.skipped, second.rows, second.rejected) == (0, 12, 0, 1)
    want = schema.features(bundle.load(tiny.paths.bundle).feature_names)
    entries = storage.list_files(f"{settings.paths.features}/rows")
    tables = [schema.check(storage.read_table(e.url), want, where=e.url) for e in entries]
    ids = [i for table in tables for i in table["object_id"].to_pylist()]
    assert sorted([*ids, poisoned], key=int) == [str(i) for i in range(1, 73)]
    (entry,) = storage.list_files(f"{settings.paths.features}/rejects")
    rejects = storage.read_table(entry.url).to_pylist()
    assert [(r["object_id"], r["stage"]) for r in rejects] == [(poisoned, "features")]


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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size_px", "64", "survey.size_px is 64, the bundle was trained on 128"),
        ("pixel_scale_arcsec", "0.2", "pixel_scale_arcsec is 0.2, the bundle was trained on 0.5"),
        ("bands", "['r', 'g', 'i']", r"trained on \('g', 'r', 'i'\)"),
    ],
)
def test_a_survey_the_bundle_was_not_trained_on_is_refused(tiny, tmp_path, key, value, message):
    with pytest.raises(ConfigError, match=message):
        score(rescored(tiny, tmp_path, f"survey.{key}={value}"))


@pytest.mark.parametrize("models", [(), ("vit", "vit")])
def test_a_choice_of_models_that_cannot_be_trained_is_refused(tiny, models):
    chosen = tiny.train.model_copy(update={"models": models})
    with pytest.raises(ConfigError, match=r"train\.models is .*each once"):
        train(tiny.model_copy(update={"train": chosen}))


def test_truth_that_is_not_there_is_told_before_anything_is_written(tiny, tmp_path):
    again = rescored(
        tiny, tmp_path, f"paths.scores='{tiny.paths.scores}'", "paths.truth='none.parquet'"
    )
    with pytest.raises(InputError, match=r"paths\.truth: there is no 'none\.parquet'; leave"):
        rank(again)
    assert not Path(again.paths.ranking).exists()


def test_truth_of_another_survey_is_told_before_anything_is_written(tiny, tmp_path):
    truth = storage.read_table(tiny.paths.truth)
    foreign = pa.array([f"other{i}" for i in range(len(truth))])
    storage.write_table(
        f"{tmp_path}/other.parquet", truth.set_column(0, schema.TRUTH.field(0), foreign)
    )
    again = rescored(
        tiny,
        tmp_path,
        f"paths.scores='{tiny.paths.scores}'",
        f"paths.truth='{tmp_path}/other.parquet'",
    )
    with pytest.raises(InputError, match="none of the 72 objects of the truth table"):
        rank(again)
    assert not Path(again.paths.ranking).exists()


def test_with_truth_the_selection_function_stands_beside_the_report(tiny, tmp_path):
    again = rescored(
        tiny,
        tmp_path,
        f"paths.scores='{tiny.paths.scores}'",
        f"paths.truth='{tiny.paths.truth}'",
        "rank.budgets=[10, 5000]",
        "rank.selection_threshold=0.4",
    )
    folder = Path(again.paths.ranking)
    assert rank(again).outputs["selection"] == str(folder / "selection.html")
    table = pq.read_table(folder / "selection.parquet")
    rows = [r for r in table.to_pylist() if r["quantity"] == "all"]
    assert [(r["cut"], r["cut_value"]) for r in rows] == [
        ("budget", 10), ("budget", 72), ("threshold", 0.4)
    ]  # fmt: skip
    truth = {r["object_id"]: r["y"] for r in pq.read_table(again.paths.truth).to_pylist()}
    ranking = pq.read_table(folder / "ranking.parquet").to_pylist()
    first = [truth[r["object_id"]] for r in ranking[:10]].count(1)
    above = [truth[r["object_id"]] for r in ranking if r["p_lens"] >= 0.4].count(1)
    lenses = [truth[r["object_id"]] for r in ranking].count(1)
    assert [r["n_found"] for r in rows] == [first, lenses, above]
    assert {r["n_lenses"] for r in rows} == {lenses}
    assert 'href="selection.html"' in (folder / "report.html").read_text()
    blind = rescored(tiny, tmp_path / "blind", f"paths.scores='{tiny.paths.scores}'")
    assert "selection" not in rank(blind).outputs
    assert not list(Path(blind.paths.ranking).glob("selection*"))
    assert "selection.html" not in Path(blind.paths.ranking, "report.html").read_text()


def test_ranking_follows_the_shards_that_stand_now(tiny, tmp_path):
    copied, gone = tmp_path / "shards", tmp_path / "gone.parquet"
    shutil.copytree(tiny.paths.shards, copied)
    again = rescored(
        tiny, tmp_path, f"paths.shards='{copied}'", f"paths.scores='{tiny.paths.scores}'"
    )
    first = sorted(copied.glob("*.parquet"))[0]
    first.rename(gone)
    assert rank(again).notes == ("1 scored shards are no longer in paths.shards",)
    left = 72 - pq.read_metadata(gone).num_rows
    assert pq.read_metadata(f"{again.paths.ranking}/ranking.parquet").num_rows == left
    gone.rename(copied / "new.parquet")
    with pytest.raises(InputError, match=r"1 of 3 shards .* not scored .* such as new; run 'cl"):
        rank(again)


def ingested(tiny: Config, root: Path) -> Config:
    """A copy of the survey's shards, as ingest left them."""
    shutil.copytree(tiny.paths.shards, root / "shards")
    survey = Path(tiny.paths.catalogue).parent
    return tiny_config(
        root, f"paths.tiles=['{survey}/tiles']", f"paths.catalogue='{tiny.paths.catalogue}'"
    )


@pytest.mark.parametrize("left", ["shard", "rejects"])
def test_what_a_killed_ingest_of_another_catalogue_left_is_refused(tiny, tmp_path, left):
    again = ingested(tiny, tmp_path)
    folder = Path(again.paths.shards) / ("rejects" if left == "rejects" else "")
    folder.mkdir(exist_ok=True)
    shutil.copy(sorted(Path(tiny.paths.shards).glob("*.parquet"))[0], folder / "c0-old.parquet")
    with pytest.raises(RunError, match=r"1 shards made from another catalogue .*such as c0-old"):
        ingest(again)


def test_an_object_beside_its_tile_is_a_reject_and_stays_one(tiny, tmp_path):
    """Near enough to be planned, not to be cut: a unit of work without a shard."""
    survey = Path(tiny.paths.catalogue).parent
    plane = tiles.scan(
        str(next(survey.glob("tiles/*.fits"))), survey=resolve(tiny.survey), settings=tiny.ingest
    )[0]
    (x, y, z), radius = plane.circle()
    beside = {
        "ID": ["edge"],
        "RA": [np.degrees(np.arctan2(y, x)) % 360],
        "DEC": [np.degrees(np.arcsin(z) + 0.99 * radius)],
    }
    Table(beside).write(tmp_path / "catalogue.fits")
    settings = tiny_config(
        tmp_path,
        f"paths.tiles=['{survey}/tiles']",
        f"paths.catalogue='{tmp_path}/catalogue.fits'",
        "ingest.max_reject_fraction=1",
    )
    for done in (1, 0):
        summary = ingest(settings)
        assert (summary.done, summary.rejected) == (done, 1)
    assert not list(Path(settings.paths.shards).glob("*.parquet"))
    (entry,) = storage.list_files(f"{settings.paths.shards}/rejects")
    assert storage.read_table(entry.url)["reason"].to_pylist() == ["outside all tiles"]
    with pytest.raises(InputError, match="no shards"):
        features(settings)


def test_ingest_makes_again_what_has_no_receipt(tiny, tmp_path):
    again = ingested(tiny, tmp_path)
    made = sorted(Path(again.paths.shards).glob("*.parquet"))
    whole = made[0].read_bytes()
    Path(again.paths.shards, "receipts", f"{made[0].stem}.json").unlink()
    made[0].write_bytes(b"half of a shard")
    summary = ingest(again)
    assert (summary.done, summary.skipped, summary.rows) == (1, 2, 24)
    assert made[0].read_bytes() == whole


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
