"""LightGBM as this project uses it: checked parameters, one binned data set, soft labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

from clusterray.errors import ConfigError, did_you_mean
from clusterray.provenance import seed_for

__all__ = ["DEFAULTS", "Booster", "Fit"]

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

_ENOUGH: Final = 1000.0
"""Mass of positives that trees split as they should; more weight only costs calibration."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A trained booster.

    `boost` is the factor on the weight of positives that its odds contain; `held_out_loss`
    (iterations,) is the mean cross-entropy of the held-out rows after each iteration, empty where
    none were given.
    """

    booster: lightgbm.Booster
    boost: float
    held_out_loss: Floats


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
            "objective": "cross_entropy",
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
        positive: Floats,
        negative: Floats,
        *,
        rows: NDArray[np.int64] | None = None,
        held_out: NDArray[np.int64] | None = None,
        num_iterations: int | None = None,
    ) -> Fit:
        """Train on rows that are positive and negative by these masses (n,) of the whole data set.

        Cross-entropy on the share of the positive mass is what two weighted copies of a row sum
        to. Positives are weighted up to a mass of 1,000, but at most to half of all: with a handful
        of them the penalties on leaves would let none be seen.

        Parameters
        ----------
        rows : which to train on; None takes all.
        held_out : rows to judge every iteration by, with the same weighting.
        num_iterations : replaces the parameter.
        """
        chosen = slice(None) if rows is None else rows
        boost = _boost(float(positive[chosen].sum()), float(negative[chosen].sum()))
        parameters = self.parameters()
        if num_iterations is not None:
            parameters["num_iterations"] = num_iterations
        train = _labelled(data, positive, negative, boost, rows)
        history: dict[str, dict[str, list[float]]] = {}
        judged: dict[str, Any] = {}
        if held_out is not None:
            judged = {
                "valid_sets": [_labelled(data, positive, negative, boost, held_out)],
                "valid_names": ["held_out"],
                "callbacks": [lightgbm.record_evaluation(history)],
            }
        booster = lightgbm.train(parameters, train, **judged)
        losses = history.get("held_out", {}).get("cross_entropy", [])
        return Fit(booster, boost, np.asarray(losses, dtype=np.float64))


def _boost(positive: float, negative: float) -> float:
    """Factor on the weight of positives."""
    return min(negative / positive, max(1.0, _ENOUGH / positive))


def _labelled(
    data: lightgbm.Dataset,
    positive: Floats,
    negative: Floats,
    boost: float,
    rows: NDArray[np.int64] | None,
) -> lightgbm.Dataset:
    """The rows, sharing the bins of `data`, with soft labels and weights of mean 1."""
    part = data if rows is None else data.subset(np.sort(rows).tolist()).construct()
    chosen = slice(None) if rows is None else np.sort(rows)
    lens, other = boost * positive[chosen], negative[chosen]
    mass = lens + other
    part.set_label(np.divide(lens, mass, out=np.zeros_like(mass), where=mass > 0))
    part.set_weight(mass * (len(mass) / mass.sum()))
    return part
