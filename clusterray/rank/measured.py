"""A measure with its bootstrap interval, from counts between the scores of positives."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from clusterray.errors import InputError
from clusterray.provenance import seed_for
from clusterray.pu.score_cells import ScoreCells

__all__ = ["LEVEL", "Measured", "bootstrapped"]

LEVEL = 0.9
"""Share of the bootstrap draws that an interval holds."""


class Measured(NamedTuple):
    """A value with the ends of its 90 % bootstrap interval; NaN where it cannot be measured."""

    value: float
    low: float
    high: float

    def to_json(self) -> list[float | None]:
        """Value, low, high; NaN becomes None."""
        return [None if np.isnan(v) else float(v) for v in self]


def bootstrapped(
    measure: Callable[[ScoreCells], dict[str, float]],
    cells: ScoreCells,
    *,
    n_bootstrap: int,
    seed: int,
) -> dict[str, Measured]:
    """Every measure of `measure` with the percentiles of its values on resamples.

    Positives and other rows are drawn apart, each as many as there are.

    Raises
    ------
    InputError : fewer than 20 resamples.
    """
    if n_bootstrap < 20:
        raise InputError(f"n_bootstrap is {n_bootstrap}, expected at least 20")
    values = measure(cells)
    draws: dict[str, list[float]] = {name: [] for name in values}
    for replicate in range(n_bootstrap):
        rng = np.random.default_rng(seed_for(seed, purpose="metrics", replicate=replicate))
        for name, value in measure(cells.resampled(rng)).items():
            draws[name].append(value)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    found = {}
    for name, value in values.items():
        drawn = np.array(draws[name])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.quantile(drawn, ends) if len(drawn) else (np.nan, np.nan)
        found[name] = Measured(value, float(low), float(high))
    return found
