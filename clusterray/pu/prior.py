"""The class prior π: what share of the survey are lenses, from held-out scores.

Only the order of the scores matters. They are cut at the known lenses' scores into cells, and each
estimator reads the counts per cell, so that neither memory nor the bootstrap grows with the survey.
What PU data identify is an upper bound of π in the population of the labelled lenses: a lens
that looks like no labelled one is counted as a non-lens.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta
from sklearn.isotonic import isotonic_regression

from clusterray.errors import InputError
from clusterray.provenance import seed_for
from clusterray.pu.labelling import Scenario, check_finite, check_fraction, check_scenario

__all__ = ["Estimate", "PriorEstimate", "bbe_prior", "elkan_noto_prior", "estimate_prior"]

_LEVEL = 0.9
_MIN_POSITIVE = 20
_MIN_IN_BIN = 10
_BOUND_RISK = 1e-3
_MAX_SCATTER = 0.35
_FALLBACK_FACTOR = 2.0
_DISAGREEMENT = 1.5


@dataclass(frozen=True)
class Estimate:
    """One estimator's π_U (share of positives among the unlabelled rows), or why it has none."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class PriorEstimate:
    """π of the survey.

    `interval` is a 90 % bootstrap interval, or a factor of two either way by convention where
    `source` is "fallback". `estimates` holds each estimator's π (None outside its valid range,
    with the reason in `notes`); `consistent` says whether at least one is valid and the valid ones
    agree within a factor of 1.5.
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
class _Cells:
    """Counts between consecutive known lenses' scores, ascending; cell 0 lies below them all."""

    positive: NDArray[np.int64]
    unlabelled: NDArray[np.int64]

    def resampled(self, rng: np.random.Generator) -> "_Cells":
        def draw(counts: NDArray[np.int64]) -> NDArray[np.int64]:
            return rng.multinomial(counts.sum(), counts / counts.sum())

        return _Cells(draw(self.positive), draw(self.unlabelled))


def _cells(scores_positive: ArrayLike, scores_unlabelled: ArrayLike) -> _Cells:
    positive = check_finite(scores_positive, shape=(None,), where="scores of the known lenses")
    unlabelled = check_finite(scores_unlabelled, shape=(None,), where="scores of unlabelled rows")
    edges, counts = np.unique(positive, return_counts=True)
    cell = np.searchsorted(edges, unlabelled, side="right")
    return _Cells(
        np.concatenate([[0], counts]).astype(np.int64),
        np.bincount(cell, minlength=len(edges) + 1).astype(np.int64),
    )


def elkan_noto_prior(
    scores_positive: ArrayLike, scores_unlabelled: ArrayLike, *, seed: int
) -> Estimate:
    """π_U from the mean of g = P(s=1|x) over held-out positives (Elkan & Noto 2008, estimator e1).

    g is an isotonic regression of s on the score, cross-fitted over five random folds of the
    positives. Where positives are certain (p(y|x) = 1) the odds of g are n_p/(n_u π_U), which gives
    π_U in both scenarios; where they are not, e1 reads too high. Valid therefore only with at
    least 20 positives, the odds of whose mean g are within 20 % of those of its 90th percentile.
    """
    cells = _cells(scores_positive, scores_unlabelled)
    return _elkan_noto(cells, np.random.default_rng(seed_for(seed, purpose="elkan-noto")))


def _elkan_noto(cells: _Cells, rng: np.random.Generator) -> Estimate:
    n_positive, n_unlabelled = int(cells.positive.sum()), int(cells.unlabelled.sum())
    if n_positive < _MIN_POSITIVE:
        return Estimate(None, f"{n_positive} known lenses, {_MIN_POSITIVE} needed")
    where = rng.permutation(np.repeat(np.arange(len(cells.positive)), cells.positive))
    held_out = np.empty(n_positive)
    for part in np.array_split(np.arange(n_positive), 5):
        rest = np.bincount(np.delete(where, part), minlength=len(cells.positive))
        # As many unlabelled per positive as in the whole, or g would be low by the folds' share.
        kept = cells.unlabelled * (rest.sum() / n_positive)
        weight = rest + kept
        used = weight > 0
        g = np.zeros(len(weight))
        g[used] = isotonic_regression(rest[used] / weight[used], sample_weight=weight[used])
        g = np.interp(np.arange(len(weight)), np.flatnonzero(used), g[used])
        held_out[part] = g[where[part]]
    mean, top = float(held_out.mean()), float(np.quantile(held_out, 0.9))
    if mean * (1.0 - top) < 0.8 * top * (1.0 - mean):
        return Estimate(
            None, f"positives are not certain (mean g {mean:.3g} against {top:.3g} at the top)"
        )
    if mean >= 1.0:
        return Estimate(None, "no unlabelled row scores as high as a known lens")
    return Estimate(min(n_positive / n_unlabelled * (1.0 - mean) / mean, 1.0))


