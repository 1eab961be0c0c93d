"""`clusterray doctor`: what is missing before a long run, and what the run will take."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clusterray import storage
from clusterray.config import Config
from clusterray.engine.costs import MeasuredCosts, probe, read_costs
from clusterray.engine.forecast import Outlook, foresee
from clusterray.engine.ledger import RowGroup, Shard, refuse_other_run
from clusterray.engine.plan import list_shards, missing_row_groups
from clusterray.engine.score import check_survey, device_of, run_key
from clusterray.engine.session import cluster_shape, planned_shape, session
from clusterray.engine.work import unwrap
from clusterray.ensemble import bundle as bundles
from clusterray.errors import ClusterrayError, InputError, RunError
from clusterray.provenance import provenance
from clusterray.sky import catalogue

__all__ = ["Check", "DoctorReport", "doctor"]

State = Literal["ok", "warning", "failed", "skipped"]
_MARKS: Final = {"ok": "ok", "warning": "!!", "failed": "XX", "skipped": "--"}
_FREE_BYTES: Final = 2e9
_NODES_ASKED: Final = 32
_NODE_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `exit_code` is 0 unless it failed."""

    name: str
    state: State
    text: str
    exit_code: int = 0


@dataclass
class DoctorReport:
    """All checks in order, and the outlook on a scoring run where one could be made."""

    checks: list[Check] = field(default_factory=list)
    outlook: Outlook | None = None

    @property
    def exit_code(self) -> int:
        """That of the first failed check; 0 where none failed."""
        return next((c.exit_code for c in self.checks if c.exit_code), 0)

    def add(self, name: str, text: str, *, state: State = "ok", exit_code: int = 0) -> None:
        """Note a check, and show it: some take minutes."""
        self.checks.append(Check(name, state, text, exit_code))
        print(f"  {_MARKS[state]}  {name}: {text}", flush=True)

    @contextmanager
    def failing(self, name: str) -> Iterator[None]:
        """Turn an error raised inside into a failed check of this name."""
        try:
            yield
        except ClusterrayError as error:
            self.add(name, str(error), state="failed", exit_code=error.exit_code)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with provenance."""
        outlook = self.outlook
        return {
            "checks": [asdict(c) for c in self.checks],
            "predicted": outlook.predicted.to_json() if outlook else None,
            "source": outlook.source if outlook else None,
            "exit_code": self.exit_code,
            **provenance(),
        }

    def __str__(self) -> str:
        failed = [c.name for c in self.checks if c.state == "failed"]
        warned = [c.name for c in self.checks if c.state == "warning"]
        lines = [f"doctor: {len(self.checks)} checks, {len(failed)} failed, {len(warned)} warnings"]
        if failed:
            lines.append(f"  failed: {', '.join(failed)}")
        if self.outlook:
            lines.append(f"  predicted: {self.outlook.predicted} ({self.outlook.source})")
        return "\n".join(lines)


def doctor(config: Config) -> DoctorReport:
    """Check all that `clusterray score` needs and predict its time, resources and price.

    Nothing of a run is changed; where stage costs are not known, a few row groups are taken through
    the stages, and what was measured is kept in the scores folder.
    """
    report = DoctorReport()
    _storage(report, config)
    bundle = _bundle(report, config)
    _labels(report, config)
    shards = _shards(report, config, bundle)
    with report.failing("cluster"), session(config.cluster):
        _cluster(report, config, bundle)
        if bundle is not None and shards is not None:
            with report.failing("forecast"):
                _forecast(report, config, bundle, shards)
        else:
            report.add("forecast", "needs a bundle and shards", state="skipped")
    if not any(c.state == "failed" and c.name == "paths.root" for c in report.checks):
        storage.write_json(storage.join(config.paths.root, "doctor.json"), report.to_json())
    return report


def _storage(report: DoctorReport, config: Config) -> None:
    for name in ("root", "scores", "ranking", "nightly"):
        url = getattr(config.paths, name)
        with report.failing(f"paths.{name}"):
            _write_and_remove(url)
            free = storage.free_bytes(url)
            text = f"'{storage.redact(url)}' can be written and read"
            if free is not None:
                text += f", {free / 1e9:.3g} GB free"
            low = free is not None and free < _FREE_BYTES
            report.add(f"paths.{name}", text, state="warning" if low else "ok")


def _write_and_remove(url: str) -> None:
    token = uuid.uuid4().hex
    # A name with a dot is passed over by every listing of outputs.
    mine = storage.join(url, f".doctor-{token[:8]}")
    storage.write_bytes(mine, token.encode())
    try:
        if storage.read_bytes(mine) != token.encode():
            raise RunError(
                f"'{storage.redact(mine)}' does not hold what was just written there; "
                "this storage cannot keep a run"
            )
    finally:
        storage.remove(mine)


def _bundle(report: DoctorReport, config: Config) -> bundles.Bundle | None:
    with report.failing("bundle"):
        bundle = bundles.load(config.paths.bundle)
        check_survey(config, bundle)
        report.add(
            "bundle",
            f"{bundle.digest[:12]}: {', '.join(bundle.models)}; {', '.join(bundle.bands)}, "
            f"{bundle.size_px} px of {bundle.pixel_scale_arcsec}″; schemas as in this release",
        )
        return bundle
    return None


def _labels(report: DoctorReport, config: Config) -> None:
    url = config.paths.labels
    with report.failing("labels"):
        if storage.exists(url):
            report.add("labels", f"{len(catalogue.read_labels(url))} rows")
        else:
            text = f"there is no '{storage.redact(url)}'; the report will show no known lenses"
            report.add("labels", text, state="warning")


def _shards(
    report: DoctorReport, config: Config, bundle: bundles.Bundle | None
) -> list[Shard] | None:
    if bundle is None:
        report.add("shards", "needs a bundle to compare with", state="skipped")
        return None
    with report.failing("shards"):
        shards = list_shards(
            config.paths.shards,
            bands=bundle.bands,
            size_px=bundle.size_px,
            pixel_scale_arcsec=bundle.pixel_scale_arcsec,
        )
        rows, size = sum(s.rows for s in shards), sum(s.size for s in shards)
        groups = sum(len(s.rows_per_group) for s in shards)
        text = f"{len(shards)} shards, {groups} row groups, {rows:,} cutouts, {size / 1e9:.3g} GB"
        report.add("shards", text)
        return shards
    return None


def _cluster(report: DoctorReport, config: Config, bundle: bundles.Bundle | None) -> None:
    cpus, gpus = cluster_shape()
    planned = planned_shape(config.cluster)
    nodes = [n for n in ray.nodes() if n["Alive"]]
    text = f"{len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
    if planned != (cpus, gpus):
        text += f"; planned for {planned[0]:g} CPUs, {planned[1]:g} GPUs once it has grown"
    if planned[0] < 1:
        report.add(
            "cluster",
            f"{text}: nothing can run; set cluster.expected_cpus and cluster.expected_gpus to what "
            "the autoscaler may bring",
            state="failed",
            exit_code=InputError.exit_code,
        )
        return
    report.add("cluster", text)
    with report.failing("nodes"):
        _nodes(report, config, [n["NodeID"] for n in nodes if n["Resources"].get("CPU", 0) > 0])
    if bundle is not None and bundle.networks and not planned[1]:
        report.add("GPU", "none: the network will run on CPUs", state="warning")
    elif gpus >= 1:
        with report.failing("GPU"):
            report.add("GPU", _asked(_gpu.options(num_gpus=1).remote(), "a GPU"))


def _nodes(report: DoctorReport, config: Config, node_ids: list[str]) -> None:
    """Each node by itself must reach the shards and be able to write scores."""
    asked = node_ids[:_NODES_ASKED]
    tasks = [
        _reach.options(
            num_cpus=0.01, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(config.paths.shards, config.paths.scores)
        for node_id in asked
    ]
    for node_id, task in zip(asked, tasks, strict=True):
        try:
            _asked(task, "a CPU")
        except ClusterrayError as error:
            raise type(error)(f"node {node_id[:8]}: {error}") from error
    if asked:
        more = f" (of {len(node_ids)})" if len(node_ids) > len(asked) else ""
        report.add("nodes", f"{len(asked)}{more} read the shards and write the scores")


def _asked(task: Any, need: str) -> Any:
    try:
        return ray.get(task, timeout=_NODE_SECONDS)
    except GetTimeoutError as error:
        ray.cancel(task)
        raise RunError(
            f"no answer in {_NODE_SECONDS:.0f} s: {need} did not become free; "
            "look at who else uses the cluster"
        ) from error
    except Exception as error:
        raise unwrap(error) from error


@ray.remote(max_retries=0)
def _reach(shards_url: str, scores_url: str) -> None:
    storage.list_files(shards_url, suffix=".parquet", recursive=False)
    _write_and_remove(scores_url)


@ray.remote(max_retries=0)
def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RunError(
            "Ray counts a GPU, but this torch cannot use it; install the CUDA build of torch, or a "
            "driver that fits it"
        )
    about = torch.cuda.get_device_properties(0)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _forecast(
    report: DoctorReport, config: Config, bundle: bundles.Bundle, shards: list[Shard]
) -> None:
    shape = planned_shape(config.cluster)
    device = device_of(bundle, shape[1])
    folder = config.paths.scores
    refuse_other_run(folder, run_key(config, bundle, device=device), verb="score")
    missing, done = missing_row_groups(shards, storage.join(folder, "rows"))
    report.add("scores", f"{done} row groups done, {len(missing)} to do")
    groups = missing or [g for s in shards for g in s.row_groups()]
    measured = _costs(groups, config, bundle, device)
    report.outlook = foresee(missing, config, bundle.models, shape=shape, measured=measured)
    predicted = report.outlook.predicted
    report.add("forecast", f"{predicted} ({report.outlook.source})")
    if predicted.price is None:
        report.add("price", "set prices.cpu_hour and prices.gpu_hour to be told", state="warning")


def _costs(
    groups: list[RowGroup], config: Config, bundle: bundles.Bundle, device: str
) -> MeasuredCosts:
    known = read_costs(config.paths.scores, bundle=bundle.digest, device=device)
    if known is not None:
        return known
    measured = probe(groups, config, bundle, device=device)
    measured.write(config.paths.scores)
    return measured
