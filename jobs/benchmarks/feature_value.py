"""What the features are worth on a survey whose truth is known.

LightGBM-PU is trained on labels alone, on the full set and on the first form of it (the columns of
version 1 of the feature table), with the same grouped folds; truth measures the out-of-fold ranks.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from clusterray import storage
from clusterray.config import CandidateSettings, FeatureSettings
from clusterray.ensemble import folds
from clusterray.errors import InputError
from clusterray.features import Feature, cutout_features, registry
from clusterray.features.segment_features import segment_features
from clusterray.features.segment_registry import segment_registry
from clusterray.provenance import seed_for, uniform_for
from clusterray.pu.lightgbm_pu import PULightGBM
from clusterray.sky import shards
from jobs.benchmarks.result import Result

__all__ = ["FIRST_FORM", "add_arguments", "measure"]

Floats = npt.NDArray[np.float64]
Columns = tuple[Sequence[Feature], Floats, npt.NDArray[Any], npt.NDArray[Any]]

FIRST_FORM = re.compile(
    r"patch_\d_\d_(covered|mean|std|contrast|texture|edges|colour|difference)_.*"
    r"|annulus_\d_(mean|std|bright|colour|colour_excess|blue_residual)_.*"
    r"|z_lens|richness|theta_e_.*|psf_fwhm_arcsec_.*|depth_mag_.*"
)
"""Columns of version 1 of the feature table, with the same definitions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say where the survey and its truth are, and how to fold."""
    parser.add_argument("--shards", required=True, help="folder of cutout shards")
    parser.add_argument("--truth", required=True, help="truth table (object_id, y, kind)")
    parser.add_argument("--labelled", type=float, default=0.4, help="share of lenses that is known")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="fits whose scores are averaged")
    parser.add_argument(
        "--segments", type=int, default=150, help="objects of each kind to segment (0: none)"
    )
    parser.add_argument("--bootstrap", type=int, default=500)
    parser.add_argument("--seed", type=int, default=20260401)
    parser.add_argument("--threads", type=int, default=1)


def measure(options: argparse.Namespace) -> Result:
    """Train on both sets, print a table; value and baseline are average precisions."""
    table = _Survey(options)
    y, use = table.y, table.y >= 0
    s = table.labels(options)
    first = np.array([bool(FIRST_FORM.fullmatch(f.name)) for f in table.features])
    scores = {
        name: _out_of_fold(table, s, columns, options)
        for name, columns in (("full", np.ones(len(first), bool)), ("first form", first))
    }
    # What nobody labelled: a known lens is no find.
    hidden = use & (s == 0)
    precision = {n: average_precision_score(y[hidden] == 1, v[hidden]) for n, v in scores.items()}
    gain = _bootstrap(y[hidden] == 1, {n: v[hidden] for n, v in scores.items()}, options)
    groups = _univariate(table.features, table.x, table.y, table.kind)
    segmented = table.segments(options.segments)
    if segmented is not None:
        groups |= _univariate(*segmented)
    constant = _constant(table)
    print(
        f"hidden lenses {int((y[hidden] == 1).sum())} of {int(hidden.sum())} rows, {s.sum()} known"
    )
    for name, value in precision.items():
        auc = _auc(y[hidden], scores[name][hidden])
        print(f"average precision, {name:10}: {value:.3f}  AUC {auc:.3f}")
    print("gain (paired bootstrap, 90 %): {:+.3f} ({:+.3f} to {:+.3f})".format(*gain))
    _print_groups(groups)
    print(f"constant columns: {', '.join(constant) or 'none'}")
    detail = {
        "auc": {n: _auc(y[hidden], v[hidden]) for n, v in scores.items()},
        "gain_median_low_high": gain,
        "n_hidden_lenses": int((y[hidden] == 1).sum()),
        "columns": {"full": len(first), "first form": int(first.sum())},
        "groups": groups,
        "constant_columns": constant,
    }
    return Result(precision["full"], precision["first form"], "average precision", detail)


class _Survey:
    """Features x (n, f), truth y (n,), kind (n,), sky cell (n,) of every object of a survey."""

    def __init__(self, options: argparse.Namespace) -> None:
        entries = storage.list_files(options.shards, suffix=".parquet", recursive=False)
        if not entries:
            raise InputError(f"no shards (*.parquet) under '{storage.redact(options.shards)}'")
        truth = storage.read_table(options.truth, columns=["object_id", "y", "kind"]).to_pylist()
        known = {row["object_id"]: row for row in truth}
        parts = defaultdict(list)
        settings = FeatureSettings()
        for entry in entries:
            batch = shards.read(entry.url, integers=True)
            parts["x"].append(
                cutout_features(
                    batch.cutouts_nchw, step=batch.step, noise_sigma=batch.noise_sigma,
                    bands=batch.bands, columns=batch.columns, settings=settings,
                ).values
            )  # fmt: skip
            parts["object_id"].append(batch.object_id)
            for name in ("ra_deg", "dec_deg"):
                parts[name].append(batch.columns[name])
            parts["place"].append([(entry.url, row) for row in range(len(batch))])
        self.place = np.concatenate(parts["place"])
        self.x = np.concatenate(parts["x"])
        self.object_id = np.concatenate(parts["object_id"])
        self.features: Sequence[Feature] = registry(batch.bands, settings)
        ra, dec = (np.concatenate(parts[n]) for n in ("ra_deg", "dec_deg"))
        self.cell = folds.sky_groups(ra, dec, nside=64)
        self.y = np.array([known[i]["y"] for i in self.object_id])
        self.kind = np.array([known[i]["kind"] for i in self.object_id])

    def labels(self, options: argparse.Namespace) -> npt.NDArray[np.int8]:
        """A random share of the lenses is known (SCAR)."""
        draw = np.array(uniform_for(options.seed, self.object_id, purpose="known"))
        return ((self.y == 1) & (draw < options.labelled)).astype(np.int8)

    def segments(self, number: int) -> Columns | None:
        """Features of segments, of so many objects of each kind, with y and kind; None for 0."""
        if not number:
            return None
        chosen = np.concatenate(
            [np.flatnonzero((self.kind == k) & (self.y >= 0))[:number] for k in set(self.kind)]
        )
        values, rows = [], []
        for url in sorted(set(self.place[chosen, 0])):
            here = chosen[self.place[chosen, 0] == url]
            batch = shards.read(url)
            at = self.place[here, 1].astype(int)
            matrix, _ = segment_features(
                batch.cutouts_nchw[at], noise_sigma=batch.noise_sigma[at], bands=batch.bands,
                pixel_scale_arcsec=batch.pixel_scale_arcsec or 1.0,
                psf_fwhm_arcsec=batch.columns["psf_fwhm_arcsec"][at], settings=CandidateSettings(),
            )  # fmt: skip
            values.append(matrix.values)
            rows.append(here)
        order = np.concatenate(rows)
        features = segment_registry(batch.bands)
        return features, np.concatenate(values), self.y[order], self.kind[order]


def _out_of_fold(
    table: _Survey, s: npt.NDArray[np.int8], columns: npt.NDArray[np.bool_],
    options: argparse.Namespace,
) -> Floats:  # fmt: skip
    """Mean out-of-fold log-odds over some seeds; marginal objects stay out of training."""
    names = [f.name for f, use in zip(table.features, columns, strict=True) if use]
    x, use = table.x[:, columns], table.y >= 0
    total = np.zeros(len(x))
    for seed in range(options.seeds):
        fold = folds.assign(
            table.object_id, table.cell, s, n_folds=options.folds, holdout_fraction=0.01,
            seed=seed_for(options.seed, purpose="folds", seed=seed),
        ).fold  # fmt: skip
        for k in np.unique(fold):
            train = (fold != k) & use
            model = PULightGBM(
                names, scenario="single-sample", prior=float(np.mean(table.y[use] == 1)),
                seed=seed_for(options.seed, purpose="fit", fold=k, seed=seed),
                num_threads=options.threads,
            )  # fmt: skip
            model.fit(x[train], s[train], names=names, groups=table.cell[train])
            total[fold == k] += model.decision_function(x[fold == k], names)
    return total / options.seeds


def _bootstrap(
    lens: npt.NDArray[np.bool_], scores: Mapping[str, Floats], options: argparse.Namespace
) -> tuple[float, float, float]:
    """Median and 90 % interval of AP(full) − AP(first form) over resampled objects."""
    rng = np.random.default_rng(seed_for(options.seed, purpose="bootstrap"))
    gains = []
    for _ in range(options.bootstrap):
        rows = rng.integers(0, len(lens), len(lens))
        if lens[rows].any():
            full, first = (average_precision_score(lens[rows], v[rows]) for v in scores.values())
            gains.append(full - first)
    low, middle, high = np.percentile(gains, [5, 50, 95])
    return float(middle), float(low), float(high)


def _auc(lens: npt.NDArray[Any], values: Floats) -> float:
    """Area under the ROC curve where the value is known; 0.5 where only one class is."""
    known = np.isfinite(values)
    y = lens[known] == 1
    return float(roc_auc_score(y, values[known])) if 0 < y.sum() < len(y) else 0.5


def _univariate(
    features: Sequence[Feature], x: Floats, y: npt.NDArray[Any], kind_of: npt.NDArray[Any]
) -> dict[str, dict[str, Any]]:
    """Per group: its best feature, and that feature's AUC against all and against each kind."""
    use, kinds = y >= 0, sorted(set(kind_of[y == 0]))
    found: dict[str, dict[str, Any]] = {}
    for column, feature in enumerate(features):
        values = x[:, column].astype(np.float64)
        auc = _auc(y[use], values[use])
        strength = max(auc, 1 - auc)
        if strength <= found.get(feature.group, {}).get("auc", 0.0):
            continue
        sign = 1.0 if auc >= 0.5 else -1.0
        against = {}
        for kind in kinds:
            rows = (y == 1) | ((y == 0) & (kind_of == kind))
            against[kind] = _auc(y[rows], sign * values[rows])
        found[feature.group] = {"best": feature.name, "auc": strength, "against": against}
    return dict(sorted(found.items(), key=lambda item: -item[1]["auc"]))


def _constant(table: _Survey) -> list[str]:
    names = [f.name for f in table.features]
    return [n for n, v in zip(names, table.x.T, strict=True) if len(np.unique(v)) < 2]


def _print_groups(groups: Mapping[str, Mapping[str, Any]]) -> None:
    kinds = list(next(iter(groups.values()))["against"])
    print(f"\n{'group':24}{'best feature':34}{'all':>7}" + "".join(f"{k:>10}" for k in kinds))
    for name, row in groups.items():
        against = "".join(f"{row['against'][k]:10.2f}" for k in kinds)
        print(f"{name:24}{row['best']:34}{row['auc']:7.2f}{against}")
