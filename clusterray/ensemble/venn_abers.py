"""Venn–Abers pairs: how far one more label could move a probability. A sign of scarcity."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.isotonic import IsotonicRegression

from clusterray.pu.labelling import Labelling, check_finite, check_labels

__all__ = ["venn_abers", "venn_abers_table"]

Floats = NDArray[np.float64]


def venn_abers(
    logit_stack: ArrayLike, s: ArrayLike, at: ArrayLike, *, labelling: Labelling
) -> tuple[Floats, Floats]:
    """(p0, p1), each (k,): p(y=1|x) at stack logits `at`, if a row there is unlabelled or not.

    Isotonic regression of s with the new row among the others, as 0 and as 1 (Vovk & Petej 2014,
    inductive form); the resulting P(s=1|x) goes through the label model. One of the two is the
    well-calibrated answer, but nobody knows which: a wide pair says that labels are few there. It
    is not a confidence interval of p.

    Parameters
    ----------
    logit_stack, s : (n,) held-out rows; known non-lenses are left out.
    at : (k,) stack logits.

    Raises
    ------
    InputError : logits that are not finite, labels that are none, or π below the labelled share.
    """
    z = check_finite(logit_stack, shape=(None,), where="stack logits")
    labels = check_labels(s, n_rows=len(z), where="venn_abers")
    points = check_finite(at, shape=(None,), where="stack logits to ask for")
    survey = labels >= 0
    z, labels = z[survey], labels[survey]
    model = labelling.model(labels)
    # Rows of equal logit are one row of their weight: the search is over distinct ones.
    values, place, counts = np.unique(z, return_inverse=True, return_counts=True)
    known = np.bincount(place, labels == 1)
    pair = np.empty((2, len(points)))
    for k, point in enumerate(points):
        for label in (0, 1):
            x = np.append(values, point)
            weight = np.append(counts, 1.0)
            share = np.append(known / counts, float(label))
            fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(x, share, sample_weight=weight)
            pair[label, k] = fitted.predict([point])[0]
    p = model.posterior(pair / np.maximum(1.0 - pair, 1e-300))
    return p[0], p[1]


def venn_abers_table(
    logit_stack: ArrayLike, s: ArrayLike, *, labelling: Labelling, n_points: int = 24
) -> dict[str, Any]:
    """Pairs along the held-out logits, denser at the top: plain lists for the bundle."""
    z = np.sort(check_finite(logit_stack, shape=(None,), where="stack logits"))
    ranks = np.unique(np.geomspace(1, len(z), n_points).astype(np.int64))
    at = np.unique(z[len(z) - ranks])
    low, high = venn_abers(logit_stack, s, at, labelling=labelling)
    return {"logit_stack": at.tolist(), "p0": low.tolist(), "p1": high.tolist()}
