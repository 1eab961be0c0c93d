"""What drift is measured on: conditions, colours, features and scores of rows.

Training keeps their distributions in the bundle; a night measures a sample of its new cutouts.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from clusterray import storage
from clusterray.config import Config, FeatureSettings
from clusterray.engine import work
from clusterray.engine.ledger import Receipt, RowGroup, Shard
from clusterray.engine.session import cluster_shape
from clusterray.engine.stages import read_features
from clusterray.ensemble import bundle as bundles
from clusterray.ensemble.drift_reference import summarise
from clusterray.features import feature_names
from clusterray.provenance import uniform_for
from clusterray.sky import shards

if TYPE_CHECKING:
    from clusterray.engine.train import Training

__all__ = ["of_night", "of_training"]

_CONDITIONS: Final = {"psf": "psf_fwhm_arcsec", "depth": "depth_mag", "noise": "noise_sigma"}
_ENOUGH: Final = 200
_SEPARATOR: Final = "/"

Values = dict[tuple[str, str], np.ndarray]


def of_training(training: "Training", logits: np.ndarray, stack: np.ndarray) -> pa.Table:
    """Distributions of the unlabelled training rows, for the bundle.

    Labelled rows are no draw from the survey and are left out. Scores are those of the calibration
    rows, which the scoring models never saw, or out-of-fold ones where fewer than 200 are there.

    Parameters
    ----------
    logits : (n, models) of the sample's rows, in its order.
    stack : (n,) logits of the stack.
    """
    sample, unlabelled = training.sample, training.s == 0
    url = storage.join(training.folder, "sample", "rows")
    columns = ["object_id", *_CONDITIONS.values()]
    tables = (
        storage.read_table(storage.join(url, g.output), columns=columns)
        for g in training.choice.groups
    )
    table = pa.concat_tables(t for t in tables if t.num_rows).sort_by("object_id")
    values = _of_rows(table, sample.features, training.survey.band_names, training.names)
    values = {key: v[unlabelled] for key, v in values.items()}
    unseen = unlabelled & (training.folds.fold < 0)
    rows = unseen if unseen.sum() >= _ENOUGH else unlabelled
    for k, model in enumerate(training.config.train.models):
        values["score", f"logit_{model}"] = logits[rows, k]
    values["score", "logit_stack"] = stack[rows]
    return summarise(values)


def of_night(
    new: Sequence[Shard], receipts: Iterable[Receipt], config: Config, bundle: bundles.Bundle
) -> Values:
    """Scores of all new cutouts that training never saw, and the rest of a sample of them.

    Whole row groups are drawn by (seed, name) until `nightly.drift_rows` cutouts are together.
    Ray must be joined.
    """
    values = _sampled(_drawn(new, config), config, bundle)
    values |= _scores(receipts, config, bundle.models)
    return values


def _of_rows(
    table: pa.Table, features: np.ndarray, bands: Sequence[str], names: Sequence[str]
) -> Values:
    values: Values = {}
    for group, column in _CONDITIONS.items():
        per_band = shards.numbers(table.column(column))
        values |= {(group, f"{column}_{b}"): per_band[:, i] for i, b in enumerate(bands)}
    # Conditions are features too, and need not be told twice.
    told = {name for _, name in values}
    for i, name in enumerate(names):
        if name in told:
            continue
        values["colour" if "_colour_" in name else "feature", name] = features[:, i]
    return values


def _drawn(new: Sequence[Shard], config: Config) -> list[RowGroup]:
    groups = {group.output: group for shard in new for group in shard.row_groups()}
    draw = uniform_for(config.seed, groups, purpose="drift")
    drawn: list[RowGroup] = []
    for _, name in sorted(zip(draw, groups, strict=True)):
        if sum(group.rows for group in drawn) >= config.nightly.drift_rows:
            break
        drawn.append(groups[name])
    return drawn


class _Measure:
    """Actor: one float column per quantity, named group/quantity."""

    def __init__(
        self, groups: Sequence[RowGroup], settings: FeatureSettings, bands: Sequence[str]
    ) -> None:
        pa.set_cpu_count(1)
        self.groups, self.settings, self.bands = groups, settings, bands
        self.names = feature_names(bands, settings)

    def __call__(self, table: pa.Table) -> pa.Table:
        parts = []
        for unit in work.unit_column(table):
            data, _ = read_features(self.groups[unit], settings=self.settings, stage="drift")
            features = shards.numbers(data.column("features"))
            values = _of_rows(data, features, self.bands, self.names)
            columns = {_SEPARATOR.join(k): v.astype(np.float64) for k, v in values.items()}
            parts.append(pa.table(columns))
        return pa.concat_tables(parts)


def _sampled(groups: Sequence[RowGroup], config: Config, bundle: bundles.Bundle) -> Values:
    cpus, _ = cluster_shape()
    actors = min(config.cluster.workers or max(1, int(cpus)), max(1, len(groups)))
    stage = work.Stage(
        "drift",
        _Measure,
        {
            "groups": list(groups),
            "settings": FeatureSettings.model_validate(bundle.settings["features"]),
            "bands": bundle.bands,
        },
        actors=actors,
        num_cpus=work.cpu_share(cpus, actors),
    )
    table = pa.concat_tables(
        work.run(len(groups), [stage], verb="nightly", rows=[g.rows for g in groups])
    )
    return {
        (name.partition(_SEPARATOR)[0], name.partition(_SEPARATOR)[2]): column.to_numpy()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _scores(receipts: Iterable[Receipt], config: Config, models: Sequence[str]) -> Values:
    names = [*(f"logit_{m}" for m in models), "logit_stack"]
    parts = [
        storage.read_table(
            storage.join(config.paths.scores, "rows", output), columns=["fold", *names]
        )
        for receipt in receipts
        for output in receipt.outputs
    ]
    table = pa.concat_tables(parts)
    table = table.filter(table.column("fold").is_null())
    return {("score", name): table.column(name).to_numpy().astype(np.float64) for name in names}
