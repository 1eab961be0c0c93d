"""How long a scoring run will take and what it will cost, before it starts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any, Final

from clusterray.config import Config, PriceSettings
from clusterray.engine.costs import MeasuredCosts
from clusterray.engine.ledger import RowGroup
from clusterray.engine.plan import Pools, StageCosts, plan_pools
from clusterray.engine.prices import price

__all__ = ["Forecast", "Outlook", "forecast", "foresee", "spent"]

_CUTOUT_BYTES: Final = 57_000.0
"""Stored bytes of the cutouts that the built-in costs were measured with."""
_STARTUP_SECONDS: Final = 10.0
_GPU_STARTUP_SECONDS: Final = 30.0
"""Where they were not measured; on a GPU with the network compiled before."""


@dataclass(frozen=True)
class Forecast:
    """Time, resources and price of a run, predicted or as they were.

    GPU and CPU hours are those of the whole cluster for as long as the run lasts, for that is
    what is paid for. `price` is None where `prices` are not configured.
    """

    seconds: float
    cpu_hours: float
    gpu_hours: float
    bytes_read: int
    price: float | None
    currency: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [
            _duration(self.seconds),
            f"{self.gpu_hours:.3g} GPU h",
            f"{self.cpu_hours:.3g} CPU h",
            f"{self.bytes_read / 1e9:.3g} GB read",
        ]
        if self.price is not None:
            parts.append(f"{self.price:.2f} {self.currency}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Outlook:
    """How a run is going to be done: pools, what they will need, and whence that is known."""

    pools: Pools
    predicted: Forecast
    source: str


def foresee(
    groups: Sequence[RowGroup],
    config: Config,
    models: Sequence[str],
    *,
    shape: tuple[float, float],
    measured: MeasuredCosts | None,
) -> Outlook:
    """Plan the pools for these row groups and predict the run.

    Parameters
    ----------
    models : base models of the bundle.
    shape : CPUs and GPUs to plan for.
    measured : costs of this bundle on this device; None takes the built-in ones.
    """
    networks = _n_networks(models)
    costs = measured.stage_costs() if measured else _built_in(groups, networks)
    if not networks:
        costs = replace(costs, vit_cpu=0.0, vit_gpu=0.0)
    on_gpu = shape[1] >= 1 and networks > 0
    startup = _GPU_STARTUP_SECONDS if on_gpu else _STARTUP_SECONDS
    pools = plan_pools(
        *shape,
        costs=costs,
        units=len(groups),
        rows=sum(group.rows for group in groups),
        workers=config.cluster.workers,
        actors_per_gpu=config.cluster.actors_per_gpu,
        calls_per_gpu_actor=config.cluster.calls_per_gpu_actor,
        row_groups_per_batch=config.cluster.row_groups_per_batch,
        row_group_bytes=max((group.stored_bytes for group in groups), default=0.0),
    )
    predicted = forecast(
        groups,
        pools,
        shape=shape,
        costs=costs,
        startup_seconds=measured.startup_seconds if measured else startup,
        models=models,
        prices=config.prices,
    )
    source = f"costs of {measured.source}" if measured else "built-in costs, not measured here"
    return Outlook(pools, predicted, source)


def _n_networks(models: Sequence[str]) -> int:
    return sum(model != "lightgbm" for model in models)


def _built_in(groups: Sequence[RowGroup], n_networks: int) -> StageCosts:
    """Costs where none were measured.

    Reading and features go with the pixels, and those with the stored bytes; every network costs
    what one does.
    """
    one, n = StageCosts(), max(1, n_networks)
    rows = sum(group.rows for group in groups)
    size = sum(group.stored_bytes for group in groups) / max(rows, 1)
    read = one.read * size / _CUTOUT_BYTES
    return replace(one, read=read, vit_cpu=n * one.vit_cpu, vit_gpu=n * one.vit_gpu)


def forecast(
    groups: Sequence[RowGroup],
    pools: Pools,
    *,
    shape: tuple[float, float],
    costs: StageCosts,
    startup_seconds: float,
    models: Sequence[str],
    prices: PriceSettings,
) -> Forecast:
    """Predict a run over these row groups.

    The stages overlap, so a run lasts as long as its slowest stage, but never less than all CPU
    work spread evenly over all CPUs, nor than one row group takes to pass through every stage.

    Parameters
    ----------
    groups : row groups still to do.
    pools : actors per stage, from `plan_pools`.
    shape : CPUs and GPUs of the whole cluster.
    costs : seconds of one core, or of one GPU, per cutout.
    startup_seconds : from the start of the run to the first row group in an actor's hands.
    models : base models of the bundle; without a network that stage does not run.
    """
    cpus, gpus = shape
    rows = sum(group.rows for group in groups)
    on_gpu = pools.gpus_per_vit > 0
    per_row = {"read": costs.read, "finish": costs.finish}
    actors = {"read": pools.read, "finish": pools.finish, "vit": pools.vit}
    # Several actors share one GPU, and each then takes its time.
    slower = {"vit": 1 / pools.gpus_per_vit} if on_gpu else {}
    if _n_networks(models):
        per_row["vit"] = costs.vit_gpu if on_gpu else costs.vit_cpu
    seconds = 0.0
    if groups:
        largest = max(group.rows for group in groups)
        stages = [
            cost * slower.get(name, 1.0) * largest * ceil(len(groups) / actors[name])
            for name, cost in per_row.items()
        ]
        if pools.fused:
            stages = [sum(per_row.values()) * largest * ceil(len(groups) / pools.read)]
        on_cpu = sum(cost for name, cost in per_row.items() if not (name == "vit" and on_gpu))
        even = on_cpu * rows / max(cpus, 1.0)
        fill = largest * sum(per_row.values())
        seconds = startup_seconds + max(*stages, even, fill)
    read = sum(group.stored_bytes for group in groups)
    return spent(seconds, shape=(cpus, gpus), bytes_read=round(read), prices=prices)


def spent(
    seconds: float, *, shape: tuple[float, float], bytes_read: int, prices: PriceSettings
) -> Forecast:
    """What a cluster of this shape costs in so many seconds."""
    cpus, gpus = shape
    return Forecast(
        seconds=seconds,
        cpu_hours=cpus * seconds / 3600,
        gpu_hours=gpus * seconds / 3600,
        bytes_read=bytes_read,
        price=price(seconds, shape=shape, prices=prices),
        currency=prices.currency,
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
