"""Cluster catalogues and label tables, in whatever format and column names they come."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import astropy.units as u
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from astropy.table import Table

from clusterray import schema, storage
from clusterray.errors import ConfigError, ContractError, InputError, did_you_mean
from clusterray.sky.tabular import decoded, numbers, read_table, texts

__all__ = ["read", "read_labels"]

# In order of preference: a redMaPPer table has both Z and Z_LAMBDA.
_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "object_id": (
        "object_id", "mem_match_id", "cluster_id", "id", "name", "object", "objid", "objname",
        "source_id", "iauname", "designation",
    ),
    "ra_deg": (
        "ra_deg", "ra", "raj2000", "ra_j2000", "alpha_j2000", "alphawin_j2000", "ra_icrs", "radeg",
        "right_ascension", "alpha",
    ),
    "dec_deg": (
        "dec_deg", "dec", "dej2000", "decj2000", "dec_j2000", "delta_j2000", "deltawin_j2000",
        "de_icrs", "dec_icrs", "dedeg", "decdeg", "declination", "delta",
    ),
    "z_lens": (
        "z_lens", "zlens", "z_lambda", "z_cluster", "z_cl", "redshift", "z", "z_spec", "zspec",
        "z_phot", "zphot", "photoz",
    ),
    "richness": ("richness", "lambda", "lambda_chisq", "lambda_zred", "n200", "n_200"),
    "sigma_v_km_s": ("sigma_v_km_s", "sigma_v", "sigmav", "vdisp", "veldisp"),
    "l_x_erg_s": ("l_x_erg_s", "l_x", "lx", "lx500", "l500"),
    "ebv": ("ebv", "ebv_mean", "e_b_v", "ebmv"),
    "s": ("s", "label"),
    "source": ("source", "author", "reviewer", "ref"),
    "date": ("date", "date_utc"),
    "grade": ("grade", "grading"),
}  # fmt: skip
_UNITS: Final = {
    "ra_deg": u.deg,
    "dec_deg": u.deg,
    "sigma_v_km_s": u.km / u.s,
    "l_x_erg_s": u.erg / u.s,
}
# What a number above zero can be. Anything else is another quantity (a z magnitude), a placeholder
# (99) or in another unit (10⁴⁴ erg/s, m/s), and would quietly outrank the proxies that are right.
_PLAUSIBLE: Final = {
    "z_lens": (0.0, 10.0, "a redshift up to 10"),
    "sigma_v_km_s": (1.0, 1e4, "1 to 10000 km/s"),
    "l_x_erg_s": (1e38, 1e48, "1e+38 to 1e+48 erg/s"),
}
_PROXIES: Final = ("z_lens", "richness", "sigma_v_km_s", "l_x_erg_s", "ebv")
_SKIP: Final = 'ingest.catalogue_columns.{} = ""'


def read(url: str, *, survey_name: str, aliases: Mapping[str, str] | None = None) -> pa.Table:
    """Clusters to look at, as a catalogue table.

    Columns are found by their usual names whatever their case, units are converted, and what no
    column of ours needs is ignored. A redshift, richness, velocity dispersion or luminosity that
    is not a positive number means "unknown" and becomes null, and so does a negative E(B−V).
    Objects without an id column are named after their position, ``Jhhmmss.ss±ddmmss.s``.

    Parameters
    ----------
    url : FITS, CSV, ECSV, Parquet or VOTable.
    survey_name : goes into the `survey` column.
    aliases : our column name = the file's; an empty name leaves the column out.

    Returns
    -------
    A table of `schema.CATALOGUE`, in the order of the file.

    Raises
    ------
    ConfigError : an alias for a column that is not ours.
    InputError : unreadable or empty, no position, a position off the sphere, a unit that does not
        fit, text for a number, a redshift, dispersion or luminosity that no cluster has.
    ContractError : an id that stands twice.
    """
    where = storage.redact(url)
    table = read_table(url)
    names = _find_columns(table, aliases or {}, where=where)
    for column in ("ra_deg", "dec_deg"):
        if column not in names:
            raise _no_position(table, column, where=where)
    ra_deg = _position(table, names["ra_deg"], "ra_deg", where=where)
    dec_deg = _position(table, names["dec_deg"], "dec_deg", where=where)
    object_id = (
        _identifiers(table[names["object_id"]], where=where)
        if "object_id" in names
        else _position_names(ra_deg, dec_deg)
    )
    columns: dict[str, Any] = {
        "object_id": pa.array(object_id, pa.string()),
        "ra_deg": pa.array(ra_deg),
        "dec_deg": pa.array(dec_deg),
    }
    for column in _PROXIES:
        columns[column] = _proxy(table, names.get(column), column, where=where)
    columns["survey"] = pa.array([survey_name] * len(table), pa.string())
    found = schema.check(pa.table(columns), schema.CATALOGUE, where=where)
    _require_unique(found, named="object_id" in names, where=where)
    return found


def read_labels(url: str) -> pa.Table:
    """What people know about objects, as a label table.

    Raises
    ------
    InputError : no object_id or s, an s that is not 1, 0 or −1, a date that is not ISO 8601
        with hyphens, or two rows that contradict each other.
    """
    where = storage.redact(url)
    table = read_table(url)
    names = _find_columns(table, {}, where=where)
    for column in ("object_id", "s"):
        if column not in names:
            raise InputError(
                f"{where}: a label table needs column '{column}'; it has: "
                f"{', '.join(table.colnames)}"
            )
    object_id = _identifiers(table[names["object_id"]], where=where)
    s = numbers(table[names["s"]], names["s"], where=where, way_out="")
    bad = np.flatnonzero(~np.isin(s, (1.0, 0.0, -1.0)))
    if len(bad):
        raise InputError(
            f"{where}: column '{names['s']}' is {s[bad[0]]:g} in row {bad[0] + 1}; expected 1 "
            "(known lens), 0 (unlabelled) or -1 (known non-lens)"
        )
    _require_agreement(object_id, s, where=where)
    dates = [d or "" for d in texts(table, names.get("date"))]
    _require_dates(dates, where=where)
    columns = {
        "object_id": pa.array(object_id, pa.string()),
        "source": pa.array([t or "unknown" for t in texts(table, names.get("source"))]),
        "date": pa.array(dates, pa.string()),
        "s": pa.array(s.astype(np.int8)),
        "grade": pa.array(texts(table, names.get("grade")), pa.string()),
    }
    return schema.check(pa.table(columns), schema.LABELS, where=where)


def _bare(name: str) -> str:
    """A column name without case, unit in brackets or punctuation."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"\[.*?\]", "", name.lower())).strip("_")


