"""Whether labelled lenses are a random draw of all lenses (SCAR), and what if they are not.

They are not: people know the bright ones. The test says how far off they are in each covariate;
the sensitivity says how expected purity moves when the bright ones are labelled more often.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import rankdata

from clusterray.errors import InputError
from clusterray.provenance import seed_for
from clusterray.pu.labelling import Labelling, check_labels, check_probabilities

__all__ = ["scar_sensitivity", "scar_test"]

_DRAWS = 2000
_FACTORS = (1.0, 1.5, 2.0, 4.0)

Floats = NDArray[np.float64]


def scar_test(
    covariates: Mapping[str, ArrayLike],
    p: ArrayLike,
    s: ArrayLike,
    *,
    labelling: Labelling,
    seed: int,
) -> dict[str, dict[str, float]]:
    """How labelled lenses differ from what lenses are believed to be, by covariate.

    Under SCAR, s is drawn among lenses alike, so labelled rows are drawn from all rows with
    probability proportional to p(y=1|x). The statistic is the mean rank of the covariate over the
    labelled rows; its null distribution comes from 2,000 such draws. p must not have seen the
    row's own label (out-of-fold), or the test looks at itself. p-values are adjusted for the
    number of covariates (Holm 1979).

    Parameters
    ----------
    covariates : (n,) by name, such as brightness and θ_E; NaN where not known.
    p : (n,) probabilities. s : (n,) labels; known non-lenses are left out.

    Returns
    -------
    by name: `difference` of the mean ranks in units of the ranks' scatter (positive: the labelled
    have more of it), `p_value`, `p_adjusted`, `n_labelled`. Covariates known for fewer than five
    labelled rows are left out.

    Raises
    ------
    InputError : shapes that differ, values that are no probabilities, or labels that are none.
    """
    probability = check_probabilities(p, where="probabilities")
    labels = check_labels(s, n_rows=len(probability), where="scar_test")
    # Case-control, labelled rows are no rows of the survey: they are drawn from its lenses.
    own = labels >= 0 if labelling.scenario == "single-sample" else labels == 0
    found = {}
    for name, given in covariates.items():
        values = np.asarray(given, np.float64)
        if values.shape != labels.shape:
            raise InputError(
                f"covariate '{name}' has shape {values.shape}, expected {labels.shape}"
            )
        known = np.isfinite(values)
        labelled = np.flatnonzero(known & (labels == 1))
        survey = np.flatnonzero(known & own)
        if len(labelled) < 5 or not len(survey):
            continue
        weight = probability[survey] / np.where(
            labels[survey] == 0, labelling.unlabelled_fraction, 1.0
        )
        found[name] = _against_draws(
            values, labelled, survey, weight, seed_for(seed, covariate=name)
        )
    _adjust(found)
    return found


def _against_draws(
    values: Floats,
    labelled: NDArray[np.int64],
    survey: NDArray[np.int64],
    weight: Floats,
    seed: int,
) -> dict[str, float]:
    both = np.union1d(labelled, survey)
    rank = np.zeros(len(values))
    rank[both] = rankdata(values[both]) / len(both)
    mean = float(rank[labelled].mean())
    rng = np.random.default_rng(seed)
    share = weight / weight.sum()
    draws = rng.choice(rank[survey], (_DRAWS, len(labelled)), p=share).mean(axis=1)
    center = float(share @ rank[survey])
    spread = float(np.sqrt(share @ (rank[survey] - center) ** 2))
    beyond = int(np.sum(np.abs(draws - center) >= abs(mean - center)))
    return {
        "difference": (mean - center) / spread if spread > 0 else 0.0,
        "p_value": (1 + beyond) / (1 + _DRAWS),
        "n_labelled": float(len(labelled)),
    }


def _adjust(found: dict[str, dict[str, float]]) -> None:
    ordered = sorted(found, key=lambda name: found[name]["p_value"])
    least = 0.0
    for k, name in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - k) * found[name]["p_value"]))
        found[name]["p_adjusted"] = least


def scar_sensitivity(
    covariate: ArrayLike,
    p: ArrayLike,
    s: ArrayLike,
    *,
    prior: float,
    budgets: Sequence[int],
    unlabelled_fraction: float = 1.0,
) -> dict[str, Any]:
    """Expected purity of the list if lenses are labelled e^δ times as often per σ of a covariate.

    If P(s=1|y=1, x) ∝ r^z with z the standardised covariate, the lenses that labels stand for are
    rarer where r^z is large: odds of p fall by r^z, and all by one factor that keeps mean(p) at π.
    The order of the list stands; what is expected of it moves.

    Parameters
    ----------
    covariate : (n,) such as brightness; NaN counts as the mean.
    p : (n,) probabilities; known non-lenses are left out.
    budgets : numbers of rows of the survey; rows at hand stand for 1/f of it.

    Returns
    -------
    plain lists: `factor` r, `budget`, and `purity` (factors, budgets).

    Raises
    ------
    InputError : shapes that differ, values that are no probabilities, or labels that are none.
    """
    probability = check_probabilities(p, where="probabilities")
    labels = check_labels(s, n_rows=len(probability), where="scar_sensitivity")
    values = np.asarray(covariate, np.float64)
    if values.shape != labels.shape:
        raise InputError(f"covariate has shape {values.shape}, expected {labels.shape}")
    survey = labels >= 0
    weight = np.where(labels[survey] == 0, 1.0 / unlabelled_fraction, 1.0)
    eta = np.asarray(logit(np.clip(probability[survey], 1e-15, 1 - 1e-15)))
    z = _standardised(values[survey])
    order = np.argsort(-eta, kind="stable")
    reached = np.cumsum(weight[order])
    purity = []
    for factor in _FACTORS:
        moved = expit(_at_prior(eta - np.log(factor) * z, weight, prior))
        finds = np.cumsum((moved * weight)[order])
        purity.append([float(np.interp(b, reached, finds) / b) for b in budgets])
    return {"factor": list(_FACTORS), "budget": list(budgets), "purity": purity}


def _standardised(values: Floats) -> Floats:
    mean, spread = float(np.nanmean(values)), float(np.nanstd(values))
    return np.asarray(np.nan_to_num((values - mean) / (spread or 1.0)))


def _at_prior(eta: Floats, weight: Floats, prior: float) -> Floats:
    """Log-odds moved by the one constant at which their mean probability is π."""

    def excess(shift: float) -> float:
        return float(np.average(expit(eta + shift), weights=weight)) - prior

    reach = 60.0 + float(np.abs(eta).max())
    return eta + float(brentq(excess, -reach, reach))
