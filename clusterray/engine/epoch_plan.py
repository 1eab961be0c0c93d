"""Which rows of a sample make up each batch of an epoch: two streams, in windows of files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from clusterray.config import VisionSettings
from clusterray.errors import InputError
from clusterray.provenance import seed_for
from clusterray.pu.nnpu import two_stream_batches

__all__ = ["EpochPlan", "validation_slice"]

_LEAST_LENSES = 10

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class EpochPlan:
    """Batches of each epoch, a function of (seed, epoch) and of these fields alone.

    The files of a sample are shuffled and cut into windows of about `vision.shuffle_rows` rows,
    the rows of a window into batches by `two_stream_batches`; known lenses are in every window. A
    sample of fewer rows is one window, and each epoch one shuffle of all of it.

    Parameters
    ----------
    rows : the rows to learn from.
    s : (n,) labels of all rows of the sample.
    file_of : (n,) the file that each row of the sample is in.
    """

    rows: Rows
    s: NDArray[np.int8]
    file_of: NDArray[np.int64]
    settings: VisionSettings
    seed: int

    def __post_init__(self) -> None:
        known = int(np.sum(self.s[self.rows] == 1))
        if not known or known == len(self.rows):
            raise InputError(
                f"{known} known lenses among {len(self.rows)} rows to learn from: a network needs "
                "both lenses and unlabelled rows; use fewer folds, or give more labels"
            )

    def __call__(self, epoch: int) -> list[list[Rows]]:
        """Windows of batches of row numbers."""
        return [self._batches(window, epoch, k) for k, window in enumerate(self._windows(epoch))]

    def _windows(self, epoch: int) -> list[Rows]:
        rest = self.rows[self.s[self.rows] != 1]
        number = max(1, round(len(rest) / self.settings.shuffle_rows))
        if number == 1:
            return [rest]
        rng = np.random.default_rng(seed_for(self.seed, purpose="windows", epoch=epoch))
        rank = rng.permutation(int(self.file_of.max()) + 1)[self.file_of[rest]]
        ordered = rest[np.argsort(rank, kind="stable")]
        counts = np.bincount(rank)
        # Cut between files, at the one nearest to an equal share.
        ends = np.cumsum(counts)
        wanted = len(rest) * np.arange(1, number) / number
        cuts = np.unique(ends[np.abs(ends - wanted[:, None]).argmin(axis=1)])
        return [w for w in np.split(ordered, cuts) if len(w)]

    def _batches(self, rest: Rows, epoch: int, window: int) -> list[Rows]:
        rows = np.sort(np.concatenate([self.rows[self.s[self.rows] == 1], rest]))
        seed = seed_for(self.seed, window=window) if window else self.seed
        drawn = two_stream_batches(
            self.s[rows],
            batch_size=self.settings.batch_size,
            positives_per_batch=self.settings.positives_per_batch,
            seed=seed,
            epoch=epoch,
        )
        return [rows[batch] for batch in drawn]


def validation_slice(
    rows: Rows, s: NDArray[Any], *, cell: NDArray[Any], settings: VisionSettings, seed: int
) -> tuple[Rows, Rows, Sequence[str]]:
    """Rows to learn from, rows to judge early stopping on (none: all epochs), and notes.

    Whole sky cells, stratified by label, of the rows that the fit may see; neither the fold left
    out nor any truth has a part in it. A slice with fewer than ten known lenses would tell nothing:
    then all rows are learnt from, for all epochs.
    """
    none = np.empty(0, np.int64)
    if settings.patience is None:
        return rows, none, ()
    n_splits = max(2, round(1 / settings.validation_fraction))
    held = none
    if len(np.unique(cell[rows])) >= n_splits and np.sum(s[rows] == 1) >= _LEAST_LENSES:
        splitter = StratifiedGroupKFold(n_splits, shuffle=True, random_state=seed % 2**32)
        held = rows[next(iter(splitter.split(rows, s[rows] == 1, cell[rows])))[1]]
    lenses = int(np.sum(s[held] == 1))
    if lenses < _LEAST_LENSES:
        known = int(np.sum(s[rows] == 1))
        note = f"no early stopping: {known} known lenses, {_LEAST_LENSES * n_splits} needed"
        return rows, none, (note,)
    return np.setdiff1d(rows, held), held, ()
