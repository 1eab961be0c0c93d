"""What a year of looking finds and costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clusterray import page
from clusterray.config import RankSettings
from clusterray.rank.discovery import DiscoveryCurve, discovery_curve, shortlist
from clusterray.rank.drawing import BLUE, ORANGE, drawn_axes

__all__ = ["Finds", "section"]

Finds = Mapping[int, tuple[float, float]]
"""Ends of the 90 % interval of the lenses among the first rows, by their number."""

_WAYS = {
    "budget": "the first {at:,.0f} rows",
    "probability": "rows with p of at least {at:g}",
    "fdr": "as many rows as keep the expected share of others at or below {at:g}",
}


def section(ranking: pa.Table, settings: RankSettings, budgets: Sequence[int], finds: Finds) -> str:
    """The discovery curve, its numbers at the configured budgets, and where the short list ends."""
    expected = ranking["expected_finds"].to_numpy()

    def at(ranks: Sequence[int] | None) -> DiscoveryCurve:
        return discovery_curve(
            expected,
            years=settings.years,
            minutes_per_candidate=settings.minutes_per_candidate,
            cost_per_hour=settings.cost_per_hour,
            cost_per_year=settings.cost_per_year,
            budgets=ranks,
        )

    chosen = shortlist(ranking, by=settings.shortlist_by, at=settings.shortlist_at)
    way = _WAYS[settings.shortlist_by].format(at=settings.shortlist_at)
    brings = float(chosen["expected_finds"].to_numpy()[-1]) if len(chosen) else 0.0
    text = (
        f"shortlist.csv holds {len(chosen):,} candidates ({way}), of which {brings:.1f} are "
        f"expected to be lenses. A candidate takes {settings.minutes_per_candidate:g} minutes, an "
        f"hour costs {settings.cost_per_hour:g}, the list is that of {settings.years:g} "
        f"year{'s' if settings.years != 1 else ''}."
    )
    return page.section(
        "What a year of looking brings",
        f'<p class="soft">{page.escaped(text)}</p>',
        f'<div class="figures">{_figure(at(None), settings)}</div>',
        _table(at(budgets), finds),
    )


def _figure(curve: DiscoveryCurve, settings: RankSettings) -> str:
    svg: list[str] = []
    per_year = curve.budget / settings.years
    said = (
        f"Lenses expected per year against candidates inspected per year: {curve.finds[-1]:.1f} "
        f"of {per_year[-1]:,.0f}"
    )
    with drawn_axes(svg, name="discovery", description=said) as axes:
        axes.plot(per_year, curve.finds, color=BLUE, lw=2, label="lenses expected")
        axes.set(xlabel="candidates inspected per year", ylabel="lenses per year", xscale="log")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        money = axes.twinx()
        _costs(per_year, curve.cost_per_find, money)
        money.set_ylabel("cost per lens")
        lines = [*axes.get_lines(), *money.get_lines()]
        axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper left")
    return page.figure(
        svg[0], "Discovery curve: what is found in a year, and what each lens costs, by budget."
    )


def _costs(budget: NDArray[np.float64], cost: NDArray[np.float64], axes: object) -> None:
    shown = np.isfinite(cost)
    axes.plot(  # type: ignore[attr-defined]
        budget[shown], cost[shown], color=ORANGE, lw=2, ls="--", label="cost per lens"
    )
    axes.set_ylim(bottom=0)  # type: ignore[attr-defined]


def _table(curve: DiscoveryCurve, finds: Finds) -> str:
    rows = []
    for k, budget in enumerate(curve.budget.tolist()):
        low, high = finds.get(budget, (np.nan, np.nan))
        interval = "–" if np.isnan(low) else f"{low:.0f}–{high:.0f}"
        purity = "–" if np.isnan(low) else f"{100 * low / budget:.0f}–{100 * high / budget:.0f} %"
        rows.append(
            [
                f"{budget:,}",
                f"{curve.finds[k]:.1f}",
                interval,
                purity,
                f"{curve.hours[k]:,.1f}",
                f"{curve.cost[k]:,.0f}",
                _money(curve.cost_per_find[k]),
                _money(curve.cost_of_next[k]),
            ]
        )
    header = [
        "inspect the first", "lenses per year", "lenses in the list (90 %)", "purity (90 %)",
        "reviewer hours per year", "cost per year", "cost per lens", "cost of the next lens",
    ]  # fmt: skip
    return page.table("Finds and costs by budget", header, rows)


def _money(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) and value < 1e9 else "–"
