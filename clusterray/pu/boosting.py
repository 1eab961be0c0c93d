"""LightGBM as this project uses it: checked parameters, one binned data set, labels as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from clusterray.errors import ConfigError, did_you_mean
from clusterray.provenance import seed_for
from clusterray.pu.labelling import LabelModel

__all__ = ["DEFAULTS", "Booster", "Fit"]

DEFAULTS: Final[Mapping[str, int | float | bool]] = {
    "num_iterations": 200,
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
    "extra_trees": False,
    "max_bin": 255,
}
"""LightGBM parameters that may be set, with values for a handful of positives."""

_ENOUGH: Final = 1000.0
"""Mass of positives that trees split as they should; more weight only costs calibration."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A trained booster: η is its raw score plus `start`.

    `held_out_loss` (iterations,) is the mean −log P(s|η) of the held-out rows after each iteration,
    empty where none were given.
    """

    booster: lightgbm.Booster
    start: float
    held_out_loss: Floats


@dataclass(frozen=True)
class _Likelihood:
    """−log P(s|η) of weighted rows in the form in which LightGBM asks for it."""

    model: LabelModel
    labels: NDArray[np.int8]
    weight: Floats
    start: float

    def steps(self, raw: Floats, data: lightgbm.Dataset) -> tuple[Floats, Floats]:
        """Gradient and Fisher information of each row."""
        eta = raw + self.start
        gradient, information = self.model.newton(eta, self.labels == 1)
        known = self.labels == -1
        if known.any():
            # One negative against labelled lenses, whose odds are κσ/(1−σ) there.
            p = expit(eta[known] + np.log(self.model.gain))
            gradient[known], information[known] = p, p * (1.0 - p)
        return self.weight * gradient, self.weight * information

    def mean(self, raw: Floats, data: lightgbm.Dataset) -> tuple[str, float, bool]:
        """The mean, named, and that it is the better the lower."""
        value = self.model.loss(np.clip(raw + self.start, -30.0, 30.0), self.labels == 1)
        return "label_loss", float(self.weight @ value / self.weight.sum()), False


@dataclass(frozen=True)
class Booster:
    """How boosters are trained.

    Parameters
    ----------
    names : columns in order.
    params : replaces values of `DEFAULTS`.
    monotone : +1 (rising) or −1 (falling) by column name.
    categorical : columns that hold category codes.
    seed : of bagging and feature sampling.
    num_threads : results do not depend on it.

    Raises
    ------
    ConfigError : a parameter, column or sign that is none, or a monotone category.
    """

    names: tuple[str, ...]
    params: Mapping[str, Any]
    monotone: Mapping[str, int]
    categorical: tuple[str, ...]
    seed: int
    num_threads: int

    def __post_init__(self) -> None:
        for name in self.params:
            if name not in DEFAULTS:
                raise ConfigError(
                    f"unknown LightGBM parameter '{name}': {did_you_mean(name, DEFAULTS)}"
                )
        for name in (*self.monotone, *self.categorical):
            if name not in self.names:
                what = "monotone constraint on" if name in self.monotone else "category in"
                raise ConfigError(
                    f"{what} unknown feature '{name}': {did_you_mean(name, self.names)}"
                )
        for name, sign in self.monotone.items():
            if sign not in (1, -1):
                raise ConfigError(f"monotone constraint on '{name}' is {sign!r}, expected 1 or −1")
            if name in self.categorical:
                raise ConfigError(
                    f"feature '{name}' is a category and cannot be monotone; drop one of the two"
                )

    def parameters(self) -> dict[str, Any]:
        """What LightGBM is given."""
        return {
            **DEFAULTS,
            **self.params,
            "metric": "None",
            "monotone_constraints": [self.monotone.get(n, 0) for n in self.names],
            "seed": seed_for(self.seed, purpose="lightgbm") % 2**31,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.num_threads,
            "verbosity": -1,
        }

    def dataset(self, x: NDArray[Any]) -> lightgbm.Dataset:
        """Bin rows (n, f) once, for every fit on them; labels play no part in the bins."""
        given = self.parameters()
        return lightgbm.Dataset(
            x,
            label=np.zeros(len(x)),
            feature_name=list(self.names),
            categorical_feature=list(self.categorical),
            # Filtering by min_data_in_leaf would tie the bins to that parameter.
            params={"feature_pre_filter": False}
            | {n: given[n] for n in ("verbosity", "max_bin", "num_threads")},
        ).construct()

    def fit(
        self,
        data: lightgbm.Dataset,
        labels: NDArray[np.int8],
        weight: Floats,
        *,
        model: LabelModel,
        rows: NDArray[np.int64] | None = None,
        held_out: NDArray[np.int64] | None = None,
        num_iterations: int | None = None,
    ) -> Fit:
        """Train η to the greatest likelihood of labels (n,) in {1, 0, −1} under `model`.

        Steps are by Fisher scoring (`LabelModel.newton`). Known lenses count up to 1,000 rows, but
        at most half of all: with a handful of them the penalties on leaves would let none be seen.
        That multiplies κ, and so is set back by the model itself.

        Parameters
        ----------
        weight : (n,) times each row counts.
        rows : which to train on; None takes all.
        held_out : rows to judge every iteration by, as they come.
        num_iterations : replaces the parameter.
        """
        chosen = np.arange(len(labels)) if rows is None else np.sort(rows)
        s, counts = labels[chosen], weight[chosen]
        known, rest = float(counts[s == 1].sum()), float(counts[s == 0].sum())
        boost = min(rest / known, max(1.0, _ENOUGH / known))
        boosted = LabelModel(gain=boost * model.gain, c=model.c)
        start = float(logit(boosted.posterior(np.array(boost * known / rest))))
        counts = counts * np.where(s == 1, boost, 1.0)
        likelihood = _Likelihood(boosted, s, counts * (len(s) / counts.sum()), start)
        parameters = {**self.parameters(), "objective": likelihood.steps}
        if num_iterations is not None:
            parameters["num_iterations"] = num_iterations
        part = data if rows is None else data.subset(chosen.tolist()).construct()
        history: dict[str, dict[str, list[float]]] = {}
        judged: dict[str, Any] = {}
        if held_out is not None:
            others = np.sort(held_out)
            unseen = _Likelihood(model, labels[others], weight[others], start)
            judged = {
                "valid_sets": [data.subset(others.tolist()).construct()],
                "valid_names": ["held_out"],
                "feval": unseen.mean,
                "callbacks": [lightgbm.record_evaluation(history)],
            }
        booster = lightgbm.train(parameters, part, **judged)
        losses = history.get("held_out", {}).get("label_loss", [])
        return Fit(booster, start, np.asarray(losses, dtype=np.float64))
