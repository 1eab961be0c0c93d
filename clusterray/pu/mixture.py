"""The mixture estimator of π_U: known lenses fix one normal component of the scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, norm

from clusterray.pu.labelling import check_finite
from clusterray.pu.prior_estimators import MIN_POSITIVE, Estimate, Reading

__all__ = ["ScoreHistogram", "mixture_prior", "read_mixture"]

_BINS = 4000
_MAX_STEPS = 500
_MIN_APART = 1.5
_MIN_EXPECTED = 10.0
_MISFIT = 1e-3
_MAX_SCATTER = 0.7

Floats = NDArray[np.float64]
Law = Callable[[Floats], Floats]
Normal = tuple[float, float]


@dataclass(frozen=True)
class ScoreHistogram:
    """Scores of known lenses and of unlabelled rows in the same 4000 equal bins."""

    edges: Floats
    positive: NDArray[np.int64]
    unlabelled: NDArray[np.int64]

    @classmethod
    def count(cls, scores_positive: ArrayLike, scores_unlabelled: ArrayLike) -> Self:
        """Count two sets of scores (n,).

        Raises
        ------
        InputError : an empty set, another shape, or a score that is not finite.
        """
        positive = check_finite(scores_positive, shape=(None,), where="scores of the known lenses")
        other = check_finite(scores_unlabelled, shape=(None,), where="scores of unlabelled rows")
        ends = min(positive.min(), other.min()), max(positive.max(), other.max())
        edges = np.histogram_bin_edges(np.array(ends), _BINS)
        return cls(edges, np.histogram(positive, edges)[0], np.histogram(other, edges)[0])

    @property
    def centres(self) -> Floats:
        """(bins,) middle of each bin."""
        return (self.edges[1:] + self.edges[:-1]) / 2.0

    def resampled(self, rng: np.random.Generator) -> "ScoreHistogram":
        """As many of either kind, drawn with replacement."""

        def draw(counts: NDArray[np.int64]) -> NDArray[np.int64]:
            return rng.multinomial(counts.sum(), counts / counts.sum())

        return ScoreHistogram(self.edges, draw(self.positive), draw(self.unlabelled))


def mixture_prior(scores_positive: ArrayLike, scores_unlabelled: ArrayLike) -> Estimate:
    """π_U from a mixture of two normals of which the known lenses are members of one.

    Share, means and variances by expectation–maximisation over both samples; a known lens is a
    member of the lenses' component for certain. With unlabelled rows alone the share says nothing
    at π ≪ 1: the second component splits the bulk.

    Valid with at least 20 known lenses; components at least 1.5 standard deviations apart; a
    relative standard error (Fisher information) below 0.7; and scores that are such a mixture: a
    χ² test over bins that cover bulk and tail does not refuse it at 0.1 %, for either sample. It
    sees the scale of the scores: log-odds of a booster seldom pass that test.
    """
    return read_mixture(ScoreHistogram.count(scores_positive, scores_unlabelled)).estimate


def read_mixture(histogram: ScoreHistogram, *, start: float = 1e-3) -> Reading:
    """See `mixture_prior`; `start` is the share that the search begins with."""
    n_positive = int(histogram.positive.sum())
    if n_positive < MIN_POSITIVE:
        return Reading(float("nan"), f"{n_positive} known lenses, {MIN_POSITIVE} needed")
    share, lens, other = _fit(histogram, start)
    if not min(lens[1], other[1]) > 0.0:
        return Reading(float("nan"), "all known lenses, or all unlabelled rows, have one score")
    apart = (lens[0] - other[0]) / max(lens[1], other[1])
    if apart < _MIN_APART:
        return Reading(share, f"the components are {apart:.2f} σ apart, too near")
    scatter = _relative_error(histogram, share, lens=lens, other=other)
    if not scatter <= _MAX_SCATTER:
        return Reading(share, f"relative error {scatter:.2f} of {share:.3g} is too large")
    return Reading(share, _refusal(histogram, share, lens=lens, other=other))


def _fit(histogram: ScoreHistogram, start: float) -> tuple[float, Normal, Normal]:
    """Share of the lenses' component, and both components, by EM on counts."""
    x = histogram.centres
    known, n = histogram.positive.astype(np.float64), histogram.unlabelled.astype(np.float64)
    total, share = n.sum(), start
    half = np.searchsorted(np.cumsum(n), [0.16 * total, 0.5 * total, 0.84 * total])
    other = float(x[half[1]]), float(x[half[2]] - x[half[0]]) / 2.0
    lens = _moments(x, known)
    for _ in range(_MAX_STEPS):
        if not min(lens[1], other[1]) > 0.0:
            break
        inside = share * _density(x, lens)
        both = inside + (1.0 - share) * _density(x, other)
        member = n * np.divide(inside, both, out=np.zeros_like(both), where=both > 0.0)
        before, share = share, float(member.sum() / total)
        lens, other = _moments(x, known + member), _moments(x, n - member)
        if abs(share - before) <= 1e-5 * before:
            break
    return share, lens, other


