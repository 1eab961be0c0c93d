"""Make a survey, one tile an actor call, and take up a run that was cut short."""

import time
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from clusterray import storage
from clusterray.config import Config
from clusterray.engine import work
from clusterray.engine.ledger import open_run
from clusterray.engine.session import cluster_shape, session
from clusterray.engine.telemetry import Progress, RunSummary
from clusterray.errors import ConfigError
from clusterray.simulate import delivery

__all__ = ["simulate"]


class _RenderTile:
    """Actor: renders tiles of the plan; its receipt is written after the tile's files."""

    def __init__(self, specs: Sequence[delivery.TileSpec], config: Config, survey: str) -> None:
        self.specs, self.config, self.survey = specs, config, survey

    def __call__(self, table: pa.Table) -> pa.Table:
        rows, seconds = [], []
        for unit in work.unit_column(table):
            start = time.monotonic()
            outcome = delivery.render_tile(
                self.specs[unit],
                settings=self.config.simulate,
                seed=self.config.seed,
                out_url=storage.join(self.survey, "tiles"),
            )
            storage.write_json(_receipt(self.survey, outcome.name), outcome.to_json())
            rows.append(len(outcome.clusters))
            seconds.append(time.monotonic() - start)
        return pa.table({"rows": rows, "seconds": seconds})


def _receipt(survey: str, name: str) -> str:
    return storage.join(survey, "receipts", f"{name}.json")


def simulate(config: Config) -> RunSummary:
    """Write tiles, catalogue and labels beside `paths.catalogue`, and the truth to `paths.truth`.

    Raises
    ------
    ConfigError : `paths.catalogue` is not ``…/catalogue.fits``, or `paths.truth` is empty or lies
        where training reads.
    RunError : the folder holds another simulation.
    """
    start = time.monotonic()
    survey, slash, name = config.paths.catalogue.rpartition("/")
    if not slash or name != "catalogue.fits":
        raise ConfigError(
            f"paths.catalogue is '{config.paths.catalogue}'; simulate needs a file named "
            "catalogue.fits in a folder, such as ROOT/survey/catalogue.fits"
        )
    if not config.paths.truth or config.paths.truth.startswith(survey + "/"):
        raise ConfigError(
            f"paths.truth is '{config.paths.truth}'; simulate needs a file outside '{survey}', "
            "such as ROOT/truth/truth.parquet"
        )
    specs = delivery.plan(config.simulate, seed=config.seed)
    key = {"seed": config.seed, "simulate": config.simulate.model_dump(mode="json")}
    open_run(survey, key, config=config, verb="simulate")
    there = {e.url for e in storage.list_files(storage.join(survey, "receipts"))}
    missing = [s for s in specs if _receipt(survey, s.name) not in there]
    seconds = _render(missing, config, survey) if missing else 0.0
    outcomes = [
        delivery.TileOutcome.from_json(storage.read_json(_receipt(survey, s.name))) for s in specs
    ]
    counts = delivery.finish(
        outcomes,
        settings=config.simulate,
        seed=config.seed,
        survey_url=survey,
        truth_url=config.paths.truth,
    )
    kinds: Counter[str] = Counter(counts["kinds"])
    summary = RunSummary(
        verb="simulate",
        unit="tiles",
        done=len(missing),
        skipped=len(specs) - len(missing),
        rows=sum(len(s.index) for s in missing),
        rejected=0,
        seconds=time.monotonic() - start,
        outputs={"survey": survey, "truth": config.paths.truth},
        stage_seconds={"render": round(seconds, 2)} if missing else {},
        notes=(", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),),
    )
    summary.write(storage.join(survey, "summary.json"))
    return summary


def _render(specs: Sequence[delivery.TileSpec], config: Config, survey: str) -> float:
    progress = Progress("simulate", len(specs), unit="tiles")
    busy = 0.0
    with session(config.cluster):
        cpus, _ = cluster_shape()
        actors = config.cluster.workers or max(1, int(cpus))
        stage = work.Stage(
            "render",
            _RenderTile,
            {"specs": list(specs), "config": config, "survey": survey},
            actors=min(actors, len(specs)),
            num_cpus=work.cpu_share(cpus, actors),
        )
        for table in work.run(len(specs), [stage]):
            progress.advance(table.num_rows, rows=sum(table.column("rows").to_pylist()))
            busy += sum(table.column("seconds").to_pylist())
    return busy
