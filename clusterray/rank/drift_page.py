"""The drift page: what of a night is unlike the training, for the person on duty."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np
import pyarrow as pa

from clusterray import page
from clusterray.rank.drawing import BLUE, GREY, ORANGE, drawn_axes
from clusterray.rank.drift import Statistic, exceeded

__all__ = ["render"]

_SHOWN: Final = 6
_GROUPS: Final = {
    "psf": "PSF FWHM",
    "depth": "depth",
    "noise": "noise",
    "colour": "colours",
    "feature": "features",
    "score": "scores",
}


def render(
    statistics: Sequence[Statistic],
    *,
    night: str,
    facts: Mapping[str, Any],
    reference: pa.Table | None,
    new: pa.Table | None,
) -> str:
    """Write a night's drift as one self-contained HTML page.

    Parameters
    ----------
    statistics : what `drift.compare` and its neighbours measured.
    night : its date.
    facts : what else the reader should know, as plain values.
    reference, new : distributions of training and of the night, from `summarise`; None where the
        bundle has none, or the night no new objects.
    """
    beyond = exceeded(statistics)
    run = [s for s in statistics if s.group == "run"]
    measured = [s for s in statistics if s.group != "run"]
    parts = [page.headline(_headline(beyond, measured, run))]
    if beyond:
        chips = page.chips([(text, "warn") for text in beyond])
        parts.append(page.section("Limits exceeded", f"<p>{chips}</p>"))
    if reference is None:
        parts.append("<p>No reference: drift not measured. Train again to get one.</p>")
    elif new is None:
        parts.append("<p>No new objects: nothing to compare with the training.</p>")
    else:
        parts.append(_by_group(measured))
        parts.append(_distributions(measured, reference, new))
    parts.append(page.section("The run", page.facts(facts)))
    files = [("drift.csv", "All statistics (csv)"), ("drift.parquet", "the same (parquet)")]
    parts.append(page.section("Files", page.links([*files, ("report.html", "the ranking")])))
    return page.document(f"Drift of night {night}", parts)


def _headline(
    beyond: Sequence[str], measured: Sequence[Statistic], run: Sequence[Statistic]
) -> list[tuple[str, str]]:
    unlikely = sum(_beyond_chance(s) for s in measured if s.statistic == "psi")
    n = sum(s.statistic == "psi" for s in measured)
    numbers = [(str(len(beyond)), "limits exceeded")]
    if n:
        numbers.append((f"{unlikely} of {n}", "quantities beyond chance (PSI)"))
    numbers += [(_number(s.value), s.quantity.replace("_", " ")) for s in run]
    return numbers


def _beyond_chance(s: Statistic) -> bool:
    return s.value is not None and s.noise is not None and s.value > s.noise


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _by_group(measured: Sequence[Statistic]) -> str:
    psi = [s for s in measured if s.statistic == "psi" and s.value is not None]
    groups = [g for g in _GROUPS if any(s.group == g for s in psi)]
    svg: list[str] = []
    with drawn_axes(svg, name="psi", description="PSI of every quantity by group") as axes:
        for place, group in enumerate(groups):
            own = [s for s in psi if s.group == group]
            values = np.array([max(s.value or 0.0, 1e-4) for s in own])
            # Spread over the row by rank, so that hundreds of dots stay apart.
            shift = np.linspace(-0.28, 0.28, len(own)) if len(own) > 1 else np.zeros(1)
            colours = [ORANGE if _beyond_chance(s) else GREY for s in own]
            axes.scatter(values, place + shift, c=colours, s=14)
            limit = next((s.limit for s in own if s.limit is not None), None)
            if limit is not None:
                axes.plot([limit, limit], [place - 0.4, place + 0.4], color=BLUE, lw=2)
        axes.set(xscale="log", xlabel="population stability index")
        axes.set_yticks(range(len(groups)), [_GROUPS[g] for g in groups])
        axes.invert_yaxis()
    caption = (
        "Each dot is a quantity; orange ones lie beyond what chance explains in 99.9 % of the "
        "cases, blue bars are configured limits. Below 0.1 is usually called stable, above 0.25 "
        "a shift."
    )
    unmeasured = {s.group for s in measured} - set(groups)
    if unmeasured:
        named = ", ".join(_GROUPS[g] for g in _GROUPS if g in unmeasured)
        caption += f" Not measured, for want of new objects that training never saw: {named}."
    rows = [
        [
            _GROUPS[group],
            f"{sum(s.group == group for s in psi)}",
            f"{sum(_beyond_chance(s) for s in psi if s.group == group)}",
            *_worst([s for s in psi if s.group == group]),
        ]
        for group in groups
    ]
    header = ["group", "quantities", "beyond chance", "worst", "its PSI"]
    return page.section(
        "By group",
        f'<div class="figures">{page.figure(svg[0], caption)}</div>',
        page.table("PSI by group", header, rows),
    )


def _worst(statistics: Sequence[Statistic]) -> list[str]:
    worst = max(statistics, key=lambda s: s.value or 0.0)
    return [worst.quantity, _number(worst.value)]


def _distributions(measured: Sequence[Statistic], reference: pa.Table, new: pa.Table) -> str:
    ks = {(s.group, s.quantity): s for s in measured if s.statistic == "ks"}
    psi = sorted(
        (s for s in measured if s.statistic == "psi" and s.value is not None),
        key=lambda s: -(s.value or 0.0),
    )
    sides = [
        {(r["group"], r["quantity"]): r for r in table.to_pylist()} for table in (reference, new)
    ]
    figures = []
    for number, s in enumerate(psi[:_SHOWN]):
        key = (s.group, s.quantity)
        then, now = (np.array(side[key]["sorted"]) for side in sides)
        if not (len(then) and len(now)):
            continue
        svg: list[str] = []
        text = f"{s.quantity}: median {_number(s.median_reference)} in training, "
        text += f"{_number(s.median_night)} in the night"
        with drawn_axes(svg, name=f"ecdf-{number}", description=text, size_in=(5.0, 3.2)) as axes:
            axes.ecdf(then, color=GREY, lw=2, label="training")
            axes.ecdf(now, color=ORANGE, lw=2, label="night")
            axes.set(xlabel=s.quantity, ylabel="share at or below")
            axes.legend()
        caption = f"PSI {_number(s.value)}, KS {_number(ks[key].value)}; {text}."
        figures.append(page.figure(svg[0], caption))
    header = ["quantity", "group", "PSI", "by chance", "KS", "median then", "median now", "limit"]
    rows = [
        [
            s.quantity,
            s.group,
            _number(s.value),
            _number(s.noise),
            _number(ks[s.group, s.quantity].value),
            _number(s.median_reference),
            _number(s.median_night),
            _number(s.limit),
        ]
        for s in psi
    ]
    table = page.table("Every quantity, the most changed first", header, rows)
    return page.section(
        "What changed most",
        f'<div class="figures">{"".join(figures)}</div>',
        f"<details><summary>{escape('All quantities')}</summary>{table}</details>",
    )
