"""Row groups with rows that cannot be scored, through the stages as Ray calls them."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from clusterray import schema, storage
from clusterray.config import Config, FeatureSettings
from clusterray.engine import ahead
from clusterray.engine import stages as scoring_stages
from clusterray.engine.ahead import Register, opened_register
from clusterray.engine.ledger import RowGroup
from clusterray.engine.plan import list_shards
from clusterray.engine.stages import FinishStage, ReadStage, VitStage
from clusterray.ensemble import bundle
from tests.engine.network_survey import PER_GROUP, SIZE_PX

NAN, TINY_SIGMA = float("nan"), 1e-35


@pytest.fixture
def poisoned(networks: Config, tmp_path: Path) -> Callable[[dict[int, float]], list[RowGroup]]:
    """Row groups of ten, of a shard in which some rows (by number) have another noise sigma."""

    def make(sigma: dict[int, float]) -> list[RowGroup]:
        table = pq.read_table(sorted(Path(networks.paths.shards).glob("*.parquet"))[0])
        values = table["noise_sigma"].to_pylist()
        for row, value in sigma.items():
            values[row] = [value] * 3
        at = table.schema.get_field_index("noise_sigma")
        field = table.schema.field(at)
        table = table.set_column(at, field, pa.array(values, field.type))
        (tmp_path / "shards").mkdir()
        pq.write_table(table, tmp_path / "shards" / "a.parquet", row_group_size=PER_GROUP)
        (shard,) = list_shards(str(tmp_path / "shards"), bands=("g", "r", "i"), size_px=SIZE_PX)
        return shard.row_groups()

    return make


def features(networks: Config) -> FeatureSettings:
    return FeatureSettings.model_validate(bundle.load(networks.paths.bundle).settings["features"])


def stages(networks: Config, groups: list[RowGroup], out: Path):
    settings = networks.score.model_copy(update={"keep_embedding": True, "keep_attention": True})
    return (
        ReadStage(groups, features(networks), keep_pixels=True),
        VitStage(networks.paths.bundle, settings, "cpu"),
        FinishStage(networks.paths.bundle, groups, settings, str(out)),
    )


def written(out: Path, group: RowGroup) -> tuple[pa.Table, list[dict]]:
    rejects = out / "rejects" / group.output
    found = storage.read_table(str(rejects)) if rejects.exists() else schema.REJECTS.empty_table()
    rows = storage.read_table(f"{out}/rows/{group.output}")
    return rows, schema.check(found, schema.REJECTS, where="rejects").to_pylist()


def test_row_group_of_rejects_alone_is_written_empty(networks, poisoned, tmp_path):
    groups = poisoned(dict.fromkeys(range(PER_GROUP), NAN))
    answers = pa.table({"unit": [0, 1]})
    for stage in stages(networks, groups, tmp_path):
        answers = stage(answers)
    assert answers["scored"].to_pylist() == [0, PER_GROUP]
    assert answers["rejected"].to_pylist() == [PER_GROUP, 0]
    empty, rejects = written(tmp_path, groups[0])
    full, _ = written(tmp_path, groups[1])
    assert empty.schema.equals(full.schema, check_metadata=True)
    assert (empty.num_rows, full.num_rows, len(rejects)) == (0, PER_GROUP, PER_GROUP)


def test_row_with_an_infinite_feature_costs_one_row(networks, poisoned, tmp_path):
    groups = poisoned({2: TINY_SIGMA})
    answers = pa.table({"unit": [0]})
    with np.errstate(over="ignore"):
        for stage in stages(networks, groups, tmp_path):
            answers = stage(answers)
    rows, rejects = written(tmp_path, groups[0])
    assert rows.num_rows == PER_GROUP - 1
    assert "is infinite" in rejects[0]["reason"]
    assert rejects[0]["object_id"] not in rows["object_id"].to_pylist()


def test_row_whose_logit_is_not_finite_costs_one_row(networks, poisoned, tmp_path):
    groups = poisoned({})
    read, vit, finish = stages(networks, groups, tmp_path)
    score = vit.networks["vit"].score

    def spoiled(*arguments, **settings):
        scores = score(*arguments, **settings)
        logit = scores.logit.copy()
        logit[3] = np.nan
        return replace(scores, logit=logit)

    vit.networks["vit"].score = spoiled
    answer = finish(vit(read(pa.table({"unit": [0]})))).to_pylist()[0]
    assert (answer["scored"], answer["rejected"]) == (PER_GROUP - 1, 1)
    rows, rejects = written(tmp_path, groups[0])
    shard = pq.read_table(groups[0].shard.url, columns=["object_id"])["object_id"].to_pylist()
    assert rejects[0]["object_id"] == shard[3]
    assert "vit nan" in rejects[0]["reason"]
    assert rows["object_id"].to_pylist() == [*shard[:3], *shard[4:PER_GROUP]]


def seconds_kept(register: Register) -> dict[int, float]:
    return {unit: ray.get(reference)[1] for unit, reference in register._kept.items()}


def test_features_computed_ahead_make_the_same_parcels(
    networks, poisoned, ray_session, monkeypatch
):
    groups = poisoned({1: NAN, PER_GROUP + 3: TINY_SIGMA})
    units = pa.table({"unit": range(len(groups))})
    before = {}
    monkeypatch.setattr(ahead, "_IDLE_SECONDS", 0.0)
    with np.errstate(over="ignore"), opened_register(len(groups)) as register:
        want = ReadStage(groups, features(networks), keep_pixels=True)(units)
        read = ReadStage(groups, features(networks), keep_pixels=True, register=register)
        deadline = time.monotonic() + 60
        while len(before) < len(groups):
            assert time.monotonic() < deadline
            time.sleep(0.05)
            before = ray.get(register.__ray_call__.remote(seconds_kept))
        monkeypatch.setattr(scoring_stages, "measure", None)
        found = read(units)
    assert ["infinite" in text for text in want["rejects"].to_pylist()[:2]] == [False, True]
    for name in ("payload", "planes", "rejects"):
        assert found[name].to_pylist() == want[name].to_pylist()
    for unit, text in enumerate(found["seconds"].to_pylist()):
        assert json.loads(text)["ahead"] == before[unit] > 0.0
