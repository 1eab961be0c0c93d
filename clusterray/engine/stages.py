"""The scoring stages: read and features on CPUs, networks on GPUs or CPUs, stack and write.

Between stages a row group travels as a `Parcel`.
"""

import json
import socket
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clusterray import schema, storage
from clusterray.config import FeatureSettings, ScoreSettings
from clusterray.engine import work
from clusterray.engine.ahead import Ahead
from clusterray.engine.host_memory import populate_store
from clusterray.engine.ledger import RowGroup, write_rejects
from clusterray.engine.measuring import Measured, measure
from clusterray.engine.parcels import Parcel, Reject, pack, unpack
from clusterray.ensemble import bundle as bundles
from clusterray.errors import ClusterrayError, InputError
from clusterray.sky import shards

__all__ = [
    "FinishStage",
    "ReadStage",
    "Reject",
    "VitStage",
    "list_matrix",
    "read_features",
    "wanted_features",
]

_CARRIED = ("object_id", "ra_deg", "dec_deg")


def read_features(
    group: RowGroup,
    *,
    settings: FeatureSettings | None,
    stage: str,
    keep: Sequence[str] | None = None,
    measured: Measured | None = None,
) -> tuple[pa.Table, list[Reject]]:
    """Read a row group and compute its features; a row that cannot be used becomes a reject.

    Parameters
    ----------
    settings : of the features; None computes none.
    stage : what rejects name as theirs.
    keep : object ids to keep; None keeps all.
    measured : the features of all its rows, where they were computed before.

    Returns
    -------
    table : the shard's columns and, where they were computed, `features`, a fixed-size list of
        float32.
    rejects : rows of `schema.REJECTS`.
    """
    table = _read(group)
    if keep is not None:
        wanted = pc.is_in(table.column("object_id"), pa.array(keep, pa.string()))
        table = _filtered(table, wanted)
    measured = measured or measure(table, settings)
    usable = np.array([r is None for r in measured.reasons], bool)
    rejects = [
        {"object_id": i, "stage": stage, "reason": r, "retryable": False}
        for i, r in zip(table.column("object_id").to_pylist(), measured.reasons, strict=True)
        if r is not None
    ]
    if rejects:
        table = _filtered(table, pa.array(usable))
    if measured.features is not None:
        table = table.append_column(
            "features", _list_column(measured.features[usable], pa.float32())
        )
    return table, rejects


def _read(group: RowGroup) -> pa.Table:
    shard = group.shard
    return shards.read_row_group(shard.url, group.index, raw=True, footer_sha256=shard.footer)


def _filtered(table: pa.Table, mask: pa.Array) -> pa.Table:
    kept = table.filter(mask)
    # A table of no rows has no chunks either, and its readers want one.
    return kept if kept.num_rows else kept.schema.empty_table()


def wanted_features(bundle: bundles.Bundle) -> FeatureSettings | None:
    """Features that the bundle's scores are made of; None where they are made of pixels alone."""
    if "lightgbm" in bundle.models or bundle.stacker.context:
        return FeatureSettings.model_validate(bundle.settings["features"])
    return None


def _fetched(url: str) -> bundles.Bundle:
    """The bundle, as this node can reach it; the driver's could."""
    try:
        return bundles.load(url)
    except ClusterrayError as error:
        raise type(error)(f"on node {socket.gethostname()}: {error}") from error


