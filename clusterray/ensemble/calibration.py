"""From stack logit to probability: a calibrator, and which kind of it explains held-out labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from clusterray.ensemble.calibration_curves import KINDS, Kind, evaluate, fit_curve
from clusterray.errors import BundleError, InputError, did_you_mean
from clusterray.provenance import seed_for
from clusterray.pu.label_loss import LabelLoss
from clusterray.pu.labelling import Labelling, check_finite, check_fraction, check_labels

__all__ = ["AUTO", "Calibrator", "Choice", "choose", "shift_prior"]

AUTO: tuple[Kind, ...] = ("platt", "beta")
"""What is chosen from where nobody chose: isotonic has ties at the top of the list."""

_FOLDS = 5
_MIN_LENSES = 20

Floats = NDArray[np.float64]


class Calibrator:
    """A rising curve in PU form: p(y=1|x) = σ(η(z)) of the stack logit z.

    Fitted to labels s through P(s=1|x) = cσ(η), c = P(s=1)/π (single-sample), or through odds
    (n_p/(n_u π)) σ(η) (case-control), so p never exceeds 1 and mean(p) is π within the
    scatter of the rows' number (see `LabelLoss`).

    Parameters
    ----------
    kind : "platt", "beta", "isotonic" or "temperature", see `calibration_curves`.
    """

    def __init__(self, kind: Kind = "platt") -> None:
        self.kind = kind

    def fit(self, logit_stack: ArrayLike, s: ArrayLike, *, labelling: Labelling) -> Self:
        """Fit to stack logits (n,) of rows that neither base models nor stacker saw.

        Known non-lenses are left out. Sets `parameters_` and `labelling_`.

        Raises
        ------
        InputError : an unknown kind, logits that are not finite, labels that are none, or π below
            the share of known lenses.
        """
        _check_kind(self.kind)
        z = check_finite(logit_stack, shape=(None,), where="stack logits")
        labels = check_labels(s, n_rows=len(z), where="Calibrator.fit")
        survey = labels >= 0
        weight = np.ones(int(survey.sum()))
        loss = LabelLoss(labels[survey], labelling=labelling, weight=weight)
        self.parameters_ = fit_curve(self.kind, z[survey], labels[survey], loss=loss, weight=weight)
        self.labelling_ = labelling
        return self

    def decision_function(self, logit_stack: ArrayLike) -> Floats:
        """(n,) calibrated log-odds."""
        if not hasattr(self, "parameters_"):
            raise InputError("this Calibrator is not fitted: call fit, or Calibrator.from_json")
        z = check_finite(logit_stack, shape=(None,), where="stack logits")
        return evaluate(self.kind, self.parameters_, z)

    def predict_proba(self, logit_stack: ArrayLike) -> Floats:
        """(n,) p(y=1|x) at π of the survey."""
        return np.asarray(expit(self.decision_function(logit_stack)))

    def to_json(self) -> dict[str, Any]:
        """Plain values for the bundle."""
        return {
            "kind": self.kind,
            "parameters": self.parameters_.tolist(),
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
        BundleError : another kind of calibrator, parameters of another number, or a falling curve.
        """
        kind, values = state.get("kind"), np.asarray(state.get("parameters", []), np.float64)
        if kind not in get_args(Kind):
            raise BundleError(
                f"calibrator of kind '{kind}', expected one of {', '.join(KINDS)}; make the "
                "bundle again"
            )
        _check_parameters(cast(Kind, kind), values)
        calibrator = cls(cast(Kind, kind))
        calibrator.parameters_ = values
        names = ("scenario", "prior", "labelled_fraction", "unlabelled_fraction")
        calibrator.labelling_ = Labelling(**{name: state[name] for name in names})
        return calibrator


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"unknown calibrator '{kind}': {did_you_mean(kind, KINDS)}")


def _check_parameters(kind: Kind, values: Floats) -> None:
    if kind == "isotonic":
        fits = values.ndim == 1 and len(values) >= 2 and len(values) % 2 == 0
        rising = fits and all(np.all(np.diff(part) >= 0) for part in np.split(values, 2))
    else:
        fits = values.shape == (3,)
        rising = fits and bool(np.all(values[:2] >= 0))
    if not (fits and rising and np.isfinite(values).all()):
        raise BundleError(
            f"{kind} calibrator with {len(values)} parameters, starting {values[:3].tolist()}: "
            "expected a rising curve; make the bundle again"
        )


