"""Four estimators of π_U, the share of positives among unlabelled rows, each with its valid range.

Elkan–Noto, best bin and density ratio look at the order of the scores alone; the mixture looks at
their scale as well, and refuses scores of another shape. All read counts, so that a bootstrap
costs the same whatever the size of the survey.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, chi2
from sklearn.isotonic import isotonic_regression

from clusterray.provenance import seed_for
from clusterray.pu.score_cells import ScoreCells

__all__ = [
    "MIN_POSITIVE",
    "Estimate",
    "Reading",
    "bbe_prior",
    "dedpul_prior",
    "elkan_noto_prior",
    "read_best_bin",
    "read_density_ratio",
    "read_elkan_noto",
]

MIN_POSITIVE = 20
"""Known lenses that every estimator needs."""

_MIN_IN_BIN = 10
_BOUND_RISK = 1e-3
_MAX_SCATTER = 0.35
_LEVELLED = 1.5
_TWO_SIGMA = 0.977
_SHORTFALL = 0.02
_FOLDS = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """One estimator's π_U (share of positives among the unlabelled rows), or why it has none."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class Reading:
    """What an estimator reads (NaN: nothing), and why it is out of its range (empty: it is not)."""

    value: float
    refusal: str = ""

    @property
    def estimate(self) -> Estimate:
        """The value where it is valid."""
        if self.refusal:
            return Estimate(None, self.refusal)
        return Estimate(min(self.value, 1.0))


def elkan_noto_prior(
    scores_positive: ArrayLike, scores_unlabelled: ArrayLike, *, seed: int
) -> Estimate:
    """π_U from the mean of g = P(s=1|x) over held-out positives (Elkan & Noto 2008, estimator e1).

    g is an isotonic regression of s on the score, cross-fitted over five random folds of the
    positives. Where positives are certain (p(y|x) = 1) the odds of g are n_p/(n_u π_U), which gives
    π_U in both scenarios; where they are not, e1 reads too high. Valid therefore only with at
    least 20 positives, the odds of whose mean g are within 20 % of those of its 90th percentile.
    """
    cells = ScoreCells.count(scores_positive, scores_unlabelled)
    rng = np.random.default_rng(seed_for(seed, purpose="elkan-noto"))
    return read_elkan_noto(cells, rng).estimate


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
    return read_best_bin(ScoreCells.count(scores_positive, scores_unlabelled)).estimate


def dedpul_prior(scores_positive: ArrayLike, scores_unlabelled: ArrayLike) -> Estimate:
    """π_U from the ratio of densities (after DEDPUL, Ivanov 2020), made monotone.

    With r = f_p/f_u of the scores, from an isotonic regression of s, p(y=1|x) = min(αr, 1), and
    mean_U p = α as long as no αr exceeds 1. π_U is the largest α whose mean falls short of it by
    at most 5 %, the share of positives that may look more than certain by chance.

    Valid with at least 20 positives, a relative standard error below 0.35 of the counts where
    αr ≥ 1, and at least 10 rows of each kind there.
    """
    return read_density_ratio(ScoreCells.count(scores_positive, scores_unlabelled)).estimate


def read_elkan_noto(cells: ScoreCells, rng: np.random.Generator) -> Reading:
    """See `elkan_noto_prior`."""
    n_positive, n_unlabelled = cells.n_positive, cells.n_other
    if n_positive < MIN_POSITIVE:
        return _too_few(n_positive)
    where = rng.permutation(np.repeat(np.arange(len(cells.positive)), cells.positive))
    unlabelled = _per_threshold(cells)
    held_out = np.empty(n_positive)
    for part in np.array_split(np.arange(n_positive), _FOLDS):
        rest = np.bincount(np.delete(where, part), minlength=len(cells.positive)).astype(float)
        # As many unlabelled per positive as in the whole, or g would be low by the folds' share.
        g = _falling_share(np.append(rest, 0.0), unlabelled * (rest.sum() / n_positive))
        held_out[part] = g[where[part]]
    mean, top = float(held_out.mean()), float(np.quantile(held_out, 0.9))
    if mean >= 1.0:
        return Reading(float("nan"), "no unlabelled row scores as high as a known lens")
    value = n_positive / n_unlabelled * (1.0 - mean) / max(mean, 1e-300)
    if mean * (1.0 - top) < 0.8 * top * (1.0 - mean):
        said = f"positives are not certain (mean g {mean:.3g} against {top:.3g} at the top)"
        return Reading(value, said)
    return Reading(value)