class ReadStage:
    """Actor: from a planned row group to its pixels and features.

    Parameters
    ----------
    groups : the plan.
    settings : of the features; None computes none.
    keep_pixels : whether a later stage wants them.
    register : of `opened_register`, to compute features ahead of their turn; None does not.
    """

    def __init__(
        self,
        groups: Sequence[RowGroup],
        settings: FeatureSettings | None,
        *,
        keep_pixels: bool,
        register: Any = None,
    ) -> None:
        # One core per actor: the pool, not Arrow's own threads, decides how many work.
        pa.set_cpu_count(1)
        self.groups, self.settings, self.keep_pixels = groups, settings, keep_pixels
        self.ahead = None if register is None else Ahead(register, self._measure)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Read the row groups of a batch of units."""
        with self.ahead.at_work() if self.ahead else nullcontext():
            return pack([self._parcel(unit) for unit in work.unit_column(table)])

    def _parcel(self, unit: int) -> Parcel:
        start = time.monotonic()
        measured, before = self.ahead.begin(unit) if self.ahead else (None, 0.0)
        data, rejects = read_features(
            self.groups[unit], settings=self.settings, stage="score", measured=measured
        )
        seconds = {"read": time.monotonic() - start} | ({"ahead": before} if before else {})
        return Parcel.of(unit, data, keep_pixels=self.keep_pixels, rejects=rejects, seconds=seconds)

    def _measure(self, unit: int) -> Measured:
        return measure(_read(self.groups[unit]), self.settings)


class VitStage:
    """Actor: adds the logit of each network, and drops the pixels.

    What is made of an embedding, and attention, are those of the first network.
    """

    def __init__(self, bundle_url: str, settings: ScoreSettings, device: str) -> None:
        # Before torch is imported, which takes seconds.
        populating = populate_store() if device == "cuda" else None
        from clusterray.engine.network import ScoringNetwork, keep_compiled, register_store

        keep_compiled()
        if populating is not None:
            register_store(populating)
        bundle = _fetched(bundle_url)
        logit_alone = settings.model_copy(update={"keep_embedding": False, "keep_attention": False})
        self.networks: dict[str, ScoringNetwork] = {}
        for name in bundle.networks:
            first = not self.networks
            self.networks[name] = ScoringNetwork(
                bundle.network(name),
                anomaly=bundle.anomaly() if first else None,
                size_px=bundle.size_px,
                settings=settings if first else logit_alone,
                device=device,
            )
            self.networks[name].warm_up()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Run the networks over each row group."""
        return pack([self._score(parcel) for parcel in unpack(table)])

    def _score(self, parcel: Parcel) -> Parcel:
        start = time.monotonic()
        data, planes = parcel.data, parcel.planes
        if planes is None:
            raise InputError("a row group reached the network without its pixels")
        step, noise_sigma = list_matrix(data, "step"), list_matrix(data, "noise_sigma")
        for model, network in self.networks.items():
            scores = network.score(planes, step=step, noise_sigma=noise_sigma)
            data = data.append_column(f"logit_{model}", pa.array(scores.logit))
            if scores.anomaly is not None:
                data = data.append_column("anomaly_score", pa.array(scores.anomaly))
            for name in ("embedding", "attention"):
                values = getattr(scores, name)
                if values is not None:
                    data = data.append_column(name, _list_column(values, pa.float32()))
        seconds = {**parcel.seconds, "vit": time.monotonic() - start}
        return replace(parcel, data=data, planes=None, seconds=seconds)


