"""What every fit of a training run shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clusterray import storage
from clusterray.config import Config
from clusterray.engine.ledger import RowGroup
from clusterray.engine.sample import load
from clusterray.engine.sample_rows import SampleRows, locate
from clusterray.ensemble.folds import HELD_OUT
from clusterray.provenance import seed_for
from clusterray.pu.labelling import Labelling, unlabelled_prior

__all__ = ["REFIT", "FitContext"]

REFIT: Final = HELD_OUT


@dataclass(frozen=True)
class FitContext:
    """What every fit of a training run shares; arrays are in the sample's order.

    `s`, `fold` and `cell` are (n,): label, fold, and sky cell. `prior` is π of the survey. `rows`
    says where the cutouts are; without it each fit reads them itself. `tokens` are, by network,
    what its frozen part makes of them, where that is kept.
    """

    config: Config
    folder: str
    groups: tuple[RowGroup, ...]
    bands: tuple[str, ...]
    size_px: int
    feature_names: tuple[str, ...]
    unlabelled_fraction: float
    prior: float
    s: np.ndarray
    fold: np.ndarray
    cell: np.ndarray
    rows: SampleRows | None = None
    tokens: Mapping[str, SampleRows] = field(default_factory=dict)

    def sample_rows(self) -> SampleRows:
        """Where the cutouts are: `rows`, or else found in the sample's folder."""
        if self.rows is not None:
            return self.rows
        url = storage.join(self.folder, "sample")
        urls = [storage.join(url, "rows", g.output) for g in self.groups]
        shape = (len(self.bands), self.size_px, self.size_px)
        return locate(load(self.groups, url), urls, shape=shape)

    def seen(self, leave_out: int) -> NDArray[np.int64]:
        """Rows that a fit may learn from."""
        return np.flatnonzero((self.fold >= 0) & (self.fold != leave_out))

    def unseen(self, leave_out: int) -> NDArray[np.int64]:
        """Rows that a fit scores."""
        return np.flatnonzero(self.fold == leave_out)

    def seed(self, model: str, leave_out: int) -> int:
        """The seed of one fit."""
        return seed_for(self.config.seed, model=model, fold=leave_out)

    @property
    def labelling(self) -> Labelling:
        """How the sample came by its labels."""
        labelling = Labelling(
            self.config.train.scenario, self.prior, unlabelled_fraction=self.unlabelled_fraction
        )
        return labelling.counted(self.s)

    @property
    def unlabelled_prior(self) -> float:
        """π_U: what nnPU averages over are the unlabelled rows."""
        known, rest = float(np.sum(self.s == 1)), float(np.sum(self.s == 0))
        return unlabelled_prior(
            self.prior,
            scenario=self.config.train.scenario,
            labelled_fraction=known / (known + rest / self.unlabelled_fraction),
        )
