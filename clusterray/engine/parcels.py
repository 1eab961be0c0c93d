"""A row group on its way from stage to stage: one Arrow row, its pixels apart from the rest.

As one row Ray can neither split nor merge it, whatever it does with its own blocks: every stage
sees the same rows in the same order, and micro-batches are cut in the same places. The pixels are
a value of their own, so that they are copied once, into Ray's object store, and read out of it in
place; all other columns travel as one small IPC buffer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from clusterray.sky import shards

__all__ = ["Parcel", "Reject", "pack", "unpack"]

Reject = dict[str, Any]


@dataclass(frozen=True)
class Parcel:
    """One row group between two stages.

    Attributes
    ----------
    unit : its number in the plan.
    data : every column but the image.
    rejects : rows of `schema.REJECTS`.
    seconds : what each stage took for it.
    planes : (n, bytes) uint8 byte planes of the image; None where no later stage wants pixels.
    """

    unit: int
    data: pa.Table
    rejects: Sequence[Reject] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    planes: np.ndarray | None = None

    @classmethod
    def of(cls, unit: int, table: pa.Table, *, keep_pixels: bool, **more: Any) -> "Parcel":
        """Make a parcel of a shard's rows, without a copy of the pixels."""
        data = table.drop_columns(["image"])
        return cls(unit, data, planes=shards.planes(table) if keep_pixels else None, **more)


def pack(parcels: Sequence[Parcel]) -> pa.Table:
    """Parcels as a table for Ray; pixels and IPC buffers lie in it as they are."""
    return pa.table(
        {
            "unit": pa.array([p.unit for p in parcels], pa.int64()),
            "payload": _binary([_ipc(p.data) for p in parcels]),
            "planes": _binary([_bytes(p.planes) for p in parcels]),
            "rejects": pa.array([json.dumps(list(p.rejects)) for p in parcels]),
            "seconds": pa.array([json.dumps(dict(p.seconds)) for p in parcels]),
        }
    )


def unpack(table: pa.Table) -> list[Parcel]:
    """The parcels of a table that `pack` made, as views into it."""
    payloads, images = (_values(table.column(name)) for name in ("payload", "planes"))
    units, rejects, seconds = (table.column(n).to_pylist() for n in ("unit", "rejects", "seconds"))
    return [
        _opened(unit, payload, image, rejects=json.loads(r), seconds=json.loads(s))
        for unit, payload, image, r, s in zip(
            units, payloads, images, rejects, seconds, strict=True
        )
    ]


def _opened(unit: int, payload: pa.Buffer, image: pa.Buffer | None, **more: Any) -> Parcel:
    data = pa.ipc.open_stream(payload).read_all()
    # A table of no rows has no chunks either, and its readers want one.
    data = data if data.num_rows else data.schema.empty_table()
    planes = None
    if image is not None:
        planes = np.frombuffer(image, np.uint8).reshape(data.num_rows, -1 if image.size else 0)
    return Parcel(unit, data, planes=planes, **more)


def _values(column: pa.ChunkedArray) -> list[pa.Buffer | None]:
    """Each value of a large_binary column, in place: a scalar's `as_buffer` would be a copy."""
    found: list[pa.Buffer | None] = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        for valid, start, end in zip(chunk.is_valid(), ends[:-1], ends[1:], strict=True):
            found.append((data or pa.py_buffer(b"")).slice(start, end - start) if valid else None)
    return found


def _ipc(data: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as stream:
        stream.write_table(data)
    return sink.getvalue()


def _bytes(planes: np.ndarray | None) -> pa.Buffer | None:
    return None if planes is None else pa.py_buffer(planes.reshape(-1).data)


def _binary(buffers: Sequence[pa.Buffer | None]) -> pa.ChunkedArray:
    """A column of these values, each a chunk of its own: pa.array would copy them."""
    kind = pa.large_binary()
    parts = [
        pa.nulls(1, kind)
        if b is None
        else pa.LargeBinaryArray.from_buffers(
            kind, 1, [None, pa.array([0, b.size], pa.int64()).buffers()[1], b]
        )
        for b in buffers
    ]
    return pa.chunked_array(parts, kind)