def _find_columns(table: Table, aliases: Mapping[str, str], *, where: str) -> dict[str, str]:
    """Our names and the file's, for the columns that are there."""
    present: dict[str, str] = {}
    for name in table.colnames:
        present.setdefault(_bare(name), name)
    found: dict[str, str] = {}
    for ours, spellings in _ALIASES.items():
        theirs = next((present[a] for a in spellings if a in present), None)
        if theirs is not None:
            found[ours] = theirs
    known = [f.name for f in schema.CATALOGUE if f.name != "survey"]
    for ours, theirs in aliases.items():
        if ours not in known:
            raise ConfigError(
                f"ingest.catalogue_columns: unknown column '{ours}', {did_you_mean(ours, known)}"
            )
        found.pop(ours, None)
        if not theirs:
            continue
        if theirs not in table.colnames:
            raise InputError(
                f"{where}: ingest.catalogue_columns.{ours} = '{theirs}', but there is no such "
                f"column, {did_you_mean(theirs, table.colnames)}"
            )
        found[ours] = theirs
    return found


def _no_position(table: Table, column: str, *, where: str) -> InputError:
    return InputError(
        f"{where}: no column for {column} (such as {', '.join(_ALIASES[column][1:4])}), "
        f"{did_you_mean(column, table.colnames)} It has: {', '.join(table.colnames[:40])}. "
        f"Name it with ingest.catalogue_columns.{column}"
    )


def _quantity(table: Table, name: str, ours: str, *, where: str) -> npt.NDArray[np.float64]:
    """A column in our unit."""
    column = table[name]
    way_out = f", or choose another with ingest.catalogue_columns.{ours}"
    if ours in _PROXIES:
        way_out += f", or leave the column out with {_SKIP.format(ours)}"
    values = numbers(column, name, where=where, way_out=way_out)
    want = _UNITS.get(ours)
    bracket = re.search(r"\[(.+?)\]", name)
    label = column.unit if column.unit is not None else (bracket.group(1) if bracket else None)
    if want is None or label is None or str(label) == "":
        return values
    try:
        return np.asarray(u.Unit(label).to(want, values), dtype=np.float64)
    except (ValueError, TypeError, u.UnitConversionError) as error:
        raise InputError(
            f"{where}: column '{name}' is in '{label}', which is not convertible to {want}; "
            "correct the unit, or choose another column with ingest.catalogue_columns"
        ) from error


