"""From stack logit to probability, and how sure we are of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from clusterray.ensemble.folds import HELD_OUT
from clusterray.ensemble.stacking import LOGIT_LIMIT, Stacker, fit_weights
from clusterray.errors import BundleError, InputError
from clusterray.provenance import seed_for
from clusterray.pu.label_loss import LabelLoss
from clusterray.pu.labelling import (
    Labelling,
    Scenario,
    check_finite,
    check_fraction,
    check_labels,
)
from clusterray.pu.prior import PriorEstimate

__all__ = ["Calibrator", "PosteriorEnsemble", "bootstrap"]

_SLOPE_SCATTER = 0.5
_Z_90 = 1.6448536269514722
_CHUNK_VALUES = 2_000_000
_MEMBER_ARRAYS = ("coef", "intercept", "a", "b", "prior")


class Calibrator:
    """Platt scaling in PU form: p(y=1|x) = σ(a z + b), a ≥ 0 (after Platt 1999).

    Fitted to labels s through P(s=1|x) = cσ(az + b), c = P(s=1)/π (single-sample), or through odds
    (n_p/(n_u π)) σ(az + b) (case-control), so p never exceeds 1 and mean(p) is π within the
    scatter of the rows' number (see `LabelLoss`). The one further prior is log a ~ N(0, 0.5²):
    without labels a is 1, and 95 % of it lies in 0.38 to 2.7.
    """

    def fit(self, logit_stack: ArrayLike, s: ArrayLike, *, labelling: Labelling) -> Self:
        """Fit to stack logits (n,) of rows that neither base models nor stacker saw.

        Known non-lenses are left out. Sets `a_`, `b_` and `labelling_`.

        Raises
        ------
        InputError : logits that are not finite, labels that are none, or π below the share of known
            lenses.
        """
        z = check_finite(logit_stack, shape=(None,), where="stack logits")
        labels = check_labels(s, n_rows=len(z), where="Calibrator.fit")
        survey = labels >= 0
        weight = np.ones(int(survey.sum()))
        loss = LabelLoss(labels[survey], labelling=labelling, weight=weight)
        self.a_, self.b_ = _fit_platt(z[survey], loss)
        self.labelling_ = labelling
        return self

    def decision_function(self, logit_stack: ArrayLike) -> NDArray[np.float64]:
        """(n,) calibrated log-odds a z + b."""
        if not hasattr(self, "a_"):
            raise InputError("this Calibrator is not fitted: call fit, or Calibrator.from_json")
        z = check_finite(logit_stack, shape=(None,), where="stack logits")
        return self.a_ * z + self.b_

    def predict_proba(self, logit_stack: ArrayLike) -> NDArray[np.float64]:
        """(n,) p(y=1|x) at π of the survey."""
        return np.asarray(expit(self.decision_function(logit_stack)))

    def to_json(self) -> dict[str, Any]:
        """Plain values for the bundle."""
        return {
            "kind": "platt",
            "a": self.a_,
            "b": self.b_,
            "scenario": self.labelling_.scenario,
            "prior": self.labelling_.prior,
            "labelled_fraction": self.labelling_.labelled_fraction,
            "unlabelled_fraction": self.labelling_.unlabelled_fraction,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """Back from `to_json`.

        Raises
        ------
        BundleError : another kind of calibrator, or a falling one.
        """
        if state.get("kind") != "platt" or not float(state.get("a", -1.0)) >= 0.0:
            raise BundleError(
                f"calibrator of kind '{state.get('kind')}' with slope {state.get('a')}, expected "
                "'platt' with a slope ≥ 0; make the bundle again"
            )
        calibrator = cls()
        calibrator.a_, calibrator.b_ = float(state["a"]), float(state["b"])
        names = ("scenario", "prior", "labelled_fraction", "unlabelled_fraction")
        calibrator.labelling_ = Labelling(**{name: state[name] for name in names})
        return calibrator


def _fit_platt(z: NDArray[np.float64], loss: LabelLoss) -> tuple[float, float]:
    """(a, b) of σ(a z + b): least `loss` + (log a)² / (2·0.5²)."""
    center = float(np.median(z))
    x, n = z - center, len(z)

    def objective(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        a = np.exp(theta[0])
        value, slope = loss(a * x + theta[1])
        prior = theta[0] / _SLOPE_SCATTER**2
        gradient = np.array([a * float(slope @ x) + prior, slope.sum()])
        return (value + 0.5 * theta[0] * prior) / n, gradient / n

    start = np.array([0.0, _offset(x, loss)])
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=[(-5.0, 5.0), (None, None)],
        options={"maxiter": 500, "ftol": 1e-11, "gtol": 1e-7},
    )  # fmt: skip
    a = float(np.exp(found.x[0]))
    return a, float(found.x[1]) - a * center


def _offset(x: NDArray[np.float64], loss: LabelLoss) -> float:
    """The b at which mean σ(x + b) over the survey is π: where the search for (a, b) begins."""

    def excess(b: float) -> float:
        return loss.mean_probability(x + b) - loss.prior

    reach = 40.0 + float(np.abs(x).max())
    return float(brentq(excess, -reach, reach)) if excess(reach) > 0.0 > excess(-reach) else 0.0


@dataclass(frozen=True)
class PosteriorEnsemble:
    """The stacker and calibrator that score, and their refits on resampled sky cells.

    Member i has p = σ(a_i (z · coef_i + intercept_i) + b_i), at π = prior_i.
    """

    stacker: Stacker
    calibrator: Calibrator
    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    prior: NDArray[np.float64]

    def interval(
        self,
        base_logits: ArrayLike,
        *,
        level: float = 0.9,
        logit_stack: ArrayLike | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(p, low, high), each (n,), of rows with base logits (n, m).

        p is the calibrator's; low and high are the outer order statistics of the members at
        (1 ∓ level)/2, widened to hold p where the members leave it out. All three rise with every
        base logit, and a row's values do not depend on the rows beside it.

        Parameters
        ----------
        logit_stack : (n,) stack logits to use in place of the stacker's, for training rows
            (`cross_fitted`); the members are shifted by the same amount.

        Raises
        ------
        InputError : logits that are not finite or a level outside (0, 1).
        """
        check_fraction(level, name="level")
        z = check_finite(base_logits, shape=(None, len(self.stacker.models)), where="base logits")
        stack = self.stacker.decision_function(z)
        shift = np.zeros(len(z))
        if logit_stack is not None:
            given = check_finite(logit_stack, shape=(len(z),), where="stack logits")
            stack, shift = given, given - stack
        center = self.calibrator.decision_function(stack)
        low, high = np.empty(len(z)), np.empty(len(z))
        step = max(1, _CHUNK_VALUES // len(self.a))
        for start in range(0, len(z), step):
            rows = slice(start, start + step)
            low[rows], high[rows] = self._quantiles(z[rows], shift[rows], level)
        return (
            expit(center),
            expit(np.minimum(low, center)),
            expit(np.maximum(high, center)),
        )

    def _quantiles(
        self, z: NDArray[np.float64], shift: NDArray[np.float64], level: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        clipped = np.clip(z, -LOGIT_LIMIT, LOGIT_LIMIT)
        eta = shift[:, None] * self.a + (self.a * self.intercept + self.b)
        # Column by column: a matrix product may round a row by how many stand beside it.
        for column, coef in zip(clipped.T, self.coef.T, strict=True):
            eta += column[:, None] * (self.a * coef)
        last = len(self.a) - 1
        ends = [int(np.floor(last * (1 - level) / 2)), int(np.ceil(last * (1 + level) / 2))]
        eta.partition(ends, axis=1)
        return eta[:, ends[0]], eta[:, ends[1]]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the bundle."""
        return {
            "stacker": self.stacker.to_json(),
            "calibrator": self.calibrator.to_json(),
            **{name: getattr(self, name).tolist() for name in _MEMBER_ARRAYS},
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """Back from `to_json`.

        Raises
        ------
        BundleError : members whose arrays differ in length or do not fit the stacker.
        """
        arrays = {n: np.asarray(state.get(n, []), dtype=np.float64) for n in _MEMBER_ARRAYS}
        stacker = Stacker.from_json(state.get("stacker", {}))
        shapes = {name: array.shape for name, array in arrays.items()}
        n = len(arrays["a"])
        if not n or any(
            shape != ((n, len(stacker.models)) if name == "coef" else (n,))
            for name, shape in shapes.items()
        ):
            raise BundleError(
                f"posterior members have shapes {shapes}, expected {n or 'n'} of each and coef "
                f"(n, {len(stacker.models)}); make the bundle again"
            )
        return cls(stacker, Calibrator.from_json(state.get("calibrator", {})), **arrays)


def bootstrap(
    logits: ArrayLike,
    s: ArrayLike,
    *,
    fold: ArrayLike,
    cell: ArrayLike,
    models: Sequence[str],
    scenario: Scenario,
    prior: PriorEstimate,
    n_bootstrap: int,
    seed: int,
    unlabelled_fraction: float = 1.0,
    penalty: float = 1.0,
) -> PosteriorEnsemble:
    """Fit stacker and calibrator, and refit both on resampled sky cells with a redrawn π.

    The stacker is fitted on rows with fold ≥ 0, the calibrator on held-out rows (fold −1). A
    resample draws as many cells as there are, with replacement, of either kind apart. π is drawn
    from the log-normal with the estimate's 90 % interval, and not below the share of known lenses.

    Parameters
    ----------
    logits : (n, m) out-of-fold logits of training rows, and of held-out rows the logits of the
        very model that will score.
    cell : (n,) sky cell (or group) of each row.
    unlabelled_fraction : share of the survey's unlabelled rows that is here.

    Raises
    ------
    InputError : as `Stacker.fit` and `Calibrator.fit`; too few resamples; shapes that differ; a
        cell with rows on both sides.
    """
    if n_bootstrap < 20:
        raise InputError(f"n_bootstrap is {n_bootstrap}, expected at least 20")
    z = check_finite(logits, shape=(None, len(models)), where="base logits")
    labels = check_labels(s, n_rows=len(z), where="bootstrap")
    folds = np.asarray(fold)
    held, member = _held_out(folds, np.asarray(cell), len(z))
    known, unlabelled = np.sum(labels == 1), np.sum(labels == 0)
    labelling = Labelling(
        scenario,
        prior.value,
        labelled_fraction=float(known / (known + unlabelled / unlabelled_fraction)),
        unlabelled_fraction=unlabelled_fraction,
    )
    stacker = Stacker(models, penalty=penalty).fit(
        z[~held], labels[~held], fold=folds[~held], labelling=labelling
    )
    calibrator = Calibrator().fit(
        stacker.decision_function(z[held]), labels[held], labelling=labelling
    )
    clipped = np.clip(z, -LOGIT_LIMIT, LOGIT_LIMIT)
    members = []
    # On problems of three numbers BLAS threads only wait for one another: six times the time.
    with threadpool_limits(1, user_api="blas"):
        for replicate in range(n_bootstrap):
            rng = np.random.default_rng(seed_for(seed, purpose="posterior", replicate=replicate))
            redrawn = replace(labelling, prior=_draw_prior(prior, labelling, rng))
            weight = _resampled_cells(member, held, rng) * (labels >= 0)
            members.append(_refit(clipped, labels, held, weight, redrawn, penalty))
    coef, intercept, a, b, priors = (np.array(x) for x in zip(*members, strict=True))
    return PosteriorEnsemble(stacker, calibrator, coef, intercept, a, b, priors)


def _refit(
    z: NDArray[np.float64],
    labels: NDArray[np.int8],
    held: NDArray[np.bool_],
    weight: NDArray[np.float64],
    labelling: Labelling,
    penalty: float,
) -> tuple[NDArray[np.float64], float, float, float, float]:
    train, test = (weight > 0) & ~held, (weight > 0) & held
    loss = LabelLoss(labels[train], labelling=labelling, weight=weight[train])
    coef, intercept = fit_weights(z[train], loss, weight=weight[train], penalty=penalty)
    loss = LabelLoss(labels[test], labelling=labelling, weight=weight[test])
    a, b = _fit_platt(z[test] @ coef + intercept, loss)
    return coef, intercept, a, b, labelling.prior


def _held_out(
    folds: NDArray[Any], cell: NDArray[Any], n_rows: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which rows are held out, and each row's cell as a number that orders by (held out, cell)."""
    for name, values in (("fold", folds), ("cell", cell)):
        if values.shape != (n_rows,):
            raise InputError(f"{name} has shape {values.shape}, expected ({n_rows},)")
    held = folds == HELD_OUT
    if not held.any():
        raise InputError(
            "no row is held out (fold −1): the calibrator needs sky cells that neither base models "
            "nor stacker saw; raise train.holdout_fraction"
        )
    both = np.intersect1d(cell[held], cell[~held])
    if len(both):
        raise InputError(
            f"cell {both[0]!s} has rows in training and held out ({len(both)} such cells): folds "
            "are made of whole cells; use ensemble.folds.assign with the same cells"
        )
    return held, np.unique(cell, return_inverse=True)[1].astype(np.int64)


def _draw_prior(prior: PriorEstimate, labelling: Labelling, rng: np.random.Generator) -> float:
    low, high = prior.interval
    scatter = np.log(high / low) / (2.0 * _Z_90)
    drawn = prior.value * np.exp(scatter * rng.standard_normal())
    floor = labelling.labelled_fraction if labelling.scenario == "single-sample" else None
    return float(np.clip(drawn, floor or 1e-12, 0.999))


def _resampled_cells(
    member: NDArray[np.int64], held: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(n,) times each row's cell was drawn; training and held-out cells are drawn apart."""
    times = np.zeros(member.max() + 1)
    for part in (held, ~held):
        cells = np.unique(member[part])
        times[cells] = rng.multinomial(len(cells), np.full(len(cells), 1.0 / len(cells)))
    return times[member]
