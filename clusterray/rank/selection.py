"""The selection function: which lenses a list holds, which it misses, and what fills it instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from clusterray import schema, storage
from clusterray.config import RankSettings
from clusterray.errors import InputError, did_you_mean
from clusterray.rank.half_completeness import Scale, half_point
from clusterray.rank.selection_bins import Bin, binned, round_edges
from clusterray.rank.selection_rows import Columns, shares, table_of
from clusterray.rank.standing import Cut, Standing, cut_at, stand

__all__ = [
    "PLANE",
    "QUANTITIES",
    "Selection",
    "completeness",
    "false_positives",
    "half_completeness",
    "measure",
    "write",
]

QUANTITIES: Final[Mapping[str, Scale]] = {
    "theta_e_over_fwhm": "log",
    "arc_snr": "log",
    "source_mag": "linear",
    "z_lens": "linear",
    "z_source": "linear",
    "richness": "log",
}
"""Columns of the truth table that completeness is given in, and the scale of a trend in each."""
PLANE: Final = ("theta_e_over_fwhm", "arc_snr")
"""The two quantities whose plane is tabulated too."""

_LENSES_PER_BIN: Final = 10
_MOST_BINS: Final = 6

Edges = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Selection:
    """The selection function of a ranking at several cuts; tables of `schema`."""

    standing: Standing
    cuts: tuple[Cut, ...]
    completeness: pa.Table
    kinds: pa.Table
    half: pa.Table


def measure(ranking: pa.Table, truth: pa.Table, settings: RankSettings) -> Selection:
    """Measure a ranking at every budget and at the threshold of the settings.

    A budget beyond the end of the ranking is the whole ranking.

    Raises
    ------
    ContractError, InputError : as `completeness`.
    """
    standing = stand(ranking, truth)
    budgets = sorted({min(b, len(ranking)) for b in settings.budgets})
    cuts = [cut_at(budget=b) for b in budgets]
    if settings.selection_threshold is not None:
        cuts.append(cut_at(threshold=settings.selection_threshold))
    return Selection(
        standing,
        tuple(cuts),
        pa.concat_tables([_completeness(standing, cut, {}) for cut in cuts]),
        pa.concat_tables([_kinds(standing, cut) for cut in cuts]),
        pa.concat_tables([_half(standing, cut) for cut in cuts]),
    )


def completeness(
    ranking: pa.Table,
    truth: pa.Table,
    *,
    budget: int | None = None,
    threshold: float | None = None,
    edges: Edges | None = None,
) -> pa.Table:
    """Share of all true lenses that a list holds, in bins of their true properties.

    A lens that never reached the ranking counts as missed; marginal objects count nowhere. Where
    no edges are given they are round numbers near the quantiles of *all* lenses of the truth
    table, ten lenses a bin and six bins at most, so that they are the same for every ranking of
    one survey. Intervals are Wilson's at 95 % (Wilson 1927, JASA 22, 209; Brown, Cai &
    DasGupta 2001, Stat. Sci. 16, 101).

    Parameters
    ----------
    ranking : of `ranking.build`; trained-on rows stand in it by their out-of-fold scores.
    truth : a `schema.TRUTH` table; y = 1 are the lenses.
    budget : the list is the first so many objects.
    threshold : or those with p_lens at or above this probability.
    edges : rising bin edges of some of `QUANTITIES`, in the units of the truth table.

    Returns
    -------
    A `schema.SELECTION` table: all lenses in one row, then each quantity, then the cells of
    `PLANE`.

    Raises
    ------
    ContractError : a table breaks its schema, or an id stands twice.
    InputError : not exactly one cut, or one out of range; an empty ranking, or one without an
        object of the truth table; edges of an unknown quantity, fewer than two, or not rising.
    """
    cut = cut_at(budget=budget, threshold=threshold)
    return _completeness(stand(ranking, truth), cut, _checked(edges or {}))


def _checked(edges: Edges) -> Edges:
    for name, values in edges.items():
        if name not in QUANTITIES:
            raise InputError(f"edges of '{name}': {did_you_mean(name, QUANTITIES)}")
        if len(values) < 2 or not np.isfinite(values).all() or not (np.diff(values) > 0).all():
            raise InputError(
                f"edges of '{name}' are {list(values)}, expected at least two finite numbers, "
                "rising"
            )
    return edges


def _completeness(standing: Standing, cut: Cut, edges: Edges) -> pa.Table:
    lens = standing.lens
    ranked, found = standing.ranked[lens], standing.listed(cut)[lens]
    values = {name: standing.values(name)[lens] for name in QUANTITIES}
    everything = [Bin(None, None, "all")]
    parts = [_tabulated("all", everything, np.zeros(len(found), np.int64), ranked, found)]
    for name, x in values.items():
        parts.append(_tabulated(name, *_sorted_into(x, edges.get(name), _n_bins(x)), ranked, found))
    sides = []
    for name in PLANE:
        wanted = int(np.sqrt(np.isfinite(values[name]).sum() / _LENSES_PER_BIN))
        sides.append(_sorted_into(values[name], edges.get(name), max(wanted, 1)))
    parts.append(_cells(sides[0], sides[1], ranked, found))
    columns: Columns = {name: [v for part in parts for v in part[name]] for name in parts[0]}
    n_lenses, n_found = np.array(columns["n_lenses"]), np.array(columns["n_found"])
    columns |= shares("completeness", n_found, n_lenses)
    return table_of(schema.SELECTION, standing, cut, columns)


def _n_bins(values: NDArray[np.float64]) -> int:
    return int(np.clip(np.isfinite(values).sum() // _LENSES_PER_BIN, 1, _MOST_BINS))


def _sorted_into(
    values: NDArray[np.float64], edges: Sequence[float] | None, n_bins: int
) -> tuple[list[Bin], NDArray[np.int64]]:
    known = values[np.isfinite(values)]
    if edges is None and not len(known):
        return [Bin(None, None)], np.zeros(len(values), np.int64)
    return binned(values, round_edges(known, n_bins=n_bins) if edges is None else edges)


def _tabulated(
    name: str,
    bins: Sequence[Bin],
    place: NDArray[np.int64],
    ranked: NDArray[np.bool_],
    found: NDArray[np.bool_],
) -> Columns:
    empty: list[None] = [None] * len(bins)
    return {
        **_described(name, bins),
        **{f"{key}_2": empty for key in ("quantity", "bin", "low", "high")},
        **_counted(place, ranked, found, len(bins)),
    }


def _cells(
    rows: tuple[list[Bin], NDArray[np.int64]],
    columns: tuple[list[Bin], NDArray[np.int64]],
    ranked: NDArray[np.bool_],
    found: NDArray[np.bool_],
) -> Columns:
    pairs = [(a, b) for a in rows[0] for b in columns[0]]
    second = _described(PLANE[1], [b for _, b in pairs])
    return {
        **_described(PLANE[0], [a for a, _ in pairs]),
        **{f"{key}_2": values for key, values in second.items()},
        **_counted(rows[1] * len(columns[0]) + columns[1], ranked, found, len(pairs)),
    }


def _described(name: str, bins: Sequence[Bin]) -> Columns:
    return {
        "quantity": [name] * len(bins),
        "bin": [str(b) for b in bins],
        "low": [b.low for b in bins],
        "high": [b.high for b in bins],
    }


def _counted(
    place: NDArray[np.int64], ranked: NDArray[np.bool_], found: NDArray[np.bool_], n_bins: int
) -> Columns:
    chosen = {"n_lenses": place, "n_ranked": place[ranked], "n_found": place[found]}
    return {name: np.bincount(p, minlength=n_bins) for name, p in chosen.items()}


def false_positives(
    ranking: pa.Table,
    truth: pa.Table,
    *,
    budget: int | None = None,
    threshold: float | None = None,
) -> pa.Table:
    """Which classes of non-lenses fill a list.

    Of each `kind` of the truth table: the share of its objects, ranked or not, that are in the
    list (the false positive rate within the class), and its share of the list's false positives.

    Parameters
    ----------
    ranking, truth, budget, threshold : as for `completeness`.

    Returns
    -------
    A `schema.SELECTION_KINDS` table: non-lenses by name, then marginal objects.

    Raises
    ------
    ContractError, InputError : as `completeness`.
    """
    return _kinds(stand(ranking, truth), cut_at(budget=budget, threshold=threshold))


def _kinds(standing: Standing, cut: Cut) -> pa.Table:
    ranked, listed = standing.ranked, standing.listed(cut)
    pairs = {(int(y), str(k)) for y, k in zip(standing.y, standing.kind, strict=True)}
    keys = sorted((p for p in pairs if p[0] != 1), key=lambda p: (-p[0], p[1]))
    members = [(standing.y == y) & (standing.kind == kind) for y, kind in keys]
    counts = {
        "n_objects": np.array([m.sum() for m in members], np.int64),
        "n_ranked": np.array([(m & ranked).sum() for m in members], np.int64),
        "n_listed": np.array([(m & listed).sum() for m in members], np.int64),
    }
    false = int((listed & (standing.y == 0)).sum())
    whole = np.array([false if y == 0 else 0 for y, _ in keys], np.int64)
    columns: Columns = {
        "kind": [kind for _, kind in keys],
        "y": [y for y, _ in keys],
        **counts,
        **shares("rate", counts["n_listed"], counts["n_objects"]),
        **shares("share", counts["n_listed"], whole),
    }
    return table_of(schema.SELECTION_KINDS, standing, cut, columns)


def half_completeness(
    ranking: pa.Table,
    truth: pa.Table,
    *,
    budget: int | None = None,
    threshold: float | None = None,
) -> pa.Table:
    """Value of each quantity at which a smooth curve through found and missed crosses one half.

    One quantity at a time, over the lenses in which it is known: a description of the list, not
    of what each quantity does alone. The curve and its interval are `half_point`'s.

    Parameters
    ----------
    ranking, truth, budget, threshold : as for `completeness`.

    Returns
    -------
    A `schema.SELECTION_HALF` table: one row for each of `QUANTITIES`.

    Raises
    ------
    ContractError, InputError : as `completeness`.
    """
    return _half(stand(ranking, truth), cut_at(budget=budget, threshold=threshold))


def _half(standing: Standing, cut: Cut) -> pa.Table:
    lens, listed = standing.lens, standing.listed(cut)
    rows = []
    for name, scale in QUANTITIES.items():
        values = standing.values(name)
        known = lens & np.isfinite(values)
        point = half_point(values[known], listed[known], scale=scale)
        rows.append(
            {
                "quantity": name,
                "scale": scale,
                "n_lenses": int(known.sum()),
                "n_found": int(listed[known].sum()),
                "half": point.value,
                "half_low": point.low,
                "half_high": point.high,
                "note": point.note,
            }
        )
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return table_of(schema.SELECTION_HALF, standing, cut, columns)


def write(url: str, selection: Selection) -> None:
    """Write selection, selection_kinds and selection_half, each .csv and .parquet, into a folder.

    Raises
    ------
    StorageError : the folder cannot be written.
    """
    tables = (selection.completeness, selection.kinds, selection.half)
    for name, table in zip(("selection", "selection_kinds", "selection_half"), tables, strict=True):
        sink = pa.BufferOutputStream()
        csv.write_csv(table.combine_chunks(), sink)
        storage.write_bytes(storage.join(url, f"{name}.csv"), sink.getvalue())
        storage.write_table(storage.join(url, f"{name}.parquet"), table)
