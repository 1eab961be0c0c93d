"""From held-out scores of s to p(y=1|x): which of three links explains unseen labels best.

Each is fitted to s through the label model, P(s=1|x) = cσ(η) (single-sample) or odds κσ(η)
(case-control), with mean p at π (`LabelLoss`):

- "linear": η = a z + b of the score's log-odds z; exact where z already is linear in η, as of a
  linear learner, whose g cannot saturate at c;
- "saturated": η = a log-odds(p(z)) + b with p(z) = g/c or its case-control form; exact for a
  learner whose g is right;
- "isotonic": any rising g; it needs many known lenses, for each of them is a step.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from clusterray.provenance import seed_for
from clusterray.pu.label_loss import LabelLoss
from clusterray.pu.labelling import Labelling, LabelModel

__all__ = ["LINKS", "steepness", "unlabelled_posterior"]

LINKS: Final = ("linear", "saturated", "isotonic")

_BINS = 500
_FOLDS = 5
_FEW = 1e-12

Floats = NDArray[np.float64]


class _Binned:
    """Scores in up to 1000 bins, narrow both where rows are many and where scores are high."""

    def __init__(self, scores: Floats, s: NDArray[np.int8], weight: Floats | None) -> None:
        even = np.linspace(scores.min(), scores.max(), _BINS + 1)[1:-1]
        often = np.quantile(scores, np.linspace(0, 1, _BINS + 1)[1:-1])
        self.bin = np.searchsorted(np.unique(np.concatenate([even, often])), scores, side="right")
        counts = np.ones(len(s)) if weight is None else weight
        size = np.bincount(self.bin, counts)
        total = np.bincount(self.bin, counts * scores)
        self.used = size > 0
        self.z = total[self.used] / size[self.used]
        self.s, self.counts = s, counts

    def masses(self, rows: NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
        """Weight of labelled and of unlabelled rows in each used bin."""
        chosen = slice(None) if rows is None else rows
        return tuple(  # type: ignore[return-value]
            np.bincount(
                self.bin[chosen],
                self.counts[chosen] * (self.s[chosen] == label),
                minlength=len(self.used),
            )[self.used]
            for label in (1, 0)
        )


def unlabelled_posterior(
    scores: Floats,
    s: NDArray[np.int8],
    *,
    labelling: Labelling,
    seed: int,
    weight: Floats | None = None,
) -> tuple[Floats, str]:
    """p(y=1|x, s) of each row, 1 where labelled and w(x) elsewhere; and the link that was chosen.

    Single-sample w = (1−c)/c · g/(1−g) (Elkan & Noto 2008); case-control w = p. In [0, 1].

    Parameters
    ----------
    scores : (n,) log-odds of P(s=1|x), out-of-fold, known non-lenses left out.
    s : (n,) 1 or 0.
    seed : of the split by which links are compared.
    weight : (n,) how much each row counts.
    """
    binned = _Binned(scores, s, weight)
    labelling = labelling.counted(s, weight)
    link = _choose(binned, labelling, seed)
    p = expit(_log_odds(link, binned, binned.masses(), labelling))
    model = labelling.model(s, weight)
    # A certain row that is not labelled stays certain, whatever c.
    w = np.where(p < 1.0, (1.0 - model.c) * p / np.maximum(1.0 - model.c * p, 1e-300), 1.0)
    place = np.cumsum(binned.used) - 1
    return np.where(s == 1, 1.0, w[place[binned.bin]]), link


def steepness(
    scores: Floats,
    s: NDArray[np.int8],
    *,
    labelling: Labelling,
    weight: Floats | None = None,
) -> float:
    """The slope a ≥ 0 with which log-odds a z + b of p(y=1|x) explain labels s (n,) best.

    Parameters
    ----------
    scores : (n,) z, out-of-fold, known non-lenses left out.
    weight : (n,) how much each row counts.
    """
    binned = _Binned(scores, s, weight)
    labels = np.repeat(np.array([1, 0], np.int8), len(binned.z))
    masses = np.concatenate(binned.masses())
    loss = LabelLoss(labels, labelling=labelling, weight=masses)
    return _line(binned.z, np.concatenate([binned.z, binned.z]), loss, masses)[0]


def _choose(binned: _Binned, labelling: Labelling, seed: int) -> str:
    """The link whose labels' −log likelihood is least on rows left out of its fit, five splits."""
    s = binned.s
    whole = labelling.model(s, binned.counts)
    rng = np.random.default_rng(seed_for(seed, purpose="label link"))
    fold = np.empty(len(s), np.int8)
    for label in (0, 1):
        rows = np.flatnonzero(s == label)
        fold[rows] = rng.permutation(np.arange(len(rows)) % _FOLDS)
    losses = dict.fromkeys(LINKS, 0.0)
    for k in range(_FOLDS):
        fitted, judged = (binned.masses(rows) for rows in (fold != k, fold == k))
        if not (fitted[0].sum() and fitted[1].sum()):
            continue
        for link in LINKS:
            eta = _log_odds(link, binned, fitted, labelling)
            for mass, labelled in zip(judged, (True, False), strict=True):
                value, _ = whole.negative_log_likelihood(eta, np.full(len(eta), labelled))
                losses[link] += float(mass @ value)
    return min(LINKS, key=losses.__getitem__)


def _log_odds(
    link: str, binned: _Binned, masses: tuple[Floats, Floats], labelling: Labelling
) -> Floats:
    """η of each used bin."""
    labelled, unlabelled = masses
    s = np.repeat(np.array([1, 0], np.int8), len(binned.z))
    weight = np.concatenate([labelled, unlabelled])
    model = labelling.model(s, weight)
    if link == "isotonic":
        return _isotonic(binned.z, labelled, unlabelled, model)
    x = binned.z if link == "linear" else _saturated(binned.z, model)
    loss = LabelLoss(s, labelling=labelling, weight=weight)
    a, b = _line(x, np.concatenate([x, x]), loss, weight)
    return a * x + b


def _isotonic(z: Floats, labelled: Floats, unlabelled: Floats, model: LabelModel) -> Floats:
    total = labelled + unlabelled
    share = np.divide(labelled, total, out=np.zeros_like(total), where=total > 0)
    isotonic = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    g = isotonic.fit(z, share, sample_weight=total).predict(z)
    p = model.posterior(g / np.maximum(1.0 - g, 1e-300))
    return np.asarray(logit(np.clip(p, _FEW, 1.0 - _FEW)))


def _saturated(z: Floats, model: LabelModel) -> Floats:
    p = model.posterior(np.exp(np.minimum(z, 600.0)))
    return np.asarray(logit(np.clip(p, _FEW, 1.0 - 1e-3)))


def _line(x: Floats, both: Floats, loss: LabelLoss, weight: Floats) -> tuple[float, float]:
    """(a, b) of the log-odds a x + b, a ≥ 0, with the least loss."""
    center = float(np.average(both, weights=weight))
    spread = float(np.sqrt(np.average((both - center) ** 2, weights=weight))) or 1.0
    unit = (both - center) / spread
    total = weight.sum()

    def objective(theta: Floats) -> tuple[float, Floats]:
        value, slope = loss(theta[0] * unit + theta[1])
        return value / total, np.array([slope @ unit, slope.sum()]) / total

    start = np.array([1.0, np.log(loss.prior / (1.0 - loss.prior))])
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)],
        options={"maxiter": 100, "ftol": 1e-11, "gtol": 1e-7},
    )  # fmt: skip
    a = float(found.x[0]) / spread
    return a, float(found.x[1]) - a * center
