"""How a trial is judged, and a trial of LightGBM-PU: files and arrays, without Ray.

A trial is K fits, one without each fold; the rows held out for the calibrator are never seen. It
is judged by where each known lens stands among the unlabelled rows of its own fold, so that no
score is compared with one of another fit.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from clusterray import storage
from clusterray.errors import InputError
from clusterray.provenance import digest, seed_for
from clusterray.pu.labelling import Scenario
from clusterray.pu.lightgbm_pu import PULightGBM

__all__ = [
    "Objective",
    "Report",
    "TrialData",
    "judge",
    "out_of_fold",
    "paired_gain",
    "placements",
    "run_trial",
]

Floats = NDArray[np.float64]
Objective = Literal["auroc", "average_precision", "tpr_at_fpr_1e-3"]
"""What a sweep maximises, see `judge`."""
Report = Callable[[dict[str, Any]], None]
"""Takes what a trial has come to so far."""
_FPR: Final = 1e-3


@dataclass(frozen=True)
class TrialData:
    """What every trial of a sweep learns from and is judged on; arrays are (n, …) in one order.

    `features` (n, f), `s`, `fold` (held-out rows < 0) and `cell` (n,) as `clusterray train` has
    them; `prior` is π of the survey, `unlabelled_prior` π_U. `seed` is the run's: a trial with
    the settings of a training run gives that run's out-of-fold logits.
    """

    features: NDArray[Any]
    s: NDArray[np.int8]
    fold: NDArray[np.int8]
    cell: NDArray[np.int64]
    feature_names: tuple[str, ...]
    scenario: Scenario
    prior: float
    unlabelled_prior: float
    unlabelled_fraction: float
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """What `PULightGBM` is told about the features."""

    n_reports = 1
    first_rung = 1
    on_gpu = False

    def trial(
        self,
        params: Mapping[str, Any],
        *,
        objective: Objective,
        folder: str,
        num_threads: int,
        report: Report,
    ) -> None:
        """`run_trial`, reported once."""
        report(run_trial(self, params, objective=objective, folder=folder, num_threads=num_threads))


def out_of_fold(data: TrialData, params: Mapping[str, Any], *, num_threads: int = 1) -> Floats:
    """(n,) log-odds of each row by the fit that did not see its fold; NaN for held-out rows."""
    logits = np.full(len(data.s), np.nan)
    for k in np.unique(data.fold[data.fold >= 0]).tolist():
        seen = np.flatnonzero((data.fold >= 0) & (data.fold != k))
        unseen = np.flatnonzero(data.fold == k)
        model = PULightGBM(
            data.feature_names,
            scenario=data.scenario,
            prior=data.prior,
            params=params,
            # One seed for all trials: they differ by their settings alone.
            seed=seed_for(data.seed, model="lightgbm", fold=k),
            unlabelled_fraction=data.unlabelled_fraction,
            num_threads=num_threads,
            **data.options,
        )
        names = data.feature_names
        model.fit(data.features[seen], data.s[seen], names=names, groups=data.cell[seen])
        logits[unseen] = model.decision_function(data.features[unseen], names)
    return logits


def placements(logits: Floats, s: NDArray[np.int8], *, fold: NDArray[np.int8]) -> Floats:
    """q_u of each known lens in a fold: share of its fold's unlabelled rows above it, ties half.

    In the order of the rows. 0 is above all of them.

    Raises
    ------
    InputError : a fold has known lenses and no unlabelled row.
    """
    found = np.full(len(s), np.nan)
    for k in np.unique(fold[(s == 1) & (fold >= 0)]):
        lenses = np.flatnonzero((fold == k) & (s == 1))
        unlabelled = np.sort(logits[(fold == k) & (s == 0)])
        if not len(unlabelled):
            raise InputError(
                f"fold {k} has no unlabelled row to rank its {len(lenses)} known lenses among; "
                "raise train.max_unlabelled or lower train.n_folds"
            )
        at_most = np.searchsorted(unlabelled, logits[lenses], side="right")
        below = np.searchsorted(unlabelled, logits[lenses], side="left")
        found[lenses] = 1.0 - (at_most + below) / (2.0 * len(unlabelled))
    return np.asarray(found[(s == 1) & (fold >= 0)])


def judge(q: Floats, objective: Objective, *, unlabelled_prior: float) -> float:
    """The objective of a sweep from the placements q of the held-out known lenses; more is better.

    auroc: the area under the ROC of known lenses against unlabelled rows, AUC_U = 1 − mean q, as
    that against true negatives. A share π_U of the unlabelled rows are lenses, and under SCAR
    those tie with the known ones on average, so AUC_U = (1 − π_U) AUC + π_U/2 (Menon et al. 2015,
    on mutually contaminated classes). It is linear in the ranks: the best trial is the best
    whatever π_U, and its error falls with the number of lenses as that of a mean does, which is
    why it is the choice for a dozen.

    average_precision: the mean over known lenses of the precision at their threshold, which on PU
    labels is π_U·TPR/q_u, at most 1. It looks at the top of the list only, and wants hundreds.

    tpr_at_fpr_1e-3: the largest TPR at a corrected FPR (q_u − π_U·TPR)/(1 − π_U) ≤ 1e-3. It wants
    hundreds of known lenses and thousands of unlabelled rows in each fold.
    """
    if objective == "auroc":
        return float((1.0 - q.mean() - unlabelled_prior / 2.0) / (1.0 - unlabelled_prior))
    tpr = np.searchsorted(np.sort(q), q, side="right") / len(q)
    if objective == "tpr_at_fpr_1e-3":
        fpr = (q - unlabelled_prior * tpr) / (1.0 - unlabelled_prior)
        return float(tpr[fpr <= _FPR].max(initial=0.0))
    precision = unlabelled_prior * tpr / np.maximum(q, unlabelled_prior * tpr)
    return float(precision.mean())


def paired_gain(
    q: Floats,
    reference: Floats,
    objective: Objective,
    *,
    unlabelled_prior: float,
    n_bootstrap: int,
    seed: int,
) -> tuple[float, float]:
    """How much better one trial is than another on the same lenses, and the bootstrap error of it.

    It errs on the bright side where the one is the best of many trials.
    """

    def gain(rows: Any) -> float:
        one, other = (judge(v[rows], objective, unlabelled_prior=unlabelled_prior) for v in pair)
        return one - other

    pair = (q, reference)
    draws = np.random.default_rng(seed).integers(0, len(q), (n_bootstrap, len(q)))
    return gain(slice(None)), float(np.std([gain(rows) for rows in draws], ddof=1))


def run_trial(
    data: TrialData,
    params: Mapping[str, Any],
    *,
    objective: Objective,
    folder: str,
    num_threads: int,
) -> dict[str, Any]:
    """Judge one set of parameters, or find the judgement that an earlier run left in `folder`.

    Tune saves its state every few seconds at best, so a killed run repeats its last trials; the
    files here make that cost nothing.
    """
    url = storage.join(folder, f"{digest(dict(params))[:16]}.json")
    if storage.exists(url):
        return dict(storage.read_json(url))
    start = time.monotonic()
    q = placements(out_of_fold(data, params, num_threads=num_threads), data.s, fold=data.fold)
    value = judge(q, objective, unlabelled_prior=data.unlabelled_prior)
    if not math.isfinite(value):
        raise InputError(f"{objective} is {value} with {dict(params)}")
    judgement = {
        "parameters": dict(params),
        "objective": value,
        "placements": q.tolist(),
        "seconds": round(time.monotonic() - start, 3),
    }
    storage.write_json(url, judgement)
    return judgement
