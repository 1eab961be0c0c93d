"""Known lenses in bins of held-out rows: as many as the probabilities say, or not."""

from typing import Any

import numpy as np
from astropy.stats import binom_conf_interval
from numpy.typing import ArrayLike

from clusterray.pu.labelling import Labelling, check_labels, check_probabilities

__all__ = ["label_reliability"]


def label_reliability(p: ArrayLike, s: ArrayLike, *, labelling: Labelling) -> dict[str, Any]:
    """Expected and observed known lenses in bins of ranks, best first: plain lists for the bundle.

    Truth is not known, but labels are: under the label model a row of probability p is labelled
    with P(s=1) = κp / (1 + (κ − c) p). Bins hold 10, 20, 50, 100, … of the best rows. `low` and
    `high` are the 95 % limits (Jeffreys) of the observed number.

    Parameters
    ----------
    p : (n,) calibrated probabilities of held-out rows; known non-lenses are left out.
    s : (n,) labels.

    Raises
    ------
    InputError : values that are no probabilities, or labels that are none.
    """
    probability = check_probabilities(p, where="probabilities")
    labels = check_labels(s, n_rows=len(probability), where="label_reliability")
    survey = labels >= 0
    probability, labels = probability[survey], labels[survey]
    model = labelling.model(labels)
    odds = model.gain * probability / np.maximum(1.0 - model.c * probability, 1e-300)
    labelled = odds / (1.0 + odds)
    order = np.argsort(-probability, kind="stable")
    edges = [0, *(e for k in range(7) for m in (10, 20, 50) if (e := m * 10**k) < len(order))]
    starts, ends = edges, [*edges[1:], len(order)]
    expected = np.add.reduceat(labelled[order], starts)
    observed = np.add.reduceat((labels[order] == 1).astype(np.int64), starts)
    size = np.subtract(ends, starts)
    low, high = binom_conf_interval(observed, size, 0.95, interval="jeffreys") * size
    return {
        "first": [start + 1 for start in starts],
        "last": list(ends),
        "expected": expected.tolist(),
        "observed": observed.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "mean_p": (np.add.reduceat(probability[order], starts) / size).tolist(),
    }
