"""Gradient-boosted trees on named features, trained the Elkan–Noto way; kept as LightGBM text."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self

import lightgbm
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit

from clusterray.errors import BundleError, InputError
from clusterray.provenance import seed_for
from clusterray.pu.boosting import DEFAULTS, Booster
from clusterray.pu.elkan_noto import cross_fit_splits
from clusterray.pu.feature_rows import checked_features
from clusterray.pu.label_link import steepness
from clusterray.pu.labelling import (
    Labelling,
    LabelModel,
    Scenario,
    check_labels,
    check_weights,
)
from clusterray.pu.row_forms import Form, WholeCutouts, row_form

__all__ = ["DEFAULTS", "EARLY_STOPPING_LENSES", "PULightGBM"]

EARLY_STOPPING_LENSES: Final = 50
"""Known lenses from which a held-out loss is steady enough to stop by."""

_MARK = "clusterray:"
_CROSS_FITS = 5
_SCORED_AT_ONCE = 65_536
_MOST_STRETCHED = 4.0
_SIGMOID = "\nobjective=cross_entropy\nfeature_names="
_OF_LABELS: Final = LabelModel(gain=1.0, c=1.0)
"""P(s=1|η) = σ(η)."""

Floats = NDArray[np.float64]


class PULightGBM:
    """Log-odds of p(y=1|x) at π of the survey, from named features; NaN is a missing value.

    The trees are steps in the log-odds η of p(y=1|x) to the greatest likelihood of the labels,
    P(s=1|x) = cσ(η) single-sample, odds κσ(η) case-control (`LabelModel`). This is the two-copies
    form (Elkan & Noto 2008) with the weights w(x) of the unlabelled rows taken afresh at every
    tree: the gradient is that of copies with w = (1−c)σ/(1−cσ), and boosting it is expectation
    maximisation (Ward et al. 2009). Known non-lenses are negatives of the same weight as a row of
    the survey. A few known lenses are weighted up, which the label model sets back.

    The number of iterations is where the likelihood of s of held-out rows, summed over five
    splits, is greatest: labels are the only thing that PU data let one be honest about. There also
    the shrinkage of an early stop is undone: the log-odds are stretched as held-out labels ask for,
    and shifted to mean(p) = π on held-out rows. With fewer than 50 known lenses all iterations are
    used, nothing is stretched, and `notes_` says so. The LightGBM text holds the result: all that
    is needed to score.

    In the patch forms every patch of a cutout is a row of its own with the cutout's label, and a
    cutout's score is its best patch's, or the mean of its three best.

    Parameters
    ----------
    feature_names : columns in order; scoring refuses any other set or order.
    scenario : "single-sample" or "case-control".
    prior : π of the survey.
    form : "cutout", "patch-max" or "patch-top3".
    monotone : +1 (rising) or −1 (falling) by feature name (of a patch's row, in a patch form).
    categorical : features that hold category codes 0, 1, 2, …, such as the survey's.
    params : replaces values of `DEFAULTS`.
    seed : of the splits, bagging and feature sampling.
    unlabelled_fraction : share of the survey's unlabelled rows that is given to `fit`.
    num_threads : of training and scoring; results do not depend on it.
    """

    def __init__(
        self,
        feature_names: Sequence[str],
        *,
        scenario: Scenario,
        prior: float,
        form: Form = "cutout",
        monotone: Mapping[str, int] | None = None,
        categorical: Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        unlabelled_fraction: float = 1.0,
        num_threads: int = 1,
    ) -> None:
        self.feature_names = tuple(feature_names)
        self.scenario = scenario
        self.prior = prior
        self.form = form
        self.monotone = dict(monotone or {})
        self.categorical = tuple(categorical)
        self.params = dict(params or {})
        self.seed = seed
        self.unlabelled_fraction = unlabelled_fraction
        self.num_threads = num_threads

    def fit(
        self,
        values: ArrayLike,
        s: ArrayLike,
        *,
        names: Sequence[str],
        groups: ArrayLike | None = None,
        weight: ArrayLike | None = None,
    ) -> Self:
        """Fit to features (n, f) with labels s (n,) in {1, 0, −1}.

        Known non-lenses are learned as negatives and take no part in c, π, the number of
        iterations or the stretch. Sets `booster_`, `num_iterations_`, `stretch_` and `notes_`.

        Parameters
        ----------
        groups : (n,) rows of one group, such as near-duplicates, stay in one cross-fitting split.
        weight : (n,) ≥ 0, times each row counts.

        Raises
        ------
        InputError : other feature names, infinite values, category codes that are none, labels that
            are none, negative weights, π below the share of known lenses, or too few known lenses
            to cross-fit.
        ConfigError : a parameter, form or constraint that cannot be set.
        """
        x, labels = self._checked(values, s, names)
        counts = check_weights(weight, labels, where="PULightGBM")
        counts = np.ones(len(labels)) if counts is None else counts
        booster, labelling = self._booster(), self._labelling().counted(labels, counts)
        data = booster.dataset(self._form.rows(x))
        scores = self._cross_fit(booster, data, x, labels, groups, counts, labelling)
        fitted = booster.fit(
            data,
            self._form.spread(labels),
            self._form.spread(counts * np.where(labels == -1, self.unlabelled_fraction, 1.0)),
            model=labelling.model(labels, counts),
            num_iterations=self.num_iterations_,
        )
        survey = np.flatnonzero(labels >= 0)
        self._settle_stretch(scores[survey], labels[survey], counts[survey], labelling)
        offset = self._offset(self.stretch_ * scores[survey], labels[survey], counts[survey])
        shift = self.stretch_ * fitted.start + offset
        self.booster_ = _line_of(fitted.booster, self.stretch_, shift)
        return self

    def label_scores(
        self,
        values: ArrayLike,
        s: ArrayLike,
        *,
        names: Sequence[str],
        groups: ArrayLike | None = None,
    ) -> Floats:
        """Out-of-fold scores of s (n,), NaN for known non-lenses: what `estimate_prior` wants.

        They do not depend on `prior`.

        Raises
        ------
        InputError, ConfigError : as `fit`.
        """
        x, labels = self._checked(values, s, names)
        booster = self._booster()
        return self._cross_fit(
            booster,
            booster.dataset(self._form.rows(x)),
            x,
            labels,
            groups,
            np.ones(len(labels)),
            labelling=None,
        )

    def decision_function(self, values: ArrayLike, names: Sequence[str]) -> NDArray[np.float64]:
        """(n,) log-odds; a row's value does not depend on the rows beside it.

        Raises
        ------
        InputError : not fitted, other feature names, or infinite values.
        """
        if not hasattr(self, "booster_"):
            raise InputError("this PULightGBM is not fitted: call fit, or PULightGBM.from_text")
        return self._raw(self.booster_, self._features(values, names))

    def contributions(self, values: ArrayLike, names: Sequence[str]) -> NDArray[np.float64]:
        """(n, features + 1) what each feature adds to the log-odds (SHAP), and the base, last.

        A row sums to its `decision_function` (Lundberg et al. 2020, Nat. Mach. Intell. 2, 56; by
        LightGBM's `pred_contrib`); of patches, those that are pooled speak.

        Raises
        ------
        InputError : as `decision_function`.
        """
        if not hasattr(self, "booster_"):
            raise InputError("this PULightGBM is not fitted: call fit, or PULightGBM.from_text")
        x = self._features(values, names)
        if not len(x):
            return np.empty((0, len(self.feature_names) + 1))
        found = self.booster_.predict(
            self._form.rows(x), pred_contrib=True, num_threads=self.num_threads
        )
        return self._form.attributed(np.asarray(found, dtype=np.float64))

    def to_text(self) -> str:
        """LightGBM's own model text, with one line of our own that LightGBM passes over.

        Raises
        ------
        InputError : not fitted.
        """
        if not hasattr(self, "booster_"):
            raise InputError("this PULightGBM is not fitted: there is nothing to write")
        state = {
            "feature_names": self.feature_names,
            "scenario": self.scenario,
            "prior": self.prior,
            "form": self.form,
            "monotone": self.monotone,
            "categorical": self.categorical,
            "params": self.params,
            "seed": self.seed,
            "unlabelled_fraction": self.unlabelled_fraction,
        }
        # The threads of the machine that trained change no score, and so not the bundle's digest.
        text = re.sub(r"\[num_threads: \d+\]", "[num_threads: 1]", self.booster_.model_to_string())
        # LightGBM looks for pandas_categorical on the last line.
        head, mark, tail = text.rpartition("pandas_categorical:")
        return f"{head}{_MARK}{json.dumps(state, sort_keys=True)}\n{mark}{tail}"

    @classmethod
    def from_text(cls, text: str, *, num_threads: int = 1) -> Self:
        """A fitted model back from `to_text`.

        Raises
        ------
        BundleError : text that is no LightGBM model, or was not written by `to_text`.
        """
        lines = [line for line in text.splitlines() if line.startswith(_MARK)]
        if len(lines) != 1:
            raise BundleError(
                f"LightGBM text has {len(lines)} '{_MARK}' lines, expected 1: it was not written "
                "by PULightGBM.to_text, or was cut short; make the bundle again"
            )
        try:
            state = json.loads(lines[0].removeprefix(_MARK))
            booster = lightgbm.Booster(model_str=text)
            model = cls(**state, num_threads=num_threads)
        except (TypeError, ValueError, lightgbm.basic.LightGBMError) as error:
            raise BundleError(f"LightGBM text cannot be read: {error}; make it again") from error
        model.booster_ = booster
        return model

    def _checked(
        self, values: ArrayLike, s: ArrayLike, names: Sequence[str]
    ) -> tuple[NDArray[Any], NDArray[np.int8]]:
        x = self._features(values, names)
        return x, check_labels(s, n_rows=len(x), where="PULightGBM")

    def _labelling(self) -> Labelling:
        return Labelling(self.scenario, self.prior, unlabelled_fraction=self.unlabelled_fraction)

    @property
    def _form(self) -> WholeCutouts:
        return row_form(self.form, self.feature_names)

    def _booster(self) -> Booster:
        return Booster(
            self._form.names,
            params=self.params,
            monotone=self.monotone,
            categorical=self.categorical,
            seed=self.seed,
            num_threads=self.num_threads,
        )

    def _features(self, values: ArrayLike, names: Sequence[str]) -> NDArray[Any]:
        return checked_features(
            values, names, expected=self.feature_names, categorical=self.categorical
        )

    def _cross_fit(
        self,
        booster: Booster,
        data: lightgbm.Dataset,
        x: NDArray[Any],
        labels: NDArray[np.int8],
        groups: ArrayLike | None,
        weight: Floats,
        labelling: Labelling | None,
    ) -> Floats:
        """Held-out log-odds (n,) of y, or of s without a labelling; settles `num_iterations_`.

        NaN for known non-lenses.
        """
        s, counts = self._form.spread(labels), self._form.spread(weight)
        splits = list(self._splits(labels, groups))
        fits = [
            booster.fit(
                data,
                s,
                counts,
                model=labelling.model(labels[t], weight[t]) if labelling else _OF_LABELS,
                rows=self._form.places(t),
                held_out=self._form.places(h),
            )
            for t, h in splits
        ]
        self._settle_iterations(np.array([f.held_out_loss for f in fits]), labels)
        scores = np.full(len(labels), np.nan)
        for fitted, (_, held_out) in zip(fits, splits, strict=True):
            raw = self._raw(fitted.booster, x[held_out], self.num_iterations_)
            scores[held_out] = raw + fitted.start
        return scores

    def _splits(
        self, labels: NDArray[np.int8], groups: ArrayLike | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Training and held-out rows of each split; known non-lenses are in neither."""
        survey = np.flatnonzero(labels >= 0)
        s, within = labels[survey], None if groups is None else np.asarray(groups)[survey]
        known = np.flatnonzero(s == 1)
        n_splits = max(
            2, min(_CROSS_FITS, len(np.unique(known if within is None else within[known])))
        )
        seed = seed_for(self.seed, purpose="cross-fit") % 2**31
        for train, test in cross_fit_splits(s, groups=within, n_splits=n_splits, seed=seed):
            yield survey[train], survey[test]

    def _settle_iterations(self, losses: Floats, labels: NDArray[np.int8]) -> None:
        n_known = int(np.sum(labels == 1))
        self.num_iterations_ = losses.shape[1]
        self.notes_: tuple[str, ...] = ()
        if n_known < EARLY_STOPPING_LENSES:
            self.notes_ = (
                f"no early stopping: {n_known} known lenses, {EARLY_STOPPING_LENSES} needed",
            )
        else:
            self.num_iterations_ = int(np.argmin(losses.mean(axis=0))) + 1

    def _settle_stretch(
        self, scores: Floats, s: NDArray[np.int8], weight: Floats, labelling: Labelling
    ) -> None:
        self.stretch_ = 1.0
        if int(np.sum(s == 1)) >= EARLY_STOPPING_LENSES and np.ptp(scores) > 0:
            found = steepness(scores, s, labelling=labelling, weight=weight)
            self.stretch_ = float(np.clip(found, 1.0 / _MOST_STRETCHED, _MOST_STRETCHED))

    def _offset(self, scores: Floats, s: NDArray[np.int8], weight: Floats) -> float:
        """What to add to log-odds so that the survey's mean probability is π."""
        of_known = self.unlabelled_fraction if self.scenario == "single-sample" else 0.0
        share = weight * np.where(s == 1, of_known, 1.0)
        share /= share.sum()

        def excess(b: float) -> float:
            return float(share @ expit(scores + b)) - self.prior

        reach = 40.0 + float(np.abs(scores).max())
        return float(brentq(excess, -reach, reach))

    def _raw(
        self, booster: lightgbm.Booster, x: NDArray[Any], num_iterations: int | None = None
    ) -> Floats:
        if not len(x):
            return np.empty(0)
        form, pooled = self._form, []
        for start in range(0, len(x), _SCORED_AT_ONCE):
            rows = form.rows(x[start : start + _SCORED_AT_ONCE])
            raw = booster.predict(
                rows, raw_score=True, num_iteration=num_iterations, num_threads=self.num_threads
            )
            pooled.append(form.pool(np.asarray(raw, dtype=np.float64)))
        return np.concatenate(pooled)


def _line_of(booster: lightgbm.Booster, stretch: float, shift: float) -> lightgbm.Booster:
    """The booster of stretch × raw score + shift, its probability the sigmoid of that."""
    for tree, described in enumerate(booster.dump_model()["tree_info"]):
        for leaf in range(described["num_leaves"]):
            # The first tree holds the base.
            value = stretch * booster.get_leaf_output(tree, leaf) + (shift if tree == 0 else 0.0)
            booster.set_leaf_output(tree, leaf, value)
    # A loss of our own leaves no line that says how a raw score becomes a probability.
    text = booster.model_to_string()
    return lightgbm.Booster(model_str=text.replace("\nfeature_names=", _SIGMOID, 1))
