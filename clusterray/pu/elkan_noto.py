"""Elkan–Noto posterior correction around any probabilistic classifier (Elkan & Noto 2008)."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.utils import Tags, get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from clusterray.errors import InputError
from clusterray.pu.class_weights import set_back
from clusterray.pu.label_link import unlabelled_posterior
from clusterray.pu.labelling import Labelling, Scenario, check_labels, check_weights
from clusterray.pu.prior import estimate_prior

__all__ = [
    "ElkanNotoClassifier",
    "copy_masses",
    "cross_fit_splits",
]

Floats = NDArray[np.float64]


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


def copy_masses(
    s: NDArray[np.int8], posterior: Floats, *, labelling: Labelling, weight: Floats | None = None
) -> tuple[Floats, Floats]:
    """Weights of each row's positive and negative copy, in units of one unlabelled row at hand.

    Their odds are those of the survey. Positive copies: single-sample w, and f for known lenses,
    where only a fraction f of the unlabelled rows was kept, for each of those stands for 1/f rows;
    case-control all of them shrunk to the mass n_u π, because labelled rows come on top of the
    survey's own positives. Negative copies: 1 − w, and f for known non-lenses.

    Parameters
    ----------
    s : (n,) labels. posterior : (n,) w, with 1 for known lenses and 0 for known non-lenses.
    weight : (n,) times each row counts.
    """
    counts = np.ones(len(s)) if weight is None else weight
    fraction = labelling.unlabelled_fraction
    negative = counts * np.where(s == -1, fraction, 1.0 - posterior)
    if labelling.scenario == "single-sample":
        return counts * np.where(s == 1, fraction, posterior), negative
    positive = counts * posterior
    return positive * (labelling.prior * counts[s == 0].sum() / positive.sum()), negative


class ElkanNotoClassifier(ClassifierMixin, BaseEstimator):
    """p(y=1|x) from labelled positives and unlabelled rows.

    A classifier of s is cross-fitted. Its g = P(s=1|x), through the link that explains labels best
    (see `label_link`), gives each unlabelled row the weight w(x) with which it may be positive;
    then the estimator is trained again on known lenses and two copies of every unlabelled row,
    positive with w and negative with 1 − w (Elkan & Noto 2008). Known non-lenses (s = −1) enter
    that second training as negatives, and never the estimates of g, c or π. Class weights of the
    estimator and subsampled unlabelled rows shift the odds by known factors, which are set back.

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

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Fit to rows X (n, f) with labels y (n,): s in {1, 0, −1}, named as scikit-learn has it.

        Sets `prior_`, `c_` (nan in a case-control sample), `prior_estimate_` (None where π was
        given), `label_scores_` (out-of-fold log-odds of s of the rows with s ≥ 0), `link_` (how
        those became p), `log_odds_shift_` (what class weights add to the log-odds) and `model_`.

        Parameters
        ----------
        groups : (n,) rows of one group stay in one cross-fitting split.
        sample_weight : (n,) ≥ 0, times each row counts.

        Raises
        ------
        InputError : labels that are none, negative weights, fewer positives than splits, π below
            the share of known lenses, or no π given and none to be estimated.
        """
        x: NDArray[Any]
        x, y = validate_data(self, X, y, ensure_all_finite="allow-nan")
        check_classification_targets(y)
        labels = check_labels(y, n_rows=len(x), where="ElkanNotoClassifier.fit")
        weight = check_weights(sample_weight, labels, where="ElkanNotoClassifier.fit")
        survey = np.flatnonzero(labels >= 0)
        s, counts = labels[survey], None if weight is None else weight[survey]
        within = None if groups is None else np.asarray(groups)[survey]
        self.label_scores_ = self._cross_fit(x[survey], s, within, counts)
        self._settle_prior(s)
        labelling = Labelling(
            self.scenario, self.prior_, unlabelled_fraction=self.unlabelled_fraction
        )
        model = labelling.model(s, counts)
        self.c_ = model.c if self.scenario == "single-sample" else float("nan")
        posterior = np.zeros(len(labels))
        posterior[survey], self.link_ = unlabelled_posterior(
            self.label_scores_, s, labelling=labelling, seed=self.random_state, weight=counts
        )
        self.classes_ = np.array([0, 1])
        self._retrain(x, *copy_masses(labels, posterior, labelling=labelling, weight=weight))
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.allow_nan = get_tags(self.estimator).input_tags.allow_nan
        return tags

    def _cross_fit(
        self,
        X: NDArray[Any],
        s: NDArray[np.int8],
        groups: ArrayLike | None,
        weight: Floats | None,
    ) -> Floats:
        scores = np.empty(len(s))
        splits = cross_fit_splits(s, groups=groups, n_splits=self.cv, seed=self.random_state)
        for train, test in splits:
            weights = {} if weight is None else {"sample_weight": weight[train]}
            fitted = clone(self.estimator).fit(X[train], s[train], **weights)
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
            # Never used, and above any share of known lenses.
            fallback=1.0 - 1e-9,
            unlabelled_fraction=self.unlabelled_fraction,
        )
        if estimate.source == "fallback":
            raise InputError(
                f"π cannot be estimated from {int(np.sum(s == 1))} known lenses "
                f"({'; '.join(estimate.notes)}); give prior="
            )
        self.prior_estimate_, self.prior_ = estimate, estimate.value

    def _retrain(self, X: NDArray[Any], positive: Floats, negative: Floats) -> None:
        as_lens, as_other = np.flatnonzero(positive > 0), np.flatnonzero(negative > 0)
        rows = np.concatenate([as_lens, as_other])
        y = np.repeat([1, 0], [len(as_lens), len(as_other)])
        weights = np.concatenate([positive[as_lens], negative[as_other]])
        estimator = clone(self.estimator)
        self.log_odds_shift_ = set_back(
            estimator, positive_mass=float(positive.sum()), negative_mass=float(negative.sum())
        )
        self.model_ = estimator.fit(X[rows], y, sample_weight=weights)

    def predict_proba(self, X: ArrayLike) -> Floats:
        """(n, 2) probabilities of not being and of being a lens."""
        check_is_fitted(self)
        X = validate_data(self, X, ensure_all_finite="allow-nan", reset=False)
        found = np.asarray(self.model_.predict_proba(X), dtype=np.float64)
        if self.log_odds_shift_ == 0.0:
            return found
        # p/(p + k(1−p)) is the odds over k, and keeps 0 and 1.
        k = np.exp(self.log_odds_shift_)
        p = found[:, 1] / (found[:, 1] + k * found[:, 0])
        return np.column_stack([1.0 - p, p])

    def decision_function(self, X: ArrayLike) -> Floats:
        """(n,) log-odds of p(y=1|x)."""
        return _log_odds(self.predict_proba(X)[:, 1])

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """(n,) 1 where p(y=1|x) > 0.5."""
        return (self.predict_proba(X)[:, 1] > 0.5).astype(np.int64)


def _log_odds(p: Floats) -> Floats:
    return np.asarray(logit(np.clip(p, 1e-15, 1 - 1e-15)), dtype=np.float64)
