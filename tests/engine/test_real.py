"""Real CFHTLS tiles from ingest to ranking, with a bundle of the same bands."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from clusterray import storage
from clusterray.engine.ingest import ingest
from clusterray.engine.rank import rank
from clusterray.engine.score import score
from clusterray.sky import shards
from tests.engine.tiny_survey import tiny_config

pytestmark = pytest.mark.usefixtures("ray_session")

LENS = (215.53862, 52.78123)


@pytest.fixture
def tiles() -> Path:
    folder = os.environ.get("CLUSTERRAY_REAL_DATA")
    if not folder:
        pytest.skip("CLUSTERRAY_REAL_DATA is not set")
    return Path(folder) / "cfhtls"


def test_cfhtls_goes_the_whole_way(tiny, tiles, tmp_path):
    rng = np.random.default_rng(1)
    # 34 within the tile's reach, 5 a degree and more away, and the lens candidate.
    offset = np.concatenate(
        [rng.uniform(-0.008, 0.008, (34, 2)), rng.uniform(1, 2, (5, 2)), [[0, 0]]]
    )
    positions = {
        "MEM_MATCH_ID": np.arange(1, 41),
        "RA": LENS[0] + offset[:, 0] / np.cos(np.radians(LENS[1])),
        "DEC": LENS[1] + offset[:, 1],
        "LAMBDA": rng.uniform(20, 80, 40),
        "Z_LAMBDA": rng.uniform(0.15, 0.5, 40),
    }
    Table(positions).write(tmp_path / "catalogue.fits")
    settings = tiny_config(
        tmp_path,
        f"paths.tiles=['{tiles}']",
        f"paths.catalogue='{tmp_path}/catalogue.fits'",
        f"paths.bundle='{tiny.paths.bundle}'",
        f"paths.labels='{tmp_path}/none.csv'",
        "ingest.min_coverage=0.4",
        "paths.truth=''",
    )
    made = ingest(settings)
    kept = [
        e.url for e in storage.list_files(settings.paths.shards, suffix=".parquet", recursive=False)
    ]
    batches = [shards.read(url) for url in kept]
    n_kept = sum(len(b) for b in batches)
    rejects = [
        row
        for e in storage.list_files(f"{settings.paths.shards}/rejects")
        for row in storage.read_table(e.url).to_pylist()
    ]
    assert n_kept + len(rejects) == 40
    assert made.rejected == len(rejects)
    off = {r["object_id"] for r in rejects if "outside every tile" in r["reason"]}
    assert off == {str(i) for i in range(35, 40)}
    batch = next(b for b in batches if "40" in b.object_id)
    image = np.nan_to_num(batch.cutouts_nchw[list(batch.object_id).index("40")])
    y, x = np.mgrid[:128, :128] - 63.5
    for band in image:
        light = np.where(np.hypot(x, y) * 0.5 < 2, band, 0)
        assert np.hypot((light * x).sum(), (light * y).sum()) / light.sum() < 1
    assert score(settings).rows == n_kept
    rank(settings)
    ranking = pq.read_table(f"{settings.paths.ranking}/ranking.parquet")
    assert ranking.num_rows == n_kept
    assert "40" in ranking["object_id"].to_pylist()
    # The bundle was trained on other objects that are called 1, 2, 3 … as well.
    assert ranking["fold"].null_count == n_kept
    assert Path(settings.paths.ranking, "report.html").stat().st_size > 100_000
