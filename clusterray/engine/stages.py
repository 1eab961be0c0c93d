"""The scoring stages: read and features on CPUs, the ViT on GPUs or CPUs, stack and write.

Between stages a row group is one Arrow row (`unit`, `payload`, `rejects`, `seconds`): its table
travels as one IPC buffer, so whatever Ray does with its own blocks, every stage sees the same row
group with the same rows in the same order, and micro-batches are cut in the same places.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clusterray import schema, storage
from clusterray.config import FeatureSettings, ScoreSettings
from clusterray.engine import work
from clusterray.engine.ledger import RowGroup, write_rejects
from clusterray.ensemble import bundle as bundles
from clusterray.errors import InputError
from clusterray.features import cutout_features, feature_names
from clusterray.sky import shards

__all__ = ["FinishStage", "ReadStage", "VitStage", "list_matrix", "read_features"]

_CARRIED = ("object_id", "ra_deg", "dec_deg")
Reject = dict[str, Any]


def read_features(
    group: RowGroup, *, settings: FeatureSettings, stage: str, keep: Sequence[str] | None = None
) -> tuple[pa.Table, list[Reject]]:
    """Read a row group and compute its features; a row that cannot be used becomes a reject.

    Parameters
    ----------
    stage : what rejects name as theirs.
    keep : object ids to keep; None keeps all.

    Returns
    -------
    table : the shard's columns and `features`, a fixed-size list of float32.
    rejects : rows of `schema.REJECTS`.
    """
    table = shards.read_row_group(group.shard.url, group.index, raw=True)
    if keep is not None:
        wanted = pc.is_in(table.column("object_id"), pa.array(keep, pa.string()))
        table = _filtered(table, wanted)
    batch = shards.batch(table, integers=True)
    reasons = _unusable(batch)
    usable = np.array([r is None for r in reasons], bool)
    values, failed = _features(batch, np.flatnonzero(usable), settings)
    for row, reason in failed.items():
        usable[row], reasons[row] = False, reason
    rejects = [
        {"object_id": i, "stage": stage, "reason": r, "retryable": False}
        for i, r in zip(batch.object_id, reasons, strict=True)
        if r is not None
    ]
    if rejects:
        table = _filtered(table, pa.array(usable))
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return table.append_column("features", column), rejects


def _filtered(table: pa.Table, mask: pa.Array) -> pa.Table:
    kept = table.filter(mask)
    # A table of no rows has no chunks either, and its readers want one.
    return kept if kept.num_rows else kept.schema.empty_table()


def _unusable(batch: shards.CutoutBatch) -> list[str | None]:
    reasons: list[str | None] = []
    # A few pixels tell of nearly every cutout that it is not all blank.
    glimpse = (batch.cutouts_nchw[:, :, ::16, ::16] == schema.BLANK).all(axis=(1, 2, 3))
    for i in range(len(batch)):
        scale = np.concatenate([batch.noise_sigma[i], batch.step[i]])
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            reasons.append(f"noise sigma or step is not finite and positive: {scale.tolist()}")
        elif glimpse[i] and (batch.cutouts_nchw[i] == schema.BLANK).all():
            reasons.append("every pixel is blank")
        else:
            reasons.append(None)
    return reasons


def _features(
    batch: shards.CutoutBatch, rows: np.ndarray, settings: FeatureSettings
) -> tuple[np.ndarray, dict[int, str]]:
    def compute(chosen: np.ndarray) -> np.ndarray:
        return cutout_features(
            # Every row, as ever but after a reject: then the pixels need no copy.
            batch.cutouts_nchw if len(chosen) == len(batch) else batch.cutouts_nchw[chosen],
            step=batch.step[chosen],
            noise_sigma=batch.noise_sigma[chosen],
            bands=batch.bands,
            columns={name: values[chosen] for name, values in batch.columns.items()},
            settings=settings,
        ).values

    failed: dict[int, str] = {}
    try:
        values = compute(rows)
    except InputError:
        # One bad row costs one row: find it.
        values, failed = _one_by_one(compute, rows)
    # LightGBM refuses the whole batch of a row such as this.
    infinite = np.isinf(values).any(axis=1)
    names = feature_names(batch.bands, settings)
    computed = [row for row in rows.tolist() if row not in failed]
    for k in np.flatnonzero(infinite):
        failed[computed[k]] = f"feature '{names[np.isinf(values[k]).argmax()]}' is infinite"
    return values[~infinite], failed


def _one_by_one(
    compute: Callable[[np.ndarray], np.ndarray], rows: np.ndarray
) -> tuple[np.ndarray, dict[int, str]]:
    parts, failed = [compute(rows[:0])], {}
    for row in rows:
        try:
            parts.append(compute(np.array([row])))
        except InputError as error:
            failed[int(row)] = str(error)
    return np.concatenate(parts), failed


class ReadStage:
    """Actor: from a planned row group to its pixels and features."""

    def __init__(
        self, groups: Sequence[RowGroup], settings: FeatureSettings, *, keep_pixels: bool
    ) -> None:
        # One core per actor: the pool, not Arrow's own threads, decides how many work.
        pa.set_cpu_count(1)
        self.groups, self.settings, self.keep_pixels = groups, settings, keep_pixels

    def __call__(self, table: pa.Table) -> pa.Table:
        """Read the row groups of a batch of units."""
        rows = []
        for unit in work.unit_column(table):
            start = time.monotonic()
            data, rejects = read_features(self.groups[unit], settings=self.settings, stage="score")
            if not self.keep_pixels:
                data = data.drop_columns(["image"])
            rows.append(_row(unit, data, rejects, {"read": time.monotonic() - start}))
        return _pack(rows)


class VitStage:
    """Actor: adds the network's logit, embedding and attention, and drops the pixels."""

    def __init__(self, bundle_url: str, settings: ScoreSettings) -> None:
        import torch

        from clusterray.vision.prediction import predict

        self.bundle = bundles.load(bundle_url)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = self.bundle.vit().to(self.device)
        self.settings, self.predict = settings, predict

    def __call__(self, table: pa.Table) -> pa.Table:
        """Run the network over each row group."""
        rows = []
        for row in _unpack(table):
            start = time.monotonic()
            data = row["data"]
            scores = self.predict(
                self.model,
                shards.planes(data),
                step=list_matrix(data, "step"),
                noise_sigma=list_matrix(data, "noise_sigma"),
                micro_batch=self.settings.micro_batch,
                size_px=self.bundle.size_px,
                dtype=self.settings.dtype,
                device=self.device,
                threads=1,
            )
            data = data.drop_columns(["image"])
            data = data.append_column("logit_vit", pa.array(scores.logit))
            for name, values in (
                ("embedding", scores.embedding),
                ("attention", scores.attention),
            ):
                data = data.append_column(name, _list_column(values, pa.float32()))
            seconds = {**row["seconds"], "vit": time.monotonic() - start}
            rows.append(_row(row["unit"], data, row["rejects"], seconds))
        return _pack(rows)


