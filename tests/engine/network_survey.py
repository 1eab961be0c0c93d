"""A made survey of few pixels, and settings for two networks of different kinds beside LightGBM."""

import numpy as np

from clusterray.config import resolve
from clusterray.sky import shards

SIZE_PX, N, PER_GROUP = 64, 60, 10
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
        row_group_size=PER_GROUP,
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
            "score": {
                "micro_batch": 10,
                "views": 8,
                "keep_embedding": True,
                "keep_attention": True,
            },
        }
    )
