"""Rare-event metrics from labels alone: what known lenses and unlabelled rows say together.

Under SCAR known lenses stand for all, so the share of them above a threshold is TPR. Of a share
q_u of the unlabelled rows above it π_U·TPR are hidden lenses: precision = π_U·TPR/q_u and
FPR = (q_u − π_U·TPR)/(1 − π_U). π_U is the prevalence among the unlabelled rows, which in a
single-sample survey is not that of the survey.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.pu.labelling import check_finite, check_fraction, check_labels
from clusterray.pu.score_cells import ScoreCells
from clusterray.rank.measured import Measured, bootstrapped

__all__ = ["pu_curve", "pu_metrics"]

_FPR = {"1e-3": 1e-3, "1e-2": 1e-2, "1e-1": 0.1}

Floats = NDArray[np.float64]


def pu_metrics(
    s: ArrayLike,
    score: ArrayLike,
    *,
    unlabelled_prior: float,
    budgets: Sequence[int] = (),
    n_bootstrap: int,
    seed: int,
) -> dict[str, Measured]:
    """PU-corrected measures over the unlabelled rows, each with its bootstrap interval.

    `tpr_at_fpr_F` is the largest TPR at a corrected FPR ≤ F. `recall_at_N` is the share of known
    lenses that score as high as the first N unlabelled rows, `precision_at_N` the corrected
    precision of those. `average_precision` is the mean corrected precision at the known lenses'
    scores. `auroc` = (AUC_U − π_U/2)/(1 − π_U) with AUC_U that of known lenses against unlabelled
    rows, ties half (Menon et al. 2015). Precisions are held to 1, FPR to 0.

    Parameters
    ----------
    s : (n,) labels; known non-lenses are left out.
    score : (n,) out-of-fold, any increasing scale.
    unlabelled_prior : π_U.
    budgets : numbers N of unlabelled rows at hand.

    Raises
    ------
    InputError : shapes that differ, scores that are not finite, labels that are none, π_U outside
        (0, 1), or fewer than 20 resamples.
    """
    cells = _cells(s, score)
    check_fraction(unlabelled_prior, name="unlabelled_prior")
    measure = partial(_measures, prior=unlabelled_prior, budgets=tuple(budgets))
    return bootstrapped(measure, cells, n_bootstrap=n_bootstrap, seed=seed)


def pu_curve(
    s: ArrayLike, score: ArrayLike, *, unlabelled_prior: float
) -> tuple[Floats, Floats, Floats]:
    """(TPR, FPR, precision), each (m,), corrected, at the known lenses' distinct scores.

    Parameters and errors as `pu_metrics`.
    """
    check_fraction(unlabelled_prior, name="unlabelled_prior")
    return _corrected(_cells(s, score), unlabelled_prior)


def _cells(s: ArrayLike, score: ArrayLike) -> ScoreCells:
    values = check_finite(score, shape=(None,), where="scores")
    labels = check_labels(s, n_rows=len(values), where="PU metrics")
    return ScoreCells.count(values[labels == 1], values[labels == 0])


def _corrected(cells: ScoreCells, prior: float) -> tuple[Floats, Floats, Floats]:
    tpr = cells.positive_above / cells.n_positive
    share = cells.other_above / cells.n_other
    hits = prior * tpr
    precision = np.divide(hits, share, out=np.ones_like(share), where=share > hits)
    return tpr, np.maximum(share - hits, 0.0) / (1.0 - prior), precision


def _measures(cells: ScoreCells, *, prior: float, budgets: tuple[int, ...]) -> dict[str, float]:
    tpr, fpr, precision = _corrected(cells, prior)
    found: dict[str, float] = {}
    for name, limit in _FPR.items():
        found[f"tpr_at_fpr_{name}"] = float(tpr[fpr <= limit].max(initial=0.0))
    above = cells.other_above
    for budget in budgets:
        recall = float(tpr[above <= budget].max(initial=0.0))
        found[f"recall_at_{budget}"] = recall
        share = min(budget / cells.n_other, 1.0)
        found[f"precision_at_{budget}"] = min(prior * recall / share, 1.0)
    found["average_precision"] = float(cells.positive @ precision / cells.n_positive)
    below = cells.n_other - above
    auc = float(cells.positive @ (below + cells.tied / 2.0)) / (cells.n_positive * cells.n_other)
    found["auroc"] = (auc - prior / 2.0) / (1.0 - prior)
    return found