def _position(table: Table, name: str, ours: str, *, where: str) -> npt.NDArray[np.float64]:
    values = _quantity(table, name, ours, where=where)
    low, high = (0.0, 360.0) if ours == "ra_deg" else (-90.0, 90.0)
    # Written so that NaN counts as bad.
    bad = np.flatnonzero(~((values >= low) & (values <= high)))
    if len(bad):
        raise InputError(
            f"{where}: column '{name}' is {values[bad[0]]:g}° in row {bad[0] + 1} (and {len(bad)} "
            f"rows are bad in all), expected {low:g}…{high:g}° (ICRS); correct the rows or the unit"
        )
    return values % 360.0 if ours == "ra_deg" else values


def _proxy(table: Table, name: str | None, ours: str, *, where: str) -> pa.Array:
    if name is None:
        return pa.nulls(len(table), pa.float64())
    values = _quantity(table, name, ours, where=where)
    known = np.isfinite(values) & ((values >= 0) if ours == "ebv" else (values > 0))
    low, high, wanted = _PLAUSIBLE.get(ours, (-np.inf, np.inf, ""))
    bad = np.flatnonzero(known & ~((values >= low) & (values <= high)))
    if len(bad):
        raise InputError(
            f"{where}: column '{name}' is {values[bad[0]]:g} in row {bad[0] + 1} (and {len(bad)} "
            f"rows are bad in all), expected {wanted}, or 0, negative or empty for 'unknown'; "
            f"correct the rows or the unit, choose another column with "
            f"ingest.catalogue_columns.{ours}, or leave the column out with {_SKIP.format(ours)}"
        )
    return pa.array(values, pa.float64(), mask=~known)


def _identifiers(column: Any, *, where: str) -> list[str]:
    mask = np.ma.getmaskarray(np.ma.asarray(column))
    values = np.asarray(column)
    if values.ndim != 1:
        raise InputError(f"{where}: id column '{column.name}' holds several values per row")
    if values.dtype.kind == "f":
        found = [str(int(v)) if float(v).is_integer() else repr(float(v)) for v in values]
    else:
        found = decoded(values)
    empty = [row for row, text in enumerate(found) if mask[row] or text in ("", "nan")]
    if empty:
        raise InputError(
            f"{where}: id column '{column.name}' is empty in row {empty[0] + 1}; fill it, choose "
            f"another with ingest.catalogue_columns.object_id, or name objects by their position "
            f"with {_SKIP.format('object_id')}"
        )
    return found


def _position_names(ra_deg: npt.ArrayLike, dec_deg: npt.ArrayLike) -> list[str]:
    """IAU designations; digits are cut off, not rounded, as the IAU asks."""
    names = []
    for ra, dec in zip(np.asarray(ra_deg), np.asarray(dec_deg), strict=True):
        # A part in 10¹⁰ keeps 10.5° from being cut to 41 min 59.99 s by its binary form.
        centiseconds = int(ra * 24000 + 1e-6)
        tenths = int(abs(dec) * 36000 + 1e-6)
        minutes, seconds = divmod(centiseconds, 6000)
        arcminutes, arcseconds = divmod(tenths, 600)
        names.append(
            f"J{minutes // 60:02d}{minutes % 60:02d}{seconds // 100:02d}.{seconds % 100:02d}"
            f"{'-' if dec < 0 else '+'}{arcminutes // 60:02d}{arcminutes % 60:02d}"
            f"{arcseconds // 10:02d}.{arcseconds % 10}"
        )
    return names


def _require_unique(table: pa.Table, *, named: bool, where: str) -> None:
    try:
        schema.require_unique(table, where=where)
    except ContractError as error:
        way = "ingest.catalogue_columns.object_id names the column to use"
        if named:
            way += f"; {_SKIP.format('object_id')} names objects by their position"
        raise ContractError(f"{error} ({way})") from error


def _require_agreement(object_id: list[str], s: npt.NDArray[np.float64], *, where: str) -> None:
    seen: dict[str, float] = {}
    for name, value in zip(object_id, s, strict=True):
        if seen.setdefault(name, value) != value:
            raise InputError(
                f"{where}: '{name}' is labelled {seen[name]:g} and {value:g}; keep the row that "
                "holds"
            )


def _require_dates(dates: list[str], *, where: str) -> None:
    for row, text in enumerate(dates):
        try:
            _ = datetime.fromisoformat(text) if text else None
            # Dates are sorted as text, so other forms of ISO 8601 (20260401, weeks) will not do.
            sorts = not text or re.match(r"\d{4}-\d\d-\d\d", text) is not None
        except ValueError:
            sorts = False
        if not sorts:
            raise InputError(
                f"{where}: date '{text}' in row {row + 1} is not a date such as 2026-04-01 "
                "(ISO 8601, with its hyphens)"
            )