class FinishStage:
    """Actor: LightGBM, out-of-fold substitution, stack; writes the row group's one output."""

    def __init__(
        self, bundle_url: str, groups: Sequence[RowGroup], settings: ScoreSettings, folder: str
    ) -> None:
        self.bundle = bundles.load(bundle_url)
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
        answers = []
        for row in _unpack(table):
            start = time.monotonic()
            group = self.groups[row["unit"]]
            data, logits, failed = self._finite(row["data"])
            scored = self._scores(data, logits, shard=group.shard.name)
            rejects = [*row["rejects"], *failed]
            write_rejects(storage.join(self.folder, "rejects", group.output), rejects)
            # Last, for it is what resuming looks for.
            storage.write_table(storage.join(self.folder, "rows", group.output), scored)
            seconds = {**row["seconds"], "finish": time.monotonic() - start}
            answers.append(
                {
                    "unit": row["unit"],
                    "scored": scored.num_rows,
                    "rejected": len(rejects),
                    "seconds": json.dumps(seconds),
                }
            )
        return pa.Table.from_pylist(answers)

    def _finite(self, data: pa.Table) -> tuple[pa.Table, np.ndarray, list[Reject]]:
        """Rows that every model could score, their logits (n, models), and the others' rejects."""
        models = self.bundle.models
        logits = np.empty((data.num_rows, len(models)), np.float32)
        for k, model in enumerate(models):
            if model == "vit":
                logits[:, k] = data.column("logit_vit").to_numpy()
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
            context = list_matrix(data, "features")[:, self.context]
            stack = np.asarray(self.stacker.decision_function(logits, context), np.float64)
        place = {name: data.column(name).to_numpy() for name in ("ra_deg", "dec_deg")}
        fold = self.bundle.fold_of(ids, **place)
        # Fold −1 was seen by the calibrator alone: the models' own logits are honest there.
        trained = np.flatnonzero(fold.fill_null(-1).to_numpy(zero_copy_only=False) >= 0)
        rows = self.bundle.training_rows(ids, **place)[trained]
        logits[trained], stack[trained] = self.oof_logits[rows], self.oof_stack[rows]
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
        if self.anomaly is None or not data.num_rows:
            return pa.nulls(data.num_rows, pa.float32())
        if "embedding" in data.column_names:
            score = self.anomaly.score(list_matrix(data, "embedding"))
        else:
            score = self.anomaly.score_features(list_matrix(data, "features"))
        return pa.array(score, pa.float32())

    def _wide(self, data: pa.Table) -> dict[str, pa.Array]:
        asked = {
            "embedding": self.settings.keep_embedding,
            "attention": self.settings.keep_attention,
        }
        return {
            name: _list_column(list_matrix(data, name), pa.float16())
            for name, wanted in asked.items()
            if wanted and name in data.column_names
        }


def _row(
    unit: int, data: pa.Table, rejects: Sequence[Reject], seconds: Mapping[str, float]
) -> dict[str, Any]:
    return {"unit": unit, "data": data, "rejects": list(rejects), "seconds": dict(seconds)}


def _pack(rows: Sequence[dict[str, Any]]) -> pa.Table:
    buffers = []
    for row in rows:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, row["data"].schema) as stream:
            stream.write_table(row["data"])
        buffers.append(sink.getvalue())
    # from_buffers, not pa.array: a row group of pixels must not be copied once more.
    parts = [
        pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 1, [None, pa.array([0, b.size], pa.int64()).buffers()[1], b]
        )
        for b in buffers
    ]
    return pa.table(
        {
            "unit": pa.array([r["unit"] for r in rows], pa.int64()),
            "payload": pa.chunked_array(parts, pa.large_binary()),
            "rejects": pa.array([json.dumps(r["rejects"]) for r in rows]),
            "seconds": pa.array([json.dumps(r["seconds"]) for r in rows]),
        }
    )


def _unpack(table: pa.Table) -> list[dict[str, Any]]:
    rows = []
    for i in range(table.num_rows):
        payload = table.column("payload")[i].as_buffer()
        rows.append(
            _row(
                table.column("unit")[i].as_py(),
                _opened(payload),
                json.loads(table.column("rejects")[i].as_py()),
                json.loads(table.column("seconds")[i].as_py()),
            )
        )
    return rows


def _opened(payload: pa.Buffer) -> pa.Table:
    table = pa.ipc.open_stream(payload).read_all()
    return table if table.num_rows else table.schema.empty_table()


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
