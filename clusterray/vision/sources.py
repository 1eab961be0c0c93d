"""Where a fit's rows come from: arrays in one piece, or in blocks that processes share.

A source holds arrays whose first axis is the sample's rows, such as (pixels, step, noise_sigma) or
the tokens of a frozen trunk. This module needs no torch: what fits trees imports it as well.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "Blocks", "Empty", "Take", "Windowed"]

Arrays = tuple[NDArray[Any], ...]
Empty = Callable[[tuple[int, ...], Any], NDArray[Any]]
Take = Callable[[NDArray[np.int64], Empty], Arrays]
"""Copies of rows, into arrays that the second argument makes."""


class Windowed(Protocol):
    """A source that gives the rows of each window in turn."""

    @property
    def nbytes(self) -> int | None:
        """Size of all rows, where they are all at hand; None where they are read as they go by."""
        ...

    def windows(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[Take]:
        """For each window, given as the rows it needs, a function that gives arrays of rows."""
        ...


class Blocks:
    """Rows in memory, in blocks that are never copied as a whole.

    Parameters
    ----------
    blocks : arrays of each block, each with the block's rows first.
    place : (n,) where row k of the sample stands in the blocks one after the other; None: as it is.
    """

    def __init__(self, blocks: Sequence[Arrays], place: NDArray[Any] | None = None) -> None:
        self.blocks = [b for b in blocks if len(b[0])] or list(blocks[:1])
        ends = np.cumsum([len(b[0]) for b in self.blocks])
        self.starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        self.place = np.arange(ends[-1]) if place is None else np.asarray(place)

    @property
    def nbytes(self) -> int:
        """Size of all rows."""
        return sum(a.nbytes for block in self.blocks for a in block)

    def windows(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[Take]:
        """All rows are at hand in every window."""
        for _ in rows:
            yield self.take

    def take(self, rows: NDArray[np.int64], empty: Empty = np.empty) -> Arrays:
        """Copies of these rows, in this order."""
        at = self.place[rows]
        out = tuple(empty((len(rows), *a.shape[1:]), a.dtype) for a in self.blocks[0])
        if len(self.blocks) == 1:
            for target, source in zip(out, self.blocks[0], strict=True):
                np.take(source, at, axis=0, out=target, mode="clip")
            return out
        block = np.searchsorted(self.starts, at, side="right") - 1
        order = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[order])) + 1
        for part in np.split(order, cuts):
            if len(part):
                b = int(block[part[0]])
                inside = at[part] - self.starts[b]
                for target, source in zip(out, self.blocks[b], strict=True):
                    target[part] = source[inside]
        return out
