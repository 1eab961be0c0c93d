"""What a team finds in a year, what that costs, and which candidates it should look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import InputError, did_you_mean

__all__ = ["By", "DiscoveryCurve", "discovery_curve", "shortlist", "unlike_known"]

By = Literal["budget", "probability", "fdr"]
"""Where a short list ends: at a length, at a p_lens, or at an expected share of others."""

_STEPS: Final = 60

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DiscoveryCurve:
    """Arrays (k,): candidates inspected a year, and what comes of it.

    `finds` and `hours` a year; `cost` a year and per find; `cost_of_next` is that of one more find
    at this point of the list, which is what says where to stop.
    """

    budget: NDArray[np.int64]
    finds: Floats
    hours: Floats
    cost: Floats
    cost_per_find: Floats
    cost_of_next: Floats


def discovery_curve(
    expected_finds: ArrayLike,
    *,
    years: float,
    minutes_per_candidate: float,
    cost_per_hour: float,
    cost_per_year: float = 0.0,
    budgets: Sequence[int] | None = None,
) -> DiscoveryCurve:
    """Finds and cost a year against the number of candidates that people look at a year.

    Parameters
    ----------
    expected_finds : (n,) lenses expected down to each rank of the list, as in the ranking.
    years : how long the survey takes to deliver as many clusters as the list holds.
    minutes_per_candidate : of one reviewer, all votes together.
    cost_per_hour : of a reviewer, in any currency. cost_per_year : of the computing.
    budgets : ranks to evaluate at; None takes some sixty, evenly spaced in the logarithm.

    Raises
    ------
    InputError : finds that fall or are not finite, an empty list, a number that is not positive, or
        a budget outside the list.
    """
    finds = np.asarray(expected_finds, np.float64)
    steps = np.diff(finds, prepend=0.0)
    if finds.ndim != 1 or not len(finds) or not np.isfinite(finds).all() or np.any(steps < -1e-9):
        raise InputError(
            f"expected_finds of shape {finds.shape}: expected sums of probabilities (n ≥ 1), which "
            "are finite and never fall"
        )
    for name, value in (("years", years), ("minutes_per_candidate", minutes_per_candidate)):
        if not value > 0.0:
            raise InputError(f"{name} is {value}, expected more than 0")
    if cost_per_hour < 0.0 or cost_per_year < 0.0:
        raise InputError(f"costs are {cost_per_hour} and {cost_per_year}, expected 0 or more")
    if budgets is None:
        ranks = np.unique(np.geomspace(1, len(finds), _STEPS).astype(np.int64))
    else:
        ranks = np.asarray(budgets, np.int64)
        if len(ranks) and not (ranks.min() >= 1 and ranks.max() <= len(finds)):
            raise InputError(f"budgets {ranks.tolist()}: expected ranks 1 to {len(finds)}")
    per_year = finds[ranks - 1] / years
    hours = ranks / years * minutes_per_candidate / 60.0
    cost = hours * cost_per_hour + cost_per_year
    of_one = minutes_per_candidate / 60.0 * cost_per_hour
    next_p = np.maximum(steps[ranks - 1], 1e-300)
    with np.errstate(divide="ignore"):
        per_find = np.where(per_year > 0.0, cost / np.maximum(per_year, 1e-300), np.inf)
    return DiscoveryCurve(ranks, per_year, hours, cost, per_find, of_one / next_p)


def shortlist(ranking: pa.Table, *, by: By, at: float) -> pa.Table:
    """The first rows of a ranking: those that people should look at.

    Parameters
    ----------
    by : "budget": the first `at` rows. "probability": rows with p_lens ≥ `at`. "fdr": as many as
        there can be with an expected share of others, 1 − expected purity, of at most `at`.

    Raises
    ------
    InputError : an unknown way, or a value that does not fit it.
    """
    if by not in get_args(By):
        raise InputError(f"unknown way to end a list '{by}': {did_you_mean(by, get_args(By))}")
    if by == "budget":
        if at < 1 or at != int(at):
            raise InputError(f"a budget of {at}: expected a whole number of rows, at least 1")
        return ranking.slice(0, int(at))
    if not 0.0 <= at <= 1.0:
        raise InputError(f"{by} {at}: expected 0 to 1")
    if by == "probability":
        holds = ranking["p_lens"].to_numpy() >= at
    else:
        holds = 1.0 - ranking["expected_purity"].to_numpy() <= at + 1e-12
    # p_lens and expected purity fall along the list, so what holds is its beginning.
    return ranking.slice(0, int(holds.sum()))


def unlike_known(ranking: pa.Table, top: int) -> pa.Table:
    """The rows with the greatest anomaly score, "unlike anything known"; ties by object_id.

    New morphologies have no labelled example, so no probability finds them; artefacts come along,
    which `flags` and an eye sort out. Rows without an anomaly score are left out.
    """
    scored = ranking.filter(pc.is_finite(ranking["anomaly_score"]))
    order = pc.sort_indices(scored, [("anomaly_score", "descending"), ("object_id", "ascending")])
    return scored.take(order.slice(0, top))
