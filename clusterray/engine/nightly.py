"""The unattended run of a night: score what is new, rank everything, publish, measure drift."""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
from pyarrow import csv

from clusterray import storage
from clusterray.config import Config
from clusterray.engine import drift_quantities
from clusterray.engine.claim import Claim, Holder, claimed
from clusterray.engine.ledger import Receipt, Shard
from clusterray.engine.plan import list_shards
from clusterray.engine.published import Published, folder_of, latest, night_of, publish
from clusterray.engine.rank import rank
from clusterray.engine.score import check_survey, device_of, run_key, score
from clusterray.engine.session import planned_shape, session
from clusterray.engine.telemetry import RunSummary
from clusterray.ensemble import bundle as bundles
from clusterray.ensemble.drift_reference import summarise
from clusterray.errors import RunError
from clusterray.provenance import digest
from clusterray.rank import drift, drift_page

__all__ = ["nightly"]

_CLOCK_SECONDS: Final = 1800.0


def nightly(config: Config, *, now: datetime | None = None) -> RunSummary:
    """Publish a night under `paths.nightly`; do nothing if it is published, or nothing is new.

    A shard is new if the latest published ranking does not hold it as it stands now, under the
    run key of now. Shards that arrive meanwhile wait for the next night.

    Parameters
    ----------
    now : the moment that says which night it is; None takes the clock's.

    Raises
    ------
    InputError, BundleError, RunError : as `score` and `rank`, or this node's clock and the
        storage's differ by more than half an hour; nothing is published then, and the next run
        takes up what was done.
    """
    start = time.monotonic()
    hour = config.nightly.day_starts_utc_hour
    night = night_of(now or datetime.now(UTC), day_starts_utc_hour=hour)
    done = _done(config, night, start)
    if done is not None:
        return done
    expires = 60 * config.nightly.lock_expires_minutes
    with claimed(storage.join(config.paths.nightly, "claims"), expires_seconds=expires) as held:
        if isinstance(held, Holder):
            note = f"another run is at work ({held}): this one does nothing"
            return _idle(config, start, note)
        _check_clock(held)
        # It may have been published between the first look and the claim.
        return _done(config, night, start) or _Night(config, night, held, start).run()


def _check_clock(claim: Claim) -> None:
    """A clock that is wrong names the wrong night, and later nights would find theirs published."""
    ahead = claim.clock_ahead_seconds
    if abs(ahead) > _CLOCK_SECONDS:
        raise RunError(
            f"the clock of {socket.gethostname()} is {abs(ahead) / 3600:.1f} h "
            f"{'ahead of' if ahead > 0 else 'behind'} that of paths.nightly, so which night it is "
            "cannot be told; set it (NTP), or run on another node"
        )


def _done(config: Config, night: str, start: float) -> RunSummary | None:
    before = latest(config.paths.nightly)
    if before is None or before.night < night:
        return None
    which = "this night" if before.night == night else f"the later night {before.night}"
    note = f"night {night}: {which} was published at {before.at}; nothing to do"
    return _idle(config, start, note, skipped=len(before.shards))


def _idle(config: Config, start: float, note: str, *, skipped: int = 0) -> RunSummary:
    return RunSummary(
        verb="nightly",
        unit="shards",
        done=0,
        skipped=skipped,
        rows=0,
        rejected=0,
        seconds=time.monotonic() - start,
        outputs={"nightly": config.paths.nightly},
        notes=(note,),
    )