def _density(x: Floats, law: Normal) -> Floats:
    # scipy's own spends most of its time on checks, thousands of times in a bootstrap.
    mean, sigma = law
    return np.asarray(np.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * np.sqrt(2.0 * np.pi)))


def _moments(x: Floats, weight: Floats) -> Normal:
    mean = float(np.average(x, weights=weight))
    return mean, float(np.average((x - mean) ** 2, weights=weight)) ** 0.5


def _relative_error(
    histogram: ScoreHistogram, share: float, *, lens: Normal, other: Normal
) -> float:
    """Standard error of the share over the share, by the Fisher information of the mixture."""
    f_lens, f_other = (_density(histogram.centres, law) for law in (lens, other))
    density = share * f_lens + (1.0 - share) * f_other
    seen = density > 0.0
    width = float(histogram.edges[1] - histogram.edges[0])
    information = width * float(np.sum((f_lens - f_other)[seen] ** 2 / density[seen]))
    error = 1.0 / np.sqrt(max(float(histogram.unlabelled.sum()) * information, 1e-300))
    return float(error / max(share, 1e-300))


def _refusal(
    histogram: ScoreHistogram,
    share: float,
    *,
    lens: Normal,
    other: Normal,
) -> str:
    """Why the scores are not the fitted laws; empty where they may be."""

    def mixed(t: Floats) -> Floats:
        return np.asarray(share * norm.cdf(t, *lens) + (1.0 - share) * norm.cdf(t, *other))

    def alone(t: Floats) -> Floats:
        return np.asarray(norm.cdf(t, *lens))

    bulk = norm.ppf(np.linspace(0.02, 0.98, 13), *other)
    tail = norm.ppf(np.linspace(0.05, 0.95, 7), *lens)
    cuts = np.sort(np.append(bulk, tail))
    if _misfit(histogram.edges, histogram.unlabelled, mixed, cuts, parameters=5) < _MISFIT:
        return "the unlabelled scores are no mixture of two normals"
    cuts = norm.ppf(np.linspace(0.1, 0.9, 9), *lens)
    if _misfit(histogram.edges, histogram.positive, alone, cuts, parameters=2) < _MISFIT:
        return "the scores of the known lenses are not normal"
    return ""


def _misfit(
    edges: Floats, counts: NDArray[np.int64], law: Law, cuts: Floats, *, parameters: int
) -> float:
    """Probability of a χ² at least as large: counts in merged bins against the fitted law."""
    places = np.unique(np.clip(np.searchsorted(edges, cuts), 1, len(edges) - 2))
    expected = counts.sum() * np.diff(law(edges[places]), prepend=0.0, append=1.0)
    ends = np.concatenate([[0], places, [len(counts)]])
    observed = np.diff(np.concatenate([[0], np.cumsum(counts)])[ends]).astype(np.float64)
    group = _merged(expected)
    expected, observed = (np.bincount(group, v) for v in (expected, observed))
    freedom = len(expected) - 1 - parameters
    if freedom < 1:
        return 1.0
    return float(chi2.sf(np.sum((observed - expected) ** 2 / expected), freedom))


def _merged(expected: Floats) -> NDArray[np.int64]:
    """Number of the merged bin of each bin, so that ten are expected in every one of them."""
    group, held = np.zeros(len(expected), np.int64), 0.0
    for k, count in enumerate(expected):
        if k:
            full = held >= _MIN_EXPECTED and expected[k:].sum() >= _MIN_EXPECTED
            group[k] = group[k - 1] + full
            held = 0.0 if full else held
        held += count
    return group
