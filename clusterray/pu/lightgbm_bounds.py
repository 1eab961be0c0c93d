"""Within which bounds a sweep may search LightGBM's parameters, those of `boosting.DEFAULTS`."""

from collections.abc import Mapping
from typing import Final

__all__ = ["BOUNDS"]

BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "num_iterations": (1, 20_000),
    "learning_rate": (1e-4, 1.0),
    "num_leaves": (2, 4096),
    "max_depth": (-1, 64),
    "min_data_in_leaf": (1, 1_000_000),
    "min_sum_hessian_in_leaf": (0.0, 1e6),
    "lambda_l1": (0.0, 1e6),
    "lambda_l2": (0.0, 1e6),
    "min_gain_to_split": (0.0, 1e6),
    "feature_fraction": (0.01, 1.0),
    "bagging_fraction": (0.01, 1.0),
    "bagging_freq": (0, 1000),
    "path_smooth": (0.0, 1e6),
    "max_bin": (3, 65_535),
}
"""Least and largest value, both allowed, of each number; what else may be set is true or false."""