def read_best_bin(cells: ScoreCells) -> Reading:
    """See `bbe_prior`."""
    n_positive, n_unlabelled = cells.n_positive, cells.n_other
    if n_positive < MIN_POSITIVE:
        return _too_few(n_positive)
    above_p, above_u = cells.positive_above, cells.other_above
    enough = np.flatnonzero((above_p >= _MIN_IN_BIN) & (above_u >= _MIN_IN_BIN))
    if not len(enough):
        said = f"fewer than {_MIN_IN_BIN} unlabelled rows score as high as lenses"
        return Reading(float("nan"), said)
    k_p, k_u = above_p[enough], above_u[enough]
    upper = np.where(
        k_u < n_unlabelled,
        beta.ppf(1.0 - _BOUND_RISK, k_u + 1, np.maximum(n_unlabelled - k_u, 1)),
        1.0,
    )
    lower = beta.ppf(_BOUND_RISK, k_p, n_positive - k_p + 1)
    best = int(np.argmin(upper / lower))
    value = float((k_u[best] / n_unlabelled) / (k_p[best] / n_positive))
    scatter = float(np.sqrt(1 / k_u[best] + 1 / k_p[best]))
    if scatter > _MAX_SCATTER:
        return Reading(value, f"relative error {scatter:.2f} of {value:.3g} is too large")
    half = int(np.searchsorted(above_p, k_p[best] / 2))
    stricter = (above_u[half] / n_unlabelled) / (above_p[half] / n_positive)
    # A handful of rows: Poisson's limit, for a Gaussian one is too near below.
    most = chi2.ppf(_TWO_SIGMA, 2 * (above_u[half] + 1)) / 2.0
    error = stricter / np.sqrt(above_p[half])
    limit = most / n_unlabelled / (above_p[half] / n_positive) + 2.0 * error
    if stricter < value / _LEVELLED and limit < value:
        return Reading(value, f"the best bin is impure: {stricter:.3g} in its stricter half")
    return Reading(value)


def read_density_ratio(cells: ScoreCells) -> Reading:
    """See `dedpul_prior`."""
    n_positive, n_unlabelled = cells.n_positive, cells.n_other
    if n_positive < MIN_POSITIVE:
        return _too_few(n_positive)
    unlabelled = _per_threshold(cells)
    g = _falling_share(np.append(cells.positive, 0).astype(float), unlabelled)
    ratio = n_unlabelled / n_positive * g / np.maximum(1.0 - g, 1e-12)
    share = unlabelled / n_unlabelled
    low, high = 1e-12, 1.0
    for _ in range(80):
        alpha = float(np.sqrt(low * high))
        kept = float(share @ np.minimum(alpha * ratio, 1.0)) / alpha
        low, high = (alpha, high) if kept >= 1.0 - _SHORTFALL else (low, alpha)
    certain = low * ratio >= 1.0
    k_u = int(unlabelled[certain].sum())
    k_p = int(cells.positive[certain[:-1]].sum())
    if min(k_u, k_p) < _MIN_IN_BIN:
        return Reading(low, f"{k_u} unlabelled rows and {k_p} lenses score as if they were certain")
    scatter = float(np.sqrt(1 / k_u + 1 / k_p))
    if scatter > _MAX_SCATTER:
        return Reading(low, f"relative error {scatter:.2f} of {low:.3g} is too large")
    return Reading(low)


def _too_few(n_positive: int) -> Reading:
    return Reading(float("nan"), f"{n_positive} known lenses, {MIN_POSITIVE} needed")


def _per_threshold(cells: ScoreCells) -> Floats:
    """(m + 1,) unlabelled rows at each positive score and above the next lower, best first.

    Cell k holds those from threshold k up to, not with, the next higher one; the last cell lies
    below all positives.
    """
    return np.append(cells.between[:-1] + cells.tied, cells.between[-1]).astype(np.float64)


def _falling_share(positive: Floats, unlabelled: Floats) -> Floats:
    """Isotonic P(s=1|cell), falling from the best cell down; empty cells are interpolated."""
    weight = positive + unlabelled
    used = weight > 0
    share = isotonic_regression(
        positive[used] / weight[used], sample_weight=weight[used], increasing=False
    )
    return np.asarray(np.interp(np.arange(len(weight)), np.flatnonzero(used), share))
