"""Rare-event metrics with exact counts: what a person finds before tiring of false alarms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from clusterray.errors import InputError

__all__ = [
    "PurityCompleteness",
    "checked_truth",
    "purity_completeness",
    "rare_event_metrics",
]

Floats = NDArray[np.float64]

_ONE_IN: Final = {"1e-4": 10_000, "1e-3": 1_000, "1e-2": 100, "1e-1": 10}


def rare_event_metrics(y: ArrayLike, score: ArrayLike) -> dict[str, float]:
    """How many of the positives stand above how few negatives.

    `tpr_at_fpr_F` is the largest share of positives with score ≥ t over all thresholds t that at
    most floor(F · n_negative) negatives reach; `threshold_at_fpr_F` is the highest such t that
    keeps this share. It is NaN where there are fewer than 1/F negatives. `tpr0` is the share of
    positives above every negative, `tpr10` that with fewer than ten negatives (Metcalf et al.
    2019, A&A 625, A119, sect. 4). A positive tied with a negative that may not pass counts as
    missed. `average_precision` and `auroc` are scikit-learn's. A measure that needs a class which
    is not there is NaN. `n_positive` and `n_negative` are the counts.

    Parameters
    ----------
    y : (n,) 1 lens, 0 not. Marginal objects (−1) have no place here.
    score : (n,) higher is more lens-like; any monotone scale.

    Raises
    ------
    InputError : nothing to measure, shapes that differ, y other than 0 and 1, or a score that is
        not a number.
    """
    labels, scores = checked_truth(y, score)
    positive, negative = scores[labels], np.sort(scores[~labels])[::-1]
    result: dict[str, float] = {}
    for name, one_in in _ONE_IN.items():
        share, threshold = _at_most(positive, negative, len(negative) // one_in)
        enough = len(negative) >= one_in
        result[f"tpr_at_fpr_{name}"] = share if enough else np.nan
        result[f"threshold_at_fpr_{name}"] = threshold if enough else np.nan
    for name, allowed in (("tpr0", 0), ("tpr10", 9)):
        share, threshold = _at_most(positive, negative, allowed)
        result[name], result[f"threshold_{name}"] = share, threshold
    # Their places order the scores as well, and scikit-learn takes no infinite ones.
    place = np.unique(scores, return_inverse=True)[1]
    both = len(positive) > 0 and len(negative) > 0
    result["average_precision"] = (
        float(average_precision_score(labels, place)) if len(positive) else np.nan
    )
    result["auroc"] = float(roc_auc_score(labels, place)) if both else np.nan
    result["n_positive"], result["n_negative"] = len(positive), len(negative)
    return result


def checked_truth(y: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Truth and scores (n,) as booleans and float64; errors as `rare_event_metrics`."""
    labels = np.asarray(y)
    try:
        scores = np.asarray(score, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"score is not made of numbers: {error}") from error
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise InputError(
            f"y has shape {labels.shape} and score {scores.shape}, expected the same (n,)"
        )
    if not len(labels):
        raise InputError("nothing to measure: y and score are empty")
    known = np.isin(labels, (0, 1))
    if not known.all():
        raise InputError(
            f"y[{np.argmin(known)}] is {labels[~known][0]!s}, expected 0 or 1; leave marginal and "
            "unknown objects out"
        )
    if np.isnan(scores).any():
        raise InputError(
            f"score[{np.argmax(np.isnan(scores))}] is NaN ({np.isnan(scores).sum()} in all); "
            "objects without a score belong in rejects"
        )
    return labels.astype(bool), scores


def _at_most(positive: Floats, negative_descending: Floats, allowed: int) -> tuple[float, float]:
    """Largest share of positives with at most `allowed` negatives at or above the threshold."""
    if not len(positive):
        return np.nan, np.nan
    if allowed >= len(negative_descending):
        return 1.0, float(positive.min())
    first_refused = negative_descending[allowed]
    passing = positive[positive > first_refused]
    if len(passing):
        return len(passing) / len(positive), float(passing.min())
    return 0.0, float(np.nextafter(first_refused, np.inf))


@dataclass(frozen=True)
class PurityCompleteness:
    """What inspecting the first objects of a ranked list brings.

    `found` lenses among the first `budget` objects (all, where there are fewer); `purity` is
    their share of the inspected, `completeness` their share of all lenses (NaN without any).
    """

    budget: tuple[int, ...]
    found: tuple[int, ...]
    purity: tuple[float, ...]
    completeness: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists; NaN becomes None."""
        return {
            "budget": list(self.budget),
            "found": list(self.found),
            "purity": list(self.purity),
            "completeness": [None if np.isnan(v) else v for v in self.completeness],
        }


def purity_completeness(
    y: ArrayLike, score: ArrayLike, budgets: Sequence[int], object_id: Sequence[str]
) -> PurityCompleteness:
    """Purity and completeness at fixed numbers of inspected objects.

    Objects are inspected by falling score; ties go by rising object_id, as in the ranking.

    Parameters
    ----------
    y, score : (n,) as for `rare_event_metrics`.
    budgets : numbers of objects, each > 0.
    object_id : (n,) distinct names.

    Raises
    ------
    InputError : as `rare_event_metrics`; a budget that is not positive; ids that are not n
        distinct ones.
    """
    labels, scores = checked_truth(y, score)
    if len(object_id) != len(labels) or len(set(object_id)) != len(labels):
        raise InputError(
            f"object_id holds {len(set(object_id))} distinct ids, expected {len(labels)}: one each"
        )
    wrong = [b for b in budgets if b < 1]
    if wrong:
        raise InputError(f"budget {wrong[0]} is not positive: it is a number of objects to inspect")
    table = pa.table({"score": scores, "object_id": pa.array(object_id, pa.string())})
    order = pc.sort_indices(table, [("score", "descending"), ("object_id", "ascending")])
    found = np.cumsum(labels[order.to_numpy()])
    inspected = [min(b, len(labels)) for b in budgets]
    counts = [int(found[n - 1]) for n in inspected]
    total = int(found[-1])
    return PurityCompleteness(
        budget=tuple(budgets),
        found=tuple(counts),
        purity=tuple(c / n for c, n in zip(counts, inspected, strict=True)),
        completeness=tuple(c / total if total else np.nan for c in counts),
    )
