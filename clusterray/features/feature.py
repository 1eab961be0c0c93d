"""What a feature is, and a table of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterray.errors import InputError

__all__ = ["Feature", "FeatureMatrix"]


@dataclass(frozen=True)
class Feature:
    """One column: what it is, in which unit, after whom, and when it is NaN (empty: never).

    `group` is what it is listed and weighed with. `categories` names the codes 0, 1, 2 … of a
    feature that is a kind and no quantity.
    """

    name: str
    unit: str
    definition: str
    source: str
    nan_when: str = ""
    group: str = ""
    categories: tuple[str, ...] = ()

    @property
    def may_be_nan(self) -> bool:
        """Whether NaN ("unknown") is one of its values."""
        return bool(self.nan_when)


@dataclass(frozen=True)
class FeatureMatrix:
    """Features of some objects: `values` (n, f) float32, one column for each of `names`."""

    values: NDArray[np.float32]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise InputError(
                f"feature matrix: values have shape {self.values.shape}, expected "
                f"(n, {len(self.names)}) for {len(self.names)} names"
            )
        if len(set(self.names)) != len(self.names):
            raise InputError("feature matrix: a name stands twice; give each band its own name")
