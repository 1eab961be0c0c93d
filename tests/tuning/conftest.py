"""One local Ray for the sweeps, and a small made survey for them to learn from."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from clusterray.sky import shards

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        # Workers import the tree that is tested, wherever pytest was started.
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))
        # Another folder's may be running, and its workers have another path.
        ray.shutdown()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 cutouts in one shard, a bright blob in every fifth, 12 of those known."""
    root = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(2)
    n, size = 120, 32
    pixels = rng.normal(0, 1, (n, 3, size, size)).astype(np.float32)
    y, x = np.mgrid[:size, :size] - size / 2
    pixels[::5] += (4 * np.exp(-(x**2 + y**2) / 30)).astype(np.float32)
    ids = [f"c{i:03d}" for i in range(n)]
    shards.write(
        str(root / "shards" / "made.parquet"),
        object_id=ids,
        ra_deg=rng.uniform(150, 152, n),
        dec_deg=rng.uniform(1, 3, n),
        cutouts_nchw=pixels,
        noise_sigma=np.ones((n, 3), np.float32),
        bands=("g", "r", "i"),
        row_group_size=40,
    )
    (root / "survey").mkdir()
    lines = ["object_id,s", *(f"{i},1" for i in ids[:60:5])]
    (root / "survey" / "labels.csv").write_text("\n".join(lines) + "\n")
    return root