def bbe_prior(scores_positive: ArrayLike, scores_unlabelled: ArrayLike) -> Estimate:
    """π_U by best-bin estimation (Garg et al. 2021, algorithm 1) with binomial bounds.

    For a threshold t, q_u(t)/q_p(t), the shares of unlabelled rows and of positives above it, is an
    upper bound of π_U that is tight where only positives score so high. The threshold is the one
    with the smallest upper confidence bound of that ratio: Clopper–Pearson 99.9 % upper for q_u
    over 99.9 % lower for q_p, so that the least of some hundred bounds still is one. (The paper
    has DKW bounds, which are far too wide at π ≪ 1.)

    Valid with at least 20 positives, at least 10 rows of each kind above the threshold, a relative
    standard error below 0.35, and a ratio that has levelled off: in the stricter half of the bin
    it is not lower by a third and by two standard errors.
    """
    return _bbe(_cells(scores_positive, scores_unlabelled))


def _bbe(cells: _Cells) -> Estimate:
    n_positive, n_unlabelled = int(cells.positive.sum()), int(cells.unlabelled.sum())
    if n_positive < _MIN_POSITIVE:
        return Estimate(None, f"{n_positive} known lenses, {_MIN_POSITIVE} needed")
    above_p = np.cumsum(cells.positive[:0:-1])
    above_u = np.cumsum(cells.unlabelled[:0:-1])
    enough = np.flatnonzero((above_p >= _MIN_IN_BIN) & (above_u >= _MIN_IN_BIN))
    if not len(enough):
        return Estimate(None, f"fewer than {_MIN_IN_BIN} unlabelled rows score as high as lenses")
    k_p, k_u = above_p[enough], above_u[enough]
    upper = np.where(
        k_u < n_unlabelled,
        beta.ppf(1.0 - _BOUND_RISK, k_u + 1, np.maximum(n_unlabelled - k_u, 1)),
        1.0,
    )
    lower = beta.ppf(_BOUND_RISK, k_p, n_positive - k_p + 1)
    ratio = (k_u / n_unlabelled) / (k_p / n_positive)
    best = int(np.argmin(upper / lower))
    value = float(ratio[best])
    scatter = float(np.sqrt(1 / k_u[best] + 1 / k_p[best]))
    if scatter > _MAX_SCATTER:
        return Estimate(None, f"relative error {scatter:.2f} of {value:.3g} is too large")
    half = int(np.searchsorted(above_p, k_p[best] / 2))
    stricter = (above_u[half] / n_unlabelled) / (above_p[half] / n_positive)
    error = stricter * np.sqrt(1 / max(above_u[half], 1) + 1 / above_p[half])
    if stricter < value / _DISAGREEMENT and stricter + 2 * error < value:
        return Estimate(None, f"the best bin is impure: {stricter:.3g} in its stricter half")
    return Estimate(min(value, 1.0))


def estimate_prior(
    scores_positive: ArrayLike,
    scores_unlabelled: ArrayLike,
    *,
    scenario: Scenario,
    seed: int,
    n_bootstrap: int,
    fallback: float,
    unlabelled_fraction: float = 1.0,
) -> PriorEstimate:
    """π of the survey: the consensus (geometric mean) of the valid estimators.

    Each estimator gives π_U; in a single-sample survey π = P(s=1) + (1 − P(s=1)) π_U.

    Parameters
    ----------
    scores_positive : (n_p,) held-out scores of the known lenses; any increasing scale.
    scores_unlabelled : (n_u,) held-out scores of unlabelled rows, on the same scale.
    n_bootstrap : resamples of both for the interval.
    fallback : π used where the valid estimators differ by more than half, or none is valid.
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
    cells = _cells(scores_positive, scores_unlabelled)
    labelled = 0.0
    if scenario == "single-sample":
        n_positive = int(cells.positive.sum())
        labelled = n_positive / (n_positive + cells.unlabelled.sum() / unlabelled_fraction)

    def survey(pi_u: float) -> float:
        return float(min(labelled + (1.0 - labelled) * pi_u, 1.0 - 1e-12))

    found = _run(cells, seed)
    estimates = {n: None if e.value is None else survey(e.value) for n, e in found.items()}
    notes = [f"{name} ignored: {e.reason}" for name, e in found.items() if e.value is None]
    valid = {name: value for name, value in estimates.items() if value is not None}
    consistent = bool(valid) and max(valid.values()) <= _DISAGREEMENT * min(valid.values())
    if not consistent:
        notes.append(
            "no valid estimator" if not valid else "valid estimators differ by more than half"
        )
        return _fallen_back(fallback, labelled, estimates, notes)
    draws = []
    for replicate in range(n_bootstrap):
        rng = np.random.default_rng(seed_for(seed, purpose="prior", replicate=replicate))
        again = _run(cells.resampled(rng), seed_for(seed, replicate=replicate))
        values = [v for n in valid if (v := again[n].value) is not None]
        if values:
            draws.append(survey(_geometric_mean(values)))
    value = _geometric_mean(list(valid.values()))
    low, high = np.quantile(draws or [value], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    interval = (min(float(low), value), max(float(high), value))
    return PriorEstimate(value, interval, estimates, True, "estimate", tuple(notes))


def _run(cells: _Cells, seed: int) -> dict[str, Estimate]:
    rng = np.random.default_rng(seed_for(seed, purpose="elkan-noto"))
    estimators: dict[str, Callable[[], Estimate]] = {
        "elkan_noto": lambda: _elkan_noto(cells, rng),
        "bbe": lambda: _bbe(cells),
    }
    return {name: estimator() for name, estimator in estimators.items()}


def _geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-300)))))


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
