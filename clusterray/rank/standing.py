"""Where the objects of a truth table stand in a ranking, ranked or not, and where a list ends."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clusterray import schema
from clusterray.errors import InputError
from clusterray.rank.ranking import models_of

__all__ = ["Cut", "Standing", "cut_at", "stand"]


@dataclass(frozen=True)
class Cut:
    """Where a list ends: after `value` objects, or at the probability `value`."""

    by: Literal["budget", "threshold"]
    value: float

    def __str__(self) -> str:
        return f"first {self.value:,.0f}" if self.by == "budget" else f"p ≥ {self.value:g}"


def cut_at(*, budget: int | None = None, threshold: float | None = None) -> Cut:
    """Name where the list ends, by one of two.

    Raises
    ------
    InputError : both or neither is given, a budget that is no positive number, or a threshold
        outside (0, 1).
    """
    if (budget is None) == (threshold is None):
        raise InputError(
            f"budget is {budget} and threshold is {threshold}: a list ends at one of them; give one"
        )
    if budget is not None:
        if budget < 1:
            raise InputError(
                f"budget is {budget}, expected a positive number of objects to inspect"
            )
        return Cut("budget", budget)
    assert threshold is not None
    if not 0 < threshold < 1:
        raise InputError(f"threshold is {threshold}, expected a probability between 0 and 1")
    return Cut("threshold", threshold)


@dataclass(frozen=True)
class Standing:
    """The rows of a truth table (n,) and the ranks they have.

    `y` is 1 lens, 0 not, −1 marginal; `kind` says what it is. `rank` is infinite and `p_lens` NaN
    for what the ranking does not hold. `p_ranked` (m,) has the probabilities of the whole ranking,
    and `n_without_truth` of its objects are not in the truth table.
    """

    truth: pa.Table
    y: NDArray[np.int8]
    kind: NDArray[np.str_]
    rank: NDArray[np.float64]
    p_lens: NDArray[np.float64]
    p_ranked: NDArray[np.float64]

    @property
    def lens(self) -> NDArray[np.bool_]:
        """The lenses, ranked or not."""
        return np.asarray(self.y == 1)

    @property
    def ranked(self) -> NDArray[np.bool_]:
        """The objects that the ranking holds."""
        return np.isfinite(self.rank)

    def listed(self, cut: Cut) -> NDArray[np.bool_]:
        """The objects that stand in the list."""
        if cut.by == "budget":
            return np.asarray(self.rank <= cut.value)
        return np.asarray(self.p_lens >= cut.value)

    def length(self, cut: Cut) -> int:
        """How many objects the list holds, with those that have no truth."""
        if cut.by == "budget":
            return min(int(cut.value), len(self.p_ranked))
        return int((self.p_ranked >= cut.value).sum())

    def values(self, quantity: str) -> NDArray[np.float64]:
        """A column of the truth table (n,), NaN where it is null or not finite."""
        found = self.truth[quantity].cast(pa.float64()).to_numpy()
        return np.where(np.isfinite(found), found, np.nan)


def stand(ranking: pa.Table, truth: pa.Table) -> Standing:
    """Look up every object of a truth table in a ranking.

    Raises
    ------
    ContractError : a table breaks its schema, or an id stands twice.
    InputError : the ranking is empty, or holds no object of the truth table.
    """
    ranking = schema.check(
        ranking, schema.ranking(models_of(ranking, where="ranking")), where="ranking"
    )
    truth = schema.check(truth, schema.TRUTH, where="truth")
    schema.require_unique(ranking, where="ranking")
    schema.require_unique(truth, where="truth")
    if not len(ranking):
        raise InputError("the ranking is empty: no lens can be found in it; score some cutouts")
    at = pc.index_in(truth["object_id"], value_set=ranking["object_id"].combine_chunks())
    if len(truth) and at.null_count == len(truth):
        raise InputError(
            f"none of the {len(truth):,} objects of the truth table (such as "
            f"'{truth['object_id'][0]}') is among the {len(ranking):,} ranked (such as "
            f"'{ranking['object_id'][0]}'): it belongs to another survey; name this survey's "
            "truth, or none"
        )
    return Standing(
        truth=truth,
        y=truth["y"].to_numpy(),
        kind=np.asarray(truth["kind"].to_pylist(), dtype=np.str_),
        rank=_taken(ranking["rank"], at, missing=np.inf),
        p_lens=_taken(ranking["p_lens"], at, missing=np.nan),
        p_ranked=ranking["p_lens"].to_numpy(),
    )


def _taken(column: pa.ChunkedArray, at: pa.ChunkedArray, *, missing: float) -> NDArray[np.float64]:
    found = column.cast(pa.float64()).take(at).fill_null(missing)
    return np.asarray(found.to_numpy(), np.float64)
