"""What the scoring benchmarks score: made shards, hard-linked many times, and a bundle.

The network has random weights, for its speed does not depend on them; LightGBM, stacker and
calibrator are fitted to the features of made cutouts.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clusterray.config import FeatureSettings, ScoreSettings, VisionSettings
from clusterray.engine.measuring import measure
from clusterray.ensemble import bundle as bundles
from clusterray.ensemble.bootstrap import bootstrap
from clusterray.features import feature_names
from clusterray.pu.lightgbm_pu import PULightGBM
from clusterray.pu.prior import PriorEstimate
from clusterray.sky import shards
from clusterray.vision import anomaly, vit

__all__ = ["BANDS", "World", "score_settings", "world"]

BANDS = ("g", "r", "i", "z", "y")
_SCENES = 32
_SCALE_ARCSEC = 0.5
_PRIOR = PriorEstimate(0.1, (0.05, 0.2), {}, consistent=True, source="fallback")


@dataclass(frozen=True)
class World:
    """Where the shards and the bundle are."""

    shards: str
    bundle: str

    @property
    def first_shard(self) -> str:
        """The one that all others are links to."""
        return str(Path(self.shards) / "00000.parquet")


def score_settings(asked: dict[str, Any]) -> ScoreSettings:
    """How to score, as the benchmark was asked to."""
    return ScoreSettings(
        micro_batch=asked["micro_batch"], dtype=asked["dtype"], compile=asked["compile"]
    )


def world(asked: dict[str, Any], *, features: bool, rows: int) -> World:
    """Shards of `rows` cutouts and a bundle, made where they are not there yet.

    Parameters
    ----------
    asked : what the benchmark was asked for.
    features : whether the bundle has LightGBM beside the network.
    """
    root, size, bands = Path(asked["folder"]), asked["size"], asked["bands"]
    folder = root / f"shards-{size}"
    # Large cutouts in shorter shards: making them takes time and memory.
    group = asked["row_group_size"]
    per_shard = max(
        group, int(asked["rows_per_shard"] * min(1, (128 / size) ** 2)) // group * group
    )
    if not folder.exists():
        print(f"  making shards of {bands}×{size}×{size}", flush=True)
        _make_shard(
            folder / "00000.parquet",
            rows=per_shard,
            row_group_size=asked["row_group_size"],
            bands=bands,
            size_px=size,
        )
    linked = root / f"shards-{size}-{rows}"
    if not linked.exists():
        linked.mkdir()
        for k in range(max(1, round(rows / per_shard))):
            os.link(folder / "00000.parquet", linked / f"{k:05d}.parquet")
    models = ("lightgbm", "vit") if features else ("vit",)
    bundle = root / f"bundle-{size}-{'-'.join(models)}"
    if not bundle.exists():
        print(f"  making a bundle of {', '.join(models)}", flush=True)
        vision = VisionSettings(
            model=asked["model"],
            model_options=asked["model_options"],
            image_size_px=asked["image_size"],
        )
        make_bundle(str(bundle), vision=vision, models=models, shard=str(folder / "00000.parquet"))
    return World(str(linked), str(bundle))


def _cutouts(n: int, *, bands: int, size_px: int, seed: int) -> npt.NDArray[np.float32]:
    """Noise of sigma 1 over a cluster of some thirty galaxies, (n, bands, size, size)."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size_px, size_px), np.float32)
    scenes = np.zeros((_SCENES, bands, size_px, size_px), np.float32)
    for scene in scenes:
        for _ in range(30):
            x0, y0, peak, width = rng.uniform((0, 0, 0.5, 1), (size_px, size_px, 4, 3))
            colour = np.linspace(rng.uniform(0.2, 1), 1, bands)[:, None, None]
            near = np.exp(-np.hypot(x - x0, y - y0) / width)
            scene += (np.exp(peak) * colour * near).astype(np.float32)
    flux = rng.standard_normal((n, bands, size_px, size_px), dtype=np.float32)
    for image in flux:
        image += scenes[rng.integers(_SCENES)]
    return flux


