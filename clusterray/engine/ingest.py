"""From survey tiles and a catalogue to cutout shards, one shard an actor call, resumable.

Objects are sorted by the tile they lie on and cut into shards; a shard is named after a digest of
its objects, tiles and settings. What exists is done; what is there but not in the plan was made
from other input, and is refused rather than mixed.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from astropy import units as u
from astropy_healpix import HEALPix
from scipy.spatial import cKDTree

from clusterray import schema, storage
from clusterray.config import Config
from clusterray.engine import work
from clusterray.engine.ledger import open_run, read_record, write_rejects
from clusterray.engine.session import cluster_shape, session
from clusterray.engine.telemetry import Progress, RunSummary
from clusterray.errors import InputError, RunError
from clusterray.provenance import digest
from clusterray.sky import catalogue, cutouts, shards, tiles
from clusterray.sky.image_plane import Plane
from clusterray.sky.surveys import Survey, resolve

__all__ = ["ingest"]


_OUTSIDE: Final = "outside"
_RECEIPT: Final = {"name": str, "in": int, "rows": int, "rejected": int}


@dataclass(frozen=True)
class _Unit:
    """One shard to make: rows of the catalogue, in portions with the planes that reach them."""

    name: str
    portions: tuple[tuple[np.ndarray, np.ndarray], ...]

    @property
    def rows(self) -> int:
        return sum(len(rows) for rows, _ in self.portions)


def ingest(config: Config) -> RunSummary:
    """Cut every catalogue object out of the tiles, into `paths.shards`.

    Raises
    ------
    InputError : no tiles, a tile or catalogue that cannot be used (each is named).
    RunError : `paths.shards` holds shards of other input, rows do not reconcile, or more than
        `ingest.max_reject_fraction` were rejected.
    """
    start = time.monotonic()
    survey = resolve(config.survey)
    objects = catalogue.read(
        config.paths.catalogue,
        survey_name=survey.name,
        aliases=config.ingest.catalogue_columns,
    )
    planes, fingerprints = _scan(config, survey)
    folder = config.paths.shards
    settings = {
        "survey": config.survey.model_dump(mode="json"),
        "ingest": config.ingest.model_dump(mode="json", exclude={"max_reject_fraction"}),
    }
    open_run(folder, settings, config=config, verb="ingest")
    reach = _reach(objects, planes, survey)
    units = _plan(objects, planes, reach, fingerprints, settings, config)
    there = {e.url for e in storage.list_files(storage.join(folder, "receipts"))}
    _refuse_foreign(units, folder)
    missing = [u for u in units if _receipt(folder, u.name) not in there]
    seconds = 0.0
    if missing:
        seconds = _cut(missing, objects, planes, config, survey)
    outside = _write_outside(objects, reach, folder)
    receipts = [read_record(_receipt(folder, u.name), _RECEIPT) for u in units]
    kept, rejected = (sum(r[key] for r in receipts) for key in ("rows", "rejected"))
    summary = RunSummary(
        verb="ingest",
        unit="shards",
        done=len(missing),
        skipped=len(units) - len(missing),
        rows=sum(u.rows for u in missing),
        rejected=rejected + outside,
        seconds=time.monotonic() - start,
        outputs={"shards": folder, "rejects": storage.join(folder, "rejects")},
        stage_seconds={"cut": round(seconds, 2)} if missing else {},
        notes=(f"{kept} cutouts of {len(objects)} objects from {len(planes)} tile images",),
    )
    summary.write(storage.join(folder, "summary.json"))
    _reconcile(len(objects), kept, rejected + outside, config)
    return summary


def _scan(config: Config, survey: Survey) -> tuple[list[Plane], dict[str, str]]:
    """Every image plane of the tiles, and a fingerprint of each file."""
    files = tiles.find(config.paths.tiles)

    def scan(url: str) -> tuple[list[Plane], storage.FileEntry | None]:
        found = tiles.scan(
            url, survey=survey, settings=config.ingest, zero_points=config.survey.zero_point
        )
        return found, storage.stat(url)

    with ThreadPoolExecutor(8) as pool:
        scanned = list(pool.map(scan, files))
    planes = [plane for found, _ in scanned for plane in found]
    absent = [b for b in survey.band_names if b not in {p.band for p in planes}]
    if absent:
        raise InputError(
            f"none of {len(files)} tiles shows band '{absent[0]}' of survey '{survey.name}' "
            f"(found: {', '.join(sorted({p.band for p in planes})) or 'none'}); add its tiles to "
            "paths.tiles, name its files in ingest.tile_bands, or leave it out of survey.bands"
        )
    return planes, {
        e.url: f"{storage.redact(e.url)} {e.size} {e.mtime_ns}" for _, e in scanned if e
    }


def _reach(objects: pa.Table, planes: Sequence[Plane], survey: Survey) -> list[list[int]]:
    """For each object the planes that can touch its cutout, nearest centre first."""
    radius_arcsec = survey.half_diagonal_arcsec
    places = _unit_vectors(objects)
    tree = cKDTree(places)
    reach: list[list[tuple[float, int]]] = [[] for _ in range(len(objects))]
    for k, plane in enumerate(planes):
        centre, reach_rad = plane.circle()
        chord = 2 * np.sin(min(np.pi, reach_rad + np.radians(radius_arcsec / 3600)) / 2)
        for row in tree.query_ball_point(centre, chord):
            reach[row].append((float(np.linalg.norm(places[row] - centre)), k))
    return [[k for _, k in sorted(found)] for found in reach]


def _unit_vectors(objects: pa.Table) -> np.ndarray:
    lon, lat = (np.radians(objects.column(c).to_numpy()) for c in ("ra_deg", "dec_deg"))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def _plan(
    objects: pa.Table,
    planes: Sequence[Plane],
    reach: Sequence[Sequence[int]],
    fingerprints: dict[str, str],
    settings: dict[str, Any],
    config: Config,
) -> list[_Unit]:
    """Objects in the order of their tiles on the sky, cut into shards of at most rows_per_shard."""
    ids = objects.column("object_id").to_pylist()
    sky = HEALPix(nside=1024, order="nested")
    position = (objects.column(c).to_numpy() * u.deg for c in ("ra_deg", "dec_deg"))
    cells = sky.lonlat_to_healpix(*position)
    # All objects of a tile go together: by the first of them in sky order, then the tile.
    first: dict[str, int] = {}
    inside = [row for row in range(len(ids)) if reach[row]]
    for row in inside:
        url = planes[reach[row][0]].url
        first[url] = min(int(cells[row]), first.get(url, int(cells[row])))

    def order(row: int) -> tuple[int, str, str]:
        url = planes[reach[row][0]].url
        return first[url], url, ids[row]

    inside.sort(key=order)
    size, portion = config.ingest.rows_per_shard, config.ingest.row_group_size
    units = []
    for start in range(0, len(inside), size):
        rows = inside[start : start + size]
        portions = [rows[i : i + portion] for i in range(0, len(rows), portion)]
        with_planes = tuple(
            (np.array(p), np.array(sorted({k for row in p for k in reach[row]}))) for p in portions
        )
        used = sorted({fingerprints[planes[k].url] for _, ks in with_planes for k in ks})
        content = {"rows": objects.take(rows).to_pylist(), "tiles": used, "settings": settings}
        name = f"c{int(cells[rows[0]]):08d}-{digest(content)[:12]}"
        units.append(_Unit(name, with_planes))
    return units


def _receipt(folder: str, name: str) -> str:
    return storage.join(folder, "receipts", f"{name}.json")


def _refuse_foreign(units: Sequence[_Unit], folder: str) -> None:
    # Not by receipts alone: an ingest that was killed leaves a shard or rejects without one.
    there = [
        *storage.list_files(storage.join(folder, "receipts"), suffix=".json"),
        *storage.list_files(storage.join(folder, "rejects"), suffix=".parquet"),
        *storage.list_files(folder, suffix=".parquet", recursive=False),
    ]
    names = {storage.name_of(e.url).rpartition(".")[0] for e in there}
    foreign = sorted(names - {u.name for u in units} - {_OUTSIDE})
    if foreign:
        raise RunError(
            f"'{storage.redact(folder)}' holds {len(foreign)} shards made from another catalogue "
            f"or other tiles (such as {foreign[0]}); "
            "choose another paths.shards, or remove that folder to ingest all again"
        )


class _CutShard:
    """Actor: cuts one shard's objects out of their tiles and writes it."""

    def __init__(
        self,
        units: Sequence[_Unit],
        objects: pa.Table,
        planes: Sequence[Plane],
        config: Config,
        survey: Survey,
    ) -> None:
        self.units, self.objects, self.planes = units, objects, planes
        self.config, self.survey = config, survey

    def __call__(self, table: pa.Table) -> pa.Table:
        rows, seconds = [], []
        for index in work.unit_column(table):
            start = time.monotonic()
            self._make(self.units[index])
            rows.append(self.units[index].rows)
            seconds.append(time.monotonic() - start)
        return pa.table({"rows": rows, "seconds": seconds})

    def _make(self, unit: _Unit) -> None:
        folder, parts, rejects = self.config.paths.shards, [], []
        for rows, indices in unit.portions:
            for result in self._extract(rows, indices):
                rejects += result.rejects.to_pylist()
                if len(result.objects):
                    parts.append(_table(result, self.survey, self.config))
        kept = sum(part.num_rows for part in parts)
        if unit.rows != kept + len(rejects):
            raise RunError(
                f"shard {unit.name}: {unit.rows} objects, but {kept} cutouts + {len(rejects)} "
                "rejects; this is a defect of ingest, nothing was written"
            )
        write_rejects(storage.join(folder, "rejects", f"{unit.name}.parquet"), rejects)
        if parts:
            shards.write_table(
                storage.join(folder, f"{unit.name}.parquet"),
                pa.concat_tables(parts),
                row_group_size=self.config.ingest.row_group_size,
            )
        # Last, for it is what resuming looks for.
        receipt = {"name": unit.name, "in": unit.rows, "rows": kept, "rejected": len(rejects)}
        storage.write_json(_receipt(folder, unit.name), receipt)

    def _extract(self, rows: np.ndarray, indices: np.ndarray) -> list[cutouts.CutoutResult]:
        planes = [self.planes[k] for k in indices]
        try:
            return [self._cut(rows, planes)]
        except InputError:
            # A tile that broke after it was scanned costs the objects on it, not their neighbours.
            return [self._cut_or_reject(row, planes) for row in rows]

    def _cut(self, rows: np.ndarray, planes: Sequence[Plane]) -> cutouts.CutoutResult:
        return cutouts.extract(
            self.objects.take(rows), planes, survey=self.survey, settings=self.config.ingest
        )

    def _cut_or_reject(self, row: int, planes: Sequence[Plane]) -> cutouts.CutoutResult:
        try:
            return self._cut(np.array([row]), planes)
        except InputError as error:
            nothing = self._cut(np.array([], np.int64), planes)
            reject = {
                "object_id": self.objects.column("object_id")[row].as_py(),
                "stage": "ingest",
                "reason": str(error),
                "retryable": True,
            }
            return replace(nothing, rejects=pa.Table.from_pylist([reject], schema=schema.REJECTS))


