"""How labels come about: scenarios, the two prevalences, and P(s=1|x) as a function of p(y|x).

In both scenarios the odds of a label are κσ(η) / (1 − cσ(η)) for p(y=1|x) = σ(η):

- single-sample (Elkan & Noto 2008, lemma 1): P(s=1|x) = c p(y|x), c = P(s=1|y=1), so κ = c; where
  only a fraction f of the unlabelled rows was kept, the odds grow by 1/f and κ = c/f;
- case-control (Ward et al. 2009): n_p labelled rows drawn from the positives are put beside
  n_u rows of the survey, so κ = n_p / (n_u π) and c = 0.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit

from clusterray.errors import InputError, did_you_mean

__all__ = [
    "LabelError",
    "LabelModel",
    "Labelling",
    "Scenario",
    "check_finite",
    "check_fraction",
    "check_labels",
    "check_probabilities",
    "check_scenario",
    "check_weights",
    "unlabelled_prior",
]

Scenario = Literal["single-sample", "case-control"]
"""Labelled lenses were found inside the survey, or come from elsewhere (e.g. injected)."""


class LabelError(InputError, ValueError):
    """Labels or weights that nothing can be learned from; a ValueError, as scikit-learn has it."""


@dataclass(frozen=True)
class LabelModel:
    """Odds of a label κσ(η) / (1 − cσ(η)): `gain` is κ, `c` is zero in a case-control sample."""

    gain: float
    c: float

    def posterior(self, label_odds: NDArray[np.float64]) -> NDArray[np.float64]:
        """p(y=1|x), clipped to 1, from the odds of a label: the inverse, odds / (κ + c·odds).

        Single-sample this is g/c with g = P(s=1|x); case-control it is π (n_u/n_p) g/(1−g).
        """
        finite = np.minimum(label_odds, 1e300)
        return np.minimum(finite / (self.gain + self.c * finite), 1.0)

    def negative_log_likelihood(
        self, eta: NDArray[np.float64], labelled: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """−log P(s | η) of each row and its derivative in η, both (n,).

        With d = κ − c: −log(κσ) + log(1 + dσ) for a labelled row, −log(1 − cσ) + log(1 + dσ) for
        an unlabelled one.
        """
        log_p, log_q, p = log_expit(eta), log_expit(-eta), expit(eta)
        spare = self.gain - self.c
        with np.errstate(divide="ignore"):
            log_gain, log_c, log_rest = np.log([self.gain, self.c, 1.0 - self.c])
        log_unlabelled = np.logaddexp(log_rest, log_c + log_q)
        common = np.log1p(spare * p)
        slope = spare * p * expit(-eta) / (1.0 + spare * p)
        value = np.where(labelled, -log_gain - log_p, -log_unlabelled) + common
        gradient = np.where(labelled, -expit(-eta), np.exp(log_c + log_p + log_q - log_unlabelled))
        return value, gradient + slope

    def loss(self, eta: NDArray[np.float64], labelled: NDArray[np.bool_]) -> NDArray[np.float64]:
        """−log P(s | η) (n,), for |η| < 30: quicker than `negative_log_likelihood`."""
        p = expit(eta)
        share = np.where(labelled, self.gain * p, 1.0 - self.c * p)
        return np.asarray(np.log((1.0 + (self.gain - self.c) * p) / share))

    def newton(
        self, eta: NDArray[np.float64], labelled: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Derivative of −log P(s | η) in η, and its Fisher information, both (n,): a scoring step.

        With P = P(s=1|η) and u = d logit P / dη = (1−σ) / (1−cσ) they are (P − s) u and
        P (1−P) u². Where κ = c the first is σ − y for a labelled row, y = 1, and for an unlabelled
        one, y = w = (1−c)σ / (1−cσ): what its two copies with w (Elkan & Noto 2008) pull with.
        """
        p = expit(eta)
        q = np.maximum(1.0 - p, 1e-16)
        unlabelled = (1.0 - self.c) + self.c * q
        both = 1.0 + (self.gain - self.c) * p
        pull = self.gain * p * q / (both * unlabelled)
        return np.where(labelled, -q / both, pull), pull * q / both


@dataclass(frozen=True)
class Labelling:
    """How a set of rows came by its labels.

    Parameters
    ----------
    scenario : "single-sample" or "case-control".
    prior : π of the survey.
    labelled_fraction : P(s=1) over the whole survey (single-sample); None counts the rows at hand.
    unlabelled_fraction : share of the survey's unlabelled rows that the rows at hand are.

    Raises
    ------
    InputError : a value out of its range, or more rows labelled than π leaves room for.
    """

    scenario: Scenario
    prior: float
    labelled_fraction: float | None = None
    unlabelled_fraction: float = 1.0

    def __post_init__(self) -> None:
        check_scenario(self.scenario)
        check_fraction(self.prior, name="prior")
        check_fraction(self.unlabelled_fraction, name="unlabelled_fraction", closed=True)
        if self.labelled_fraction is not None:
            check_fraction(self.labelled_fraction, name="labelled_fraction")
            self._c(self.labelled_fraction)

    def model(self, s: NDArray[np.int8], weight: NDArray[np.float64] | None = None) -> LabelModel:
        """The label model of rows with labels s (n,), each counted `weight` times.

        Raises
        ------
        InputError : more of these rows are labelled than π leaves room for (c would exceed 1).
        """
        counts = np.ones(len(s)) if weight is None else weight
        n_labelled, n_unlabelled = float(counts[s == 1].sum()), float(counts[s == 0].sum())
        if self.scenario == "case-control":
            return LabelModel(gain=n_labelled / max(n_unlabelled * self.prior, 1e-300), c=0.0)
        fraction = self.labelled_fraction
        if fraction is None:
            fraction = n_labelled / (n_labelled + n_unlabelled / self.unlabelled_fraction)
        c = self._c(fraction)
        return LabelModel(gain=c / self.unlabelled_fraction, c=c)

    def counted(
        self, s: NDArray[np.int8], weight: NDArray[np.float64] | None = None
    ) -> "Labelling":
        """The same with `labelled_fraction` counted on these rows, for use on parts of them.

        Raises
        ------
        InputError : as `model`.
        """
        if self.labelled_fraction is not None or self.scenario == "case-control":
            return self
        c = self.model(s, weight).c
        return replace(self, labelled_fraction=c * self.prior)

    def _c(self, labelled_fraction: float) -> float:
        if self.scenario == "single-sample" and labelled_fraction > self.prior:
            raise InputError(
                f"prior π = {self.prior:.3g}, but {labelled_fraction:.3g} of the rows are known "
                "lenses: in a single-sample survey π is at least their share; raise the prior "
                "(train.prior_fallback), or use scenario 'case-control' if the labelled rows come "
                "from elsewhere"
            )
        return labelled_fraction / self.prior


