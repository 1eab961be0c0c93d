"""The selection page: what a search would find and miss, for people who use its candidates."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import pyarrow as pa

from clusterray import page
from clusterray.rank.selection import PLANE, QUANTITIES, Selection
from clusterray.rank.selection_figures import (
    FEW,
    completeness_by_bin,
    completeness_plane,
    known,
    rates_by_kind,
)
from clusterray.rank.standing import Cut

__all__ = ["render"]

_LABELS: Final = {
    "theta_e_over_fwhm": "θ_E / PSF FWHM",
    "arc_snr": "S/N of the best image",
    "source_mag": "unlensed source magnitude (AB)",
    "z_lens": "lens redshift",
    "z_source": "source redshift",
    "richness": "richness λ",
}
_FILES: Final = (
    ("selection", "completeness"),
    ("selection_kinds", "false positives"),
    ("selection_half", "half completeness"),
)
_FORMATS: Final = ("csv", "parquet")

Row = Mapping[str, Any]


def render(selection: Selection) -> str:
    """Write the selection function as one self-contained HTML page.

    It loads nothing from elsewhere, links to the report and to the tables that `selection.write`
    puts beside it, and equal inputs give equal text.
    """
    parts = [
        page.links([("report.html", "Ranking and candidates")]),
        f'<p class="soft">{escape(_opening(selection))}</p>',
        page.headline(_headline(selection)),
        page.section("The lists", _lists(selection), *_cautions(selection)),
    ]
    if selection.standing.lens.any():
        parts += [_by_bin(selection), _plane(selection), _half(selection)]
    parts.append(_kinds(selection))
    if selection.standing.lens.any():
        parts.append(_numbers(selection))
    files = [(f"{name}.{kind}", f"{text} ({kind})") for name, text in _FILES for kind in _FORMATS]
    parts.append(page.section("The tables as files", page.links(files)))
    return page.document("Selection function", parts)


def _rows(table: pa.Table, cut: Cut) -> list[dict[str, Any]]:
    return [r for r in table.to_pylist() if (r["cut"], r["cut_value"]) == (cut.by, cut.value)]


def _curves(
    selection: Selection, quantity: str, *, plane: bool = False
) -> list[tuple[str, list[dict[str, Any]]]]:
    """What each list is called, and its rows of one quantity."""
    return [
        (
            str(cut),
            [
                r
                for r in _rows(selection.completeness, cut)
                if r["quantity"] == quantity and (r["quantity_2"] is not None) == plane
            ],
        )
        for cut in selection.cuts
    ]


def _opening(selection: Selection) -> str:
    standing = selection.standing
    lenses = int(standing.lens.sum())
    lost = int((standing.lens & ~standing.ranked).sum())
    text = (
        "Completeness is the share of all true lenses of the truth table that stand in a list, "
        "whether or not they reached the ranking. "
        f"Lenses: {lenses:,}; lost before the ranking, and so missed: {lost:,}. "
        "Objects that were trained on stand where their out-of-fold score puts them. "
        "Intervals are Wilson's at 95 %."
    )
    marginal = int((standing.y == -1).sum())
    if marginal:
        text += f" Marginal objects (one multiply imaged galaxy; {marginal:,}) count nowhere."
    return text


def _headline(selection: Selection) -> list[tuple[str, str]]:
    numbers = []
    for text, (row,) in _curves(selection, "all"):
        share = row["completeness"]
        value = "–" if share is None else f"{100 * share:.0f} %"
        what = f"of lenses in the {text}" if text.startswith("first") else f"of lenses at {text}"
        numbers.append((value, what))
    return numbers


def _lists(selection: Selection) -> str:
    standing = selection.standing
    header = ["list", "objects", "lenses found", "completeness (95 % interval)"]
    header += ["at most", "false positives", "marginal", "no truth"]
    rows = []
    for cut, (text, (row,)) in zip(selection.cuts, _curves(selection, "all"), strict=True):
        listed, length = standing.listed(cut), row["list_length"]
        lenses = row["n_lenses"]
        most = f"{100 * min(length / lenses, 1):.0f} %" if lenses else "–"
        rows.append(
            [
                text,
                f"{length:,}",
                f"{row['n_found']:,} of {lenses:,}",
                _interval(row, "completeness"),
                most,
                f"{(listed & (standing.y == 0)).sum():,}",
                f"{(listed & (standing.y == -1)).sum():,}",
                f"{length - listed.sum():,}",
            ]
        )
    return page.table(
        "What each list holds. “At most”: a list of so many objects could hold no more.",
        header,
        rows,
    )


def _interval(row: Row, column: str) -> str:
    share, low, high = (row[column + end] for end in ("", "_low", "_high"))
    if share is None:
        return "–"
    digits = 0 if high - low > 0.02 else 2
    return f"{100 * share:.{digits}f} % ({100 * low:.{digits}f}–{100 * high:.{digits}f})"


def _cautions(selection: Selection) -> list[str]:
    text = (
        "Each curve runs over one quantity and averages over the others as this survey's lenses "
        "have them; the quantities are correlated. "
    )
    if any(cut.by == "budget" for cut in selection.cuts):
        text += (
            "What a budget holds depends on how many lenses and look-alikes compete for its "
            "places: where the truth table has another share of them than the sky, only "
            "completeness at a probability threshold carries over. "
        )
    text += (
        "The intervals are those of counting lenses; that another training would rank them "
        "differently is not in them."
    )
    return [f'<p class="soft">{escape(text)}</p>']


def _by_bin(selection: Selection) -> str:
    drawn = [
        page.figure(
            completeness_by_bin(_curves(selection, name), label=_LABELS[name], name=f"by-{name}"),
            f"Completeness by {_LABELS[name]}. Above: lenses in each bin.",
        )
        for name in QUANTITIES
    ]
    return page.section("Completeness", f'<div class="figures">{"".join(drawn)}</div>')


def _plane(selection: Selection) -> str:
    labels = (_LABELS[PLANE[0]], _LABELS[PLANE[1]])
    drawn, n_unknown = [], 0
    for index, (text, rows) in enumerate(_curves(selection, PLANE[0], plane=True)):
        cells = [r for r in rows if known(r) and known(r, "_2")]
        n_unknown = sum(r["n_lenses"] for r in rows) - sum(r["n_lenses"] for r in cells)
        if cells:
            svg = completeness_plane(cells, labels=labels, name=f"plane-{index}")
            drawn.append(page.figure(svg, f"List: {text}."))
    said = (
        f"Completeness by {labels[0]} and {labels[1]}; hatched where fewer than {FEW} lenses are."
    )
    if n_unknown:
        said += f" Lenses left out because one of the two is not known: {n_unknown:,}."
    return page.section(
        "Einstein radius and signal",
        f'<p class="soft">{escape(said)}</p>',
        f'<div class="figures">{"".join(drawn)}</div>',
    )


def _half(selection: Selection) -> str:
    header = ["quantity", *(str(cut) for cut in selection.cuts)]
    found = [{r["quantity"]: r for r in _rows(selection.half, cut)} for cut in selection.cuts]
    rows = [[_LABELS[name], *(_half_text(rows[name]) for rows in found)] for name in QUANTITIES]
    text = (
        "Where a logistic curve fitted to found and missed lenses crosses one half, with its 95 % "
        "interval (profile likelihood); an open end lies beyond the lenses. A dash: fewer than ten "
        "found or missed, no trend at 5 %, or half is not crossed; the table's file says which."
    )
    return page.section(
        "Half completeness",
        f'<p class="soft">{escape(text)}</p>',
        page.table("Half completeness of each list", header, rows),
    )


def _half_text(row: Row) -> str:
    if row["half"] is None:
        return "–"
    low, high = ("…" if row[k] is None else f"{row[k]:.3g}" for k in ("half_low", "half_high"))
    return f"{row['half']:.3g} ({low}–{high})"


def _kinds(selection: Selection) -> str:
    found = [(str(cut), _rows(selection.kinds, cut)) for cut in selection.cuts]
    false = [(text, [r for r in rows if r["y"] == 0]) for text, rows in found]
    parts = []
    if false[0][1]:
        order = _worst_first([rows for _, rows in false])
        false = [(text, [rows[i] for i in order]) for text, rows in false]
        drawn = (
            ("rate", "per cent of the kind", "How much of each kind of non-lens is in the list."),
            ("share", "per cent of false positives", "What the false positives of a list are."),
        )
        figures = [
            page.figure(rates_by_kind(false, column=column, label=label, name=column), caption)
            for column, label, caption in drawn
        ]
        parts.append(f'<div class="figures">{"".join(figures)}</div>')
    if found[0][1]:
        parts += [_kinds_table(text, rows) for text, rows in found]
    else:
        parts.append("<p>The truth table holds lenses alone.</p>")
    return page.section("What fills the list instead", *parts)


def _worst_first(lists: Sequence[Sequence[Row]]) -> list[int]:
    """Order of the kinds by their rate, the sum over the lists."""
    total = [sum(row["rate"] for row in rows) for rows in zip(*lists, strict=True)]
    return sorted(range(len(total)), key=lambda i: -total[i])


def _kinds_table(text: str, rows: Sequence[Row]) -> str:
    header = ["kind", "objects", "ranked", "in the list"]
    header += ["share of the kind (95 % interval)", "share of the false positives"]
    cells = [
        [
            r["kind"] + (" (marginal)" if r["y"] == -1 else ""),
            *(f"{r[name]:,}" for name in ("n_objects", "n_ranked", "n_listed")),
            _interval(r, "rate"),
            _interval(r, "share"),
        ]
        for r in rows
    ]
    table = page.table("Marginal objects are no false positives.", header, cells)
    return f"<details><summary>{escape(text)}</summary>{table}</details>"


def _numbers(selection: Selection) -> str:
    parts = []
    for name in QUANTITIES:
        curves = _curves(selection, name)
        bins = curves[0][1]
        header = ["bin", "lenses", "ranked", *(text for text, _ in curves)]
        rows = []
        for index, first in enumerate(bins):
            row = [first["bin"], f"{first['n_lenses']:,}", f"{first['n_ranked']:,}"]
            each = [r[index] for _, r in curves]
            row += [f"{r['n_found']:,}: {_interval(r, 'completeness')}" for r in each]
            rows.append(row)
        table = page.table(f"Lenses found and completeness by {_LABELS[name]}", header, rows)
        parts.append(f"<details><summary>{escape(_LABELS[name])}</summary>{table}</details>")
    return page.section("The numbers", *parts)
