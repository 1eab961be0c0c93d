"""The ranked list of candidates: how it is built, written and read."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from pyarrow import csv

from clusterray import schema, storage
from clusterray.errors import ContractError, InputError
from clusterray.rank.votable import votable_bytes

__all__ = ["FILES", "build", "models_of", "read", "write"]

FILES = ("ranking.csv", "ranking.vot", "ranking.parquet")
"""What `write` puts into a folder, in this order: Parquet last, so that its presence means all."""

_WHOLE = 0.999
"""Coverage from which a cutout is not called partial: resampling leaves rounding at the edges."""

_UNITS = {"ra_deg": "deg", "dec_deg": "deg"}
_UCDS = {
    "rank": "meta.number",
    "object_id": "meta.id;meta.main",
    "ra_deg": "pos.eq.ra;meta.main",
    "dec_deg": "pos.eq.dec;meta.main",
    "p_lens": "stat.probability",
    "flags": "meta.code",
}


def build(
    scores: pa.Table,
    *,
    models: Sequence[str],
    p_lens: ArrayLike,
    p_low: ArrayLike,
    p_high: ArrayLike,
) -> pa.Table:
    """Rank scored objects by probability, best first.

    Ties in p_lens go by the stack's logit, then by object_id, so the order never depends on that
    of `scores`. `flags` joins with ";": `trained` (the row was trained on; its scores are
    out-of-fold), `calibration` (the calibrator saw it), `partial` (coverage below 0.999 in a
    band), `clipped` (pixels beyond the stored range).

    Parameters
    ----------
    scores : a `schema.scores` table; embeddings and attention maps are passed over.
    models : base models, as in the bundle.
    p_lens, p_low, p_high : (n,) calibrated probability of each row of `scores`, with its interval.

    Raises
    ------
    ContractError : not a table of scores, or an id stands twice.
    InputError : probabilities of the wrong number, outside [0, 1] or outside their interval, or a
        logit that is not a number (the object is named).
    """
    narrow = [n for n in scores.column_names if n not in ("embedding", "attention")]
    table = schema.check(scores.select(narrow), schema.scores(models), where="scores to rank")
    schema.require_unique(table, where="scores to rank")
    table = table.replace_schema_metadata(None)
    for name in (*(f"logit_{m}" for m in models), "logit_stack"):
        _refuse_nan(table, name)
    for name, values in (("p_lens", p_lens), ("p_lens_low", p_low), ("p_lens_high", p_high)):
        table = table.append_column(name, pa.array(_probability(table, name, values)))
    _refuse_crossed(table)
    order = pc.sort_indices(
        table,
        [("p_lens", "descending"), ("logit_stack", "descending"), ("object_id", "ascending")],
    )
    table = table.take(order)
    want = schema.ranking(models)
    ranks = np.arange(1, len(table) + 1)
    finds = np.cumsum(table["p_lens"].to_numpy())
    for name, values in (
        ("rank", ranks),
        ("expected_finds", finds),
        ("expected_purity", finds / ranks),
        ("flags", _flags(table)),
    ):
        table = table.append_column(name, pa.array(values, want.field(name).type))
    return schema.check(table.select(want.names), want, where="ranking")


def _refuse_nan(table: pa.Table, name: str) -> None:
    values = table[name].to_numpy()
    if np.isnan(values).any():
        row = int(np.argmax(np.isnan(values)))
        raise InputError(
            f"{name} of object {table['object_id'][row]} is NaN ({np.isnan(values).sum()} in "
            "all); rows that cannot be scored belong in rejects: score this shard again"
        )


def _probability(table: pa.Table, name: str, values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    if found.shape != (len(table),):
        raise InputError(f"{name} has shape {found.shape}, expected ({len(table)},): one per score")
    bad = ~((found >= 0) & (found <= 1))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{name} of object {table['object_id'][row]} is {found[row]}, expected 0…1 "
            f"({bad.sum()} such values)"
        )
    return found


def _refuse_crossed(table: pa.Table) -> None:
    low, p_lens, high = (table[n].to_numpy() for n in ("p_lens_low", "p_lens", "p_lens_high"))
    crossed = (low > p_lens) | (p_lens > high)
    if crossed.any():
        row = int(np.argmax(crossed))
        raise InputError(
            f"object {table['object_id'][row]}: p_lens {p_lens[row]} lies outside its interval "
            f"[{low[row]}, {high[row]}] ({crossed.sum()} such rows)"
        )


def _flags(table: pa.Table) -> list[str]:
    fold = table["fold"].fill_null(-2).to_numpy()
    conditions = (
        ("trained", fold >= 0),
        ("calibration", fold == -1),
        ("partial", table["coverage"].to_numpy() < _WHOLE),
        ("clipped", table["clipped_fraction"].to_numpy() > 0),
    )
    texts = np.full(len(table), "", dtype=object)
    for name, holds in conditions:
        texts[holds] = [f"{text};{name}" if text else name for text in texts[holds]]
    return [str(text) for text in texts]


def write(url: str, table: pa.Table) -> None:
    """Write ranking.csv, ranking.vot and ranking.parquet into a folder.

    Equal tables give equal bytes: no file holds a time, a path or a machine.

    Raises
    ------
    ContractError : not a ranking.
    StorageError : the folder cannot be written.
    """
    table = schema.check(table, schema.ranking(models_of(table, where="ranking")), where="ranking")
    table = table.combine_chunks()
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    storage.write_bytes(storage.join(url, "ranking.csv"), sink.getvalue())
    storage.write_bytes(
        storage.join(url, "ranking.vot"), votable_bytes(table, units=_UNITS, ucds=_UCDS)
    )
    storage.write_table(storage.join(url, "ranking.parquet"), table)


def read(url: str) -> pa.Table:
    """Read the ranking that `write` put into a folder.

    Raises
    ------
    StorageError : there is none, or it is not Parquet.
    ContractError : it is another table, or of another version.
    """
    where = storage.join(url, "ranking.parquet")
    table = storage.read_table(where)
    shown = storage.redact(where)
    return schema.check(table, schema.ranking(models_of(table, where=shown)), where=shown)


def models_of(table: pa.Table, *, where: str) -> list[str]:
    """Names of the base models whose scores a ranking holds, from its metadata.

    Raises
    ------
    ContractError : the table says nothing of them, so it is not a ranking.
    """
    found = (table.schema.metadata or {}).get(b"clusterray.models")
    if found is None:
        raise ContractError(
            f"{where}: it does not say which models it ranks by, so it is not a ranking of "
            "clusterray; make it with 'clusterray rank'"
        )
    return [str(m) for m in json.loads(found)]
