"""One logit from those of the base models: logistic stacking on out-of-fold logits."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit

from clusterray.errors import BundleError, InputError
from clusterray.pu.label_loss import LabelLoss
from clusterray.pu.labelling import Labelling, check_finite, check_labels

__all__ = ["LOGIT_LIMIT", "Stacker", "align_folds", "cross_fitted", "fit_weights"]

LOGIT_LIMIT = 30.0
"""Base logits are clipped to ± this: beyond it a probability is 0 or 1 in all but name."""


def fit_weights(
    z: NDArray[np.float64], loss: LabelLoss, *, weight: NDArray[np.float64], penalty: float
) -> tuple[NDArray[np.float64], float]:
    """Coefficients (m,) ≥ 0 and intercept of η = z·w + b, in units of the logits z (n, m).

    Minimises `loss` + ½ λ Σ (w_k sd_k)² by L-BFGS-B. A constant column gets weight 0.
    """
    center = np.average(z, axis=0, weights=weight)
    spread = np.sqrt(np.average((z - center) ** 2, axis=0, weights=weight))
    scale = np.where(spread > 1e-9, spread, 1.0)
    x = (z - center) / scale
    n, m = x.shape

    def objective(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = theta[:m]
        value, slope = loss(x @ w + theta[m])
        gradient = np.append(slope @ x + penalty * w, slope.sum())
        return (value + 0.5 * penalty * float(w @ w)) / n, gradient / n

    start = np.append(np.full(m, 1.0 / m), np.log(loss.prior / (1.0 - loss.prior)))
    bounds = [(0.0, None)] * m + [(None, None)]
    found = minimize(
        objective, start, jac=True, bounds=bounds, method="L-BFGS-B",
        options={"maxiter": 500, "ftol": 1e-11, "gtol": 1e-7},
    )  # fmt: skip
    coef = np.where(spread > 1e-9, found.x[:m] / scale, 0.0)
    return coef, float(found.x[m] - coef @ center)


class Stacker:
    """Non-negative, ridge-regularised logistic combination of base logits.

    η = Σ w_k z_k + b is the log-odds of p(y=1|x); labels follow from it by the scenario, so that
    the fit is not bent where P(s=1|x) saturates at c. Weights are w_k ≥ 0: every base model is
    trained to rise with p(y=1|x), and a handful of positives must not turn one upside down. Inputs
    are clipped to ±30 and standardised; the penalty ½ λ Σ w² applies to standardised weights.

    Parameters
    ----------
    models : names of the base models, in column order.
    penalty : λ.
    """

    def __init__(self, models: Sequence[str], *, penalty: float = 1.0) -> None:
        self.models = tuple(models)
        self.penalty = penalty

    def fit(
        self, logits: ArrayLike, s: ArrayLike, *, fold: ArrayLike, labelling: Labelling
    ) -> Self:
        """Fit to out-of-fold logits (n, m); known non-lenses are left out, for they are no survey.

        Sets `coef_` (m,) and `intercept_`, in units of the logits.

        Parameters
        ----------
        fold : (n,) fold that each row was left out of training in when its logits were made, ≥ 0.

        Raises
        ------
        InputError : in-fold scores (a fold below 0, or one fold only), logits that are not finite,
            labels that are none, or π below the share of known lenses.
        """
        z = self._clipped(logits)
        labels = check_labels(s, n_rows=len(z), where="Stacker.fit")
        _check_out_of_fold(fold, len(z))
        return self._fit(z, labels, labelling)

    def _fit(self, z: NDArray[np.float64], labels: NDArray[np.int8], labelling: Labelling) -> Self:
        survey = labels >= 0
        weight = np.ones(int(survey.sum()))
        loss = LabelLoss(labels[survey], labelling=labelling, weight=weight)
        self.coef_, self.intercept_ = fit_weights(
            z[survey], loss, weight=weight, penalty=self.penalty
        )
        return self

    def decision_function(self, logits: ArrayLike) -> NDArray[np.float64]:
        """(n,) stack logit; a row's value does not depend on the rows beside it."""
        if not hasattr(self, "coef_"):
            raise InputError("this Stacker is not fitted: call fit, or Stacker.from_json")
        z = self._clipped(logits)
        # Column by column: a matrix product may round a row by how many stand beside it.
        eta = np.full(len(z), self.intercept_)
        for column, coefficient in zip(z.T, self.coef_, strict=True):
            eta += coefficient * column
        return eta

    def to_json(self) -> dict[str, Any]:
        """Plain values for the bundle."""
        return {
            "kind": "logistic",
            "models": list(self.models),
            "penalty": self.penalty,
            "coef": self.coef_.tolist(),
            "intercept": self.intercept_,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """Back from `to_json`.

        Raises
        ------
        BundleError : another kind of stacker, or not one weight for each model.
        """
        n_coef, n_models = len(state.get("coef", ())), len(state.get("models", ()))
        if state.get("kind") != "logistic" or n_coef != n_models or not n_models:
            raise BundleError(
                f"stacker of kind '{state.get('kind')}' with {n_coef} weights for {n_models} "
                "models, expected 'logistic' with one each; make the bundle again"
            )
        stacker = cls(state["models"], penalty=float(state["penalty"]))
        stacker.coef_ = np.asarray(state["coef"], dtype=np.float64)
        stacker.intercept_ = float(state["intercept"])
        return stacker

    def _clipped(self, logits: ArrayLike) -> NDArray[np.float64]:
        z = check_finite(logits, shape=(None, len(self.models)), where="base logits")
        return np.clip(z, -LOGIT_LIMIT, LOGIT_LIMIT)


def align_folds(logits: ArrayLike, *, fold: ArrayLike) -> NDArray[np.float64]:
    """Logits (n,) of one base model, every fold's shifted to the held-out rows' mean probability.

    Folds and held-out set are stratified draws of sky cells, so the models that scored them should
    give one mean p. Networks trained apart on a few lenses do not: their biases differ by more
    than a lens does, and without this a ranking by out-of-fold scores is a ranking of folds. No
    label enters. The held-out rows, scored by the model that will score the survey, stay.

    Parameters
    ----------
    fold : (n,) as in `Stacker.fit`, −1 for held-out rows; without any, nothing is shifted.
    """
    folds = np.asarray(fold)
    z = check_finite(logits, shape=(len(folds),), where="base logits").copy()
    held = folds < 0
    if not held.any():
        return z
    target = float(expit(z[held]).mean())

    def excess(shift: float, rows: NDArray[np.bool_]) -> float:
        return float(expit(z[rows] + shift).mean()) - target

    for k in np.unique(folds[~held]):
        rows = folds == k
        # At ± (largest logit + 50) every probability is 0 or 1 to the last digit.
        far = float(np.abs(z[rows]).max()) + 50.0
        z[rows] += brentq(excess, -far, far, args=(rows,))
    return z


def cross_fitted(
    logits: ArrayLike,
    s: ArrayLike,
    *,
    fold: ArrayLike,
    models: Sequence[str],
    labelling: Labelling,
    penalty: float = 1.0,
) -> NDArray[np.float64]:
    """Stack logits (n,) of training rows, each from a stacker that did not see the row's fold.

    Parameters and errors as `Stacker`; besides, all folds but any one must hold a known lens.
    """
    z = np.asarray(logits)
    labels = check_labels(s, n_rows=len(z), where="cross_fitted")
    folds = _check_out_of_fold(fold, len(z))
    stacked = np.empty(len(z))
    for k in np.unique(folds):
        out = folds == k
        stacker = Stacker(models, penalty=penalty)
        rest = check_labels(
            labels[~out], n_rows=int(np.sum(~out)), where=f"cross_fitted without fold {k}"
        )
        # Fitted past `fit`, which refuses the single fold that is left of two.
        stacked[out] = stacker._fit(stacker._clipped(z[~out]), rest, labelling).decision_function(
            z[out]
        )
    return stacked


def _check_out_of_fold(fold: ArrayLike, n_rows: int) -> NDArray[np.int64]:
    values = np.asarray(fold)
    if values.shape != (n_rows,) or not np.issubdtype(values.dtype, np.integer):
        raise InputError(
            f"fold is {values.dtype} of shape {values.shape}, expected whole numbers ({n_rows},)"
        )
    if np.any(values < 0) or len(np.unique(values)) < 2:
        raise InputError(
            f"{int(np.sum(values < 0))} of {n_rows} rows have no fold (fold < 0) and "
            f"{len(np.unique(values))} folds are there: the stacker is fitted on out-of-fold "
            "logits alone, of rows that lie in at least 2 folds; keep held-out rows for the "
            "calibrator"
        )
    return values.astype(np.int64)
