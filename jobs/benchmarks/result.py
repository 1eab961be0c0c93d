"""What every benchmark gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

__all__ = ["Result", "seconds_each"]


@dataclass(frozen=True)
class Result:
    """One number, the baseline measured in the same run, and whatever explains them.

    Attributes
    ----------
    value, baseline : in `unit`; larger is better.
    unit : for example ``cutouts/s``.
    detail : JSON-able.
    """

    value: float
    baseline: float
    unit: str
    detail: dict[str, Any] = field(default_factory=dict)


def seconds_each(works: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median wall time of each piece of work, s.

    The pieces take turns, so that what else the machine does falls on all of them alike; a first
    round, which compiles and fills caches, does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = perf_counter()
            work()
            if turn:
                taken[name].append(perf_counter() - start)
    return {name: median(times) for name, times in taken.items()}
