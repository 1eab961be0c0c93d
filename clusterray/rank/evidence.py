"""What is known about the ranked objects, joined by id: labels of people and, apart, truth."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clusterray import schema

__all__ = ["NO_TRUTH", "Evidence", "gather"]

NO_TRUTH = -2
"""`Evidence.y` of an object that the truth table does not hold."""


@dataclass(frozen=True)
class Evidence:
    """Labels and truth in rank order.

    `s` (n,) is 1 known lens, −1 known non-lens, 0 unlabelled. `y` (n,) is 1 lens, 0 not,
    −1 marginal, −2 no truth; `kind` (n,) says what it is. Both are None without a truth table.
    `n_unranked` lenses of the truth table are not in the ranking (rejected, or never ingested).
    """

    s: NDArray[np.int8]
    y: NDArray[np.int8] | None
    kind: list[str] | None
    n_unranked: int

    @property
    def lens(self) -> NDArray[np.bool_]:
        """Objects that are lenses in truth; none where there is no truth."""
        return self.y == 1 if self.y is not None else np.zeros(len(self.s), bool)

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Objects that metrics count: truth known and not marginal."""
        return self.y >= 0 if self.y is not None else np.zeros(len(self.s), bool)


def gather(ranking: pa.Table, *, labels: pa.Table | None, truth: pa.Table | None) -> Evidence:
    """Join labels and truth to a ranking.

    Of several labels of one object the latest that says lens or non-lens counts; on one date, a
    known lens.

    Raises
    ------
    ContractError : a table breaks its schema, or the truth table holds an id twice.
    """
    ids = ranking["object_id"].combine_chunks()
    s = np.zeros(len(ids), np.int8)
    if labels is not None:
        labels = schema.check(labels, schema.LABELS, where="labels")
        labels = labels.filter(pc.not_equal(labels["s"], 0)).sort_by(
            [("date", "descending"), ("s", "descending")]
        )
        # index_in gives the first match: the latest label.
        s = _joined(ids, labels["object_id"], labels["s"], missing=0).astype(np.int8)
    if truth is None:
        return Evidence(s, None, None, 0)
    truth = schema.check(truth, schema.TRUTH, where="truth")
    schema.require_unique(truth, where="truth")
    y = _joined(ids, truth["object_id"], truth["y"], missing=NO_TRUTH).astype(np.int8)
    kind = _joined(ids, truth["object_id"], truth["kind"], missing="").tolist()
    lenses = truth.filter(pc.equal(truth["y"], 1))["object_id"]
    unranked = len(lenses) - pc.sum(pc.is_in(lenses, value_set=ids)).as_py() if len(lenses) else 0
    return Evidence(s, y, kind, int(unranked))


def _joined(
    ids: pa.Array, keys: pa.ChunkedArray, values: pa.ChunkedArray, *, missing: int | str
) -> NDArray[np.generic]:
    where = pc.index_in(ids, value_set=keys.combine_chunks())
    found = values.combine_chunks().take(where).fill_null(missing)
    return np.asarray(found.to_numpy(zero_copy_only=False))
