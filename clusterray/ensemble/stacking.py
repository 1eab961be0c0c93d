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
    z: NDArray[np.float64],
    loss: LabelLoss,
    *,
    weight: NDArray[np.float64],
    penalty: float,
    n_free: int = 0,
    offset: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], float]:
    """Coefficients (m,) and intercept of η = z·w + b + offset, in units of the columns z (n, m).

    Minimises `loss` + ½ λ Σ (w_k sd_k)² by L-BFGS-B, with w ≥ 0 but for the last `n_free` columns.
    A constant column gets weight 0.
    """
    center = np.average(z, axis=0, weights=weight)
    spread = np.sqrt(np.average((z - center) ** 2, axis=0, weights=weight))
    scale = np.where(spread > 1e-9, spread, 1.0)
    x = (z - center) / scale
    n, m = x.shape
    beside = np.zeros(n) if offset is None else offset

    def objective(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = theta[:m]
        value, slope = loss(x @ w + theta[m] + beside)
        gradient = np.append(slope @ x + penalty * w, slope.sum())
        return (value + 0.5 * penalty * float(w @ w)) / n, gradient / n

    bound = m - n_free
    start = np.append(np.full(m, 1.0 / bound), np.log(loss.prior / (1.0 - loss.prior)))
    start[bound:m] = 0.0
    bounds = [(0.0, None)] * bound + [(None, None)] * (n_free + 1)
    found = minimize(
        objective, start, jac=True, bounds=bounds, method="L-BFGS-B",
        options={"maxiter": 500, "ftol": 1e-11, "gtol": 1e-7},
    )  # fmt: skip
    coef = np.where(spread > 1e-9, found.x[:m] / scale, 0.0)
    return coef, float(found.x[m] - coef @ center)


class Stacker:
    """Non-negative, ridge-regularised logistic combination of base logits.

    η = Σ w_k z_k + Σ v_j x_j + b is the log-odds of p(y=1|x); labels follow from it by the
    scenario, so that the fit is not bent where P(s=1|x) saturates at c. Weights are w_k ≥ 0: every
    base model is trained to rise with p(y=1|x), and a handful of positives must not turn one upside
    down. Logits are clipped to ±30; all inputs are standardised, and the penalty ½ λ Σ w² applies
    to standardised weights.

    Context features x_j, such as seeing and depth, say how much could be seen: their weights have
    either sign, and one that is not known (NaN) counts as the median of the rows fitted to.

    Parameters
    ----------
    models : names of the base models, in column order.
    penalty : λ.
    context : names of the context features, in column order.
    """

    def __init__(
        self, models: Sequence[str], *, penalty: float = 1.0, context: Sequence[str] = ()
    ) -> None:
        self.models = tuple(models)
        self.penalty = penalty
        self.context = tuple(context)

    def fit(
        self,
        logits: ArrayLike,
        s: ArrayLike,
        *,
        fold: ArrayLike,
        labelling: Labelling,
        context: ArrayLike | None = None,
    ) -> Self:
        """Fit to out-of-fold logits (n, m); known non-lenses are left out, for they are no survey.

        Sets `coef_` (m,), `intercept_`, `context_coef_` (k,) and `context_median_` (k,), in units
        of the inputs.

        Parameters
        ----------
        fold : (n,) fold that each row was left out of training in when its logits were made, ≥ 0.
        context : (n, k) context features.

        Raises
        ------
        InputError : in-fold scores (a fold below 0, or one fold only), logits that are not finite,
            context of another shape or infinite, labels that are none, or π below the share of
            known lenses.
        """
        z = self._clipped(logits)
        labels = check_labels(s, n_rows=len(z), where="Stacker.fit")
        _check_out_of_fold(fold, len(z))
        return self._fit(z, labels, labelling, self._checked_context(context, len(z)))

    def _fit(
        self,
        z: NDArray[np.float64],
        labels: NDArray[np.int8],
        labelling: Labelling,
        context: NDArray[np.float64],
    ) -> Self:
        survey = labels >= 0
        known = np.isfinite(context[survey])
        self.context_median_ = np.array(
            [
                np.median(column[have]) if have.any() else 0.0
                for column, have in zip(context[survey].T, known.T, strict=True)
            ]
        )
        x = np.column_stack([z, self._filled(context)])[survey]
        weight = np.ones(len(x))
        loss = LabelLoss(labels[survey], labelling=labelling, weight=weight)
        coef, self.intercept_ = fit_weights(
            x, loss, weight=weight, penalty=self.penalty, n_free=len(self.context)
        )
        self.coef_, self.context_coef_ = np.split(coef, [len(self.models)])
        return self

    def decision_function(
        self, logits: ArrayLike, context: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """(n,) stack logit; a row's value does not depend on the rows beside it.

        Raises
        ------
        InputError : not fitted, logits that are not finite, or context that does not fit.
        """
        eta = self.of_models(logits)
        beside = self._filled(self._checked_context(context, len(eta)))
        for column, coefficient in zip(beside.T, self.context_coef_, strict=True):
            eta += coefficient * column
        return eta

    def of_models(self, logits: ArrayLike) -> NDArray[np.float64]:
        """(n,) Σ w_k z_k + b: the stack logit without what context adds."""
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
            "context": list(self.context),
            "context_coef": self.context_coef_.tolist(),
            "context_median": self.context_median_.tolist(),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """Back from `to_json`.

        Raises
        ------
        BundleError : another kind of stacker, or not one weight for each input.
        """
        n_coef, n_models = len(state.get("coef", ())), len(state.get("models", ()))
        context = state.get("context", ())
        beside = {len(state.get(n, ())) for n in ("context_coef", "context_median")}
        if (
            state.get("kind") != "logistic"
            or n_coef != n_models
            or not n_models
            or beside != {len(context)}
        ):
            raise BundleError(
                f"stacker of kind '{state.get('kind')}' with {n_coef} weights for {n_models} "
                f"models and {sorted(beside)} for {len(context)} context features, expected "
                "'logistic' with one each; make the bundle again"
            )
        stacker = cls(state["models"], penalty=float(state["penalty"]), context=context)
        stacker.coef_ = np.asarray(state["coef"], dtype=np.float64)
        stacker.intercept_ = float(state["intercept"])
        stacker.context_coef_ = np.asarray(state["context_coef"], dtype=np.float64)
        stacker.context_median_ = np.asarray(state["context_median"], dtype=np.float64)
        return stacker

    def _clipped(self, logits: ArrayLike) -> NDArray[np.float64]:
        z = check_finite(logits, shape=(None, len(self.models)), where="base logits")
        return np.clip(z, -LOGIT_LIMIT, LOGIT_LIMIT)

    def _checked_context(self, context: ArrayLike | None, n_rows: int) -> NDArray[np.float64]:
        values = np.empty((n_rows, 0)) if context is None else np.asarray(context, np.float64)
        if values.shape != (n_rows, len(self.context)) or np.isinf(values).any():
            raise InputError(
                f"context of shape {values.shape} with {int(np.isinf(values).sum())} infinite "
                f"values, expected ({n_rows}, {len(self.context)}) for "
                f"{', '.join(self.context) or 'no context features'}"
            )
        return values

    def _filled(self, context: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(np.isfinite(context), context, self.context_median_)


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
    context: ArrayLike | None = None,
    context_names: Sequence[str] = (),
) -> NDArray[np.float64]:
    """Stack logits (n,) of training rows, each from a stacker that did not see the row's fold.

    Parameters and errors as `Stacker`; besides, all folds but any one must hold a known lens.
    """
    z = np.asarray(logits)
    labels = check_labels(s, n_rows=len(z), where="cross_fitted")
    folds = _check_out_of_fold(fold, len(z))
    stacked = np.empty(len(z))
    beside = np.empty((len(z), 0)) if context is None else np.asarray(context, np.float64)
    for k in np.unique(folds):
        out = folds == k
        stacker = Stacker(models, penalty=penalty, context=context_names)
        rest = check_labels(
            labels[~out], n_rows=int(np.sum(~out)), where=f"cross_fitted without fold {k}"
        )
        # Fitted past `fit`, which refuses the single fold that is left of two.
        stacker._fit(stacker._clipped(z[~out]), rest, labelling, beside[~out])
        stacked[out] = stacker.decision_function(z[out], beside[out])
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
