"""Settings of the small survey that the engine's tests take the whole way.

Without a network, which would double what every run of it takes; see test_networks for those.
"""

from pathlib import Path

from clusterray import config
from clusterray.config import Config

TINY = (
    "simulate.n_clusters=72",
    "simulate.lens_fraction=0.33",
    "simulate.n_known=14",
    "simulate.clusters_per_tile=6",
    "ingest.rows_per_shard=24",
    "ingest.row_group_size=6",
    "train.n_folds=2",
    "train.prior_fallback=0.35",
    "train.n_bootstrap=20",
    "train.lightgbm={num_iterations = 30}",
    "train.models=['lightgbm']",
    "score.micro_batch=4",
    "rank.report_top=5",
    # An actor starts for longer than one of these units takes.
    "cluster.workers=1",
)


def tiny_config(root: Path, *overrides: str) -> Config:
    """The small survey's settings, with everything under `root`."""
    places = (f"paths.root='{root}'", f"paths.truth='{root}/truth/truth.parquet'")
    return config.load(None, [*TINY, *places, *overrides])
