"""Score every cutout of every shard, exactly once."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from clusterray import schema, storage
from clusterray.config import Config
from clusterray.engine import work
from clusterray.engine.ahead import opened_register
from clusterray.engine.costs import MeasuredCosts, of_run, probe, read_costs
from clusterray.engine.forecast import Outlook, foresee, spent
from clusterray.engine.ledger import RowGroup, Shard, open_run
from clusterray.engine.metrics import RunMeters
from clusterray.engine.plan import Pools, list_shards, missing_row_groups
from clusterray.engine.receipts import settle
from clusterray.engine.session import cluster_shape, planned_shape, session
from clusterray.engine.stages import FinishStage, ReadStage, VitStage, wanted_features
from clusterray.engine.telemetry import Progress, RunSummary
from clusterray.ensemble import bundle as bundles
from clusterray.errors import ConfigError, RunError

__all__ = ["SCORING_VERSION", "check_survey", "device_of", "run_key", "score"]

SCORING_VERSION: Final = 2
"""Raise it when a change to the code changes scores."""

_PROBE_PAYS_SECONDS: Final = 300.0
"""Pools of the right size gain a long run more than the half minute that a probe takes."""


def run_key(config: Config, bundle: bundles.Bundle, *, device: str) -> dict[str, Any]:
    """Everything that can change a score, and nothing else: neither resources nor the commit."""
    return {
        "bundle": bundle.digest,
        "schemas": {name: schema.VERSIONS[name] for name in ("cutouts", "features", "scores")},
        "scoring_version": SCORING_VERSION,
        "score": config.score.model_dump(exclude={"max_reject_fraction"}),
        "device": device,
    }


def device_of(bundle: bundles.Bundle, gpus: float) -> str:
    """Class of device that a cluster with so many GPUs scores on."""
    return "cuda" if gpus >= 1 and bundle.networks else "cpu"


def score(config: Config, *, shards: Sequence[Shard] | None = None) -> RunSummary:
    """Score `paths.shards` with `paths.bundle` into `paths.scores`; do only what is missing.

    Parameters
    ----------
    shards : as they stood when they were listed; None lists them now.

    Raises
    ------
    InputError : no shards; bands or size that the bundle was not trained on.
    BundleError : a bundle that is incomplete, altered or of another version.
    RunError : the scores folder holds another run, rows do not reconcile, or more than
        `score.max_reject_fraction` were rejected.
    """
    start = time.monotonic()
    bundle = bundles.load(config.paths.bundle)
    check_survey(config, bundle)
    folder = config.paths.scores
    outputs = storage.join(folder, "rows")
    listing = _listing(config, bundle) if shards is None else None
    with session(config.cluster):
        shards = listing.result() if listing else shards or []
        shape = planned_shape(config.cluster)
        device = device_of(bundle, shape[1])
        open_run(folder, run_key(config, bundle, device=device), config=config, verb="score")
        missing, skipped = missing_row_groups(shards, outputs)
        outlook = _outlook(missing, config, bundle, shape=shape, device=device)
        worked = _Worked()
        if missing:
            worked = _score_row_groups(missing, config, bundle, outlook.pools, shape=shape)
            worked.costs(shape=shape, bundle=bundle.digest, device=device).write(folder)
        receipts = settle(shards, folder, counted=worked.counted)
    rejected = sum(r.rejected for r in receipts)
    seconds = time.monotonic() - start
    predicted = outlook.predicted
    actual = spent(seconds, shape=shape, bytes_read=predicted.bytes_read, prices=config.prices)
    summary = RunSummary(
        verb="score",
        unit="row groups",
        done=len(missing),
        skipped=skipped,
        rows=worked.rows,
        rejected=rejected,
        seconds=seconds,
        outputs={"scores": folder},
        stage_seconds={name: round(s, 2) for name, s in worked.busy.items()},
        forecast={
            "predicted": predicted.to_json(),
            "actual": actual.to_json(),
            "source": outlook.source,
            "pools": asdict(outlook.pools),
        },
        notes=(f"predicted {predicted} ({outlook.source})", f"actual {actual}") if missing else (),
    )
    summary.write(storage.join(folder, "summary.json"))
    _check_rejects(rejected, sum(s.rows for s in shards), config)
    return summary


def _listing(config: Config, bundle: bundles.Bundle) -> Future[list[Shard]]:
    """The shards, listed in a thread while Ray starts: each takes seconds."""
    pool = ThreadPoolExecutor(1)
    listing = pool.submit(
        list_shards,
        config.paths.shards,
        bands=bundle.bands,
        size_px=bundle.size_px,
        pixel_scale_arcsec=bundle.pixel_scale_arcsec,
    )
    pool.shutdown(wait=False)
    return listing


@dataclass
class _Worked:
    """What the row groups of a run took, and rows scored and rejected by output name.

    `first_seconds` is how long it was until the first one was done.
    """

    busy: Counter[str] = field(default_factory=Counter)
    counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    first_busy: float = 0.0

    def add(self, answer: Mapping[str, Any], group: RowGroup, *, seconds: float) -> None:
        """Count the answer that came after so many seconds."""
        self.counted[group.output] = answer["scored"], answer["rejected"]
        busy = json.loads(answer["seconds"])
        self.busy.update(busy)
        self.rows += answer["scored"] + answer["rejected"]
        self.seconds = seconds
        if not self.first_seconds:
            self.first_seconds, self.first_busy = seconds, sum(busy.values())

    def costs(self, *, shape: tuple[float, float], bundle: str, device: str) -> MeasuredCosts:
        """What a cutout costs in each stage; features computed ahead are part of reading."""
        busy: dict[str, float] = dict(self.busy)
        busy["read"] = busy.get("read", 0.0) + busy.pop("ahead", 0.0)
        startup = max(0.0, self.first_seconds - self.first_busy)
        return of_run(
            busy,
            rows=max(self.rows, 1),
            working_seconds=self.seconds - startup,
            startup_seconds=startup,
            shape=shape,
            bundle=bundle,
            device=device,
        )


def _outlook(
    missing: Sequence[RowGroup],
    config: Config,
    bundle: bundles.Bundle,
    *,
    shape: tuple[float, float],
    device: str,
) -> Outlook:
    """Plan from what was measured before; a long run that was never measured is probed first."""
    folder = config.paths.scores
    measured = read_costs(folder, bundle=bundle.digest, device=device)
    outlook = foresee(missing, config, bundle.models, shape=shape, measured=measured)
    # Not where an autoscaler still has to bring the node that would be probed.
    if measured or outlook.predicted.seconds < _PROBE_PAYS_SECONDS or cluster_shape() != shape:
        return outlook
    measured = probe(missing, config, bundle, device=device)
    measured.write(folder)
    return foresee(missing, config, bundle.models, shape=shape, measured=measured)


def check_survey(config: Config, bundle: bundles.Bundle) -> None:
    """Refuse survey settings other than those the bundle was trained on (ConfigError)."""
    # A survey's name is not compared: what it stands for may be set value by value.
    asked = config.survey
    for name, got, want in (
        ("bands", asked.bands, bundle.bands),
        ("size_px", asked.size_px, bundle.size_px),
        ("pixel_scale_arcsec", asked.pixel_scale_arcsec, bundle.pixel_scale_arcsec),
    ):
        if got is not None and got != want:
            raise ConfigError(
                f"survey.{name} is {got}, the bundle was trained on {want}; score with the bundle "
                "of this survey"
            )


def _stages(
    groups: Sequence[RowGroup],
    config: Config,
    bundle: bundles.Bundle,
    pools: Pools,
    *,
    device: str,
    register: Any,
) -> list[work.Stage]:
    settings, url = config.score, config.paths.bundle
    has_network = bool(bundle.networks)
    stages = [
        work.Stage(
            "read",
            ReadStage,
            {
                "groups": list(groups),
                "settings": wanted_features(bundle),
                "keep_pixels": has_network,
                "register": register,
            },
            actors=pools.read,
            num_cpus=pools.num_cpus,
            # One row group is fetched while another is worked on.
            calls=2 if pools.fused and storage.is_remote(config.paths.shards) else 1,
        ),
        work.Stage(
            "vit",
            VitStage,
            {"bundle_url": url, "settings": settings, "device": device},
            actors=pools.vit,
            num_cpus=0 if pools.gpus_per_vit else pools.num_cpus,
            num_gpus=pools.gpus_per_vit,
            calls=pools.vit_calls,
        ),
        work.Stage(
            "finish",
            FinishStage,
            {
                "bundle_url": url,
                "groups": list(groups),
                "settings": settings,
                "folder": config.paths.scores,
            },
            actors=pools.finish,
            num_cpus=pools.num_cpus,
            calls=pools.finish_calls,
        ),
    ]
    if not has_network:
        del stages[1]
    return stages


def _computes_ahead(bundle: bundles.Bundle, *, device: str) -> bool:
    # Without a GPU the cores of readers that wait are the network's.
    return device == "cuda" and wanted_features(bundle) is not None


def _score_row_groups(
    groups: Sequence[RowGroup],
    config: Config,
    bundle: bundles.Bundle,
    pools: Pools,
    *,
    shape: tuple[float, float],
) -> _Worked:
    device = device_of(bundle, shape[1])
    progress = Progress("score", len(groups), unit="row groups")
    worked, start = _Worked(), time.monotonic()
    meters = RunMeters("score", units=len(groups), shape=shape, prices=config.prices)
    ahead = _computes_ahead(bundle, device=device)
    with opened_register(len(groups)) if ahead else nullcontext() as register:
        tables = work.run(
            len(groups),
            _stages(groups, config, bundle, pools, device=device, register=register),
            verb="score",
            units_per_batch=pools.row_groups_per_batch,
            rows=[group.rows for group in groups],
            fused=pools.fused,
        )
        for table in tables:
            for answer in table.to_pylist():
                meters.advance(rejected=answer["rejected"])
                progress.advance(rows=answer["scored"] + answer["rejected"])
                worked.add(answer, groups[answer["unit"]], seconds=time.monotonic() - start)
    return worked


def _check_rejects(rejected: int, rows: int, config: Config) -> None:
    limit = config.score.max_reject_fraction
    if rejected > limit * rows:
        raise RunError(
            f"{rejected} of {rows} rows were rejected, more than score.max_reject_fraction "
            f"{limit}; their reasons are in '{storage.join(config.paths.scores, 'rejects')}'"
        )
