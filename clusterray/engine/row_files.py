"""The gathered files of a training sample, read for their pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clusterray import storage
from clusterray.engine.stages import list_matrix
from clusterray.errors import ContractError
from clusterray.sky import shards as sky_shards

__all__ = ["read_cutouts"]

_COLUMNS = ["image", "step", "noise_sigma"]


def read_cutouts(
    urls: Sequence[str], *, shape: tuple[int, int, int], wanted: NDArray[Any] | None = None
) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]:
    """Read pixels, step and noise sigma of these files, one after the other.

    Parameters
    ----------
    shape : bands, height, width.
    wanted : sorted places, counted over these files, of the rows to keep; None keeps all.

    Returns
    -------
    pixels : (n, b, h, w) int16.
    step, noise_sigma : (n, b) float32, nJy.

    Raises
    ------
    ContractError : a file whose cutouts are of other bands or size.
    StorageError : one that cannot be read.
    """
    parts: list[tuple[NDArray[Any], ...]] = []
    start = 0
    for url in urls:
        table = storage.read_table(url, columns=_COLUMNS)
        rows = table.num_rows
        if wanted is not None:
            low, high = np.searchsorted(wanted, [start, start + rows])
            table = table.take(pa.array(wanted[low:high] - start))
        start += rows
        if table.num_rows:
            parts.append(_decoded(table, shape, url))
    if not parts:
        few = np.empty((0, shape[0]), np.float32)
        return np.empty((0, *shape), np.int16), few, few
    pixels, step, sigma = (np.concatenate(p) for p in zip(*parts, strict=True))
    return pixels, step, sigma


def _decoded(table: pa.Table, shape: tuple[int, int, int], url: str) -> tuple[NDArray[Any], ...]:
    pixels = sky_shards.pixels(table)
    if pixels.shape[1:] != shape:
        raise ContractError(
            f"'{storage.redact(url)}': cutouts are {list(pixels.shape[1:])} (bands, height, "
            f"width), expected {list(shape)}; remove the sample's folder and run again"
        )
    return pixels, list_matrix(table, "step"), list_matrix(table, "noise_sigma")
