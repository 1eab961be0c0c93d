"""What a simulation is made of: tiles, shards, or shards of injected lenses, a unit at a time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from clusterray import storage
from clusterray.config import Config
from clusterray.engine.ledger import RowGroup
from clusterray.simulate import delivery, gallery, population
from clusterray.simulate.cutouts import Cutout, CutoutMaker, catalogue_columns, truth_table
from clusterray.simulate.injection import Injected, inject, pairs_table
from clusterray.simulate.layout import TileSpec
from clusterray.sky import shards

__all__ = ["InjectionUnit", "MadeUnit", "ShardUnit", "TileUnit", "Unit"]


@dataclass(frozen=True)
class MadeUnit:
    """What came of a unit, once its files are written.

    `truth` is its part of the truth table, `cards` what the gallery shows, `cuts` how many draws
    each cut removed, `catalogue` its clusters as plain rows, `rejects` rows of `schema.REJECTS`.
    """

    truth: pa.Table
    cards: list[dict[str, Any]]
    cuts: Counter[str] = field(default_factory=Counter)
    catalogue: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)


class Unit(Protocol):
    """A unit of simulation: what it is called, and how it is made under a folder."""

    @property
    def name(self) -> str:
        """Name of its outputs."""

    @property
    def rows(self) -> int:
        """Objects that go in."""

    def make(
        self, maker: CutoutMaker, config: Config, *, folder: str, shown: frozenset[str]
    ) -> MadeUnit:
        """Make it and write its files; `shown` are the objects of the gallery."""


@dataclass(frozen=True)
class TileUnit:
    """One FITS tile per band."""

    spec: TileSpec

    @property
    def name(self) -> str:
        """Name of the tile."""
        return self.spec.name

    @property
    def rows(self) -> int:
        """Clusters on the tile."""
        return len(self.spec.index)

    def make(
        self, maker: CutoutMaker, config: Config, *, folder: str, shown: frozenset[str]
    ) -> MadeUnit:
        """Render the tile into ``tiles`` under the folder."""
        made = delivery.render_tile(
            self.spec, maker, out_url=storage.join(folder, "tiles"), shown=shown
        )
        columns = catalogue_columns(made.systems)
        catalogue = [
            {
                "object_id": system.object_id,
                "ra_deg": float(made.sky_deg[i, 0]),
                "dec_deg": float(made.sky_deg[i, 1]),
                **{k: None if np.isnan(v[i]) else float(v[i]) for k, v in columns.items()},
            }
            for i, system in enumerate(made.systems)
        ]
        cuts = sum((Counter(s.cuts) for s in made.systems), Counter())
        truth = truth_table(made.truth, where=self.name)
        return MadeUnit(truth, made.cards, cuts, catalogue)


@dataclass(frozen=True)
class ShardUnit:
    """One shard of cutouts, `first` … `last` − 1."""

    name: str
    first: int
    last: int

    @property
    def rows(self) -> int:
        """Cutouts in the shard."""
        return self.last - self.first

    def make(
        self, maker: CutoutMaker, config: Config, *, folder: str, shown: frozenset[str]
    ) -> MadeUnit:
        """Write the shard into the folder."""
        ids = [population.object_id_of(i) for i in range(self.first, self.last)]
        kinds = [
            population.kind_of(i, seed=maker.seed, recipe=maker.recipe)
            for i in range(self.first, self.last)
        ]
        made = [maker.make(i, kind) for i, kind in zip(ids, kinds, strict=True)]
        shards.write_table(
            storage.join(folder, f"{self.name}.parquet"),
            maker.shard_table(made),
            row_group_size=config.ingest.row_group_size,
        )
        cuts = sum((Counter(c.drawn.system.cuts) for c in made), Counter())
        cards = [maker_card(c, maker) for c in made if c.drawn.system.object_id in shown]
        return MadeUnit(truth_table([c.truth for c in made], where=self.name), cards, cuts)


def maker_card(cutout: Cutout, maker: CutoutMaker) -> dict[str, Any]:
    """The gallery's card of a cutout."""
    pixel = maker.frame.pixel_arcsec
    return gallery.card(
        cutout.image,
        np.array([e.sigma_njy(pixel) for e in cutout.exposures]),
        maker.survey.band_names,
        cutout.truth,
        pixel_arcsec=pixel,
    )


@dataclass(frozen=True)
class InjectionUnit:
    """Lens and twin behind each usable cutout of one row group."""

    group: RowGroup

    @property
    def name(self) -> str:
        """Name of the row group's output."""
        return self.group.output.removesuffix(".parquet")

    @property
    def rows(self) -> int:
        """Cutouts in the row group."""
        return self.group.rows

    def make(
        self, maker: CutoutMaker, config: Config, *, folder: str, shown: frozenset[str]
    ) -> MadeUnit:
        """Write the pairs into the folder; what cannot carry a lens is rejected with a reason."""
        batch = shards.read_row_group(self.group.shard.url, self.group.index)
        pairs: list[Injected] = []
        rejects: list[dict[str, Any]] = []
        for row, object_id in enumerate(batch.object_id):
            made = inject(batch, row, maker)
            if isinstance(made, str):
                rejects.append(_reject(str(object_id), made))
            else:
                pairs.append(made)
        if pairs:
            shards.write_table(
                storage.join(folder, f"{self.name}.parquet"),
                pairs_table(batch, pairs, maker),
                row_group_size=config.ingest.row_group_size,
            )
        truth = truth_table([row for p in pairs for row in p.truth], where=self.name)
        return MadeUnit(truth, self._cards(batch, pairs, maker, shown), rejects=rejects)

    def _cards(
        self,
        batch: shards.CutoutBatch,
        pairs: Sequence[Injected],
        maker: CutoutMaker,
        shown: frozenset[str],
    ) -> list[dict[str, Any]]:
        return [
            gallery.card(
                image,
                batch.noise_sigma[pair.row],
                batch.bands,
                truth,
                pixel_arcsec=maker.frame.pixel_arcsec,
            )
            for pair in pairs
            for image, truth in zip((pair.lens, pair.twin), pair.truth, strict=True)
            if str(batch.object_id[pair.row]) in shown
        ]


def _reject(object_id: str, reason: str) -> dict[str, Any]:
    return {"object_id": object_id, "stage": "simulate", "reason": reason, "retryable": False}
