"""The class prior π: what share of the survey are lenses, from held-out scores.

What PU data identify is an upper bound of π in the population of the labelled lenses: a lens
that looks like no labelled one is counted as a non-lens.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import InputError
from clusterray.provenance import seed_for
from clusterray.pu.labelling import Scenario, check_fraction, check_scenario
from clusterray.pu.mixture import ScoreHistogram, read_mixture
from clusterray.pu.prior_estimators import (
    Reading,
    read_best_bin,
    read_density_ratio,
    read_elkan_noto,
)
from clusterray.pu.score_cells import ScoreCells

__all__ = ["DEFAULT_PRIOR", "PriorEstimate", "estimate_prior"]

DEFAULT_PRIOR = 1e-4
"""π of a survey of massive clusters about which nothing else is known."""

_LEVEL = 0.9
_FALLBACK_FACTOR = 2.0
_DISAGREEMENT = 1.5
_LEAST_VARIANCE = 1e-4


@dataclass(frozen=True)
class PriorEstimate:
    """π of the survey.

    `interval` is a 90 % bootstrap interval, or a factor of two either way by convention where
    `source` is "fallback". `estimates` holds each estimator's π (None outside its valid range,
    with the reason in `notes`); `consistent` says whether at least one is valid and the valid ones
    do not disagree.
    """

    value: float
    interval: tuple[float, float]
    estimates: Mapping[str, float | None]
    consistent: bool
    source: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for the bundle."""
        return {
            **asdict(self),
            "interval": list(self.interval),
            "estimates": dict(self.estimates),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "PriorEstimate":
        """Back from `to_json`."""
        low, high = state["interval"]
        fixed = {"interval": (low, high), "notes": tuple(state["notes"])}
        return cls(**{**state, **fixed})


@dataclass(frozen=True)
class _Counts:
    """Both forms in which the estimators read scores."""

    cells: ScoreCells
    histogram: ScoreHistogram

    def resampled(self, rng: np.random.Generator) -> "_Counts":
        return _Counts(self.cells.resampled(rng), self.histogram.resampled(rng))

    def read(self, seed: int) -> dict[str, Reading]:
        rng = np.random.default_rng(seed_for(seed, purpose="elkan-noto"))
        return {
            "elkan_noto": read_elkan_noto(self.cells, rng),
            "mixture": read_mixture(self.histogram),
            "bbe": read_best_bin(self.cells),
            "dedpul": read_density_ratio(self.cells),
        }


def estimate_prior(
    scores_positive: ArrayLike,
    scores_unlabelled: ArrayLike,
    *,
    scenario: Scenario,
    seed: int,
    n_bootstrap: int,
    fallback: float = DEFAULT_PRIOR,
    unlabelled_fraction: float = 1.0,
) -> PriorEstimate:
    """π of the survey: the consensus of the estimators that are in their valid range.

    Each estimator gives π_U; in a single-sample survey π = P(s=1) + (1 − P(s=1)) π_U. The consensus
    is the geometric mean, weighted by the inverse bootstrap variance of log π. The interval holds
    90 % of all valid estimators' bootstrap draws together, and so what they differ by as well.

    Valid estimators disagree where the largest is more than half above the smallest and the
    distance of their logarithms is more than twice its bootstrap error. Both are asked for: thirty
    hidden lenses alone make a factor of 1.5, which is no reason to give up what was measured (the
    interval holds both, and `notes` names them); and with a million rows a difference of a few per
    cent is certain and matters to nobody. Only a difference both large and real says that an
    assumption of one of them is broken, and not which.

    Parameters
    ----------
    scores_positive : (n_p,) held-out scores of the known lenses; log-odds, or any increasing
        function of them (only the mixture looks at the scale).
    scores_unlabelled : (n_u,) held-out scores of unlabelled rows, on the same scale.
    n_bootstrap : resamples of both for the interval.
    fallback : π used where the valid estimators disagree, or none is valid.
    unlabelled_fraction : share of the survey's unlabelled rows that these are.

    Raises
    ------
    InputError : no scores, a score that is not finite, a scenario, fallback or fraction that
        is none, or a single-sample fallback below the share of known lenses.
    """
    check_scenario(scenario)
    check_fraction(fallback, name="fallback")
    check_fraction(unlabelled_fraction, name="unlabelled_fraction", closed=True)
    if n_bootstrap < 20:
        raise InputError(f"n_bootstrap is {n_bootstrap}, expected at least 20")
    counts = _Counts(
        ScoreCells.count(scores_positive, scores_unlabelled),
        ScoreHistogram.count(scores_positive, scores_unlabelled),
    )
    labelled = 0.0
    if scenario == "single-sample":
        n_positive = counts.cells.n_positive
        labelled = n_positive / (n_positive + counts.cells.n_other / unlabelled_fraction)

    def survey(pi_u: float) -> float:
        return float(min(labelled + (1.0 - labelled) * min(pi_u, 1.0), 1.0 - 1e-12))

    found = counts.read(seed)
    estimates = {n: None if r.refusal else survey(r.value) for n, r in found.items()}
    notes = [f"{name} ignored: {r.refusal}" for name, r in found.items() if r.refusal]
    valid = {name: value for name, value in estimates.items() if value is not None}
    if not valid:
        return _fallen_back(fallback, labelled, estimates, [*notes, "no valid estimator"])
    draws = np.log(
        [[survey(value) for value in d] for d in _draws(counts, list(valid), seed, n_bootstrap)]
    )
    logs = np.log(list(valid.values()))
    apart, real = _disagreement(logs, draws, list(valid))
    if real:
        return _fallen_back(fallback, labelled, estimates, [*notes, apart])
    notes += [f"{apart}, within their errors"] if apart else []
    precision = 1.0 / np.maximum(draws.var(axis=1), _LEAST_VARIANCE)
    value = float(np.exp(precision @ logs / precision.sum()))
    low, high = np.exp(np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]))
    interval = (min(float(low), value), max(float(high), value))
    return PriorEstimate(value, interval, estimates, True, "estimate", tuple(notes))


