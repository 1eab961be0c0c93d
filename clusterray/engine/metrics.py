"""What a run tells Prometheus while it works, beside Ray's own metrics.

Ray exports them from every node with the prefix `ray_`. Actors count what they did; the driver
says how much is waiting, what was rejected and what it has cost so far.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from ray.util.metrics import Counter, Gauge

from clusterray import storage
from clusterray.config import PriceSettings
from clusterray.engine.prices import price

__all__ = ["METRICS", "RunMeters", "metered"]

METRICS: Final = {
    "clusterray_stage_rows": ("counter", "cutouts that a stage has handled", ("verb", "stage")),
    "clusterray_stage_units": (
        "counter",
        "units of work (row groups, tiles) that a stage has handled",
        ("verb", "stage"),
    ),
    "clusterray_stage_busy_seconds": (
        "counter",
        "seconds that a stage's actors were busy",
        ("verb", "stage"),
    ),
    "clusterray_storage_retries": (
        "counter",
        "reads and writes that storage refused for the moment and that were tried again",
        ("verb", "stage"),
    ),
    "clusterray_units_waiting": ("gauge", "units of work that are not done yet", ("verb",)),
    "clusterray_rejected_rows": ("counter", "cutouts in the rejects table", ("verb",)),
    "clusterray_cost": ("gauge", "price of the cluster since the run began", ("verb", "currency")),
}
"""Every metric: kind, what it counts, tags. Prometheus sees `ray_` + name, counters + `_total`."""


_OF_DRIVER: Final = ("clusterray_units_waiting", "clusterray_rejected_rows", "clusterray_cost")


def _made(name: str) -> Any:
    kind, text, tags = METRICS[name]
    return (Counter if kind == "counter" else Gauge)(name, description=text, tag_keys=tags)


class RunMeters:
    """The driver's side.

    Parameters
    ----------
    verb : which run.
    units : units of work to do.
    shape : CPUs and GPUs that are paid for.
    prices : without one that matters, no cost is told.
    """

    def __init__(
        self, verb: str, *, units: int, shape: tuple[float, float], prices: PriceSettings
    ) -> None:
        self.verb, self.left, self.shape, self.prices = verb, units, shape, prices
        self.start = time.monotonic()
        names = ("clusterray_units_waiting", "clusterray_rejected_rows", "clusterray_cost")
        self._waiting, self._rejected, self._cost = (_made(name) for name in names)
        self._tags = {"verb": verb}
        self.advance(0)

    def advance(self, units: int = 1, *, rejected: int = 0) -> None:
        """Count finished units of work and rows that were rejected in them."""
        self.left -= units
        self._waiting.set(self.left, tags=self._tags)
        if rejected:
            self._rejected.inc(rejected, tags=self._tags)
        seconds = time.monotonic() - self.start
        cost = price(seconds, shape=self.shape, prices=self.prices)
        if cost is not None:
            self._cost.set(cost, tags={**self._tags, "currency": self.prices.currency})


class _Retries:
    """What this process has told of; its stages, and their calls, may overlap."""

    lock: Final = threading.Lock()
    told = 0

    @classmethod
    def new(cls) -> int:
        with cls.lock:
            before, cls.told = cls.told, storage.retry_count()
            return cls.told - before


def metered(actor: type, *, verb: str, stage: str, rows: Sequence[int] | None) -> type:
    """The same actor class, counting what it does.

    Parameters
    ----------
    actor : a callable class from Arrow table to Arrow table, whose input has a column `unit`.
    rows : cutouts in each unit; None where units are not row groups.
    """
    tags = {"verb": verb, "stage": stage}

    class Metered(actor):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self._meters = {name: _made(name) for name in METRICS if name not in _OF_DRIVER}

        def __call__(self, table: pa.Table) -> pa.Table:
            start = time.monotonic()
            try:
                answer = super().__call__(table)
            finally:
                self._count(
                    clusterray_stage_busy_seconds=time.monotonic() - start,
                    clusterray_storage_retries=_Retries.new(),
                )
            units = table.column("unit").to_pylist()
            self._count(
                clusterray_stage_units=len(units),
                clusterray_stage_rows=sum(rows[u] for u in units) if rows else 0,
            )
            return answer

        def _count(self, **amounts: float) -> None:
            for name, amount in amounts.items():
                # A counter takes no zero.
                if amount > 0:
                    self._meters[name].inc(amount, tags=tags)

    # Ray shows the class by its name.
    Metered.__name__ = Metered.__qualname__ = actor.__name__
    return Metered
