"""Tables of any format, read through astropy and pyarrow into columns of numbers and text."""

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from astropy.table import MaskedColumn, Table

from clusterray import storage
from clusterray.errors import ClusterrayError, InputError
from clusterray.sky.fitsfile import open_fits

__all__ = ["decoded", "numbers", "read_table", "texts"]

_SUFFIXES: Final = {
    ".fits": "fits", ".fit": "fits", ".fits.gz": "fits", ".fit.gz": "fits", ".csv": "ascii.csv",
    ".ecsv": "ascii.ecsv", ".parquet": "parquet", ".pq": "parquet", ".vot": "votable",
    ".votable": "votable", ".xml": "votable",
}  # fmt: skip


def read_table(url: str) -> Table:
    """A table of any of the formats, by the suffix of its name; nothing is unpickled.

    Raises
    ------
    InputError : an unknown suffix, a file that is not what its suffix says, or no rows.
    StorageError : a file that cannot be reached.
    """
    where = storage.redact(url)
    name = storage.name_of(url).lower()
    kind = next((k for s, k in _SUFFIXES.items() if name.endswith(s)), None)
    if kind is None:
        raise InputError(
            f"{where}: cannot tell the format of a table by this name; expected one of "
            f"{', '.join(_SUFFIXES)}"
        )
    if kind == "parquet":
        arrow = storage.read_table(url)
        table = Table({n: _from_arrow(arrow.column(n)) for n in arrow.column_names})
    else:
        try:
            if kind == "fits":
                with open_fits(url) as hdus:
                    table = Table.read(hdus, format="fits", unit_parse_strict="silent")
            else:
                table = Table.read(io.BytesIO(storage.read_bytes(url)), format=kind)
        except ClusterrayError:
            raise
        except Exception as error:
            # Each reader has its own family of exceptions for a malformed file.
            raise InputError(
                f"{where}: not a readable {kind} table ({type(error).__name__}: {error}); it may "
                "be truncated, of another format, or hold several tables"
            ) from error
    if not len(table):
        raise InputError(f"{where}: the table has no rows; expected at least one object")
    return table


def _from_arrow(column: pa.ChunkedArray) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values = column.to_pylist()
    mask = [v is None for v in values]
    if not any(mask) and (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return column.to_numpy()
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return MaskedColumn([0 if v is None else v for v in values], mask=mask)
    if pa.types.is_nested(column.type):
        return np.array(values, dtype=object)
    return MaskedColumn(["" if v is None else str(v) for v in values], mask=mask)


def numbers(column: Any, name: str, *, where: str, way_out: str) -> npt.NDArray[np.float64]:
    """A column as float64, NaN where it is empty; text is read where it is a number.

    Raises
    ------
    InputError : several values per row, or text that is no number; `way_out` ends the sentence.
    """
    if column.ndim != 1 or column.dtype == object:
        raise InputError(
            f"{where}: column '{name}' holds {'x'.join(map(str, column.shape[1:])) or 'nested'} "
            f"values per row, expected one number{way_out}"
        )
    mask = np.ma.getmaskarray(np.ma.asarray(column))
    values = np.asarray(column)
    if values.dtype.kind not in "SU":
        found = values.astype(np.float64)
        found[mask] = np.nan
        return found
    found = np.full(len(values), np.nan)
    for row, text in enumerate(decoded(values)):
        if mask[row] or not text:
            continue
        try:
            found[row] = float(text)
        except ValueError:
            raise InputError(
                f"{where}: column '{name}' is '{text}' in row {row + 1}, expected a number; "
                f"correct it{way_out}"
            ) from None
    return found


def decoded(values: npt.NDArray[Any]) -> list[str]:
    """Values as text without surrounding blanks."""
    if values.dtype.kind == "S":
        return [v.decode("utf-8", "replace").strip() for v in values]
    return [str(v).strip() for v in values]


def texts(table: Table, name: str | None) -> list[str | None]:
    """A column as text, None where it is empty or the table lacks it."""
    if name is None:
        return [None] * len(table)
    mask = np.ma.getmaskarray(np.ma.asarray(table[name]))
    found = decoded(np.asarray(table[name]))
    return [None if mask[row] or not text else text for row, text in enumerate(found)]