def _draws(counts: _Counts, names: list[str], seed: int, n_bootstrap: int) -> list[list[float]]:
    """π_U of each named estimator on every resample, read outside its valid range too.

    To leave those readings out would cut the tails.
    """
    drawn: list[list[float]] = [[] for _ in names]
    for replicate in range(n_bootstrap):
        rng = np.random.default_rng(seed_for(seed, purpose="prior", replicate=replicate))
        again = counts.resampled(rng).read(seed_for(seed, replicate=replicate))
        for column, name in zip(drawn, names, strict=True):
            value = again[name].value
            # A resample that shows nothing repeats the draw before: an estimator has one length.
            column.append(value if np.isfinite(value) and value > 0 else (column or [1e-12])[-1])
    return drawn


def _disagreement(
    logs: NDArray[np.float64], draws: NDArray[np.float64], names: list[str]
) -> tuple[str, bool]:
    """What valid estimators of log π differ on by more than half, and whether errors allow it."""
    top, bottom = int(np.argmax(logs)), int(np.argmin(logs))
    distance = logs[top] - logs[bottom]
    if distance <= np.log(_DISAGREEMENT):
        return "", False
    said = ", ".join(f"{name} {np.exp(value):.3g}" for name, value in zip(names, logs, strict=True))
    real = distance > 2.0 * float(np.std(draws[top] - draws[bottom]))
    return f"valid estimators differ by more than half: {said}", real


def _fallen_back(
    fallback: float, labelled: float, estimates: dict[str, float | None], notes: list[str]
) -> PriorEstimate:
    if fallback < labelled:
        raise InputError(
            f"fallback prior {fallback:.3g} is below the share of known lenses {labelled:.3g}: in "
            "a single-sample survey π is at least that; raise train.prior_fallback"
        )
    interval = (
        max(fallback / _FALLBACK_FACTOR, labelled),
        min(fallback * _FALLBACK_FACTOR, (1.0 + fallback) / 2.0),
    )
    return PriorEstimate(fallback, interval, estimates, False, "fallback", tuple(notes))
