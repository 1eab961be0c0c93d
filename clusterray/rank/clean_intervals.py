"""Bootstrap intervals of the metrics that truth allows, and the curves they are points of."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.pu.score_cells import ScoreCells
from clusterray.rank.measured import Measured, bootstrapped
from clusterray.rank.metrics import checked_truth

__all__ = ["clean_curve", "rare_event_intervals"]

_ONE_IN = {"1e-4": 10_000, "1e-3": 1_000, "1e-2": 100, "1e-1": 10}

Floats = NDArray[np.float64]


def rare_event_intervals(
    y: ArrayLike, score: ArrayLike, *, n_bootstrap: int, seed: int
) -> dict[str, Measured]:
    """The measures of `metrics.rare_event_metrics` (but thresholds and counts) with intervals.

    Empty where one of the two classes is not there.

    Raises
    ------
    InputError : as `rare_event_metrics`; fewer than 20 resamples.
    """
    cells = _cells(y, score)
    if cells is None:
        return {}
    return bootstrapped(_measures, cells, n_bootstrap=n_bootstrap, seed=seed)


def clean_curve(y: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """(TPR, FPR, precision), each (m,), at the distinct scores of the positives; empty without.

    Raises
    ------
    InputError : as `rare_event_metrics`.
    """
    cells = _cells(y, score)
    if cells is None:
        return np.empty(0), np.empty(0), np.empty(0)
    hits, false = cells.positive_above, cells.other_above
    return hits / cells.n_positive, false / cells.n_other, hits / (hits + false)


def _cells(y: ArrayLike, score: ArrayLike) -> ScoreCells | None:
    labels, scores = checked_truth(y, score)
    # Their places order the scores as well, and may be infinite themselves.
    place = np.unique(scores, return_inverse=True)[1].astype(np.float64)
    if labels.all() or not labels.any():
        return None
    return ScoreCells.count(place[labels], place[~labels])


def _measures(cells: ScoreCells) -> dict[str, float]:
    recall = cells.positive_above / cells.n_positive
    false, n_negative = cells.other_above, cells.n_other
    found = {
        f"tpr_at_fpr_{name}": float(recall[false <= n_negative // one_in].max(initial=0.0))
        if n_negative >= one_in
        else np.nan
        for name, one_in in _ONE_IN.items()
    }
    for name, allowed in (("tpr0", 0), ("tpr10", 9)):
        found[name] = float(recall[false <= allowed].max(initial=0.0))
    # A resample may hold no row as high as the best positive.
    seen = np.maximum(cells.positive_above + false, 1)
    precision = cells.positive_above / seen
    found["average_precision"] = float(cells.positive @ precision / cells.n_positive)
    better = cells.positive @ (n_negative - false + cells.tied / 2.0)
    found["auroc"] = float(better / (cells.n_positive * n_negative))
    return found