def _table(result: cutouts.CutoutResult, survey: Survey, config: Config) -> pa.Table:
    columns = {
        name: result.objects.column(name).to_numpy()
        for name in ("z_lens", "richness", "sigma_v_km_s", "l_x_erg_s", "ebv")
    }
    return shards.to_table(
        object_id=result.objects.column("object_id").to_pylist(),
        ra_deg=result.objects.column("ra_deg").to_numpy(),
        dec_deg=result.objects.column("dec_deg").to_numpy(),
        cutouts_nchw=result.cutouts_nchw,
        noise_sigma=result.noise_sigma,
        bands=result.bands,
        steps_per_sigma=config.ingest.steps_per_sigma,
        pixel_scale_arcsec=survey.pixel_scale_arcsec,
        survey=survey.name,
        psf_fwhm_arcsec=result.psf_fwhm_arcsec,
        depth_mag=result.depth_mag,
        noise_correlation=result.noise_correlation,
        coverage=result.coverage,
        **columns,
    )


def _cut(
    units: Sequence[_Unit],
    objects: pa.Table,
    planes: Sequence[Plane],
    config: Config,
    survey: Survey,
) -> float:
    progress, busy = Progress("ingest", len(units), unit="shards"), 0.0
    with session(config.cluster):
        cpus, _ = cluster_shape()
        actors = min(config.cluster.workers or max(1, int(cpus)), len(units))
        arguments = {
            "units": list(units),
            "objects": objects,
            "planes": list(planes),
            "config": config,
            "survey": survey,
        }
        stage = work.Stage(
            "cut", _CutShard, arguments, actors=actors, num_cpus=work.cpu_share(cpus, actors)
        )
        for table in work.run(len(units), [stage], verb="ingest"):
            progress.advance(table.num_rows, rows=sum(table.column("rows").to_pylist()))
            busy += sum(table.column("seconds").to_pylist())
    return busy


def _write_outside(objects: pa.Table, reach: Sequence[Sequence[int]], folder: str) -> int:
    rows = zip(objects["object_id"], objects["ra_deg"], objects["dec_deg"], reach, strict=True)
    return write_rejects(
        storage.join(folder, "rejects", f"{_OUTSIDE}.parquet"),
        [
            {
                "object_id": i.as_py(),
                "stage": "ingest",
                "reason": f"position {ra.as_py():.5f} {dec.as_py():+.5f} is outside every tile",
                "retryable": False,
            }
            for i, ra, dec, found in rows
            if not found
        ],
    )


def _reconcile(rows: int, kept: int, rejected: int, config: Config) -> None:
    folder = storage.redact(storage.join(config.paths.shards, "rejects"))
    if rows != kept + rejected:
        raise RunError(
            f"the catalogue has {rows} objects, but {kept} cutouts + {rejected} rejects were made; "
            "remove paths.shards and ingest again"
        )
    limit = config.ingest.max_reject_fraction
    if rejected > limit * rows:
        raise RunError(
            f"{rejected} of {rows} objects were rejected, more than ingest.max_reject_fraction "
            f"{limit}; their reasons are in '{folder}'"
        )
