"""Two networks of different kinds beside LightGBM: trained, stacked, scored."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clusterray.config import resolve
from clusterray.engine.score import score
from clusterray.engine.train import train
from clusterray.ensemble import bundle
from clusterray.errors import ConfigError, StorageError
from clusterray.sky import shards
from clusterray.vision.prediction import predict

SIZE_PX, N = 64, 60
MODELS = ("lightgbm", "vit", "cnn")


def write_survey(root):
    rng = np.random.default_rng(2)
    pixels = rng.normal(0, 1, (N, 3, SIZE_PX, SIZE_PX)).astype(np.float32)
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX] - SIZE_PX / 2
    pixels[::3] += (4 * np.exp(-(x**2 + y**2) / 60)).astype(np.float32)
    ids = [f"c{i:03d}" for i in range(N)]
    shards.write(
        str(root / "shards" / "made.parquet"),
        object_id=ids,
        ra_deg=rng.uniform(150, 152, N),
        dec_deg=rng.uniform(1, 3, N),
        cutouts_nchw=pixels,
        noise_sigma=np.ones((N, 3), np.float32),
        bands=("g", "r", "i"),
        row_group_size=20,
    )
    (root / "survey").mkdir()
    lines = ["object_id,s", *(f"{i},1" for i in ids[: N // 2 : 3])]
    (root / "survey" / "labels.csv").write_text("\n".join(lines) + "\n")


def settings(root, **cnn):
    return resolve(
        {
            "seed": 4,
            "survey": {"bands": ["g", "r", "i"], "size_px": SIZE_PX},
            "paths": {"root": str(root)},
            "vision": {
                "model": "vit_tiny_patch16_224",
                "model_options": {"depth": 1, "embed_dim": 24, "num_heads": 2},
                "image_size_px": 64,
                "epochs": 1,
                "batch_size": 16,
                "positives_per_batch": 4,
            },
            "networks": {"cnn": {"model": "test_resnet", "model_options": {}, **cnn}},
            "train": {
                "models": list(MODELS),
                "n_folds": 2,
                "prior_fallback": 0.3,
                "nside": 512,
                "n_bootstrap": 20,
                "lightgbm": {"num_iterations": 15, "min_data_in_leaf": 4},
            },
            "score": {"micro_batch": 10, "views": 8, "keep_embedding": True},
        }
    )


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


def test_a_second_network_is_trained_stacked_and_scored(ray_session, tmp_path):
    write_survey(tmp_path)
    config = settings(tmp_path)
    summary = train(config)
    assert summary.done == len(MODELS) * 3
    made = bundle.load(config.paths.bundle)
    assert made.models == MODELS
    assert made.network("cnn").settings.model == "test_resnet"
    assert made.anomaly().mean.shape == (24,)
    score(config)
    table = pq.read_table(str(tmp_path / "scores" / "rows"))
    rows = {r["object_id"]: r for r in table.to_pylist()}
    assert len(rows) == N
    fresh = [i for i, r in rows.items() if r["fold"] is None or r["fold"] < 0]
    read = shards.read(str(tmp_path / "shards" / "made.parquet"), integers=True)
    place = {i: k for k, i in enumerate(read.object_id)}
    at = [place[i] for i in fresh]
    for name in ("vit", "cnn"):
        # In the row groups' order, so that a row has the same neighbours as in scoring.
        expected = [
            predict(
                made.network(name),
                read.cutouts_nchw[k : k + 20],
                step=read.step[k : k + 20],
                noise_sigma=read.noise_sigma[k : k + 20],
                micro_batch=10,
                views=8,
                threads=1,
            )
            for k in range(0, N, 20)
        ]
        logit = np.concatenate([e.logit for e in expected])[at]
        np.testing.assert_allclose([rows[i][f"logit_{name}"] for i in fresh], logit, atol=1e-5)
        if name == "vit":
            embedding = np.concatenate([e.embedding for e in expected])[at]
            found = np.array([rows[i]["embedding"] for i in fresh], np.float32)
            np.testing.assert_allclose(found, embedding, rtol=2e-3, atol=1e-4)
    assert len({tuple(rows[i][f"logit_{m}"] for m in MODELS) for i in fresh}) == len(fresh)
