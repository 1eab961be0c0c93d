"""Elkan–Noto posterior correction around any probabilistic classifier (Elkan & Noto 2008)."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.validation import check_is_fitted, validate_data

from clusterray.errors import InputError
from clusterray.pu.labelling import Labelling, LabelModel, Scenario, check_labels
from clusterray.pu.prior import estimate_prior

__all__ = [
    "ElkanNotoClassifier",
    "cross_fit_splits",
    "positive_copy_weight",
    "unlabelled_posterior",
]


def cross_fit_splits(
    s: NDArray[np.int8], *, groups: ArrayLike | None, n_splits: int, seed: int | None
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(training rows, held-out rows) of each split, stratified by s and whole in groups.

    Raises
    ------
    InputError : fewer known lenses (or groups with one) than splits.
    """
    where = np.flatnonzero(s == 1)
    n_independent = len(where if groups is None else np.unique(np.asarray(groups)[where]))
    if n_independent < n_splits:
        what = "known lenses" if groups is None else "groups with known lenses"
        raise InputError(
            f"{n_independent} {what} cannot be spread over cv = {n_splits} cross-fitting splits; "
            f"use cv ≤ {n_independent} (at least 2)"
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_splits=n_splits, shuffle=True, random_state=seed)
    splits = list(splitter.split(np.zeros(len(s)), s == 1, groups))
    if not all(np.any(s[train] == 1) and np.any(s[train] == 0) for train, _ in splits):
        raise InputError(
            f"one of {n_splits} cross-fitting splits has no known lens to learn from: too few "
            "groups hold one; use fewer splits"
        )
    return splits


def unlabelled_posterior(
    scores: NDArray[np.float64], s: NDArray[np.int8], *, model: LabelModel
) -> NDArray[np.float64]:
    """p(y=1|x, s) of each row from cross-fitted scores of s: 1 where labelled, w(x) elsewhere.

    g is recalibrated by isotonic regression first, which leaves mean(g) = P(s=1) and hence
    mean(g/c) = π: a base learner's g rarely saturates at c by itself. Single-sample
    w = (1−c)/c · g/(1−g) (Elkan & Noto 2008, section 4); case-control w = p. Clipped to [0, 1].

    Parameters
    ----------
    scores : (n,) increasing with P(s=1|x), out-of-fold, known non-lenses left out.
    s : (n,) 1 or 0.
    """
    labelled = s == 1
    g = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(scores, labelled.astype(float))
    p = model.posterior(g / np.maximum(1.0 - g, 1e-300))
    # A certain row that is not labelled stays certain, whatever c.
    w = np.where(p < 1.0, (1.0 - model.c) * p / np.maximum(1.0 - model.c * p, 1e-300), 1.0)
    return np.where(labelled, 1.0, w)


def positive_copy_weight(
    s: NDArray[np.int8],
    posterior: NDArray[np.float64],
    *,
    labelling: Labelling,
) -> NDArray[np.float64]:
    """Factor on each row's positive copy that makes the training odds those of the survey.

    Negative copies weigh 1 − w, positive ones this factor times w. Single-sample: 1, but f for
    known lenses where only a fraction f of the unlabelled rows was kept. Case-control: labelled
    rows come on top of the survey's own positives, so all positive copies shrink to the mass n_u π.

    Parameters
    ----------
    s : (n,) labels. posterior : (n,) w, with 1 for known lenses and 0 for known non-lenses.
    """
    if labelling.scenario == "single-sample":
        return np.where(s == 1, labelling.unlabelled_fraction, 1.0)
    return np.full(len(s), labelling.prior * np.sum(s == 0) / posterior.sum())


