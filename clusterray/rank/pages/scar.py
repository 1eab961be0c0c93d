"""Known lenses are not a random draw of all lenses: how far off they are, and what it costs."""

from collections.abc import Mapping
from typing import Any

from clusterray import page
from clusterray.rank.drawing import BLUE, GREEN, GREY, ORANGE, drawn_axes

__all__ = ["section"]


def section(diagnostics: Mapping[str, Any]) -> str:
    """The SCAR test by covariate, and expected purity under selective labels."""
    scar = diagnostics.get("scar") or {}
    test, sensitivity = scar.get("test") or {}, scar.get("sensitivity")
    if not test and not sensitivity:
        return ""
    text = (
        "All probabilities assume that known lenses are a random draw of lenses (SCAR). People "
        "know the bright ones. The test compares known lenses with what the scores say lenses are; "
        "a small p-value says that the assumption fails in that quantity."
    )
    parts = [f'<p class="soft">{page.escaped(text)}</p>']
    if test:
        rows = [
            [
                name,
                f"{found['n_labelled']:.0f}",
                f"{found['difference']:+.2f} σ",
                f"{found['p_value']:.3g}",
                f"{found['p_adjusted']:.3g}",
            ]
            for name, found in test.items()
        ]
        header = ["quantity", "known lenses", "they have more of it by", "p", "p, all tests"]
        parts.append(page.table("Are known lenses like the others", header, rows))
    if sensitivity:
        parts.append(_sensitivity(sensitivity, str(scar.get("covariate", ""))))
    return page.section("If known lenses are the bright ones", *parts)


def _sensitivity(table: Mapping[str, Any], covariate: str) -> str:
    svg: list[str] = []
    ends = [row[0] for row in table["purity"]]
    said = (
        f"Expected purity of the first {table['budget'][0]:,} rows falls from {100 * ends[0]:.0f} "
        f"to {100 * ends[-1]:.0f} % if lenses are labelled {table['factor'][-1]:g} times as often "
        f"per σ of {covariate}"
    )
    with drawn_axes(svg, name="scar", description=said) as axes:
        for factor, purity, colour in zip(
            table["factor"], table["purity"], (BLUE, GREEN, ORANGE, GREY), strict=False
        ):
            shown = [100 * value for value in purity]
            axes.plot(table["budget"], shown, "o-", lw=2, color=colour, label=f"× {factor:g} per σ")
        axes.set(xlabel="objects inspected", ylabel="expected purity, per cent", xscale="log")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.legend(loc="best", title="labelled more often")
    return f'<div class="figures">{page.figure(svg[0], said + ".")}</div>'