class FinishStage:
    """Actor: LightGBM, out-of-fold substitution, stack; writes the row group's one output."""

    def __init__(
        self, bundle_url: str, groups: Sequence[RowGroup], settings: ScoreSettings, folder: str
    ) -> None:
        self.bundle = _fetched(bundle_url)
        self.groups, self.settings, self.folder = groups, settings, folder
        self.lightgbm = self.bundle.lightgbm if "lightgbm" in self.bundle.models else None
        self.stacker = self.bundle.stacker
        names = self.bundle.feature_names
        self.context = [names.index(name) for name in self.stacker.context]
        self.anomaly = self.bundle.anomaly()
        oof = self.bundle.oof
        self.oof_logits = np.column_stack([oof.column(f"logit_{m}") for m in self.bundle.models])
        self.oof_stack = oof.column("logit_stack").to_numpy()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Finish and write each row group; the answer says how many rows went where."""
        return pa.Table.from_pylist([self._finish(parcel) for parcel in unpack(table)])

    def _finish(self, parcel: Parcel) -> dict[str, Any]:
        start = time.monotonic()
        group = self.groups[parcel.unit]
        data, logits, failed = self._finite(parcel.data)
        scored = self._scores(data, logits, shard=group.shard.name)
        rejects = [*parcel.rejects, *failed]
        write_rejects(storage.join(self.folder, "rejects", group.output), rejects)
        # Last, for it is what resuming looks for.
        storage.write_table(storage.join(self.folder, "rows", group.output), scored)
        seconds = {**parcel.seconds, "finish": time.monotonic() - start}
        return {
            "unit": parcel.unit,
            "scored": scored.num_rows,
            "rejected": len(rejects),
            "seconds": json.dumps(seconds),
        }

    def _finite(self, data: pa.Table) -> tuple[pa.Table, np.ndarray, list[Reject]]:
        """Rows that every model could score, their logits (n, models), and the others' rejects."""
        models = self.bundle.models
        logits = np.empty((data.num_rows, len(models)), np.float32)
        for k, model in enumerate(models):
            if model != "lightgbm":
                logits[:, k] = data.column(f"logit_{model}").to_numpy()
            elif self.lightgbm is not None and data.num_rows:
                logits[:, k] = self.lightgbm.decision_function(
                    list_matrix(data, "features"), self.bundle.feature_names
                )
        finite = np.isfinite(logits).all(axis=1)
        if finite.all():
            return data, logits, []
        ids = data.column("object_id").to_pylist()
        rejects = []
        for row in np.flatnonzero(~finite):
            said = ", ".join(f"{m} {v}" for m, v in zip(models, logits[row], strict=True))
            reason = f"a model's logit is not finite: {said}"
            rejects.append(
                {"object_id": ids[row], "stage": "score", "reason": reason, "retryable": False}
            )
        return _filtered(data, pa.array(finite)), logits[finite], rejects

    def _scores(self, data: pa.Table, logits: np.ndarray, *, shard: str) -> pa.Table:
        models = self.bundle.models
        ids = data.column("object_id").to_pylist()
        stack = np.empty(0)
        if ids:
            context = list_matrix(data, "features")[:, self.context] if self.context else None
            stack = np.asarray(self.stacker.decision_function(logits, context), np.float64)
        place = {name: data.column(name).to_numpy() for name in ("ra_deg", "dec_deg")}
        rows = self.bundle.training_rows(ids, **place)
        fold = self.bundle.folds_of(rows)
        # Fold −1 was seen by the calibrator alone: the models' own logits are honest there.
        trained = np.flatnonzero(fold.fill_null(-1).to_numpy(zero_copy_only=False) >= 0)
        logits[trained] = self.oof_logits[rows[trained]]
        stack[trained] = self.oof_stack[rows[trained]]
        columns: dict[str, Any] = {name: data.column(name) for name in _CARRIED}
        columns["shard"] = pa.array([shard] * len(ids), pa.string())
        columns["fold"] = fold
        columns |= {f"logit_{m}": pa.array(logits[:, k]) for k, m in enumerate(models)}
        columns["logit_stack"] = pa.array(stack)
        columns["anomaly_score"] = self._anomaly(data)
        columns["coverage"] = pa.array(list_matrix(data, "coverage").min(axis=1, initial=1.0))
        worst = list_matrix(data, "clipped_fraction").max(axis=1, initial=0.0)
        columns["clipped_fraction"] = pa.array(worst)
        wide = self._wide(data)
        columns |= wide
        want = schema.scores(
            models,
            **{f"{name}_dim": column.type.list_size for name, column in wide.items()},
        )
        return schema.check(pa.table(columns).cast(want), want, where=f"scores of {shard}")

    def _anomaly(self, data: pa.Table) -> pa.Array:
        if "anomaly_score" in data.column_names:
            return data.column("anomaly_score")
        if self.anomaly is None or not data.num_rows:
            return pa.nulls(data.num_rows, pa.float32())
        return pa.array(self.anomaly.score_features(list_matrix(data, "features")), pa.float32())

    def _wide(self, data: pa.Table) -> dict[str, pa.Array]:
        return {
            name: _list_column(list_matrix(data, name), pa.float16())
            for name in ("embedding", "attention")
            if name in data.column_names
        }


def list_matrix(data: pa.Table, name: str) -> np.ndarray:
    """A fixed-size list column as (n, width)."""
    column = data.column(name)
    width = column.type.list_size
    parts = [c.flatten().to_numpy(zero_copy_only=False) for c in column.chunks]
    flat = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return flat.reshape(-1, width)


def _list_column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = values.ravel().astype(kind.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])
