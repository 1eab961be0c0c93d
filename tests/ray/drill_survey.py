"""A small survey to lose nodes over: made in a second, trained once, many row groups."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clusterray import config, storage
from clusterray.config import Config
from clusterray.engine.rank import rank
from clusterray.engine.score import score
from clusterray.engine.session import session
from clusterray.engine.train import train
from clusterray.sky import shards

__all__ = ["BANDS", "DrillSurvey", "make"]

BANDS = ("g", "r", "i")
_SETTINGS = (
    "train.n_folds=2",
    "train.nside=8",
    "train.prior_fallback=0.2",
    "train.n_bootstrap=20",
    "train.lightgbm={num_iterations = 20}",
    "vision.model='vit_tiny_patch16_224'",
    "vision.model_options={depth = 1, embed_dim = 24, num_heads = 2}",
    "vision.image_size_px=32",
    "vision.epochs=1",
    "score.micro_batch=10",
    "rank.report_top=1",
    "rank.unlike_top=1",
)


@dataclass(frozen=True)
class DrillSurvey:
    """Shards, labels and a bundle under `root`, with the ranking of an undisturbed run.

    `groups` row groups of `rows_per_group` rows.
    """

    root: Path
    models: tuple[str, ...]
    groups: int
    rows_per_group: int

    def config(self, out: Path, *overrides: str) -> Config:
        """Settings of a run that writes under `out`."""
        return config.load(None, self.overrides(out, *overrides))

    def overrides(self, out: Path, *more: str, workers: int | None = 1) -> list[str]:
        """The same as ``--set`` words of the command line."""
        more = (*more, f"cluster.workers={workers}") if workers else more
        models = ", ".join(f"'{m}'" for m in self.models)
        kept = (f"paths.{k}='{self.root / k}'" for k in ("shards", "bundle", "training"))
        return [
            *_SETTINGS,
            f"paths.root='{out}'",
            *kept,
            f"paths.labels='{self.root}/labels.csv'",
            "paths.truth=''",
            f"train.models=[{models}]",
            "survey.name='demo'",
            f"survey.bands={list(BANDS)}",
            *more,
        ]

    @property
    def rows(self) -> int:
        """Cutouts in all."""
        return self.groups * self.rows_per_group

    @property
    def ranking(self) -> bytes:
        """The undisturbed run's."""
        return (self.root / "undisturbed/ranking/ranking.parquet").read_bytes()


def make(
    root: Path,
    *,
    models: tuple[str, ...] = ("lightgbm",),
    n_shards: int = 4,
    groups_per_shard: int = 10,
    rows_per_group: int = 20,
) -> DrillSurvey:
    """Make and train what is not there yet, and score and rank it undisturbed, on local Ray."""
    survey = DrillSurvey(root, models, n_shards * groups_per_shard, rows_per_group)
    settings = survey.config(root / "undisturbed")
    if not storage.exists(f"{settings.paths.ranking}/summary.json"):
        rows = groups_per_shard * rows_per_group
        for index in range(n_shards):
            _write_shard(root / f"shards/drill{index}.parquet", index, rows, rows_per_group)
        known = [f"{i}-{n}" for i in range(n_shards) for n in range(0, rows, 10)]
        labels = [f"{name},1,drill,2026-01-01" for name in known]
        text = "\n".join(["object_id,s,source,date", *labels, ""])
        storage.write_bytes(settings.paths.labels, text.encode())
        with session(settings.cluster):
            for step in (train, score, rank):
                step(settings)
    return survey


def _write_shard(path: Path, index: int, rows: int, rows_per_group: int) -> None:
    """Noise, and in every fifth cutout a ring: something to learn."""
    rng = np.random.default_rng(index)
    images = rng.normal(0, 1, (rows, len(BANDS), 128, 128)).astype(np.float32)
    y, x = np.mgrid[:128, :128] - 63.5
    ring = 3 * np.exp(-(((np.hypot(x, y) - 20) / 2) ** 2))
    images[::5] += ring.astype(np.float32)
    place = rng.uniform(size=(2, rows))
    shards.write(
        str(path),
        object_id=[f"{index}-{n}" for n in range(rows)],
        ra_deg=360 * place[0],
        dec_deg=60 * place[1] - 30,
        cutouts_nchw=images,
        noise_sigma=np.ones((rows, len(BANDS)), np.float32),
        bands=BANDS,
        row_group_size=rows_per_group,
        pixel_scale_arcsec=0.5,
    )
