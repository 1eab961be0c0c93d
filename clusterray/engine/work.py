"""Units of work through Ray Data: a plan goes in, small answers come out, in any order.

A unit is one row of a Ray dataset, so Ray can neither split nor merge it, whatever its batches.
"""

import gc
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayTaskError

from clusterray import errors
from clusterray.engine.metrics import metered
from clusterray.errors import ClusterrayError, RunError

__all__ = ["Stage", "cpu_share", "run", "unit_column", "unwrap"]

_UNIT = "unit"
_RESERVED = 0.2
"""Of the object store that Ray Data may fill, what all stages are granted in equal parts.

What they hold is the pixels that the first one read, almost all of it: Ray's 0.5 would keep a third
of the store empty for the others, and readers would wait for room.
"""
_RAISED = re.compile(rf"^clusterray\.errors\.({'|'.join(errors.__all__)}): (.*)$", re.MULTILINE)
_ANY_ERROR = re.compile(r"^[\w.]*(?:Error|Exception)\b.*$", re.MULTILINE)


@dataclass(frozen=True)
class Stage:
    """One actor pool: a callable class from Arrow table to Arrow table, and what it takes.

    `calls` is how many calls an actor works on at once, in threads; above 1 the actor must be
    safe for that.
    """

    name: str
    actor: type
    arguments: Mapping[str, Any] = field(default_factory=dict)
    actors: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    calls: int = 1


class Fused:
    """Actor: several stages in one process, a batch of units through all of them in turn."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.parts = [stage.actor(**stage.arguments) for stage in stages]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Take a batch of units through the stages."""
        for part in self.parts:
            table = part(table)
        return table


def cpu_share(cpus: float, actors: int) -> float:
    """CPUs each of so many actors may reserve, so that together they hold at most 7/8 of them.

    On a cluster whose CPUs are all held by actors, Ray's own recovery tasks cannot run when a
    node leaves (Ray 2.60), and an actor that asks for all CPUs of a node never starts.
    """
    # Rounded down to the four decimals that Ray keeps.
    return min(1.0, int(1e4 * max(0.5, cpus * 7 / 8) / actors) / 1e4)


def unit_column(table: pa.Table) -> list[int]:
    """The indices of the units in a batch, into the plan the actor was given."""
    return [int(v) for v in table.column(_UNIT).to_pylist()]


def run(
    n_units: int,
    stages: Sequence[Stage],
    *,
    verb: str,
    units_per_batch: int = 1,
    rows: Sequence[int] | None = None,
    fused: bool = False,
) -> Iterator[pa.Table]:
    """Send units 0 … n_units−1 through the stages; yield the last stage's tables as they come.

    Parameters
    ----------
    verb : which run this is, for its metrics.
    rows : cutouts in each unit, for the same; None where units are not row groups.
    fused : one pool, the first stage's, whose actors do all stages.

    Raises
    ------
    ClusterrayError : the one an actor raised, without Ray's wrapping.
    RunError : an actor failed in another way.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.op_resource_reservation_ratio = _RESERVED
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    units = [{_UNIT: i} for i in range(n_units)]
    dataset: Dataset = ray.data.from_items(units, override_num_blocks=n_units)
    pools = [
        replace(stage, actor=metered(stage.actor, verb=verb, stage=stage.name, rows=rows))
        for stage in stages
    ]
    if fused:
        pools = [replace(pools[0], actor=Fused, arguments={"stages": pools})]
    for stage in pools:
        dataset = dataset.map_batches(
            stage.actor,
            fn_constructor_kwargs=dict(stage.arguments),
            batch_size=units_per_batch,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=_pool(stage),
            num_cpus=stage.num_cpus,
            num_gpus=stage.num_gpus or None,
        )
    failure = None
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    except Exception as error:
        failure = unwrap(error)
        failure.add_note(str(error))
    if failure is not None:
        # Not from the error: its frames hold the actors, and with them the CPUs of the next run.
        del dataset
        gc.collect()
        raise failure


def _pool(stage: Stage) -> ActorPoolStrategy:
    # A GPU must not wait until the driver hands it the next one.
    waiting = 4 if stage.num_gpus else 2
    return ActorPoolStrategy(
        size=stage.actors,
        max_concurrent_calls_per_actor=stage.calls,
        max_tasks_in_flight_per_actor=waiting * stage.calls,
        enable_true_multi_threading=stage.calls > 1,
    )


def unwrap(error: BaseException) -> ClusterrayError:
    """The error a worker raised on purpose, or a RunError with the last line of what it said.

    Ray Data keeps only the text of a worker's exception (2.60), so the text is what is read.
    """
    if isinstance(error, ExecutionTimeoutError):
        minutes = DataContext.get_current().execution_no_progress_timeout_s / 60
        return RunError(
            f"nothing moved for {minutes:.0f} min: no CPU or GPU is free for this run's actors, or "
            "no worker came; look at the autoscaler and at who else uses the cluster, then run it "
            "again: what is done is kept"
        )
    if isinstance(error, RayTaskError) and isinstance(error.cause, ClusterrayError):
        return error.cause
    raised = _RAISED.findall(str(error))
    if raised:
        name, message = raised[-1]
        kind = getattr(errors, name)
        return cast(ClusterrayError, kind(message))
    foreign = [m for m in _ANY_ERROR.findall(str(error)) if not m.startswith("ray.exceptions")]
    return RunError(f"a worker failed: {foreign[-1] if foreign else error!r}")