def _make_shard(path: Path, *, rows: int, row_group_size: int, bands: int, size_px: int) -> None:
    """Write a shard of made cutouts."""
    rng = np.random.default_rng(7)
    shards.write(
        str(path),
        object_id=[f"c{i}" for i in range(rows)],
        ra_deg=rng.uniform(0, 360, rows),
        dec_deg=rng.uniform(-60, 60, rows),
        cutouts_nchw=_cutouts(rows, bands=bands, size_px=size_px, seed=1),
        noise_sigma=np.ones((rows, bands)),
        bands=BANDS[:bands],
        row_group_size=row_group_size,
        pixel_scale_arcsec=_SCALE_ARCSEC,
        z_lens=rng.uniform(0.2, 0.6, rows),
        richness=rng.uniform(10, 200, rows),
        survey="made",
        psf_fwhm_arcsec=rng.uniform(0.6, 0.9, (rows, bands)),
        depth_mag=rng.uniform(25, 27, (rows, bands)),
    )


def make_bundle(
    url: str, *, vision: VisionSettings, models: Sequence[str], shard: str
) -> bundles.Bundle:
    """Write a bundle whose LightGBM was fitted to the first row group of a shard."""
    about = shards.describe(shard)
    settings, names = FeatureSettings(), tuple(about["bands"])
    rng = np.random.default_rng(11)
    rows = 600
    s = (np.arange(rows) % 20 == 0).astype(np.int8)
    fold = np.where(np.arange(rows) < rows // 4, -1, rng.integers(0, 3, rows)).astype(np.int8)
    logits = rng.normal(-3, 1, (rows, len(models))) + 2.5 * s[:, None]
    posterior = bootstrap(
        logits,
        s,
        fold=fold,
        cell=np.arange(rows),
        models=models,
        scenario="single-sample",
        prior=_PRIOR,
        n_bootstrap=20,
        seed=1,
    )
    place = rng.uniform((0, -60), (360, 60), (rows, 2))
    columns = {f"logit_{m}": pa.array(logits[:, k], pa.float32()) for k, m in enumerate(models)}
    oof = pa.table(
        {
            "object_id": [f"train{i}" for i in range(rows)],
            "ra_deg": place[:, 0],
            "dec_deg": place[:, 1],
            "fold": pa.array(fold),
            **columns,
            "logit_stack": posterior.stacker.decision_function(logits, None),
        }
    )
    network = vit.build(vision, n_bands=len(names), size_px=about["size_px"], seed=1)
    dim = network.head.in_features
    return bundles.save(
        url,
        bands=names,
        pixel_scale_arcsec=_SCALE_ARCSEC,
        size_px=about["size_px"],
        feature_names=feature_names(names, settings),
        models=models,
        settings={"features": settings.model_dump(mode="json")},
        oof=oof,
        stacker=posterior.stacker.to_json(),
        calibrator=posterior.calibrator.to_json(),
        posterior=posterior.to_json(),
        prior=_PRIOR.to_json(),
        lightgbm_text=_lightgbm(shard, settings) if "lightgbm" in models else None,
        vit=network,
        anomaly=anomaly.fit(rng.normal(size=(4 * dim, dim))),
    )


def _lightgbm(shard: str, settings: FeatureSettings) -> str:
    """Fitted to one row group; as a side effect the features' loops are compiled, on disk."""
    table = shards.read_row_group(shard, 0, raw=True)
    found = measure(table, settings).features
    names = feature_names(shards.describe(shard)["bands"], settings)
    s = (np.arange(table.num_rows) % 20 == 0).astype(np.int8)
    model = PULightGBM(names, scenario="single-sample", prior=_PRIOR.value, seed=1)
    return model.fit(found, s, names=names).to_text()
