"""Two networks of different kinds beside LightGBM: trained, stacked, scored."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clusterray import storage
from clusterray.engine import plan
from clusterray.engine import score as scoring
from clusterray.engine.doctor import doctor
from clusterray.engine.rank import rank
from clusterray.engine.score import score
from clusterray.engine.train import train
from clusterray.ensemble import bundle
from clusterray.errors import ConfigError, StorageError
from clusterray.sky import shards
from clusterray.vision.prediction import predict
from tests.engine.network_survey import MODELS, PER_GROUP, N, settings


@pytest.mark.parametrize(
    ("cnn", "error", "message"),
    [
        ({"model": "resnet_of_nobody"}, ConfigError, r"networks\.cnn: .*resnet_of_nobody"),
        ({"weights": "none.safetensors"}, StorageError, r"networks\.cnn: .*none\.safetensors"),
    ],
)
def test_a_network_that_cannot_be_built_is_told_before_anything(tmp_path, cnn, error, message):
    config = settings(tmp_path, **cnn)
    with pytest.raises(error, match=message):
        train(config)
    assert not Path(config.paths.training).exists()


def rows_of(config):
    table = pq.read_table(f"{config.paths.scores}/rows")
    return {r["object_id"]: r for r in table.to_pylist()}


def test_a_second_network_is_trained_stacked_and_scored(networks):
    done = {
        n: storage.read_json(f"{networks.paths.root}/{n}/summary.json")
        for n in ("training", "scores")
    }
    assert done["training"]["done"] == len(MODELS) * 3
    assert done["scores"]["forecast"]["pools"]["vit"] == 1
    made = bundle.load(networks.paths.bundle)
    assert made.models == MODELS
    assert made.network("cnn").settings.model == "test_resnet"
    assert made.anomaly().mean.shape == (24,)
    rows = rows_of(networks)
    assert len(rows) == N
    fresh = [i for i, r in rows.items() if r["fold"] is None or r["fold"] < 0]
    read = shards.read(f"{networks.paths.shards}/made.parquet", integers=True)
    place = {i: k for k, i in enumerate(read.object_id)}
    at = [place[i] for i in fresh]
    for name in ("vit", "cnn"):
        # In the row groups' order, so that a row has the same neighbours as in scoring.
        expected = [
            predict(
                made.network(name),
                read.cutouts_nchw[k : k + PER_GROUP],
                step=read.step[k : k + PER_GROUP],
                noise_sigma=read.noise_sigma[k : k + PER_GROUP],
                micro_batch=10,
                views=8,
                threads=1,
            )
            for k in range(0, N, PER_GROUP)
        ]
        logit = np.concatenate([e.logit for e in expected])[at]
        np.testing.assert_allclose([rows[i][f"logit_{name}"] for i in fresh], logit, atol=1e-5)
        if name == "vit":
            embedding = np.concatenate([e.embedding for e in expected])[at]
            found = np.array([rows[i]["embedding"] for i in fresh], np.float32)
            np.testing.assert_allclose(found, embedding, rtol=2e-3, atol=1e-4)
            anomaly = made.anomaly().score(embedding)
            found = np.array([rows[i]["anomaly_score"] for i in fresh])
            np.testing.assert_allclose(found, anomaly, rtol=1e-3)
    assert len({tuple(rows[i][f"logit_{m}"] for m in MODELS) for i in fresh}) == len(fresh)


def test_training_rows_have_the_networks_out_of_fold_scores(networks):
    oof = {r["object_id"]: r for r in bundle.load(networks.paths.bundle).oof.to_pylist()}
    trained = [r for r in rows_of(networks).values() if (r["fold"] or 0) >= 0]
    assert len(trained) > N / 2
    for row in trained:
        for name in ("fold", *(f"logit_{m}" for m in MODELS), "logit_stack"):
            assert row[name] == oof[row["object_id"]][name]


@pytest.mark.parametrize("fused", [False, True])
def test_a_run_that_was_cut_short_ends_with_the_same_bytes_whatever_workers_and_batches(
    networks, tmp_path, monkeypatch, fused
):
    if fused:
        monkeypatch.setattr(plan, "_LONG_SECONDS", 0.0)
    else:
        # As where there is a GPU.
        monkeypatch.setattr(scoring, "_computes_ahead", lambda *_, **__: True)
    shutil.copytree(networks.paths.scores, tmp_path / "scores")
    paths = {"scores": f"{tmp_path}/scores", "ranking": f"{tmp_path}/ranking"}
    workers = {"workers": None if fused else 2, "row_groups_per_batch": 2}
    again = networks.model_copy(
        update={
            "paths": networks.paths.model_copy(update=paths),
            "cluster": networks.cluster.model_copy(update=workers),
        }
    )
    outputs = sorted(Path(again.paths.scores, "rows").iterdir())
    for path in outputs[1:]:
        path.unlink()
    summary = score(again)
    assert (summary.done, summary.skipped) == (len(outputs) - 1, 1)
    assert (summary.forecast["pools"]["vit"], summary.forecast["pools"]["fused"]) == (2, fused)
    assert set(summary.stage_seconds) - {"ahead"} == {"read", "vit", "finish"}
    rank(again)
    ours, theirs = (Path(c.paths.ranking, "ranking.parquet") for c in (again, networks))
    assert ours.read_bytes() == theirs.read_bytes()
    columns = ["embedding", "attention"]
    ours, theirs = (
        pq.read_table(f"{c.paths.scores}/rows", columns=columns) for c in (again, networks)
    )
    assert ours.equals(theirs)


def test_without_a_gpu_the_doctor_says_where_the_networks_will_run(networks):
    checks = {check.name: check for check in doctor(networks).checks}
    assert (checks["GPU"].state, checks["GPU"].text) == (
        "warning",
        "none: the network will run on CPUs",
    )
