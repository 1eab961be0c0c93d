"""Gradient-boosted trees on named features, trained the Elkan–Noto way; kept as LightGBM text."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import lightgbm
import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import BundleError, ConfigError, InputError, did_you_mean
from clusterray.features.registry import CATEGORICAL
from clusterray.provenance import seed_for
from clusterray.pu.elkan_noto import cross_fit_splits, positive_copy_weight, unlabelled_posterior
from clusterray.pu.labelling import Labelling, Scenario, check_labels

__all__ = ["DEFAULTS", "PULightGBM"]

DEFAULTS: Final[Mapping[str, int | float | bool]] = {
    "num_iterations": 300,
    "learning_rate": 0.05,
    "num_leaves": 6,
    "max_depth": -1,
    "min_data_in_leaf": 20,
    "min_sum_hessian_in_leaf": 1.0,
    "lambda_l1": 0.0,
    "lambda_l2": 10.0,
    "min_gain_to_split": 0.0,
    "feature_fraction": 0.4,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "path_smooth": 0.0,
    "extra_trees": True,
    "max_bin": 255,
}
"""LightGBM parameters that may be set, with values for a handful of positives."""

_MARK = "clusterray:"
_CROSS_FITS = 5


class PULightGBM:
    """Log-odds of p(y=1|x) at π of the survey, from named features; NaN is a missing value.

    A booster of s is cross-fitted, its scores give each unlabelled row the probability w(x) of
    being a lens, and a second booster learns those probabilities: cross-entropy on w is what the
    two weighted copies of Elkan & Noto (2008, section 4) sum to. Positives are weighted up to half
    of the training mass and the odds are set back afterwards, in the leaves of the first tree, so
    that the LightGBM text says all that is needed to score.

    Parameters
    ----------
    feature_names : columns in order; scoring refuses any other set or order.
    scenario : "single-sample" or "case-control".
    prior : π of the survey.
    monotone : +1 (rising) or −1 (falling) by feature name.
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
        monotone: Mapping[str, int] | None = None,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        unlabelled_fraction: float = 1.0,
        num_threads: int = 1,
    ) -> None:
        self.feature_names = tuple(feature_names)
        self.scenario = scenario
        self.prior = prior
        self.monotone = dict(monotone or {})
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
    ) -> Self:
        """Fit to features (n, f) with labels s (n,) in {1, 0, −1}.

        Known non-lenses are learned as negatives and take no part in g, c or π. `groups` keeps
        near-duplicates in one cross-fitting split.

        Raises
        ------
        InputError : other feature names, infinite values, labels that are none, π below the share
            of known lenses, or too few known lenses to cross-fit.
        ConfigError : a parameter or constraint that cannot be set.
        """
        x, labels = self._checked(values, s, names)
        labelling = self._labelling()
        model = labelling.model(labels)
        survey = np.flatnonzero(labels >= 0)
        within = None if groups is None else np.asarray(groups)[survey]
        scores = self._cross_fit(x[survey], labels[survey], within)
        w = np.zeros(len(labels))
        w[survey] = unlabelled_posterior(scores, labels[survey], model=model)
        self.booster_ = self._train_soft(x, labels, w, labelling)
        return self

    def label_scores(
        self,
        values: ArrayLike,
        s: ArrayLike,
        *,
        names: Sequence[str],
        groups: ArrayLike | None = None,
    ) -> NDArray[np.float64]:
        """Out-of-fold scores of s (n,), NaN for known non-lenses: what `estimate_prior` wants.

        They do not depend on `prior`.

        Raises
        ------
        InputError, ConfigError : as `fit`.
        """
        x, labels = self._checked(values, s, names)
        survey = np.flatnonzero(labels >= 0)
        within = None if groups is None else np.asarray(groups)[survey]
        scores = np.full(len(labels), np.nan)
        scores[survey] = self._cross_fit(x[survey], labels[survey], within)
        return scores

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
        LightGBM's `pred_contrib`).

        Raises
        ------
        InputError : as `decision_function`.
        """
        if not hasattr(self, "booster_"):
            raise InputError("this PULightGBM is not fitted: call fit, or PULightGBM.from_text")
        x = self._features(values, names)
        if not len(x):
            return np.empty((0, len(self.feature_names) + 1))
        found = self.booster_.predict(x, pred_contrib=True, num_threads=self.num_threads)
        return np.asarray(found, dtype=np.float64)

    def to_text(self) -> str:
        """LightGBM's own model text, with one line of our own that LightGBM passes over.

        Raises
        ------
        InputError : not fitted.
        """
        if not hasattr(self, "booster_"):
            raise InputError("this PULightGBM is not fitted: there is nothing to write")
        state = {
            "scenario": self.scenario,
            "prior": self.prior,
            "monotone": self.monotone,
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
        except (ValueError, lightgbm.basic.LightGBMError) as error:
            raise BundleError(f"LightGBM text cannot be read: {error}; make it again") from error
        model = cls(booster.feature_name(), num_threads=num_threads, **state)
        model.booster_ = booster
        return model

    def _checked(
        self, values: ArrayLike, s: ArrayLike, names: Sequence[str]
    ) -> tuple[NDArray[Any], NDArray[np.int8]]:
        x = self._features(values, names)
        return x, check_labels(s, n_rows=len(x), where="PULightGBM")

    def _labelling(self) -> Labelling:
        return Labelling(self.scenario, self.prior, unlabelled_fraction=self.unlabelled_fraction)

    def _features(self, values: ArrayLike, names: Sequence[str]) -> NDArray[Any]:
        if tuple(names) != self.feature_names:
            raise InputError(_name_difference(self.feature_names, tuple(names)))
        x = np.asarray(values)
        if x.dtype not in (np.float32, np.float64):
            x = x.astype(np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.feature_names):
            raise InputError(
                f"features of shape {x.shape}, expected (n, {len(self.feature_names)})"
            )
        infinite = np.isinf(x)
        if infinite.any():
            row, column = np.argwhere(infinite)[0]
            raise InputError(
                f"feature '{self.feature_names[column]}' is infinite in row {row}; NaN is the "
                "value for 'not known'"
            )
        return x

    def _cross_fit(
        self, x: NDArray[Any], s: NDArray[np.int8], groups: ArrayLike | None
    ) -> NDArray[np.float64]:
        positive = np.flatnonzero(s == 1)
        of_positive = positive if groups is None else np.asarray(groups)[positive]
        n_splits = max(2, min(_CROSS_FITS, len(np.unique(of_positive))))
        seed = seed_for(self.seed, purpose="cross-fit") % 2**31
        scores = np.empty(len(s))
        for train, test in cross_fit_splits(s, groups=groups, n_splits=n_splits, seed=seed):
            labelled = (s[train] == 1).astype(np.float64)
            booster, _ = self._train(x[train], labelled, 1.0 - labelled)
            scores[test] = self._raw(booster, x[test])
        return scores

    def _train_soft(
        self,
        x: NDArray[Any],
        labels: NDArray[np.int8],
        w: NDArray[np.float64],
        labelling: Labelling,
    ) -> lightgbm.Booster:
        factor = positive_copy_weight(labels, w, labelling=labelling)
        booster, boost = self._train(x, factor * w, 1.0 - w)
        # The booster's base offset is in its first tree, so that is where the odds are set back.
        for leaf in range(booster.dump_model(num_iteration=1)["tree_info"][0]["num_leaves"]):
            booster.set_leaf_output(0, leaf, booster.get_leaf_output(0, leaf) - np.log(boost))
        return booster

    def _train(
        self, x: NDArray[Any], positive: NDArray[np.float64], negative: NDArray[np.float64]
    ) -> tuple[lightgbm.Booster, float]:
        """A booster on rows that are positive and negative by these masses; positives boosted."""
        boost = float(negative.sum() / positive.sum())
        mass = boost * positive + negative
        data = lightgbm.Dataset(
            x,
            label=np.divide(boost * positive, mass, out=np.zeros_like(mass), where=mass > 0),
            weight=mass * (len(mass) / mass.sum()),
            feature_name=list(self.feature_names),
            categorical_feature=[n for n in self.feature_names if n in CATEGORICAL],
            params={"verbosity": -1, "max_bin": self._parameters()["max_bin"]},
        )
        return lightgbm.train(self._parameters(), data), boost

    def _parameters(self) -> dict[str, Any]:
        for name in self.params:
            if name not in DEFAULTS:
                raise ConfigError(
                    f"unknown LightGBM parameter '{name}': {did_you_mean(name, DEFAULTS)}"
                )
        for name, sign in self.monotone.items():
            if name not in self.feature_names:
                raise ConfigError(
                    f"monotone constraint on unknown feature '{name}': "
                    f"{did_you_mean(name, self.feature_names)}"
                )
            if sign not in (1, -1):
                raise ConfigError(f"monotone constraint on '{name}' is {sign!r}, expected 1 or −1")
        return {
            **DEFAULTS,
            **self.params,
            "objective": "cross_entropy",
            "monotone_constraints": [self.monotone.get(n, 0) for n in self.feature_names],
            "seed": seed_for(self.seed, purpose="lightgbm") % 2**31,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.num_threads,
            "verbosity": -1,
        }

    def _raw(self, booster: lightgbm.Booster, x: NDArray[Any]) -> NDArray[np.float64]:
        if not len(x):
            return np.empty(0)
        raw = booster.predict(x, raw_score=True, num_threads=self.num_threads)
        return np.asarray(raw, dtype=np.float64)


def _name_difference(expected: tuple[str, ...], got: tuple[str, ...]) -> str:
    missing = [n for n in expected if n not in got]
    unknown = [n for n in got if n not in expected]
    head = f"the model was made for {len(expected)} features and got {len(got)}: "
    if missing or unknown:
        parts = [
            f"{what} {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            for what, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        return head + "; ".join(parts) + "; compute the features with the settings of the bundle"
    if len(set(got)) < len(got):
        return head + "a name stands twice"
    place = next(i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b)
    return head + f"another order (column {place} is '{got[place]}', expected '{expected[place]}')"
