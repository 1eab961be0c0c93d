"""Make a survey, or put lenses into one, a unit per actor call; take up a run cut short."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from clusterray import schema, storage
from clusterray.config import Config
from clusterray.engine import work
from clusterray.engine.ledger import open_run, read_record, read_shard, write_rejects
from clusterray.engine.made_units import InjectionUnit, ShardUnit, TileUnit, Unit
from clusterray.engine.session import cluster_shape, session
from clusterray.engine.telemetry import Progress, RunSummary
from clusterray.errors import ConfigError, InputError, RunError
from clusterray.provenance import data_fingerprint, provenance
from clusterray.simulate import gallery, layout, population
from clusterray.simulate.cutouts import CutoutMaker
from clusterray.simulate.observe import completed
from clusterray.simulate.recipe import load
from clusterray.simulate.survey_tables import known_lenses, write_catalogue, write_labels
from clusterray.sky import surveys

__all__ = ["simulate"]

_SIMULATION_VERSION: Final = 2
"""Raised when the same recipe and seed come to give other pixels."""
_RECEIPT: Final = {
    "name": str,
    "rows": int,
    "made": int,
    "kinds": dict,
    "cuts": dict,
    "rows_of": list,
}
# Where cuts remove more than this share of the draws, the summary says so.
_MANY_CUT: Final = 0.5


@dataclass(frozen=True)
class _Plan:
    """What is to be made, and where: receipts lie in `folder`, truth parts beside `paths.truth`."""

    units: list[Unit]
    unit: str
    folder: str
    truth_parts: str
    maker: CutoutMaker
    shown: frozenset[str]
    known: list[str]
    key: dict[str, Any]

    def receipt(self, name: str) -> str:
        return storage.join(self.folder, "receipts", f"{name}.json")


class _Make:
    """Actor: makes units of a plan; the receipt is written after everything else of the unit."""

    def __init__(self, plan: _Plan, config: Config) -> None:
        self.plan, self.config = plan, config

    def __call__(self, table: pa.Table) -> pa.Table:
        rows, seconds = [], []
        for index in work.unit_column(table):
            start = time.monotonic()
            unit = self.plan.units[index]
            self._make(unit)
            rows.append(unit.rows)
            seconds.append(time.monotonic() - start)
        return pa.table({"rows": rows, "seconds": seconds})

    def _make(self, unit: Unit) -> None:
        plan = self.plan
        made = unit.make(plan.maker, self.config, folder=plan.folder, shown=plan.shown)
        for one in made.cards:
            url = storage.join(plan.truth_parts, "gallery", f"{one['object_id']}.json")
            storage.write_json(url, one)
        write_rejects(storage.join(plan.folder, "rejects", f"{unit.name}.parquet"), made.rejects)
        storage.write_table(storage.join(plan.truth_parts, f"{unit.name}.parquet"), made.truth)
        kinds = Counter(made.truth["kind"].to_pylist())
        receipt = {
            "name": unit.name,
            "rows": unit.rows,
            "made": made.truth.num_rows,
            "kinds": dict(sorted(kinds.items())),
            "cuts": dict(sorted(made.cuts.items())),
            "rows_of": made.catalogue,
        }
        storage.write_json(plan.receipt(unit.name), receipt)


def simulate(config: Config) -> RunSummary:
    """Make a survey by `simulate.recipe`; or, with `simulate.inject_into`, put lenses into one.

    Tiles and catalogue go beside `paths.catalogue`; with ``output = "shards"``, or injected,
    cutouts go to `paths.shards`. Labels go to `paths.labels`, the truth to `paths.truth`, and a
    gallery page beside it.

    Raises
    ------
    ConfigError : a recipe or survey that cannot be simulated, or paths that do not fit.
    RunError : the folder holds another simulation.
    """
    start = time.monotonic()
    plan = _plan(config)
    open_run(plan.folder, plan.key, config=config, verb="simulate")
    there = {e.url for e in storage.list_files(storage.join(plan.folder, "receipts"))}
    missing = [u for u in plan.units if plan.receipt(u.name) not in there]
    busy = _run(missing, plan, config) if missing else 0.0
    receipts = [read_record(plan.receipt(u.name), _RECEIPT) for u in plan.units]
    n_rejected = _finish(receipts, plan, config)
    summary = RunSummary(
        verb="simulate",
        unit=plan.unit,
        done=len(missing),
        skipped=len(plan.units) - len(missing),
        rows=sum(u.rows for u in missing),
        rejected=n_rejected,
        seconds=time.monotonic() - start,
        outputs={
            plan.unit: plan.folder,
            "truth": config.paths.truth,
            **({"gallery": _gallery_url(config)} if plan.shown else {}),
        },
        stage_seconds={"render": round(busy, 2)} if missing else {},
        notes=_notes(receipts, plan),
    )
    summary.write(storage.join(plan.folder, "summary.json"))
    return summary


def _plan(config: Config) -> _Plan:
    """Everything that can be refused, before any work."""
    settings = config.simulate
    recipe = load(settings.recipe).with_lens_fraction(settings.lens_fraction)
    maker = CutoutMaker(completed(surveys.resolve(config.survey)), recipe, config.seed)
    maker.check()
    into = "shards" if settings.inject_into else settings.output
    folder = _survey_folder(config) if into == "tiles" else config.paths.shards
    if not config.paths.truth or config.paths.truth.startswith(folder + "/"):
        raise ConfigError(
            f"paths.truth is '{config.paths.truth}'; simulate needs a file outside '{folder}', "
            "such as ROOT/truth/truth.parquet"
        )
    known: list[str] = []
    key: dict[str, Any] = {}
    if settings.inject_into:
        unit = "row groups"
        units, key, shown = _injection(config, maker)
    else:
        kinds = [
            population.kind_of(i, seed=config.seed, recipe=recipe)
            for i in range(settings.n_clusters)
        ]
        ids = [population.object_id_of(i) for i in range(settings.n_clusters)]
        lenses = [i for i, kind in zip(ids, kinds, strict=True) if kind == "lens"]
        known = known_lenses(lenses, n=settings.n_known, seed=config.seed)
        by_class = gallery.chosen(kinds, ids, per_class=settings.gallery_per_class)
        shown = frozenset(i for chosen in by_class.values() for i in chosen)
        units = _survey_units(config, maker)
        unit = settings.output
    key |= {
        "version": _SIMULATION_VERSION,
        "seed": config.seed,
        "recipe": recipe.digest(),
        "survey": config.survey.model_dump(mode="json"),
        **settings.model_dump(
            mode="json",
            include={
                "n_clusters",
                "output",
                "clusters_per_tile",
                "rows_per_shard",
                "pixel_scale_arcsec",
            },
        ),
    }
    parts = f"{config.paths.truth.removesuffix('.parquet')}-parts"
    return _Plan(units, unit, folder, parts, maker, shown, known, key)


def _survey_folder(config: Config) -> str:
    folder, slash, name = config.paths.catalogue.rpartition("/")
    if not slash or name != "catalogue.fits":
        raise ConfigError(
            f"paths.catalogue is '{config.paths.catalogue}'; simulate needs a file named "
            "catalogue.fits in a folder, such as ROOT/survey/catalogue.fits"
        )
    return folder


def _survey_units(config: Config, maker: CutoutMaker) -> list[Unit]:
    settings = config.simulate
    if settings.output == "tiles":
        specs = layout.plan(settings, maker.survey, seed=config.seed)
        return [TileUnit(spec) for spec in specs]
    n, step = settings.n_clusters, settings.rows_per_shard
    return [
        ShardUnit(f"S{k:05d}", first, min(first + step, n))
        for k, first in enumerate(range(0, n, step))
    ]


def _injection(
    config: Config, maker: CutoutMaker
) -> tuple[list[Unit], dict[str, Any], frozenset[str]]:
    """Row groups of the shards to inject into, what names them, and whom the gallery shows."""
    source = config.simulate.inject_into
    entries = storage.list_files(source, suffix=".parquet", recursive=False)
    if not entries:
        raise InputError(
            f"simulate.inject_into: no shards in '{storage.redact(source)}'; "
            "name a folder that 'clusterray ingest' or 'clusterray simulate' has filled"
        )
    frame = maker.frame
    found = [
        read_shard(
            e.url,
            bands=maker.survey.band_names,
            size_px=frame.size_px,
            pixel_scale_arcsec=frame.pixel_arcsec,
        )
        for e in entries
    ]
    units: list[Unit] = [InjectionUnit(g) for shard in found for g in shard.row_groups()]
    key = {"inject_into": data_fingerprint(s.footer for s in found)}
    first = storage.read_table(found[0].url, columns=["object_id"])["object_id"].to_pylist()
    return units, key, frozenset(first[: 4 * config.simulate.gallery_per_class])


def _run(units: Sequence[Unit], plan: _Plan, config: Config) -> float:
    progress = Progress("simulate", len(units), unit=plan.unit)
    busy = 0.0
    with session(config.cluster):
        cpus, _ = cluster_shape()
        actors = min(config.cluster.workers or max(1, int(cpus)), len(units))
        part = _Plan(**{**vars(plan), "units": list(units)})
        stage = work.Stage(
            "render",
            _Make,
            {"plan": part, "config": config},
            actors=actors,
            num_cpus=work.cpu_share(cpus, actors),
        )
        for table in work.run(len(units), [stage], verb="simulate"):
            progress.advance(table.num_rows, rows=sum(table.column("rows").to_pylist()))
            busy += sum(table.column("seconds").to_pylist())
    return busy


def _finish(receipts: Sequence[dict[str, Any]], plan: _Plan, config: Config) -> int:
    """Write what needs all units: truth, labels, catalogue, gallery. Returns the rejects."""
    parts = [storage.join(plan.truth_parts, f"{r['name']}.parquet") for r in receipts]
    truth = pa.concat_tables([storage.read_table(url) for url in parts])
    where = storage.redact(config.paths.truth)
    schema.require_unique(truth, where=where)
    storage.write_table(config.paths.truth, schema.check(truth, schema.TRUTH, where=where))
    n_in, n_made = (sum(r[k] for r in receipts) for k in ("rows", "made"))
    n_rejected = 0
    if config.simulate.inject_into:
        n_rejected = n_in - n_made // 2
        y = zip(truth["object_id"].to_pylist(), truth["y"].to_pylist(), strict=True)
        labels = [(i, 1 if lens == 1 else -1) for i, lens in y]
        write_labels(config.paths.labels, labels, source="injected")
    else:
        if n_in != n_made:
            raise RunError(
                f"{n_made} systems were made of {n_in}; remove '{storage.redact(plan.folder)}' "
                "and run again"
            )
        labels = [(i, 1) for i in plan.known]
        write_labels(config.paths.labels, labels, source="simulated follow-up")
    if plan.unit == "tiles":
        _write_catalogue(receipts, config)
    if plan.shown:
        _write_gallery(plan, config)
    return n_rejected


def _write_catalogue(receipts: Sequence[dict[str, Any]], config: Config) -> None:
    rows = sorted((c for r in receipts for c in r["rows_of"]), key=lambda c: int(c["object_id"]))
    columns = {
        k: np.array([np.nan if c[k] is None else c[k] for c in rows])
        for k in ("z_lens", "richness", "sigma_v_km_s", "l_x_erg_s")
    }
    sky = np.array([[c["ra_deg"], c["dec_deg"]] for c in rows])
    write_catalogue(config.paths.catalogue, [c["object_id"] for c in rows], sky, columns)


def _gallery_url(config: Config) -> str:
    return storage.join(config.paths.truth.rpartition("/")[0], "gallery.html")


def _write_gallery(plan: _Plan, config: Config) -> None:
    entries = storage.list_files(storage.join(plan.truth_parts, "gallery"), suffix=".json")
    cards = [storage.read_json(e.url) for e in entries]
    cards.sort(key=lambda c: (len(c["object_id"]), c["object_id"]))
    about = {
        "recipe": plan.maker.recipe.digest(),
        "seed": config.seed,
        "survey": plan.maker.survey.name,
        **provenance(),
    }
    html = gallery.render(cards, recipe=plan.maker.recipe, about=about)
    storage.write_bytes(_gallery_url(config), html.encode())


def _notes(receipts: Sequence[dict[str, Any]], plan: _Plan) -> tuple[str, ...]:
    kinds, cuts = Counter[str](), Counter[str]()
    for receipt in receipts:
        kinds.update(receipt["kinds"])
        cuts.update(receipt["cuts"])
    made, removed = kinds.total(), cuts.total()
    notes = [
        ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
        f"recipe {plan.maker.recipe.digest()[:12]}",
    ]
    if removed:
        why = ", ".join(f"{n} by '{cut}'" for cut, n in cuts.most_common())
        share = removed / (made + removed)
        text = f"cuts removed {removed} of {made + removed} draws ({100 * share:.0f} %): {why}"
        notes.append(text + ("; more than half" if share > _MANY_CUT else ""))
    return tuple(notes)
