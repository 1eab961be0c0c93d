"""Features of a row group as it lies in a shard, and why some of its rows have none.

Pixels are decoded a few cutouts at a time into one array that stays in the core's cache; to decode
a whole row group into fresh memory takes as long as all the rest of the decoding. Each cutout is
worked on by itself, so its features do not depend on that.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa

from clusterray import schema
from clusterray.config import FeatureSettings
from clusterray.errors import InputError
from clusterray.features import catalogue_features, feature_names, image_features
from clusterray.sky import shards

__all__ = ["Measured", "measure"]

_SCRATCH_BYTES: Final = 10_000_000
_MOST_AT_ONCE: Final = 64
_names = lru_cache(maxsize=16)(feature_names)


@dataclass(frozen=True)
class Measured:
    """Per row why it cannot be used (None where it can), and features (n, f) float32.

    `features` is None where none were asked for; those of a row with a reason mean nothing.
    """

    reasons: list[str | None]
    features: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return 0 if self.features is None else self.features.nbytes


def measure(table: pa.Table, settings: FeatureSettings | None) -> Measured:
    """Look at every row of a shard's table and, where `settings` say how, compute its features.

    Raises
    ------
    ContractError : the table's schema is not that of a shard.
    """
    columns = {n: shards.numbers(table.column(n)) for n in table.column_names if n != "image"}
    noise, step = columns["noise_sigma"], columns["step"]
    reasons = _bad_scales(np.concatenate([noise, step], axis=1))
    layout = shards.layout(table.schema)
    n_bands, height, width = layout["shape"]
    parts = _pixels(table, (n_bands, height, width))
    if settings is None:
        for rows, pixels in parts:
            _note_blank(pixels, rows, reasons)
        return Measured(reasons)
    bands = tuple(layout["bands"])
    names = _names(bands, settings)
    catalogue = catalogue_features(columns, source_redshift=settings.source_redshift, bands=bands)
    n_image = len(names) - len(catalogue.names)
    features = np.empty((table.num_rows, len(names)), np.float32)
    features[:, n_image:] = catalogue.values

    def compute(pixels: np.ndarray, rows: np.ndarray) -> None:
        features[rows, :n_image] = image_features(
            pixels,
            step=step[rows],
            noise_sigma=noise[rows],
            bands=bands,
            grid=settings.grid,
            max_size_px=settings.max_size_px,
        ).values

    for rows, pixels in parts:
        _note_blank(pixels, rows, reasons)
        _computed(compute, pixels, rows, reasons)
    # LightGBM refuses the whole batch of a row such as this.
    for row in np.flatnonzero(np.isinf(features).any(axis=1)):
        if reasons[row] is None:
            reasons[row] = f"feature '{names[np.isinf(features[row]).argmax()]}' is infinite"
    return Measured(reasons, features)


def _pixels(table: pa.Table, shape: tuple[int, int, int]) -> Iterator[tuple[np.ndarray, ...]]:
    """Row numbers and their counts, which are overwritten by the next ones."""
    planes = shards.planes(table)
    at_once = max(1, min(_MOST_AT_ONCE, _SCRATCH_BYTES // (2 * math.prod(shape))))
    scratch = np.empty((at_once, *shape), np.int16)
    for start in range(0, table.num_rows, at_once):
        here = planes[start : start + at_once]
        counts = shards.from_planes(here, shape, out=scratch[: len(here)])
        yield np.arange(start, start + len(here)), counts


def _bad_scales(scales: np.ndarray) -> list[str | None]:
    reasons: list[str | None] = [None] * len(scales)
    good = (np.isfinite(scales) & (scales > 0)).all(axis=1)
    for row in np.flatnonzero(~good):
        found = scales[row].tolist()
        reasons[row] = f"noise sigma or step is not finite and positive: {found}"
    return reasons


def _note_blank(pixels: np.ndarray, rows: np.ndarray, reasons: list[str | None]) -> None:
    # A few pixels tell of nearly every cutout that it is not all blank.
    glimpse = (pixels[:, :, ::16, ::16] == schema.BLANK).all(axis=(1, 2, 3))
    for i in np.flatnonzero(glimpse):
        if reasons[rows[i]] is None and (pixels[i] == schema.BLANK).all():
            reasons[rows[i]] = "every pixel is blank"


def _computed(
    compute: Callable[[np.ndarray, np.ndarray], None],
    pixels: np.ndarray,
    rows: np.ndarray,
    reasons: list[str | None],
) -> None:
    good = np.array([reasons[row] is None for row in rows])
    try:
        # All of them, as ever but beside a reject: then the pixels need no copy.
        compute(pixels if good.all() else pixels[good], rows[good])
    except InputError:
        # One bad row costs one row: find it.
        for i in np.flatnonzero(good):
            try:
                compute(pixels[i : i + 1], rows[i : i + 1])
            except InputError as error:
                reasons[rows[i]] = str(error)