def unlabelled_prior(prior: float, *, scenario: Scenario, labelled_fraction: float) -> float:
    """π_U, the share of positives among the unlabelled rows.

    Single-sample: π_U = π(1−c)/(1−πc) = (π − P(s=1))/(1 − P(s=1)), since πc = P(s=1).
    Case-control: the unlabelled rows are the survey, π_U = π.

    Raises
    ------
    InputError : π below the labelled share.
    """
    Labelling(scenario, prior, labelled_fraction)
    if scenario == "case-control":
        return prior
    return (prior - labelled_fraction) / (1.0 - labelled_fraction)


def check_scenario(scenario: str) -> Scenario:
    """The scenario, if it is one.

    Raises
    ------
    InputError : naming the nearest known one.
    """
    known = get_args(Scenario)
    if scenario not in known:
        raise InputError(f"unknown scenario '{scenario}': {did_you_mean(str(scenario), known)}")
    return cast(Scenario, scenario)


def check_fraction(value: float, *, name: str, closed: bool = False) -> float:
    """The value, if it lies in (0, 1), or in (0, 1] where `closed`.

    Raises
    ------
    InputError : naming the argument and the value.
    """
    if not (0.0 < value < 1.0 or (closed and value == 1.0)):
        raise InputError(f"{name} is {value!r}, expected a number in (0, 1{']' if closed else ')'}")
    return float(value)


def check_labels(s: ArrayLike, *, n_rows: int, where: str) -> NDArray[np.int8]:
    """Labels (n,) as int8.

    Raises
    ------
    LabelError : another length, values other than 1, 0, −1, no known lens or no unlabelled row.
    """
    values = np.asarray(s)
    if values.shape != (n_rows,):
        raise LabelError(f"{where}: labels have shape {values.shape}, expected ({n_rows},)")
    strange = [v for v in np.unique(values).tolist() if v not in (-1, 0, 1)]
    if strange:
        raise LabelError(
            f"{where}: label {strange[0]!r} found, expected 1 (known lens), 0 (unlabelled) or −1 "
            "(known non-lens)"
        )
    for label, what in ((1, "known lenses (s = 1)"), (0, "unlabelled rows (s = 0)")):
        if not np.any(values == label):
            raise LabelError(
                f"{where}: no {what} among {n_rows} rows, and one class alone teaches nothing"
            )
    return values.astype(np.int8)


def check_weights(
    weight: ArrayLike | None, labels: NDArray[np.int8], *, where: str
) -> NDArray[np.float64] | None:
    """Weights (n,) of rows with these labels; None where none were given.

    Raises
    ------
    LabelError : another shape, a weight that is negative or not finite, or no weight on all known
        lenses or on all unlabelled rows.
    """
    if weight is None:
        return None
    try:
        values = check_finite(weight, shape=(len(labels),), where=f"{where}: weights")
    except InputError as error:
        raise LabelError(str(error)) from error
    if values.min() < 0.0:
        row = int(np.argmin(values))
        raise LabelError(
            f"{where}: weight {values[row]:.3g} in row {row} is negative; a row counts zero times "
            "or more"
        )
    for label, what in ((1, "known lenses"), (0, "unlabelled rows")):
        if not values[labels == label].sum() > 0.0:
            raise LabelError(
                f"{where}: all {what} have zero weight, and one class alone teaches nothing"
            )
    return values


def check_probabilities(values: Any, *, where: str) -> NDArray[np.float64]:
    """Probabilities (n,), n ≥ 1.

    Raises
    ------
    InputError : another shape, or a value that is not finite or outside [0, 1].
    """
    p = check_finite(values, shape=(None,), where=where)
    outside = (p < 0.0) | (p > 1.0)
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError(
            f"{where}: {p[row]:.3g} in row {row} is no probability ({int(outside.sum())} such "
            "values); log-odds have to be turned into p first"
        )
    return p


def check_finite(values: Any, *, shape: tuple[int | None, ...], where: str) -> NDArray[np.float64]:
    """An array of finite float64 of the given shape (None: any length, but at least one).

    Raises
    ------
    InputError : another shape, or the first row that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    fits = array.ndim == len(shape) and all(
        have == want or (want is None and have > 0)
        for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("n" if want is None else str(want) for want in shape)
        raise InputError(f"{where}: array of shape {array.shape}, expected ({wanted})")
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        raise InputError(
            f"{where}: {int(bad.sum())} values are not finite, the first in row {row}; "
            "rows that could not be scored belong in the rejects table"
        )
    return array
