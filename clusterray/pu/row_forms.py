"""What a booster's rows are: whole cutouts, or their patches, pooled by the best or three best."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from clusterray.errors import ConfigError, InputError, did_you_mean

__all__ = ["Form", "PatchBags", "WholeCutouts", "row_form"]

Form = Literal["cutout", "patch-max", "patch-top3"]
"""One row per cutout; or one per patch, pooled by the best patch or the mean of the three best."""

_PATCH = re.compile(r"patch_(\d+)_(\d+)_(.+)")


@dataclass(frozen=True)
class WholeCutouts:
    """One row per cutout; `names` are its features."""

    names: tuple[str, ...]

    @property
    def n_patches(self) -> int:
        """Rows of a cutout."""
        return 1

    def rows(self, x: NDArray[Any]) -> NDArray[Any]:
        """Feature rows of cutouts (n, f): they themselves."""
        return x

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (n,) of cutouts as those of their rows."""
        return values

    def places(self, cutouts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the rows of these cutouts."""
        return cutouts

    def pool(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) one logit per cutout from those of its rows."""
        return logits

    def attributed(self, contributions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, features + 1) of cutouts, from the contributions (SHAP, the base last) of their rows.

        A cutout's contributions sum to its pooled logit, as those of its rows do to theirs.
        """
        return contributions


@dataclass(frozen=True)
class PatchBags(WholeCutouts):
    """One row per patch.

    `columns` (patches, per_patch) are the patch's own features, the same in every patch; `shared`
    are all others, repeated for each. `names` are those of a patch's row. A cutout's logit is that
    of its best patch, or the mean of its `top` ones.
    """

    columns: NDArray[np.int64]
    shared: NDArray[np.int64]
    top: int

    @classmethod
    def of(cls, feature_names: Sequence[str], *, top: int) -> Self:
        """Sort out columns named `patch_ROW_COLUMN_feature` from the others.

        Raises
        ------
        InputError : no such column, or a patch that lacks a feature of the others.
        """
        place: dict[tuple[int, int], dict[str, int]] = {}
        shared: list[int] = []
        for index, name in enumerate(feature_names):
            found = _PATCH.fullmatch(name)
            if found is None:
                shared.append(index)
            else:
                row, column, feature = found.groups()
                place.setdefault((int(row), int(column)), {})[feature] = index
        if not place:
            raise InputError(
                "the patch form needs features named patch_ROW_COLUMN_…, and there are none; use "
                "the cutout form"
            )
        kinds = sorted({feature for own in place.values() for feature in own})
        for (row, column), own in place.items():
            lacking = [feature for feature in kinds if feature not in own]
            if lacking:
                raise InputError(f"patch {row}, {column} has no feature '{lacking[0]}'")
        columns = np.array([[place[p][f] for f in kinds] for p in sorted(place)])
        names = (*(f"patch_{f}" for f in kinds), *(feature_names[i] for i in shared))
        return cls(names, columns, np.array(shared, dtype=np.int64), top)

    @property
    def n_patches(self) -> int:
        """Rows of a cutout."""
        return len(self.columns)

    def rows(self, x: NDArray[Any]) -> NDArray[Any]:
        """Feature rows (n · patches, per_patch + shared) of n cutouts, patch after patch."""
        n, own = len(x), x[:, self.columns]
        shared = np.broadcast_to(x[:, None, self.shared], (n, self.n_patches, len(self.shared)))
        rows = np.concatenate([own, shared], axis=2).reshape(n * self.n_patches, -1)
        return np.asarray(rows)

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (n,) of cutouts as those of their rows."""
        return np.repeat(values, self.n_patches)

    def places(self, cutouts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the rows of these cutouts."""
        patch = np.arange(self.n_patches)
        return np.asarray((cutouts[:, None] * self.n_patches + patch).ravel())

    def pool(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) one logit per cutout from those of its rows."""
        best = np.sort(logits.reshape(-1, self.n_patches), axis=1)[:, -self.top :]
        # Column by column: a mean over an axis may round a row by how many stand beside it.
        total = np.zeros(len(best))
        for column in best.T:
            total += column
        return np.asarray(total / best.shape[1])

    def attributed(self, contributions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, features + 1): those of the patches that are pooled, each at its own columns."""
        own = self.columns.shape[1]
        each = contributions.reshape(-1, self.n_patches, own + len(self.shared) + 1)
        # As in `pool`, of equal patches the later ones count.
        chosen = np.argsort(each.sum(axis=2), axis=1, kind="stable")[:, -self.top :]
        out = np.zeros((len(each), self.columns.size + len(self.shared) + 1))
        row = np.arange(len(each))
        for patch in chosen.T:
            found = each[row, patch] / chosen.shape[1]
            out[row[:, None], self.columns[patch]] += found[:, :own]
            out[:, self.shared] += found[:, own:-1]
            out[:, -1] += found[:, -1]
        return out


def row_form(form: str, feature_names: Sequence[str]) -> WholeCutouts:
    """The rows that a form makes of cutouts with these features.

    Raises
    ------
    ConfigError : an unknown form; the nearest known one is named.
    InputError : a patch form without patch features.
    """
    if form not in get_args(Form):
        raise ConfigError(f"unknown form '{form}': {did_you_mean(form, get_args(Form))}")
    if form == "cutout":
        return WholeCutouts(tuple(feature_names))
    return PatchBags.of(feature_names, top=1 if form == "patch-max" else 3)
