"""What a cutout costs in each stage, as measured: by a run on its way, or by a short probe.

A run leaves its measurement in the scores folder (`costs.json`), for the forecast of the next
one with the same bundle on the same class of device.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError

from clusterray import storage
from clusterray.config import Config
from clusterray.engine import work
from clusterray.engine.ledger import RowGroup, read_record
from clusterray.engine.plan import StageCosts
from clusterray.engine.stages import FinishStage, ReadStage, VitStage, wanted_features
from clusterray.ensemble import bundle as bundles
from clusterray.errors import RunError

__all__ = ["MeasuredCosts", "of_run", "probe", "read_costs"]

_FILE: Final = "costs.json"
_PROBED: Final = 3
"""Row groups of a probe; the first one warms up and is not counted."""
_WAIT_SECONDS: Final = 600.0


@dataclass(frozen=True)
class MeasuredCosts:
    """Seconds per cutout and stage, and of starting up, with where they were measured."""

    per_row: Mapping[str, float]
    startup_seconds: float
    rows: int
    bundle: str
    device: str
    source: str

    def stage_costs(self) -> StageCosts:
        """The same for planning; a stage that was not measured keeps the default."""
        default, found = StageCosts(), self.per_row
        on_gpu = self.device == "cuda"
        return StageCosts(
            read=found.get("read", default.read),
            vit_cpu=default.vit_cpu if on_gpu else found.get("vit", default.vit_cpu),
            vit_gpu=found.get("vit", default.vit_gpu) if on_gpu else default.vit_gpu,
            finish=found.get("finish", default.finish),
        )

    def write(self, folder: str) -> None:
        """Keep it beside the scores."""
        storage.write_json(storage.join(folder, _FILE), asdict(self))


def read_costs(folder: str, *, bundle: str, device: str) -> MeasuredCosts | None:
    """What was measured for this bundle digest on this class of device, if anything was.

    Raises
    ------
    StorageError, RunError : the file is there and damaged.
    """
    url = storage.join(folder, _FILE)
    if not storage.exists(url):
        return None
    kinds = {"per_row": dict, "startup_seconds": float, "rows": int}
    found = read_record(url, {**kinds, "bundle": str, "device": str, "source": str})
    costs = MeasuredCosts(**found)
    return costs if (costs.bundle, costs.device) == (bundle, device) else None


def of_run(
    busy: Mapping[str, float],
    *,
    rows: int,
    working_seconds: float,
    startup_seconds: float,
    shape: tuple[float, float],
    bundle: str,
    device: str,
) -> MeasuredCosts:
    """Costs from a run's busy seconds per stage on a cluster of `shape`, CPUs and GPUs.

    Actors that share cores are busy longer than they work: where the CPU stages were busy for more
    than the cores had seconds, all of them are scaled down to what the cores had; and so is the
    network where several actors share a GPU.
    """
    cpus, gpus = shape
    on_gpu = {"vit"} if device == "cuda" else set()
    crowding: dict[str, float] = {}
    for names, units in ((busy.keys() - on_gpu, cpus), (on_gpu, gpus)):
        share = sum(busy.get(n, 0.0) for n in names) / max(units * working_seconds, 1e-9)
        crowding |= dict.fromkeys(names, max(1.0, share))
    per_row = {name: s / rows / crowding[name] for name, s in busy.items()}
    return MeasuredCosts(
        per_row=per_row,
        startup_seconds=round(float(startup_seconds), 3),
        rows=rows,
        bundle=bundle,
        device=device,
        source="a run",
    )


def probe(
    groups: Sequence[RowGroup], config: Config, bundle: bundles.Bundle, *, device: str
) -> MeasuredCosts:
    """Take a few row groups through all stages in one worker, and measure.

    What it writes goes to a folder of its own beside the scores, and is removed.

    Raises
    ------
    RunError : no worker became free in ten minutes.
    ClusterrayError : whatever the stages raise.
    """
    folder = storage.join(config.paths.scores, f"probe-{uuid.uuid4().hex[:8]}")
    task = _probe.options(num_cpus=0.5, num_gpus=1 if device == "cuda" else 0).remote(
        list(groups[:_PROBED]), config.model_dump(mode="json"), folder, device
    )
    try:
        per_row, startup, rows = ray.get(task, timeout=_WAIT_SECONDS)
    except GetTimeoutError as error:
        ray.cancel(task)
        raise RunError(
            f"no worker with {'a GPU' if device == 'cuda' else 'a CPU'} became free in "
            f"{_WAIT_SECONDS / 60:.0f} min; look at the autoscaler, or at who else uses the cluster"
        ) from error
    except Exception as error:
        raise work.unwrap(error) from error
    finally:
        storage.remove_folder(folder)
    return MeasuredCosts(
        per_row=per_row,
        startup_seconds=startup,
        rows=rows,
        bundle=bundle.digest,
        device=device,
        source=f"a probe of {rows} cutouts",
    )


@ray.remote(max_retries=0)
def _probe(
    groups: list[RowGroup], config: dict[str, Any], folder: str, device: str
) -> tuple[dict[str, float], float, int]:
    start = time.monotonic()
    settings = Config.model_validate(config)
    bundle = bundles.load(settings.paths.bundle)
    has_network = bool(bundle.networks)
    stages: dict[str, Any] = {
        "read": ReadStage(groups, wanted_features(bundle), keep_pixels=has_network)
    }
    if has_network:
        stages["vit"] = VitStage(settings.paths.bundle, settings.score, device)
    stages["finish"] = FinishStage(settings.paths.bundle, groups, settings.score, folder)
    startup = time.monotonic() - start
    seconds = dict.fromkeys(stages, 0.0)
    counted = groups[1:] or groups
    for unit, group in enumerate(groups):
        table = pa.table({"unit": pa.array([unit], pa.int64())})
        for name, stage in stages.items():
            begin = time.monotonic()
            table = stage(table)
            if group in counted:
                seconds[name] += time.monotonic() - begin
    rows = sum(group.rows for group in counted)
    return {name: s / rows for name, s in seconds.items()}, startup, rows
