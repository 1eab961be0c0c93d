"""The second pass: segments and explanations for the top of the ranking, for triage.

Only the row groups that hold candidates are read. Each leaves its results in files of its own, so
a run that was cut short takes up what is there; the ranking itself is not touched.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from clusterray import schema, storage
from clusterray.config import CandidateSettings, Config, FeatureSettings
from clusterray.engine import rank as ranks
from clusterray.engine import work
from clusterray.engine.ledger import RowGroup, Shard, count_rejects, open_run, write_rejects
from clusterray.engine.plan import list_shards, missing_row_groups
from clusterray.engine.session import cluster_shape, session
from clusterray.engine.stages import Reject, list_matrix, read_features
from clusterray.engine.telemetry import Progress, RunSummary
from clusterray.ensemble import bundle as bundles
from clusterray.errors import InputError, RunError
from clusterray.features.image_registry import band_pairs
from clusterray.features.segment_features import segment_features, segment_rows
from clusterray.features.segment_registry import segment_registry
from clusterray.features.segments import Segments
from clusterray.provenance import digest
from clusterray.rank import explanations, ranking
from clusterray.sky import shards as sky_shards

__all__ = ["candidates"]

_PARTS = ("rows", "segments", "contributions")


class _Candidates:
    """Actor: segments, features and contributions of the candidates of a row group."""

    def __init__(
        self,
        groups: Sequence[RowGroup],
        ids: Sequence[str],
        features: FeatureSettings,
        settings: CandidateSettings,
        bundle_url: str,
        folder: str,
    ) -> None:
        pa.set_cpu_count(1)
        self.groups, self.ids, self.folder = groups, ids, folder
        self.features, self.settings = features, settings
        self.bundle = bundles.load(bundle_url)
        self.model = self.bundle.lightgbm if "lightgbm" in self.bundle.models else None

    def __call__(self, table: pa.Table) -> pa.Table:
        rows, seconds = [], []
        for unit in work.unit_column(table):
            start, group = time.monotonic(), self.groups[unit]
            rows.append(self._write(group))
            seconds.append(time.monotonic() - start)
        return pa.table({"rows": rows, "seconds": seconds})

    def _write(self, group: RowGroup) -> int:
        data, rejects = read_features(
            group, settings=self.features, stage="candidates", keep=self.ids
        )
        parts, failed = self._parts(data)
        write_rejects(storage.join(self.folder, "rejects", group.output), [*rejects, *failed])
        # What resuming looks for comes last.
        for name in reversed(_PARTS):
            storage.write_table(storage.join(self.folder, name, group.output), parts[name])
        return int(parts["rows"].num_rows)

    def _parts(self, data: pa.Table) -> tuple[dict[str, pa.Table], list[Reject]]:
        """The three tables of some rows, and the rejects among them."""
        bands, scale = self.bundle.bands, self.bundle.pixel_scale_arcsec
        measured, failed = self._measured(data)
        chosen = data.take(pa.array(sorted(measured), pa.int64()))
        ids = chosen.column("object_id").to_pylist()
        found = [measured[row] for row in sorted(measured)]
        explained = self._explained(chosen)
        reasons = [""] * len(ids)
        if self.model is not None:
            reasons = explanations.reasons(explained, list_matrix(chosen, "features"))
        names = [f.name for f in segment_registry(bands)]
        values = np.array([v for v, _ in found], np.float32).reshape(len(ids), len(names))
        columns = {n: pa.array(v) for n, v in zip(names, values.T.copy(), strict=True)}
        rows = {
            "object_id": chosen.column("object_id"),
            "segment_flags": pa.array([";".join(s.flags) for _, s in found], pa.string()),
            "reasons": pa.array(reasons, pa.string()),
        }
        listed = [
            row
            for object_id, (_, segments) in zip(ids, found, strict=True)
            for row in segment_rows(object_id, segments, bands=bands, pixel_scale_arcsec=scale)
        ]
        parts = {
            "rows": pa.table({**rows, **columns}),
            "segments": pa.Table.from_pylist(listed, schema=schema.segments(band_pairs(bands))),
            "contributions": explained,
        }
        return parts, failed

    def _measured(
        self, data: pa.Table
    ) -> tuple[dict[int, tuple[np.ndarray, Segments]], list[Reject]]:
        """Segment features and segments by row; a row that cannot be used becomes a reject."""
        batch = sky_shards.batch(data.drop_columns(["features"]))
        measured: dict[int, tuple[np.ndarray, Segments]] = {}
        failed = []
        for row, object_id in enumerate(batch.object_id):
            here = slice(row, row + 1)
            try:
                matrix, (found,) = segment_features(
                    batch.cutouts_nchw[here],
                    noise_sigma=batch.noise_sigma[here],
                    bands=self.bundle.bands,
                    pixel_scale_arcsec=self.bundle.pixel_scale_arcsec,
                    psf_fwhm_arcsec=batch.columns["psf_fwhm_arcsec"][here],
                    settings=self.settings,
                )
            except InputError as error:
                reject = {"object_id": object_id, "stage": "candidates", "reason": str(error)}
                failed.append(reject | {"retryable": False})
                continue
            measured[row] = (matrix.values[0], found)
        return measured, failed

    def _explained(self, chosen: pa.Table) -> pa.Table:
        if self.model is None:
            return schema.contributions(()).empty_table()
        ids = chosen.column("object_id").to_pylist()
        return explanations.contribution_table(ids, list_matrix(chosen, "features"), self.model)


def candidates(config: Config) -> RunSummary:
    """Look again at the best `candidates.top_fraction` of `paths.ranking`.

    Writes candidates (Parquet and CSV), segments and contributions to `paths.candidates`, and the
    report again, with what moves the scores.

    Raises
    ------
    InputError : no ranking, or a candidate that no shard holds.
    RunError : the ranking was made with another bundle, or `paths.candidates` holds candidates of
        another ranking or of other settings.
    """
    start = time.monotonic()
    bundle = bundles.load(config.paths.bundle)
    top = _top(config, bundle)
    ids = top["object_id"].to_pylist()
    shards = list_shards(
        config.paths.shards,
        bands=bundle.bands,
        size_px=bundle.size_px,
        pixel_scale_arcsec=bundle.pixel_scale_arcsec,
    )
    groups = _holding(shards, top)
    folder = config.paths.candidates
    key = {
        "bundle": bundle.digest,
        "candidates": config.candidates.model_dump(mode="json"),
        "ranked": digest(ids),
        "shards": digest(sorted(g.output for g in groups)),
    }
    open_run(folder, key, config=config, verb="candidates")
    wanted = {g.output for g in groups}
    missing, _ = missing_row_groups(shards, storage.join(folder, "rows"))
    missing = [g for g in missing if g.output in wanted]
    rows, seconds = _run(missing, ids, config, bundle) if missing else (0, 0.0)
    table = _join(groups, top, config, bundle)
    ranks.report(config)
    rejected = sum(count_rejects(folder)[output] for output in wanted)
    summary = RunSummary(
        verb="candidates",
        unit="row groups",
        done=len(missing),
        skipped=len(groups) - len(missing),
        rows=rows,
        rejected=rejected,
        seconds=time.monotonic() - start,
        outputs={
            "candidates": storage.join(folder, "candidates.parquet"),
            "report": storage.join(config.paths.ranking, "report.html"),
        },
        stage_seconds={"candidates": round(seconds, 2)} if missing else {},
        notes=(f"{len(table)} of the best {len(ids)}, in {len(groups)} row groups",),
    )
    summary.write(storage.join(folder, "summary.json"))
    return summary


def _top(config: Config, bundle: bundles.Bundle) -> pa.Table:
    if not storage.exists(storage.join(config.paths.ranking, "ranking.parquet")):
        raise InputError(
            f"'{storage.redact(config.paths.ranking)}' holds no ranking; run 'clusterray rank' "
            "first"
        )
    about = storage.read_json(storage.join(config.paths.ranking, "run.json"))
    made_with = about.get("run_key", {}).get("bundle")
    if made_with != bundle.digest:
        raise RunError(
            f"the ranking was made with bundle {str(made_with)[:12]}, paths.bundle is "
            f"{bundle.digest[:12]}; rank again, or set the bundle that ranked"
        )
    table = ranking.read(config.paths.ranking)
    number = max(1, int(np.ceil(config.candidates.top_fraction * len(table))))
    return table.slice(0, number)


def _holding(shards: Sequence[Shard], top: pa.Table) -> list[RowGroup]:
    """Row groups that hold candidates, in plan order.

    Raises
    ------
    InputError : a candidate is in no shard.
    """
    by_shard: dict[str, set[str]] = {}
    for shard, object_id in zip(
        top["shard"].to_pylist(), top["object_id"].to_pylist(), strict=True
    ):
        by_shard.setdefault(shard, set()).add(object_id)
    holding, seen = [], set()
    for shard in shards:
        wanted = by_shard.get(shard.name)
        if not wanted:
            continue
        ids = storage.read_table(shard.url, columns=["object_id"])["object_id"].to_pylist()
        start = 0
        for group in shard.row_groups():
            here = wanted.intersection(ids[start : start + group.rows])
            start += group.rows
            if here:
                holding.append(group)
                seen |= here
    gone = sorted(set(top["object_id"].to_pylist()) - seen)
    if gone:
        raise InputError(
            f"{len(gone)} candidates, such as '{gone[0]}', are in no shard of paths.shards; rank "
            "again what stands there now"
        )
    return holding


def _run(
    missing: Sequence[RowGroup], ids: Sequence[str], config: Config, bundle: bundles.Bundle
) -> tuple[int, float]:
    arguments = {
        "groups": list(missing),
        "ids": sorted(ids),
        "features": FeatureSettings.model_validate(bundle.settings["features"]),
        "settings": config.candidates,
        "bundle_url": config.paths.bundle,
        "folder": config.paths.candidates,
    }
    progress = Progress("candidates", len(missing), unit="row groups")
    rows, seconds = 0, 0.0
    with session(config.cluster):
        cpus, _ = cluster_shape()
        actors = min(config.cluster.workers or max(1, int(cpus)), len(missing))
        share = work.cpu_share(cpus, actors)
        stage = work.Stage("candidates", _Candidates, arguments, actors=actors, num_cpus=share)
        for table in work.run(len(missing), [stage], verb="candidates"):
            seconds += sum(table.column("seconds").to_pylist())
            done = sum(table.column("rows").to_pylist())
            rows += done
            progress.advance(table.num_rows, rows=done)
    return rows, seconds


def _join(
    groups: Sequence[RowGroup], top: pa.Table, config: Config, bundle: bundles.Bundle
) -> pa.Table:
    """Put the parts together in the order of the ranking, and write them."""
    folder = config.paths.candidates
    rows, segments, explained = (
        pa.concat_tables([storage.read_table(storage.join(folder, name, g.output)) for g in groups])
        for name in _PARTS
    )
    want = schema.candidates([f.name for f in segment_registry(bundle.bands)])
    ranked = top.replace_schema_metadata(None)
    place = _places(ranked, rows)
    known = place.is_valid()
    table = ranked.filter(known)
    own = rows.take(place.drop_null())
    for name in want.names:
        if name not in table.column_names:
            table = table.append_column(name, own[name])
    table = schema.check(table.select(want.names), want, where="candidates")
    explained = explained.take(_places(ranked, explained).drop_null())
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    storage.write_bytes(storage.join(folder, "candidates.csv"), sink.getvalue())
    storage.write_table(storage.join(folder, "segments.parquet"), segments)
    storage.write_table(storage.join(folder, "contributions.parquet"), explained)
    storage.write_table(storage.join(folder, "candidates.parquet"), table)
    return table


def _places(ranked: pa.Table, table: pa.Table) -> pa.Array:
    """Row of each ranked object in another table, null where it was rejected."""
    ids: Any = table["object_id"].combine_chunks()
    return pc.index_in(ranked["object_id"].combine_chunks(), value_set=ids)