@dataclass
class _Night:
    """One night's run, under the claim."""

    config: Config
    night: str
    claim: Claim
    start: float

    def run(self) -> RunSummary:
        """Score, rank, measure, publish."""
        config = self.config
        bundle = bundles.load(config.paths.bundle)
        check_survey(config, bundle)
        shards = list_shards(
            config.paths.shards,
            bands=bundle.bands,
            size_px=bundle.size_px,
            pixel_scale_arcsec=bundle.pixel_scale_arcsec,
        )
        folder = folder_of(config.paths.nightly, self.night)
        paths = config.paths.model_copy(update={"ranking": folder})
        dated = config.model_copy(update={"paths": paths})
        with session(config.cluster):
            device = device_of(bundle, planned_shape(config.cluster)[1])
            key = digest(run_key(config, bundle, device=device))
            before = latest(config.paths.nightly)
            new = [s for s in shards if before is None or not before.holds(s, run_key=key)]
            gone = set(before.shards) - {s.name for s in shards} if before else set()
            if not new and not gone and before is not None:
                note = f"night {self.night}: no shard is new since night {before.night}"
                return _idle(config, self.start, note, skipped=len(shards))
            print(
                f"nightly: night {self.night}, {len(new)} new shards of {len(shards)}", flush=True
            )
            score(config, shards=shards)
            self.claim.check()
            ranked = rank(dated, shards=shards)
            receipts = _receipts_of(new, config)
            statistics, notes = self._drift(new, receipts, bundle, folder)
        self.claim.check()
        rows, rejected = sum(r.rows for r in receipts), sum(r.rejected for r in receipts)
        summary = RunSummary(
            verb="nightly",
            unit="shards",
            done=len(new),
            skipped=len(shards) - len(new),
            rows=rows,
            rejected=rejected,
            seconds=time.monotonic() - self.start,
            outputs={**ranked.outputs, "drift": storage.join(folder, "drift.html")},
            notes=(f"night {self.night}", *ranked.notes, *notes),
            exceeded=drift.exceeded(statistics),
        )
        summary.write(storage.join(folder, "summary.json"))
        record = Published(
            night=self.night,
            folder=folder.removeprefix(config.paths.nightly).strip("/"),
            run_key=key,
            shards={s.name: s.footer for s in shards},
            exceeded=list(summary.exceeded),
            numbers={
                "objects ranked": ranked.rows,
                "new objects": rows,
                "new shards": len(new),
                "rejected": rejected,
                "minutes": round(summary.seconds / 60, 1),
            },
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        publish(config.paths.nightly, record)
        return summary

    def _drift(
        self,
        new: Sequence[Shard],
        receipts: Sequence[Receipt],
        bundle: bundles.Bundle,
        folder: str,
    ) -> tuple[list[drift.Statistic], tuple[str, ...]]:
        """Measure the night's new shards and write table and page."""
        limits, reference = self.config.nightly, bundle.drift_reference
        statistics: list[drift.Statistic] = []
        summarised: pa.Table | None = None
        notes: tuple[str, ...] = ()
        if reference is None:
            notes = ("the bundle has no reference: drift not measured",)
        elif receipts:
            values = drift_quantities.of_night(new, receipts, self.config, bundle)
            summarised = summarise(values)
            statistics = drift.compare(
                reference,
                values,
                max_psi={str(k): v for k, v in limits.max_psi.items()},
                max_ks={str(k): v for k, v in limits.max_ks.items()},
            )
            stack = values["score", "logit_stack"]
            spread = drift.score_spread(reference, stack, least=limits.min_score_spread)
            statistics += [spread] if spread else []
        statistics += self._of_run(new, receipts)
        table = drift.table(statistics)
        sink = pa.BufferOutputStream()
        csv.write_csv(table, sink)
        storage.write_bytes(storage.join(folder, "drift.csv"), sink.getvalue())
        storage.write_table(storage.join(folder, "drift.parquet"), table)
        html = drift_page.render(
            statistics,
            night=self.night,
            facts=self._facts(new, bundle),
            reference=reference,
            new=summarised,
        )
        storage.write_bytes(storage.join(folder, "drift.html"), html.encode())
        return statistics, notes

    def _of_run(self, new: Sequence[Shard], receipts: Sequence[Receipt]) -> list[drift.Statistic]:
        limits = self.config.nightly
        rows, rejected = sum(r.rows for r in receipts), sum(r.rejected for r in receipts)
        rate = rejected / rows if rows else None
        return [
            drift.of_run("reject_rate", rate, most=limits.max_reject_rate, n_night=rows),
            drift.of_run(
                "latency_hours", self._latency(new), most=limits.max_latency_hours, n_night=rows
            ),
        ]

    def _latency(self, new: Sequence[Shard]) -> float | None:
        """Hours since the first of the new shards was last written; by two clocks."""
        folder = self.config.paths.shards
        entries = storage.list_files(folder, suffix=".parquet", recursive=False)
        urls = {s.url for s in new}
        times = [e.mtime_ns for e in entries if e.url in urls and e.mtime_ns]
        return (time.time() - min(times) / 1e9) / 3600 if times else None

    def _facts(self, new: Sequence[Shard], bundle: bundles.Bundle) -> dict[str, Any]:
        return {
            "night": self.night,
            "bundle": bundle.digest[:12],
            "new shards": len(new),
            "new objects": sum(s.rows for s in new),
            "objects sampled for drift, at most": self.config.nightly.drift_rows,
            "limits": self.config.nightly.model_dump(mode="json"),
        }


def _receipts_of(new: Sequence[Shard], config: Config) -> list[Receipt]:
    wanted = {(s.name, s.footer) for s in new}
    return [r for r in Receipt.read_all(config.paths.scores) if (r.shard, r.footer) in wanted]
