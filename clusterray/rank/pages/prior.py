"""The class prior: its estimators side by side, and which were left out and why."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clusterray import page
from clusterray.rank.drawing import BLUE, ORANGE, drawn_axes

__all__ = ["section"]

_NAMES = {
    "elkan_noto": "Elkan–Noto e1",
    "mixture": "mixture of two normals",
    "bbe": "best bin",
    "dedpul": "density ratio",
}


def section(prior: Mapping[str, Any]) -> str:
    """The estimate with its interval, each estimator's, and the notes."""
    estimates = prior.get("estimates")
    if not estimates:
        return ""
    low, high = prior["interval"]
    text = (
        f"π = {prior['value']:.3g} ({low:.2g} to {high:.2g}), from the "
        f"{'estimators' if prior['source'] == 'estimate' else 'configured fallback'}. What labels "
        "identify is an upper bound: lenses that look like no known one count as others."
    )
    reasons = dict(
        note.split(" ignored: ", 1) for note in prior.get("notes", ()) if " ignored: " in note
    )
    rows = [
        [
            _NAMES.get(name, name),
            "–" if value is None else f"{value:.3g}",
            reasons.get(name, "valid" if value is not None else "–"),
        ]
        for name, value in estimates.items()
    ]
    others = [n for n in prior.get("notes", ()) if " ignored: " not in n]
    return page.section(
        "How many lenses there are",
        f'<p class="soft">{page.escaped(" ".join([text, *others]))}</p>',
        f'<div class="figures">{_figure(prior, estimates)}</div>',
        page.table("Estimators of the share of lenses", ["estimator", "π", "valid range"], rows),
    )


def _figure(prior: Mapping[str, Any], estimates: Mapping[str, float | None]) -> str:
    svg: list[str] = []
    low, high = prior["interval"]
    names = [_NAMES.get(name, name) for name in estimates]
    said = f"Estimates of the share of lenses; used: {prior['value']:.3g}, {low:.2g} to {high:.2g}"
    with drawn_axes(svg, name="prior", description=said) as axes:
        axes.axvspan(low, high, color=BLUE, alpha=0.18, lw=0)
        axes.axvline(prior["value"], color=BLUE, lw=2, label="used, with its interval")
        for k, value in enumerate(estimates.values()):
            if value is not None:
                axes.plot([value], [k], "o", ms=8, color=ORANGE)
        axes.set(xlabel="share of lenses π", xscale="log")
        axes.set_yticks(np.arange(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.legend(loc="best")
    return page.figure(svg[0], f"{said}. Estimators outside their valid range have no point.")
