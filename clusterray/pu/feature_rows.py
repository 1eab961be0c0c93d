"""Feature matrices that a model may be given: its own columns, finite or not known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import InputError

__all__ = ["checked_features"]


def checked_features(
    values: ArrayLike,
    names: Sequence[str],
    *,
    expected: tuple[str, ...],
    categorical: Sequence[str] = (),
) -> NDArray[Any]:
    """Features (n, f) as float32 or float64, if they are those that were expected.

    Parameters
    ----------
    names : of the columns at hand. expected : of the columns that the model was made for.
    categorical : columns of category codes.

    Raises
    ------
    InputError : other names or another order, another shape, an infinite value, or a category code
        that is negative or not a whole number.
    """
    if tuple(names) != expected:
        raise InputError(_name_difference(expected, tuple(names)))
    x = np.asarray(values)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    if x.ndim != 2 or x.shape[1] != len(expected):
        raise InputError(f"features of shape {x.shape}, expected (n, {len(expected)})")
    _refuse_infinite(x, expected)
    _check_categories(x, expected, categorical)
    return x


def _refuse_infinite(x: NDArray[Any], names: tuple[str, ...]) -> None:
    # Column by column: flags for all of a survey's features at once are as large as they are.
    for column, name in enumerate(names):
        infinite = np.isinf(x[:, column])
        if infinite.any():
            raise InputError(
                f"feature '{name}' is infinite in row {int(np.argmax(infinite))}; NaN is the "
                "value for 'not known'"
            )


def _check_categories(x: NDArray[Any], names: tuple[str, ...], categorical: Sequence[str]) -> None:
    # LightGBM takes negative codes for missing and cuts others to whole numbers, in silence.
    for name in categorical:
        column = x[:, names.index(name)]
        bad = np.isfinite(column) & ((column < 0) | (column != np.floor(column)))
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"feature '{name}' is a category and holds {column[row]:g} in row {row}, expected "
                "0, 1, 2, … or NaN for 'not known'"
            )


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
