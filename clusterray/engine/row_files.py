"""The gathered files of a training sample, read for their cutouts, and files of tokens of the same.

Both hold the same rows in the same order. Tokens are what a frozen trunk makes of a cutout.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clusterray import storage
from clusterray.engine.stages import list_matrix
from clusterray.errors import ContractError
from clusterray.sky import shards as sky_shards
from clusterray.vision.sources import Arrays

__all__ = ["Kind", "read_rows", "row_bytes", "write_tokens"]

Kind = Literal["cutouts", "tokens"]
Shape = tuple[int, int, int]

_COLUMNS = {"cutouts": ["image", "step", "noise_sigma"], "tokens": ["tokens"]}


def row_bytes(kind: Kind, shape: Shape) -> int:
    """Size of one row in memory."""
    size = 2 * int(np.prod(shape))
    return size + 8 * shape[0] if kind == "cutouts" else size


def read_rows(
    kind: Kind, urls: Sequence[str], *, shape: Shape, wanted: NDArray[Any] | None = None
) -> Arrays:
    """Read the rows of these files, one after the other.

    Parameters
    ----------
    shape : bands, height, width of cutouts; views, tokens, length of tokens.
    wanted : sorted places, counted over these files, of the rows to keep; None keeps all.

    Returns
    -------
    Of cutouts pixels (n, b, h, w) int16, step and noise_sigma (n, b) float32, nJy; of tokens
    (n, views, tokens, d) float16 alone.

    Raises
    ------
    ContractError : a file whose rows have another shape.
    StorageError : one that cannot be read.
    """
    parts: list[Arrays] = []
    start = 0
    for url in urls:
        table = storage.read_table(url, columns=_COLUMNS[kind])
        rows = table.num_rows
        if wanted is not None:
            low, high = np.searchsorted(wanted, [start, start + rows])
            table = table.take(pa.array(wanted[low:high] - start))
        start += rows
        if table.num_rows:
            parts.append(_decoded(kind, table, shape, url))
    if parts:
        return tuple(np.concatenate(p) for p in zip(*parts, strict=True))
    if kind == "tokens":
        return (np.empty((0, *shape), np.float16),)
    few = np.empty((0, shape[0]), np.float32)
    return np.empty((0, *shape), np.int16), few, few


def write_tokens(url: str, tokens: NDArray[np.float16]) -> None:
    """Write tokens (n, views, tokens, d), not compressed: it would gain nothing."""
    width = 2 * int(np.prod(tokens.shape[1:]))
    data = pa.py_buffer(np.ascontiguousarray(tokens, np.float16))
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(tokens), [None, data])
    storage.write_table(url, pa.table({"tokens": column}), compression="none", use_dictionary=False)


def _decoded(kind: Kind, table: pa.Table, shape: Shape, url: str) -> Arrays:
    if kind == "cutouts":
        pixels = sky_shards.pixels(table)
        found, arrays = pixels.shape[1:], (pixels, *_scales(table))
    else:
        column = table.column("tokens").combine_chunks()
        width, first = column.type.byte_width, column.offset
        flat = np.frombuffer(column.buffers()[1], np.uint8)
        flat = flat[first * width : (first + len(column)) * width]
        fits = width == row_bytes("tokens", shape)
        found = shape if fits else (width,)
        arrays = (flat.view(np.float16).reshape(len(column), *found) if fits else flat,)
    if found != shape:
        raise ContractError(
            f"'{storage.redact(url)}': {kind} of a row are {list(found)}, expected {list(shape)}; "
            "remove the folder it is in and run again"
        )
    return arrays


def _scales(table: pa.Table) -> Arrays:
    return list_matrix(table, "step"), list_matrix(table, "noise_sigma")
