"""Rows of the selection tables: shares with their intervals, and which list they are of."""

from typing import Any

import numpy as np
import pyarrow as pa
from astropy.stats import binom_conf_interval
from numpy.typing import NDArray

from clusterray import schema
from clusterray.rank.standing import Cut, Standing

__all__ = ["Columns", "shares", "table_of"]

Columns = dict[str, Any]


def shares(name: str, part: NDArray[np.int64], whole: NDArray[np.int64]) -> Columns:
    """Give parts of wholes as columns `name`, `name_low` and `name_high`: Wilson 95 % intervals.

    Parameters
    ----------
    part, whole : (n,) counts, part ≤ whole; where the whole is 0 the columns are NaN.
    """
    columns = {name + end: np.full(len(whole), np.nan) for end in ("", "_low", "_high")}
    some = whole > 0
    if some.any():
        share = part[some] / whole[some]
        low, high = binom_conf_interval(part[some], whole[some], 0.95, interval="wilson")
        # The interval of none begins at 0 and that of all ends at 1, but for rounding.
        ends = (share, np.where(share == 0, 0, low), np.where(share == 1, 1, high))
        for column, values in zip(columns.values(), ends, strict=True):
            column[some] = values
    return columns


def table_of(want: pa.Schema, standing: Standing, cut: Cut, columns: Columns) -> pa.Table:
    """Put a list's columns into a table of the schema; NaN becomes null.

    Raises
    ------
    ContractError : a column breaks the schema.
    """
    length = len(next(iter(columns.values())))
    filled: Columns = {
        "cut": [cut.by] * length,
        "cut_value": [cut.value] * length,
        "list_length": [standing.length(cut)] * length,
        **columns,
    }
    arrays = [pa.array(filled[f.name], f.type, from_pandas=True) for f in want]
    where = want.metadata[b"clusterray.table"].decode()
    return schema.check(pa.table(arrays, schema=want), want, where=where)
