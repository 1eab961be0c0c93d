"""Bins with round edges, and one for what is not known."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bin", "binned", "round_edges"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Values with low ≤ x < high, open at an end that is None; both None: `name` says what."""

    low: float | None
    high: float | None
    name: str = "unknown"

    def __str__(self) -> str:
        if self.low is None and self.high is None:
            return self.name
        if self.low is None:
            return f"below {self.high:g}"
        return f"{self.low:g} and above" if self.high is None else f"{self.low:g} to {self.high:g}"


def round_edges(values: Floats, *, n_bins: int) -> Floats:
    """Edges of about equally full bins, moved to round numbers.

    The quantiles of the values move to multiples of 1, 2 or 5 × 10^k no coarser than a quarter of
    the distance to the nearest other, the outermost ones outwards: every value lies in a bin.
    Where values repeat, bins may join.

    Parameters
    ----------
    values : (n,) finite, at least one.
    n_bins : wanted; at least one.

    Returns
    -------
    (at most n_bins + 1,) rising edges.
    """
    at = np.quantile(values, np.linspace(0, 1, n_bins + 1)).tolist()
    size = max(abs(at[0]), abs(at[-1]))
    if at[0] == at[-1]:
        unit = _round_down(max(size, 1e-9) / 10)
        return np.array([_outwards(at[0], unit, up=False), _outwards(at[0], unit, up=True)])

    def unit_for(distance: float) -> float:
        # Where values repeat there is no distance; steps below rounding errors lead nowhere.
        return _round_down(max((distance or (at[-1] - at[0]) / n_bins) / 4, 1e-9 * size))

    first = _outwards(at[0], unit_for(at[1] - at[0]), up=False)
    last = _outwards(at[-1], unit_for(at[-1] - at[-2]), up=True)
    inner = []
    for before, here, after in zip(at[:-2], at[1:-1], at[2:], strict=True):
        unit = unit_for(min(here - before, after - here))
        inner.append(_multiple(round(here / unit), unit))
    return np.unique([first, *(edge for edge in inner if first < edge < last), last])


def _outwards(value: float, unit: float, *, up: bool) -> float:
    """The highest multiple at or below the value, or the lowest above it."""
    steps = math.floor(value / unit) + up
    # The division may round across a multiple.
    while up and _multiple(steps, unit) <= value:
        steps += 1
    while not up and _multiple(steps, unit) > value:
        steps -= 1
    return _multiple(steps, unit)


def _multiple(steps: int, unit: float) -> float:
    return float(round(steps * unit, max(0, -math.floor(math.log10(unit)))))


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    # A value that should be 5 × 10^k may come out of its logarithm a little below.
    return power * max(m for m in (1, 2, 5) if m == 1 or m * power <= value * (1 + 1e-9))


def binned(values: Floats, edges: Sequence[float] | Floats) -> tuple[list[Bin], NDArray[np.int64]]:
    """Sort values into bins: between the edges and, where needed, below, above and unknown.

    Parameters
    ----------
    values : (n,) NaN where unknown.
    edges : rising, at least two.

    Returns
    -------
    The bins in order, those between the edges whether or not they hold a value, and (n,) the
    bin's index for each value.
    """
    ends = [None, *(float(e) for e in edges), None]
    bins = [Bin(low, high) for low, high in itertools.pairwise(ends)] + [Bin(None, None)]
    place = np.searchsorted(np.asarray(edges), values, side="right")
    place[np.isnan(values)] = len(bins) - 1
    inner = range(1, len(bins) - 2)
    kept = [i for i in range(len(bins)) if i in inner or (place == i).any()]
    return [bins[i] for i in kept], np.searchsorted(kept, place)
