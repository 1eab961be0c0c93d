"""A table as a VOTable, a million rows in seconds."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io.votable import writeto
from astropy.table import Table
from numpy.typing import NDArray

__all__ = ["votable_bytes"]

_DATA = b'<DATA><BINARY2><STREAM encoding="base64">%b</STREAM></BINARY2></DATA>\n  '


def votable_bytes(table: pa.Table, *, units: Mapping[str, str], ucds: Mapping[str, str]) -> bytes:
    """Serialise a table of numbers and strings as VOTable 1.4 with one BINARY2 stream.

    astropy writes the header; its row-by-row writer takes 100 µs a row, so the rows (null flags,
    then big-endian fields; VOTable 1.4, sect. 6.3) are laid out here as one structured array.
    Equal tables give equal bytes under one version of astropy.

    Parameters
    ----------
    table : integer, floating and string columns; nulls allowed.
    units, ucds : by column name, where it has one.
    """
    columns = {name: _cells(table[name]) for name in table.column_names}
    header = Table({name: cells[:0] for name, cells in columns.items()}, copy=False)
    for name, unit in units.items():
        header[name].unit = unit
    for name, ucd in ucds.items():
        header[name].meta["ucd"] = ucd
    buffer = io.BytesIO()
    writeto(header, buffer, tabledata_format="binary2")
    before, end, after = buffer.getvalue().partition(b"</TABLE>")
    data = _DATA % base64.b64encode(_rows(table, columns)) if len(table) else b""
    return b"".join([before, data, end, after])


def _cells(column: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_string(column.type):
        return np.array(column.fill_null("").to_pylist() or [""], dtype=str)[: len(column)]
    filler: Any = 0 if pa.types.is_integer(column.type) else np.nan
    values = column.fill_null(filler).to_numpy()
    # The only 8-bit integer of a VOTable is unsigned.
    return np.asarray(values.astype(np.int16) if values.dtype == np.int8 else values)


def _rows(table: pa.Table, columns: Mapping[str, NDArray[Any]]) -> bytes:
    big_endian = {name: _big_endian(cells) for name, cells in columns.items()}
    layout: list[Any] = [("nulls", np.uint8, (-(-len(columns) // 8),))]
    layout += [(name, cells.dtype, cells.shape[1:]) for name, cells in big_endian.items()]
    rows = np.zeros(len(table), np.dtype(layout))
    nulls = np.column_stack([table[name].is_null().to_numpy() for name in columns])
    rows["nulls"] = np.packbits(nulls, axis=1)
    for name, cells in big_endian.items():
        rows[name] = cells
    return rows.tobytes()


def _big_endian(cells: NDArray[Any]) -> NDArray[Any]:
    if cells.dtype.kind != "U":
        return cells.astype(cells.dtype.newbyteorder(">"))
    # unicodeChar is UCS-2: what does not fit becomes U+FFFD.
    points = np.ascontiguousarray(cells).view(np.uint32).reshape(len(cells), -1)
    return np.where(points > 0xFFFF, 0xFFFD, points).astype(">u2")
