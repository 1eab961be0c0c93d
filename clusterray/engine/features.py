"""The feature table of every cutout, one file per row group."""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clusterray import schema, storage
from clusterray.config import Config, FeatureSettings
from clusterray.engine import work
from clusterray.engine.ledger import RowGroup, count_rejects, open_run, write_rejects
from clusterray.engine.plan import list_shards, missing_row_groups
from clusterray.engine.session import cluster_shape, session
from clusterray.engine.stages import list_matrix, read_features
from clusterray.engine.telemetry import Progress, RunSummary
from clusterray.features import feature_names
from clusterray.sky.surveys import resolve

__all__ = ["features"]


class _Features:
    """Actor: the feature table of a row group."""

    def __init__(
        self,
        groups: Sequence[RowGroup],
        names: Sequence[str],
        settings: FeatureSettings,
        folder: str,
    ) -> None:
        pa.set_cpu_count(1)
        self.groups, self.names, self.settings, self.folder = groups, names, settings, folder

    def __call__(self, table: pa.Table) -> pa.Table:
        rows, seconds = [], []
        for unit in work.unit_column(table):
            start, group = time.monotonic(), self.groups[unit]
            data, rejects = read_features(group, settings=self.settings, stage="features")
            values = np.ascontiguousarray(list_matrix(data, "features").T)
            columns = dict(zip(self.names, values, strict=True))
            out = pa.table({"object_id": data.column("object_id"), **columns})
            out = schema.check(out, schema.features(self.names), where=group.output)
            write_rejects(storage.join(self.folder, "rejects", group.output), rejects)
            storage.write_table(storage.join(self.folder, "rows", group.output), out)
            rows.append(out.num_rows)
            seconds.append(time.monotonic() - start)
        return pa.table({"rows": rows, "seconds": seconds})


def features(config: Config) -> RunSummary:
    """Write the features of `paths.shards` to `paths.features`; do only what is missing.

    Raises
    ------
    InputError, StorageError, ContractError : no shards, or one that cannot be used.
    RunError : the folder holds features of other settings.
    """
    start = time.monotonic()
    survey = resolve(config.survey)
    shards = list_shards(
        config.paths.shards,
        bands=survey.band_names,
        size_px=survey.size_px,
        pixel_scale_arcsec=survey.pixel_scale_arcsec,
    )
    names = feature_names(survey.band_names, config.features)
    folder = config.paths.features
    key = {"features": config.features.model_dump(mode="json"), "names": list(names)}
    open_run(folder, key, config=config, verb="features")
    missing, skipped = missing_row_groups(shards, storage.join(folder, "rows"))
    progress = Progress("features", len(missing), unit="row groups")
    rows, seconds = 0, 0.0
    if missing:
        with session(config.cluster):
            cpus, _ = cluster_shape()
            actors = min(config.cluster.workers or max(1, int(cpus)), len(missing))
            arguments = {
                "groups": missing,
                "names": names,
                "settings": config.features,
                "folder": folder,
            }
            share = work.cpu_share(cpus, actors)
            stage = work.Stage("features", _Features, arguments, actors=actors, num_cpus=share)
            for table in work.run(
                len(missing), [stage], verb="features", rows=[g.rows for g in missing]
            ):
                done = sum(table.column("rows").to_pylist())
                rows += done
                seconds += sum(table.column("seconds").to_pylist())
                progress.advance(table.num_rows, rows=done)
    rejects = count_rejects(folder)
    summary = RunSummary(
        verb="features",
        unit="row groups",
        done=len(missing),
        skipped=skipped,
        rows=rows,
        rejected=sum(rejects[g.output] for shard in shards for g in shard.row_groups()),
        seconds=time.monotonic() - start,
        outputs={"features": folder},
        stage_seconds={"features": round(seconds, 2)} if missing else {},
        notes=(f"{len(names)} features",),
    )
    summary.write(storage.join(folder, "summary.json"))
    return summary
