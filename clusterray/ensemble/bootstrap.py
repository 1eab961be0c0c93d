"""Stacker, calibrator and π refitted on resampled sky cells: how sure the probabilities are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from clusterray.ensemble.calibration import Calibrator, Choice, choose
from clusterray.ensemble.calibration_curves import Kind, fit_curve
from clusterray.ensemble.folds import HELD_OUT
from clusterray.ensemble.posterior import PosteriorEnsemble
from clusterray.ensemble.stacking import LOGIT_LIMIT, Stacker, fit_weights
from clusterray.errors import InputError
from clusterray.provenance import seed_for
from clusterray.pu.label_loss import LabelLoss
from clusterray.pu.labelling import Labelling, Scenario, check_finite, check_labels
from clusterray.pu.prior import PriorEstimate

__all__ = ["bootstrap"]

_Z_90 = 1.6448536269514722

Floats = NDArray[np.float64]


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
    calibrator: Kind | Literal["auto"] = "platt",
    context: ArrayLike | None = None,
    context_names: Sequence[str] = (),
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
    calibrator : its kind; "auto" lets held-out cells choose (see `calibration.choose`).
    context : (n, k) context features for the stacker, named `context_names`.

    Raises
    ------
    InputError : as `Stacker.fit` and `Calibrator.fit`; too few resamples; shapes that differ; a
        cell with rows on both sides.
    """
    if n_bootstrap < 20:
        raise InputError(f"n_bootstrap is {n_bootstrap}, expected at least 20")
    z = check_finite(logits, shape=(None, len(models)), where="base logits")
    labels = check_labels(s, n_rows=len(z), where="bootstrap")
    folds, cells = np.asarray(fold), np.asarray(cell)
    held, member = _held_out(folds, cells, len(z))
    labelling = Labelling(scenario, prior.value, unlabelled_fraction=unlabelled_fraction)
    labelling = labelling.counted(labels)
    stacker = Stacker(models, penalty=penalty, context=context_names)
    beside = None if context is None else np.asarray(context)
    stacker.fit(
        z[~held],
        labels[~held],
        fold=folds[~held],
        labelling=labelling,
        context=None if beside is None else beside[~held],
    )
    stack = stacker.decision_function(z, beside)
    choice = Choice("platt", {}, {})
    if calibrator == "auto":
        choice = choose(stack[held], labels[held], cell=cells[held], labelling=labelling, seed=seed)
    else:
        choice = replace(choice, kind=calibrator)
    fitted = Calibrator(choice.kind).fit(stack[held], labels[held], labelling=labelling)
    refit = _Refit(
        z=np.clip(z, -LOGIT_LIMIT, LOGIT_LIMIT),
        # What context adds, where it adds anything, is the same in every member.
        offset=stack - stacker.of_models(z),
        labels=labels,
        held=held,
        penalty=penalty,
        kind=choice.kind,
    )
    members = []
    # On problems of three numbers BLAS threads only wait for one another: six times the time.
    with threadpool_limits(1, user_api="blas"):
        for replicate in range(n_bootstrap):
            rng = np.random.default_rng(seed_for(seed, purpose="posterior", replicate=replicate))
            redrawn = replace(labelling, prior=_draw_prior(prior, labelling, rng))
            weight = _resampled_cells(member, held, rng) * (labels >= 0)
            members.append(refit(weight, redrawn))
    coef, intercept, curves, priors = zip(*members, strict=True)
    return PosteriorEnsemble(
        stacker,
        fitted,
        coef=np.array(coef),
        intercept=np.array(intercept),
        curves=tuple(curves),
        prior=np.array(priors),
        choice=choice,
    )


@dataclass(frozen=True)
class _Refit:
    """Stacker and calibrator once more, on weighted rows."""

    z: Floats
    offset: Floats
    labels: NDArray[np.int8]
    held: NDArray[np.bool_]
    penalty: float
    kind: Kind

    def __call__(self, weight: Floats, labelling: Labelling) -> tuple[Floats, float, Floats, float]:
        """Coefficients, intercept, curve and π."""
        train, test = (weight > 0) & ~self.held, (weight > 0) & self.held
        loss = LabelLoss(self.labels[train], labelling=labelling, weight=weight[train])
        coef, intercept = fit_weights(
            self.z[train],
            loss,
            weight=weight[train],
            penalty=self.penalty,
            offset=self.offset[train],
        )
        loss = LabelLoss(self.labels[test], labelling=labelling, weight=weight[test])
        curve = fit_curve(
            self.kind,
            self.z[test] @ coef + intercept + self.offset[test],
            self.labels[test],
            loss=loss,
            weight=weight[test],
        )
        return coef, intercept, curve, labelling.prior


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
