"""The training sample: labelled rows and a random draw of unlabelled ones, with their pixels.

It is gathered once from the shards into files of its own, so that every fold's fit reads the same
rows and none of them needs the survey's shards. Pixels stay in those files: see `sample_rows`.
Truth is never read here or downstream of here.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from clusterray import schema, storage
from clusterray.config import Config, FeatureSettings
from clusterray.engine import work
from clusterray.engine.ledger import RowGroup, Shard, write_rejects
from clusterray.engine.plan import missing_row_groups
from clusterray.engine.session import cluster_shape
from clusterray.engine.stages import list_matrix, read_features
from clusterray.engine.telemetry import Progress
from clusterray.ensemble.duplicates import image_hashes
from clusterray.errors import InputError
from clusterray.provenance import uniform_for
from clusterray.sky import shards as sky_shards

__all__ = ["SAMPLE_VERSION", "Choice", "Sample", "choose", "gather", "load"]

SAMPLE_VERSION: Final = 2
"""Of the gathered files: part of a training run's key."""

_HASHES: Final = "image_hash"
_WORDS: Final = 8


@dataclass(frozen=True)
class Choice:
    """Which rows of which shards to train on.

    `unlabelled_fraction` is the share of the survey's unlabelled rows that was drawn.
    """

    ids: frozenset[str]
    groups: tuple[RowGroup, ...]
    unlabelled_fraction: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """What is known of the rows but their pixels, sorted by object_id.

    `image_hashes` (n, 8) are those of the reddest band, by which duplicates are found. The files
    hold `rows_per_file` rows, and row k stands at `place[k]` in the files one after the other.
    """

    object_id: np.ndarray
    ra_deg: np.ndarray
    dec_deg: np.ndarray
    features: np.ndarray
    image_hashes: np.ndarray
    rows_per_file: tuple[int, ...]
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.object_id)


def choose(shards: Sequence[Shard], labels: pa.Table, *, config: Config) -> Choice:
    """All labelled rows, and `train.max_unlabelled` unlabelled ones drawn by (seed, object_id).

    Raises
    ------
    InputError : an id stands in two shards, or no known lens has a cutout.
    """
    groups = [group for shard in shards for group in shard.row_groups()]
    ids = [i for shard in shards for i in _ids(shard)]
    table = pa.table({"object_id": pa.array(ids, pa.string())})
    schema.require_unique(table, where=f"shards in '{storage.redact(config.paths.shards)}'")
    s = dict(zip(labels["object_id"].to_pylist(), labels["s"].to_pylist(), strict=True))
    labelled = {i for i in ids if s.get(i, 0) != 0}
    known = sum(1 for i in labelled if s[i] == 1)
    if not known:
        raise InputError(
            f"none of the {sum(v == 1 for v in s.values())} known lenses in "
            f"'{storage.redact(config.paths.labels)}' has a cutout; check that its object_id "
            "matches the catalogue's, and the rejects of ingest"
        )
    free = [i for i in ids if i not in labelled]
    draw = uniform_for(config.seed, free, purpose="unlabelled")
    drawn = sorted(zip(draw, free, strict=True))[: config.train.max_unlabelled]
    chosen = labelled | {i for _, i in drawn}
    absent = sum(1 for i, value in s.items() if value != 0 and i not in labelled)
    holding, start = [], 0
    for group in groups:
        if not chosen.isdisjoint(ids[start : start + group.rows]):
            holding.append(group)
        start += group.rows
    notes = [f"{known} known lenses, {len(drawn)} of {len(free)} unlabelled rows"]
    if absent:
        notes.append(f"{absent} labelled objects have no cutout and are left out")
    return Choice(frozenset(chosen), tuple(holding), len(drawn) / max(len(free), 1), tuple(notes))


def _ids(shard: Shard) -> list[str]:
    table = storage.read_table(shard.url, columns=["object_id"])
    return [str(v) for v in table.column("object_id").to_pylist()]


class _Gather:
    """Actor: writes the chosen rows of a row group, with features, as one file."""

    def __init__(
        self, groups: Sequence[RowGroup], ids: frozenset[str], settings: FeatureSettings, url: str
    ) -> None:
        pa.set_cpu_count(1)
        self.groups, self.ids, self.settings, self.url = groups, sorted(ids), settings, url

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = []
        for unit in work.unit_column(table):
            group = self.groups[unit]
            data, rejects = read_features(
                group, settings=self.settings, stage="train", keep=self.ids
            )
            data = data.append_column(_HASHES, _hashes(data))
            write_rejects(storage.join(self.url, "rejects", group.output), rejects)
            storage.write_table(storage.join(self.url, "rows", group.output), data)
            rows.append(data.num_rows)
        return pa.table({"rows": rows})


def _hashes(data: pa.Table) -> pa.Array:
    red = sky_shards.pixels(data)[:, -1]
    hashes = image_hashes(np.where(red == schema.BLANK, 0, red))
    return pa.FixedSizeListArray.from_arrays(pa.array(hashes.ravel()), _WORDS)


def gather(choice: Choice, url: str, *, config: Config) -> int:
    """Write the chosen rows under `url`, as far as they are not there; returns row groups done."""
    shards = list({g.shard.url: g.shard for g in choice.groups}.values())
    wanted = {g.output for g in choice.groups}
    missing, _ = missing_row_groups(shards, storage.join(url, "rows"))
    missing = [g for g in missing if g.output in wanted]
    if not missing:
        return 0
    cpus, _ = cluster_shape()
    actors = min(config.cluster.workers or max(1, int(cpus)), len(missing))
    stage = work.Stage(
        "gather",
        _Gather,
        {"groups": missing, "ids": choice.ids, "settings": config.features, "url": url},
        actors=actors,
        num_cpus=work.cpu_share(cpus, actors),
    )
    progress = Progress("features", len(missing), unit="row groups")
    for table in work.run(len(missing), [stage], verb="train", rows=[g.rows for g in missing]):
        progress.advance(table.num_rows, rows=sum(table.column("rows").to_pylist()))
    return len(missing)


def load(choice_groups: Sequence[RowGroup], url: str) -> Sample:
    """The gathered rows, sorted by object_id.

    Raises
    ------
    InputError : no row could be used.
    """
    columns = ["object_id", "ra_deg", "dec_deg", "features", _HASHES]
    urls = [storage.join(url, "rows", g.output) for g in choice_groups]
    with ThreadPoolExecutor(16) as pool:
        every = list(pool.map(lambda u: storage.read_table(u, columns=columns), urls))
    parts = [p for p in every if p.num_rows]
    if not parts:
        raise InputError(
            f"no usable training rows; their reasons are in '{storage.join(url, 'rejects')}'"
        )
    ids = np.concatenate([p.column("object_id").to_numpy() for p in parts])
    order = np.argsort(ids, kind="stable")

    def stacked(read: Any) -> np.ndarray:
        return np.concatenate([read(p) for p in parts])[order]

    return Sample(
        object_id=ids[order],
        ra_deg=stacked(lambda p: p.column("ra_deg").to_numpy()),
        dec_deg=stacked(lambda p: p.column("dec_deg").to_numpy()),
        features=stacked(lambda p: list_matrix(p, "features")),
        image_hashes=stacked(lambda p: list_matrix(p, _HASHES)),
        rows_per_file=tuple(p.num_rows for p in every),
        place=order,
    )
