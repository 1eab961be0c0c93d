"""Figures of the selection function: completeness by bin, in a plane, and false positives."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from clusterray.rank.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, drawn_axes

__all__ = ["FEW", "completeness_by_bin", "completeness_plane", "known", "rates_by_kind"]

FEW: Final = 5
"""Lenses below which a cell of the plane is hatched instead of coloured."""

Row = Mapping[str, Any]
Floats = NDArray[np.float64]
Curves = Sequence[tuple[str, Sequence[Row]]]

# Of five colours and four marks twenty lists can be told apart.
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
_MARKS = ("o", "s", "D", "^")


def _styles(n: int) -> list[tuple[str, str, float]]:
    """Colour, mark and sideways place in (−0.3, 0.3) of each list."""
    places = np.linspace(-0.3, 0.3, 2 * n + 1)[1::2]
    colours, marks = itertools.cycle(_COLOURS), itertools.cycle(_MARKS)
    return list(zip(colours, marks, places.tolist(), strict=False))[:n]


def known(row: Row, suffix: str = "") -> bool:
    """Whether a row is of a bin between edges; `suffix` "_2" asks for the plane's second."""
    return row[f"low{suffix}"] is not None or row[f"high{suffix}"] is not None


def completeness_by_bin(curves: Curves, *, label: str, name: str) -> str:
    """Completeness with its interval in each bin of one quantity, for several lists.

    Bins are drawn equally wide, with their edges as ticks and their lenses above.

    Parameters
    ----------
    curves : what each list is called, and its rows of one quantity of a `schema.SELECTION` table.
    label : of the quantity, with its unit.
    name : prefix of the ids inside the SVG.
    """
    bins = curves[0][1]
    at = _places(bins)
    svg: list[str] = []
    with drawn_axes(
        svg, name=name, description=f"Completeness by {label}: {_said(curves)}"
    ) as axes:
        for (text, rows), (colour, mark, aside) in zip(curves, _styles(len(curves)), strict=True):
            style: dict[str, Any] = {"colour": colour, "mark": mark, "label": text}
            _dots(axes, rows, "completeness", at + aside, **style)
            joined = [i for i, r in enumerate(rows) if known(r) and r["n_lenses"]]
            shares = [100 * rows[i]["completeness"] for i in joined]
            axes.plot(at[joined] + aside, shares, color=colour, lw=1, alpha=0.45)
        _edge_ticks(axes, bins)
        for x, row in zip(at, bins, strict=True):
            axes.text(x, 104, f"{row['n_lenses']:,}", ha="center", va="bottom", fontsize=9.5)
        axes.set(xlabel=label, ylabel="completeness, per cent", ylim=(0, 103))
        axes.set_xlim(-0.5, at[-1] + 0.5)
        _legend(axes)
    return svg[0]


def _places(bins: Sequence[Row]) -> Floats:
    """Where the middle of each bin is drawn: the unknown one apart from the others."""
    return np.array([i if known(row) else i + 0.4 for i, row in enumerate(bins)])


def _said(curves: Curves) -> str:
    return "; ".join(
        f"{text}: "
        + ", ".join(f"{row['n_found']} of {row['n_lenses']} in {row['bin']}" for row in rows)
        for text, rows in curves
    )


def _dots(
    axes: Axes,
    rows: Sequence[Row],
    column: str,
    at: Floats,
    *,
    colour: str,
    mark: str,
    label: str,
    sideways: bool = False,
) -> None:
    """Draw shares in per cent with their intervals at the places of the rows that have one."""
    there = [i for i, row in enumerate(rows) if row[column] is not None]
    share, low, high = (
        100 * np.array([rows[i][column + end] for i in there]) for end in ("", "_low", "_high")
    )
    # An interval that ends at its share may end a rounding error beyond it.
    whiskers = np.maximum([share - low, high - share], 0)
    x, y = (share, at[there]) if sideways else (at[there], share)
    bars: dict[str, Any] = {"xerr" if sideways else "yerr": whiskers}
    axes.errorbar(
        x, y, fmt=mark, ms=6.5, color=colour, lw=1.6, capsize=3, label=label, clip_on=False, **bars
    )


