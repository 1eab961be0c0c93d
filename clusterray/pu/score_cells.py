"""Unlabelled rows counted between the scores of positives: all that a rank statistic needs.

Only the order of the scores matters. A survey of any size becomes twice as many counts as there
are distinct positive scores, so that neither memory nor a bootstrap grows with it.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.pu.labelling import check_finite

__all__ = ["ScoreCells"]

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ScoreCells:
    """Counts at and between the m distinct scores of positives, from the highest down.

    `positive` (m,) and `tied` (m,) count positives and others at each of those scores; `between`
    (m + 1,) counts the others above the first, between neighbours, and below the last.
    """

    positive: Counts
    tied: Counts
    between: Counts

    @classmethod
    def count(cls, scores_positive: ArrayLike, scores_other: ArrayLike) -> Self:
        """Count rows from two sets of scores (n,), higher first.

        Raises
        ------
        InputError : an empty set, another shape, or a score that is not finite.
        """
        positive = check_finite(scores_positive, shape=(None,), where="scores of the known lenses")
        other = check_finite(scores_other, shape=(None,), where="scores of unlabelled rows")
        edges, counts = np.unique(positive, return_counts=True)
        at_or_above = np.searchsorted(edges, other, side="right")
        cell = np.bincount(at_or_above, minlength=len(edges) + 1)
        strictly = np.searchsorted(edges, other, side="left")
        tied = np.bincount(at_or_above[strictly != at_or_above] - 1, minlength=len(edges))
        between = cell.copy()
        between[1:] -= tied
        return cls(
            counts[::-1].astype(np.int64),
            tied[::-1].astype(np.int64),
            between[::-1].astype(np.int64),
        )

    @property
    def n_positive(self) -> int:
        """Positives in all."""
        return int(self.positive.sum())

    @property
    def n_other(self) -> int:
        """Other rows in all."""
        return int(self.tied.sum() + self.between.sum())

    @property
    def positive_above(self) -> Counts:
        """(m,) positives at or above each threshold."""
        return np.cumsum(self.positive)

    @property
    def other_above(self) -> Counts:
        """(m,) others at or above each threshold."""
        return np.cumsum(self.between[:-1] + self.tied)

    def resampled(self, rng: np.random.Generator) -> "ScoreCells":
        """As many positives and others, drawn with replacement, each kind apart."""
        others = np.concatenate([self.tied, self.between])
        drawn = rng.multinomial(others.sum(), others / others.sum())
        m = len(self.positive)
        share = self.positive / self.positive.sum()
        return ScoreCells(rng.multinomial(self.n_positive, share), drawn[:m], drawn[m:])
