"""What goes wrong under a scoring run: told clearly, nothing wrong written, taken up again."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from clusterray.config import Config
from clusterray.engine import score as scoring
from clusterray.engine.ledger import Shard
from clusterray.engine.plan import list_shards
from clusterray.engine.rank import rank
from clusterray.engine.score import score
from clusterray.engine.stages import ReadStage
from clusterray.errors import BundleError, ContractError, StorageError
from clusterray.sky import shards
from tests.engine.tiny_survey import tiny_config

pytestmark = pytest.mark.usefixtures("ray_session")


def elsewhere(tiny: Config, root: Path, **paths: str) -> Config:
    """The same survey and bundle with scores of its own."""
    kept = {n: getattr(tiny.paths, n) for n in ("shards", "bundle", "labels")} | paths
    kept["truth"] = ""
    return tiny_config(root, *(f"paths.{name}='{url}'" for name, url in kept.items()))


def listed(config: Config) -> list[Shard]:
    return list_shards(config.paths.shards, bands=("g", "r", "i"), size_px=128)


def rewrite(path: Path) -> None:
    """The same objects with other pixels, in row groups of the same size."""
    batch = shards.read(str(path))
    columns = {k: v for k, v in batch.columns.items() if k not in ("step", "clipped_fraction")}
    shards.write(
        str(path),
        object_id=batch.object_id,
        cutouts_nchw=batch.cutouts_nchw[:, :, ::-1],
        noise_sigma=batch.noise_sigma,
        bands=batch.bands,
        row_group_size=6,
        pixel_scale_arcsec=batch.pixel_scale_arcsec,
        **columns,
    )


def spoil(path: Path) -> None:
    """Other bytes inside the first row group, nearly all of which are pixels."""
    data = bytearray(path.read_bytes())
    start = len(data) // 16
    data[start : start + 16] = bytes(b ^ 0x55 for b in data[start : start + 16])
    path.write_bytes(data)


BREAK = {
    "gone": (Path.unlink, StorageError, "no such file"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-200]), StorageError, "not a readable Parquet"),
    "damaged": (spoil, StorageError, "not a readable Parquet file: .*checksum.*fetch a whole copy"),
    "other": (rewrite, ContractError, "was rewritten since it was listed.*run the same command"),
}


@pytest.mark.parametrize("how", BREAK)
def test_a_shard_that_changed_since_it_was_listed_is_named(tiny, tmp_path, how):
    shutil.copytree(tiny.paths.shards, tmp_path / "shards")
    shard = listed(elsewhere(tiny, tmp_path, shards=str(tmp_path / "shards")))[-1]
    broken, kind, message = BREAK[how]
    read = ReadStage(shard.row_groups(), None, keep_pixels=True)
    assert read(pa.table({"unit": [0]})).num_rows == 1
    broken(Path(shard.url))
    with pytest.raises(kind, match=message) as caught:
        read(pa.table({"unit": [0]}))
    assert shard.url in str(caught.value)


def test_a_run_whose_shard_is_rewritten_under_it_writes_nothing_of_it_and_goes_on_later(
    tiny, tmp_path
):
    config = elsewhere(tiny, tmp_path, shards=str(tmp_path / "shards"))
    shutil.copytree(tiny.paths.shards, config.paths.shards)
    planned = listed(config)
    path = Path(planned[-1].url)
    whole = path.read_bytes()
    rewrite(path)
    with pytest.raises(ContractError, match="was rewritten since it was listed"):
        score(config, shards=planned)
    outputs = {g.output for g in planned[-1].row_groups()}
    assert not outputs & {p.name for p in Path(config.paths.scores, "rows").glob("*")}
    path.write_bytes(whole)
    score(config)
    rank(config)
    ours, theirs = (Path(c.paths.ranking, "ranking.parquet").read_bytes() for c in (config, tiny))
    assert ours == theirs


def test_scores_that_cannot_be_written_are_told_before_the_work(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = elsewhere(tiny, tmp_path, scores=str(tmp_path / "file" / "scores"))
    with pytest.raises(StorageError, match="file/scores"):
        score(config)


def test_a_bundle_that_a_node_cannot_fetch_is_told_with_the_node(tiny, tmp_path, monkeypatch):
    config = elsewhere(tiny, tmp_path, bundle=str(tmp_path / "bundle"))
    shutil.copytree(tiny.paths.bundle, config.paths.bundle)
    opened = scoring.open_run

    def removing(*arguments, **more):
        # The driver has read it; the actors have not.
        Path(config.paths.bundle, "lightgbm.txt").unlink()
        return opened(*arguments, **more)

    monkeypatch.setattr(scoring, "open_run", removing)
    with pytest.raises(BundleError, match=r"on node \S+: bundle .*'lightgbm\.txt' is missing"):
        score(config)


def test_a_long_run_that_was_never_measured_is_probed_first(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_PROBE_PAYS_SECONDS", 0.0)
    summary = score(elsewhere(tiny, tmp_path))
    assert summary.forecast["source"] == "costs of a probe of 12 cutouts"
    assert summary.done == 12