def _edge_ticks(axes: Axes, bins: Sequence[Row], *, vertical: bool = False) -> None:
    """Ticks at the edges of the bins and in the middle of the unknown one."""
    ticks: dict[float, str] = {}
    for at, row in zip(_places(bins), bins, strict=True):
        if not known(row):
            ticks[at] = "unknown"
        for end, edge in ((at - 0.5, row["low"]), (at + 0.5, row["high"])):
            if edge is not None:
                ticks[end] = f"{edge:g}"
    (axes.set_yticks if vertical else axes.set_xticks)(list(ticks), list(ticks.values()))


def _legend(axes: Axes) -> None:
    # Above the axes, where no data are.
    axes.figure.legend(
        loc="outside upper center", ncols=5, fontsize=10, columnspacing=1.0, handletextpad=0.2
    )


def completeness_plane(cells: Sequence[Row], *, labels: tuple[str, str], name: str) -> str:
    """Completeness in the cells of two quantities; hatched where fewer than `FEW` lenses stand.

    Parameters
    ----------
    cells : of one list and one plane of a `schema.SELECTION` table, both quantities `known`.
    labels : of the first quantity (along) and the second (up).
    name : prefix of the ids inside the SVG.
    """
    along = list({r["bin"]: r for r in cells}.values())
    up = list({r["bin_2"]: r for r in cells}.values())
    columns, lines = [r["bin"] for r in along], [r["bin_2"] for r in up]
    said = ", ".join(
        f"{r['n_found']} of {r['n_lenses']} at {r['bin']}, {r['bin_2']}" for r in cells
    )
    svg: list[str] = []
    description = f"Completeness by {labels[0]} and {labels[1]}: {said}"
    with drawn_axes(svg, name=name, description=description) as axes:
        for row in cells:
            _cell(axes, row, columns.index(row["bin"]), lines.index(row["bin_2"]))
        _edge_ticks(axes, along)
        _edge_ticks(axes, [{"low": r["low_2"], "high": r["high_2"]} for r in up], vertical=True)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(-0.5, len(lines) - 0.5)
    return svg[0]


def _cell(axes: Axes, row: Row, x: int, y: int) -> None:
    few = row["n_lenses"] < FEW
    share = row["completeness"]
    box: dict[str, Any] = {"edgecolor": GREY, "facecolor": "none", "lw": 0.8}
    if few:
        box |= {"hatch": "///", "alpha": 0.45}
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **box))
    if not few:
        shade = {"facecolor": BLUE, "alpha": 0.6 * share, "lw": 0}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **shade))
    text = f"{row['n_found']:,} of {row['n_lenses']:,}"
    if not few:
        text = f"{100 * share:.0f} %\n{text}"
    axes.text(x, y, text, ha="center", va="center", fontsize=10)


def rates_by_kind(curves: Curves, *, column: str, label: str, name: str) -> str:
    """Per cent of a column of `schema.SELECTION_KINDS`, with intervals, for several lists.

    Parameters
    ----------
    curves : what each list is called, and its rows, the same kinds in each.
    column : "rate" or "share".
    label : what the axis says.
    name : prefix of the ids inside the SVG.
    """
    kinds = [row["kind"] for row in curves[0][1]]
    said = "; ".join(
        f"{text}: " + ", ".join(f"{_percent(row[column])} {row['kind']}" for row in rows)
        for text, rows in curves
    )
    svg: list[str] = []
    # Room for each mark, whatever the number of kinds and lists.
    size = (6.4, 1.2 + len(kinds) * max(0.4, 0.14 * len(curves)))
    with drawn_axes(svg, name=name, description=f"{label}: {said}", size_in=size) as axes:
        for (text, rows), (colour, mark, aside) in zip(curves, _styles(len(curves)), strict=True):
            at: Floats = np.arange(len(kinds), dtype=np.float64) + aside
            style: dict[str, Any] = {"colour": colour, "mark": mark, "label": text}
            _dots(axes, rows, column, at, sideways=True, **style)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        for between in range(1, len(kinds)):
            axes.axhline(between - 0.5, color=INK, lw=0.5, alpha=0.25)
        _legend(axes)
    return svg[0]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
