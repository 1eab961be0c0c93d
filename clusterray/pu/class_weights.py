"""Class weights that an estimator brings along shift its odds by a known factor: find it."""

from typing import Any

import numpy as np

from clusterray.errors import InputError

__all__ = ["set_back"]


def set_back(estimator: Any, *, positive_mass: float, negative_mass: float) -> float:
    """Make an unfitted estimator's class weights explicit; log of the factor on its odds.

    A positive that weighs k times a negative multiplies the odds by k (Elkan 2001, theorem 1), so
    this is to be subtracted from the log-odds. `class_weight="balanced"` is replaced by
    what it stands for, so that the factor is known. Parameters of nested estimators count.

    Parameters
    ----------
    estimator : unfitted, changed in place.
    positive_mass, negative_mass : sums of the sample weights it will be fitted with.

    Raises
    ------
    InputError : `is_unbalance`, whose factor LightGBM keeps to itself, or two weights at once.
    """
    given = {
        name: value
        for name, value in estimator.get_params(deep=True).items()
        if _asks(name.rpartition("__")[2], value)
    }
    if not given:
        return 0.0
    if len(given) > 1:
        raise InputError(
            f"{type(estimator).__name__} is given {' and '.join(sorted(given))}: each shifts the "
            "odds; set one of them"
        )
    ((name, value),) = given.items()
    kind = name.rpartition("__")[2]
    if kind == "is_unbalance":
        raise InputError(
            f"{type(estimator).__name__}({name}=True): how far it shifts the odds is not known; "
            "use scale_pos_weight or class_weight"
        )
    if kind == "scale_pos_weight":
        return float(np.log(value))
    if isinstance(value, str):
        half = (positive_mass + negative_mass) / 2.0
        value = {0: half / negative_mass, 1: half / positive_mass}
        estimator.set_params(**{name: value})
    return float(np.log(value.get(1, 1.0) / value.get(0, 1.0)))


def _asks(kind: str, value: Any) -> bool:
    if kind == "scale_pos_weight":
        return value is not None and value != 1.0
    if kind == "class_weight":
        return isinstance(value, (str, dict))
    return kind == "is_unbalance" and bool(value)