class ElkanNotoClassifier(ClassifierMixin, BaseEstimator):
    """p(y=1|x) from labelled positives and unlabelled rows.

    A classifier of s is cross-fitted; its g = P(s=1|x) gives each unlabelled row the weight w(x)
    with which it may be positive; then the estimator is trained again on known lenses (weight 1)
    and two copies of every unlabelled row, positive with w and negative with 1 − w (Elkan & Noto
    2008, section 4). Known non-lenses (s = −1) enter that second training as negatives, and never
    the estimates of g, c or π.

    Parameters
    ----------
    estimator : scikit-learn classifier with `predict_proba` and `sample_weight`.
    scenario : "single-sample" or "case-control".
    prior : π of the survey; None estimates it from the cross-fitted scores and refuses to go on
        where no estimator is valid.
    unlabelled_fraction : share of the survey's unlabelled rows that is given to `fit`.
    cv : cross-fitting splits.
    random_state : seed of the splits and of the estimate of π.
    """

    def __init__(
        self,
        estimator: Any,
        *,
        scenario: Scenario = "single-sample",
        prior: float | None = None,
        unlabelled_fraction: float = 1.0,
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.scenario = scenario
        self.prior = prior
        self.unlabelled_fraction = unlabelled_fraction
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: ArrayLike, s: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit to rows X (n, f) with labels s (n,) in {1, 0, −1}.

        Sets `prior_`, `c_` (nan in a case-control sample), `prior_estimate_` (None where π was
        given), `label_scores_` (out-of-fold log-odds of s of the rows with s ≥ 0) and `model_`.

        Raises
        ------
        InputError : labels that are none, fewer positives than splits, π below the share of known
            lenses, or no π given and none to be estimated.
        """
        x: NDArray[Any] = validate_data(self, X, ensure_all_finite="allow-nan")
        labels = check_labels(s, n_rows=len(x), where="ElkanNotoClassifier.fit")
        survey = np.flatnonzero(labels >= 0)
        within = None if groups is None else np.asarray(groups)[survey]
        self.label_scores_ = self._cross_fit(x[survey], labels[survey], within)
        self._settle_prior(labels[survey])
        labelling = Labelling(
            self.scenario, self.prior_, unlabelled_fraction=self.unlabelled_fraction
        )
        model = labelling.model(labels)
        self.c_ = model.c if self.scenario == "single-sample" else float("nan")
        posterior = unlabelled_posterior(self.label_scores_, labels[survey], model=model)
        self.classes_ = np.array([0, 1])
        self.model_ = self._retrain(x, labels, posterior, labelling)
        return self

    def _cross_fit(
        self, X: NDArray[Any], s: NDArray[np.int8], groups: ArrayLike | None
    ) -> NDArray[np.float64]:
        scores = np.empty(len(s))
        splits = cross_fit_splits(s, groups=groups, n_splits=self.cv, seed=self.random_state)
        for train, test in splits:
            fitted = clone(self.estimator).fit(X[train], s[train])
            scores[test] = fitted.predict_proba(X[test])[:, 1]
        return _log_odds(scores)

    def _settle_prior(self, s: NDArray[np.int8]) -> None:
        self.prior_estimate_ = None
        if self.prior is not None:
            self.prior_ = self.prior
            return
        estimate = estimate_prior(
            self.label_scores_[s == 1],
            self.label_scores_[s == 0],
            scenario=self.scenario,
            seed=self.random_state,
            n_bootstrap=50,
            fallback=1.0 - 1e-9,
            unlabelled_fraction=self.unlabelled_fraction,
        )
        if estimate.source == "fallback":
            raise InputError(
                f"π cannot be estimated from {int(np.sum(s == 1))} known lenses "
                f"({'; '.join(estimate.notes)}); give prior="
            )
        self.prior_estimate_, self.prior_ = estimate, estimate.value

    def _retrain(
        self,
        X: NDArray[Any],
        labels: NDArray[np.int8],
        posterior: NDArray[np.float64],
        labelling: Labelling,
    ) -> Any:
        survey = labels >= 0
        w = np.zeros(len(labels))
        w[survey] = posterior
        weight = positive_copy_weight(labels, w, labelling=labelling)
        positive, negative = np.flatnonzero(w > 0), np.flatnonzero(w < 1)
        rows = np.concatenate([positive, negative])
        y = np.repeat([1, 0], [len(positive), len(negative)])
        weights = np.concatenate([(weight * w)[positive], (1 - w)[negative]])
        return clone(self.estimator).fit(X[rows], y, sample_weight=weights)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n, 2) probabilities of not being and of being a lens."""
        check_is_fitted(self)
        X = validate_data(self, X, ensure_all_finite="allow-nan", reset=False)
        return np.asarray(self.model_.predict_proba(X))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """(n,) log-odds of p(y=1|x)."""
        return _log_odds(self.predict_proba(X)[:, 1])

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """(n,) 1 where p(y=1|x) > 0.5."""
        return (self.predict_proba(X)[:, 1] > 0.5).astype(np.int64)


def _log_odds(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(logit(np.clip(p, 1e-15, 1 - 1e-15)), dtype=np.float64)