@dataclass(frozen=True)
class Choice:
    """Which kind was chosen, and each kind's held-out loss of labels, nats per known lens.

    `scatter` is the standard error of a kind's loss minus Platt's. `note` says why where there was
    no choice.
    """

    kind: Kind
    loss: Mapping[str, float]
    scatter: Mapping[str, float]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for the bundle."""
        return {
            "kind": self.kind,
            "loss": dict(self.loss),
            "scatter": dict(self.scatter),
            "note": self.note,
        }


def choose(
    logit_stack: ArrayLike,
    s: ArrayLike,
    *,
    cell: ArrayLike,
    labelling: Labelling,
    seed: int,
    among: Sequence[Kind] = AUTO,
) -> Choice:
    """The kind of calibrator under which labels of left-out sky cells have the least log-loss.

    Five splits of the cells; every kind is fitted on four and judged by −log P(s) of the fifth.
    Platt stays unless another of `among` is better by more than the standard error of the
    difference over cells, and where fewer than 20 known lenses are there to judge by.

    Parameters
    ----------
    logit_stack, s : as `Calibrator.fit`.
    cell : (n,) sky cell (or group) of each row.

    Raises
    ------
    InputError : as `Calibrator.fit`.
    """
    z = check_finite(logit_stack, shape=(None,), where="stack logits")
    labels = check_labels(s, n_rows=len(z), where="choice of the calibrator")
    survey = labels >= 0
    z, labels = z[survey], labels[survey]
    member = np.unique(np.asarray(cell)[survey], return_inverse=True)[1]
    n_known = int(np.sum(labels == 1))
    if n_known < _MIN_LENSES:
        return Choice("platt", {}, {}, f"Platt calibration: {n_known} known lenses held out")
    labelling = labelling.counted(labels)
    fold = _cell_folds(member, labels, seed)
    losses = {kind: _held_out_loss(kind, z, labels, fold, labelling) for kind in KINDS}
    per_lens: dict[str, float] = {kind: float(v.sum() / n_known) for kind, v in losses.items()}
    scatter: dict[str, float] = {}
    for kind, value in losses.items():
        by_cell = np.bincount(member, value - losses["platt"])
        scatter[kind] = float(by_cell.std() * np.sqrt(len(by_cell)) / n_known)
    best: Kind = "platt"
    for kind in among:
        gain = per_lens["platt"] - per_lens[kind]
        if gain > scatter[kind] and per_lens[kind] < per_lens[best]:
            best = kind
    return Choice(best, per_lens, scatter)


def _cell_folds(
    member: NDArray[np.int64], labels: NDArray[np.int8], seed: int
) -> NDArray[np.int64]:
    """Fold of each row: whole cells, those with lenses and those without dealt out apart."""
    rng = np.random.default_rng(seed_for(seed, purpose="calibrator"))
    holds = np.bincount(member, labels == 1) > 0
    of_cell = np.empty(len(holds), np.int64)
    for kind in (holds, ~holds):
        cells = np.flatnonzero(kind)
        of_cell[cells] = rng.permutation(np.arange(len(cells)) % _FOLDS)
    return of_cell[member]


def _held_out_loss(
    kind: Kind, z: Floats, labels: NDArray[np.int8], fold: NDArray[np.int64], labelling: Labelling
) -> Floats:
    """−log P(s) of each row under the curve that did not see its cell."""
    value = np.empty(len(z))
    whole = labelling.model(labels)
    for k in np.unique(fold):
        out = fold == k
        rest = labels[~out]
        weight = np.ones(len(rest))
        loss = LabelLoss(rest, labelling=labelling, weight=weight)
        curve = fit_curve(kind, z[~out], rest, loss=loss, weight=weight)
        value[out], _ = whole.negative_log_likelihood(
            evaluate(kind, curve, z[out]), labels[out] == 1
        )
    return value


def shift_prior(p: ArrayLike, *, prior: float, new_prior: float) -> Floats:
    """Probabilities (n,) of a survey of prevalence π as they are at another π′.

    Odds times π′(1−π) / (π(1−π′)), if lenses and non-lenses look the same in both (Saerens,
    Latinne & Decaestecker 2002).

    Raises
    ------
    InputError : a prevalence outside (0, 1).
    """
    check_fraction(prior, name="prior")
    check_fraction(new_prior, name="new_prior")
    if prior == new_prior:
        return np.asarray(p, np.float64)
    with np.errstate(divide="ignore"):
        eta = logit(np.asarray(p, np.float64))
    return np.asarray(expit(eta + logit(new_prior) - logit(prior)))
