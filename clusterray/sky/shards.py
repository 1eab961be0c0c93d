"""Cutout shards: Parquet files of noise-scaled int16 cutouts that decode at memory speed.

`write` and `read` are for everyone; `to_table`, `read_row_group(raw=True)`, `planes` and `pixels`
are the pieces that the engine puts between processes without a copy. One row is one object; see
`clusterray.schema.cutouts` for the columns and `clusterray.sky.byte_planes` for the bytes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clusterray import schema, storage
from clusterray.errors import ContractError, InputError
from clusterray.sky.byte_planes import dequantise, encode, from_planes, to_planes
from clusterray.sky.cutout_table import to_table

__all__ = [
    "CutoutBatch",
    "batch",
    "dequantise",
    "describe",
    "encode",
    "from_planes",
    "layout",
    "numbers",
    "pixels",
    "planes",
    "read",
    "read_row_group",
    "to_planes",
    "to_table",
    "write",
    "write_table",
]

# Counts on their way to float32 stay in the cache: a third faster than by whole row groups.
_ROWS_IN_CACHE = 16
_MADE_BY = "shards are made by 'clusterray ingest' or clusterray.sky.shards.write"


@dataclass(frozen=True, eq=False)
class CutoutBatch:
    """Decoded cutouts of n objects with what is known about them.

    Attributes
    ----------
    object_id : (n,) str.
    cutouts_nchw : (n, bands, size, size) float32 flux density, nJy, NaN where there is no data;
        where integers were asked for, int16 counts of `step`, −32768 where there is no data.
    noise_sigma : (n, bands) float32 noise of one pixel, nJy.
    step : (n, bands) float32, nJy per count.
    bands : names in the order of the band axis.
    columns : every other column: (n,) or (n, bands) floats with NaN for unknown; (n,) str or None.
    pixel_scale_arcsec : of the TAN grid, north up, east left, centred on the object.
    """

    object_id: npt.NDArray[np.object_]
    cutouts_nchw: npt.NDArray[Any]
    noise_sigma: npt.NDArray[np.float32]
    step: npt.NDArray[np.float32]
    bands: tuple[str, ...]
    columns: dict[str, npt.NDArray[Any]]
    pixel_scale_arcsec: float | None

    def __len__(self) -> int:
        return len(self.object_id)


def write(
    path: str,
    *,
    object_id: Sequence[str] | npt.NDArray[Any],
    ra_deg: npt.ArrayLike,
    dec_deg: npt.ArrayLike,
    cutouts_nchw: npt.NDArray[Any],
    noise_sigma: npt.ArrayLike,
    bands: Sequence[str],
    row_group_size: int = 512,
    steps_per_sigma: int = 8,
    pixel_scale_arcsec: float | None = None,
    **columns: Any,
) -> None:
    """Write one shard, whole or not at all. All arguments but these two are those of `to_table`.

    Parameters
    ----------
    path : where to, a path or URL.
    row_group_size : rows in one unit of work.
    """
    table = to_table(
        object_id=object_id,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        cutouts_nchw=cutouts_nchw,
        noise_sigma=noise_sigma,
        bands=bands,
        steps_per_sigma=steps_per_sigma,
        pixel_scale_arcsec=pixel_scale_arcsec,
        **columns,
    )
    write_table(path, table, row_group_size=row_group_size)


def write_table(path: str, table: pa.Table, *, row_group_size: int = 512) -> None:
    """Write rows made by `to_table`, in one call or several put together, whole or not at all.

    The footer gets a digest of the rows, so that shards with one footer hold the same cutouts.

    Raises
    ------
    InputError : a row group of no rows.
    ContractError : the table is not one of `schema.cutouts`, or an id stands in it twice.
    """
    if row_group_size < 1:
        raise InputError(f"row_group_size is {row_group_size}, expected 1 or more")
    where = storage.redact(path)
    table = schema.check(table, _schema(layout(table.schema, where=where)), where=where)
    schema.require_unique(table, where=where)
    # Sizes and offsets alone, which is what a footer records, may be those of other pixels too.
    metadata = {**table.schema.metadata, b"clusterray.content_sha256": _content_digest(table)}
    flat = [f.name for f in table.schema if not pa.types.is_nested(f.type) and f.name != "image"]
    data = storage.parquet_bytes(
        table.replace_schema_metadata(metadata),
        row_group_size=row_group_size,
        compression_level=1,
        use_dictionary=["survey"],
        write_statistics=flat,
    )
    storage.write_bytes(path, data)


def _content_digest(table: pa.Table) -> str:
    content = hashlib.sha256(planes(table).data)
    sink = pa.BufferOutputStream()
    rest = table.drop_columns(["image"]).replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, rest.schema) as stream:
        stream.write_table(rest)
    content.update(sink.getvalue())
    return content.hexdigest()


def layout(found: pa.Schema, *, where: str = "cutouts") -> dict[str, Any]:
    """Read from a shard's schema what `schema.image_layout` wrote about its image bytes.

    Raises
    ------
    ContractError : not a shard, one of another format version, or one that contradicts itself.
    """
    metadata = found.field("image").metadata if found.names.count("image") == 1 else None
    text = (metadata or {}).get(b"clusterray.image")
    table = (found.metadata or {}).get(b"clusterray.table", b"")
    if text is None or table != b"cutouts":
        shown = ", ".join(found.names[:8]) + ("…" if len(found.names) > 8 else "")
        raise ContractError(
            f"{where}: not a clusterray cutout shard (columns: {shown or 'none'}); {_MADE_BY}"
        )
    try:
        spec: dict[str, Any] = json.loads(text)
        bands, size_px = spec["bands"], spec["shape"][1]
        want = schema.image_layout(
            bands,
            size_px,
            steps_per_sigma=spec["steps_per_sigma"],
            pixel_scale_arcsec=spec.get("pixel_scale_arcsec"),
        )
        n_bytes = 2 * len(bands) * size_px * size_px
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ContractError(
            f"{where}: the description of its images is damaged ({error!r}); {_MADE_BY}"
        ) from error
    for key in ("version", "encoding", "dtype", "shape", "blank"):
        if spec.get(key) != want[key]:
            raise ContractError(
                f"{where}: image {key} is {spec.get(key)}, this release reads {want[key]}; "
                "write the shard again with this release, or read it with the one that wrote it"
            )
    kind = found.field("image").type
    if not pa.types.is_fixed_size_binary(kind) or kind.byte_width != n_bytes:
        raise ContractError(
            f"{where}: column 'image' is {kind}, expected fixed_size_binary[{n_bytes}] for "
            f"int16{want['shape']}; {_MADE_BY}"
        )
    return want


def _shape(spec: dict[str, Any]) -> tuple[int, int, int]:
    n_bands, height, width = spec["shape"]
    return n_bands, height, width


def _schema(spec: dict[str, Any]) -> pa.Schema:
    return schema.cutouts(
        spec["bands"],
        spec["shape"][1],
        steps_per_sigma=spec["steps_per_sigma"],
        pixel_scale_arcsec=spec["pixel_scale_arcsec"],
    )


def planes(data: pa.Table | pa.RecordBatch) -> npt.NDArray[np.uint8]:
    """View the image bytes of a table, (n, bytes), read-only; a copy only of several chunks.

    A table that lies in shared memory is not copied, and neither is a slice of one.
    """
    column = data.column("image")
    if isinstance(column, pa.ChunkedArray):
        # combine_chunks() copies even a single chunk.
        chunks = column.chunks or [pa.array([], column.type)]
        column = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    if not pa.types.is_fixed_size_binary(column.type) or column.null_count:
        raise ContractError(
            f"column 'image' is {column.type} with {column.null_count} empty values, "
            f"expected fixed_size_binary with none; {_MADE_BY}"
        )
    width = column.type.byte_width
    start = column.offset * width
    view = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return view[start : start + len(column) * width].reshape(len(column), width)


def pixels(
    data: pa.Table | pa.RecordBatch,
    *,
    shape: tuple[int, int, int] | None = None,
    out: npt.NDArray[np.int16] | None = None,
) -> npt.NDArray[np.int16]:
    """Un-shuffle a table's images to counts (n, bands, size, size), −32768 where no data.

    Parameters
    ----------
    data : rows of a shard.
    shape : bands, height, width; read from the schema's metadata if not given (some carriers of
        Arrow data drop that).
    out : (n, bands, height, width) C-contiguous array to fill. In a loop over row groups it
        halves the time: fresh memory costs as much as the un-shuffling.
    """
    return from_planes(planes(data), shape or _shape(layout(data.schema)), out=out)


def batch(table: pa.Table, *, integers: bool = False) -> CutoutBatch:
    """Decode rows of a shard that are in memory already, such as `read_row_group(raw=True)`.

    Raises
    ------
    ContractError : the table's schema is not that of a shard.
    """
    spec = layout(table.schema)
    images = np.empty((table.num_rows, *_shape(spec)), np.int16 if integers else np.float32)
    return _batch(_decode(table, spec, out=images), spec, images)


def _decode(table: pa.Table, spec: dict[str, Any], *, out: npt.NDArray[Any]) -> pa.Table:
    """Fill `out` with the images and return the other columns."""
    stored, shape = planes(table), _shape(spec)
    if out.dtype == np.int16:
        from_planes(stored, shape, out=out)
    else:
        step = numbers(table.column("step"))
        scratch = np.empty((_ROWS_IN_CACHE, *shape), np.int16)
        for start in range(0, len(stored), _ROWS_IN_CACHE):
            rows = slice(start, start + _ROWS_IN_CACHE)
            counts = from_planes(stored[rows], shape, out=scratch[: len(stored[rows])])
            dequantise(counts, step[rows], out=out[rows])
    return table.drop_columns(["image"])


def _batch(table: pa.Table, spec: dict[str, Any], images: npt.NDArray[Any]) -> CutoutBatch:
    named = {name: numbers(table.column(name)) for name in table.column_names}
    return CutoutBatch(
        object_id=named.pop("object_id"),
        cutouts_nchw=images,
        noise_sigma=named.pop("noise_sigma"),
        step=named.pop("step"),
        bands=tuple(spec["bands"]),
        columns=named,
        pixel_scale_arcsec=spec["pixel_scale_arcsec"],
    )


def numbers(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Values of a column, (n,) or (n, width) of a fixed-size list; NaN where a list is null."""
    values = column.combine_chunks()
    if not pa.types.is_fixed_size_list(values.type):
        return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    width = values.type.list_size
    flat = values.values.slice(values.offset * width, len(values) * width)
    numbers = np.array(flat.to_numpy(zero_copy_only=False)).reshape(len(values), width)
    numbers[values.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return numbers


@contextmanager
def _opened(path: str) -> Iterator[tuple[pq.ParquetFile, dict[str, Any], pa.NativeFile]]:
    """Open a shard, with the layout of its images and the stream it lies in."""
    way_out = "ingest it again, or fetch a whole copy"
    with storage.open_parquet(path, way_out=way_out, pre_buffer=True) as (file, stream):
        yield file, layout(file.schema_arrow, where=storage.redact(path)), stream


def _row_group(file: pq.ParquetFile, index: int, spec: dict[str, Any], path: str) -> pa.Table:
    table = file.read_row_group(index, use_threads=False)
    return schema.check(table, _schema(spec), where=storage.redact(path))


def read(path: str, *, integers: bool = False) -> CutoutBatch:
    """Read a whole shard.

    Parameters
    ----------
    path : path or URL.
    integers : leave the pixels as int16 counts of `step`, in half the memory.

    Raises
    ------
    StorageError : the file is missing, truncated, damaged or not Parquet.
    ContractError : Parquet, but not a cutout shard, or one of another version; repeated ids.
    """
    return storage.retried("read", path, lambda: _read(path, integers=integers))


def _read(path: str, *, integers: bool) -> CutoutBatch:
    with _opened(path) as (file, spec, _):
        shape = (file.metadata.num_rows, *_shape(spec))
        images = np.empty(shape, np.int16 if integers else np.float32)
        parts, start = [file.schema_arrow.empty_table().drop_columns(["image"])], 0
        for index in range(file.num_row_groups):
            table = _row_group(file, index, spec, path)
            parts.append(_decode(table, spec, out=images[start : start + table.num_rows]))
            start += table.num_rows
    rest = pa.concat_tables(parts)
    schema.require_unique(rest, where=storage.redact(path))
    return _batch(rest, spec, images)


@overload
def read_row_group(
    path: str, index: int, *, raw: Literal[False] = False, footer_sha256: str | None = None
) -> CutoutBatch: ...
@overload
def read_row_group(
    path: str, index: int, *, raw: Literal[True], footer_sha256: str | None = None
) -> pa.Table: ...
def read_row_group(
    path: str, index: int, *, raw: bool = False, footer_sha256: str | None = None
) -> CutoutBatch | pa.Table:
    """Read one row group of a shard, the unit of work.

    Parameters
    ----------
    path : path or URL.
    index : row group, from 0.
    raw : give the table as it is stored, for `pixels`, `planes` and `batch`.
    footer_sha256 : what `describe` said of the shard, where it must not have changed since.

    Raises
    ------
    InputError : the shard has no such row group.
    StorageError, ContractError : as `read`; or the footer is another.
    """
    table = storage.retried("read", path, lambda: _read_one(path, index, footer_sha256))
    return table if raw else batch(table)


def _read_one(path: str, index: int, footer_sha256: str | None) -> pa.Table:
    with _opened(path) as (file, spec, stream):
        if footer_sha256 is not None:
            _require_footer(stream, file, footer_sha256, path)
        if not 0 <= index < file.num_row_groups:
            raise InputError(
                f"{storage.redact(path)}: row group {index} asked for, "
                f"it has {file.num_row_groups} (from 0)"
            )
        return _row_group(file, index, spec, path)


def _require_footer(stream: pa.NativeFile, file: pq.ParquetFile, expected: str, path: str) -> None:
    found = hashlib.sha256(_footer(stream, file)).hexdigest()
    if found != expected:
        raise ContractError(
            f"'{storage.redact(path)}' was rewritten since it was listed: the digest of its footer "
            f"is {found[:12]}…, expected {expected[:12]}…; run the same command again"
        )


def _footer(stream: pa.NativeFile, file: pq.ParquetFile) -> bytes:
    length = file.metadata.serialized_size
    return bytes(stream.read_at(length, stream.size() - 8 - length))


def describe(path: str) -> dict[str, Any]:
    """Say what a shard holds, from its footer alone: JSON-able.

    Returns
    -------
    rows, row_groups (list of row counts), bands, size_px, pixel_scale_arcsec, steps_per_sigma,
    encoding, format_version, schema_version, columns, bytes (the file's), bytes_per_cutout,
    image_bytes (compressed), footer_sha256 (the footer holds a digest of all columns and pixels,
    so shards that share it share their content).

    Raises
    ------
    StorageError, ContractError : as `read`.
    """
    return storage.retried("read", path, lambda: _describe(path))


def _describe(path: str) -> dict[str, Any]:
    with _opened(path) as (file, spec, stream):
        meta = file.metadata
        groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
        image = meta.schema.names.index("image")
        size, footer = stream.size(), _footer(stream, file)
    version = (file.schema_arrow.metadata or {}).get(b"clusterray.version", b"0")
    return {
        "rows": meta.num_rows,
        "row_groups": [g.num_rows for g in groups],
        "bands": spec["bands"],
        "size_px": spec["shape"][1],
        "pixel_scale_arcsec": spec["pixel_scale_arcsec"],
        "steps_per_sigma": spec["steps_per_sigma"],
        "encoding": spec["encoding"],
        "format_version": spec["version"],
        "schema_version": int(version),
        "columns": file.schema_arrow.names,
        "bytes": size,
        "bytes_per_cutout": size / meta.num_rows if meta.num_rows else None,
        "image_bytes": sum(g.column(image).total_compressed_size for g in groups),
        "footer_sha256": hashlib.sha256(footer).hexdigest(),
    }
