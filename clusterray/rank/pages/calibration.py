"""Calibration on held-out sky cells: labels expected and observed, kinds compared, scarcity."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clusterray import page
from clusterray.rank.drawing import BLUE, ORANGE, drawn_axes

__all__ = ["section"]


def section(diagnostics: Mapping[str, Any]) -> str:
    """Reliability with intervals, the choice of the calibrator, and Venn–Abers pairs."""
    if "reliability" not in diagnostics:
        return ""
    figures = [_reliability(diagnostics["reliability"])]
    if diagnostics.get("venn_abers"):
        figures.append(_venn_abers(diagnostics["venn_abers"]))
    choice = diagnostics.get("calibration", {})
    parts = [f'<div class="figures">{"".join(figures)}</div>', _choice(choice)]
    return page.section("Are the probabilities right", *parts)


def _reliability(table: Mapping[str, Any]) -> str:
    expected, observed, low, high = (
        np.asarray(table[k], np.float64) for k in ("expected", "observed", "low", "high")
    )
    names = [f"{a:,}–{b:,}" for a, b in zip(table["first"], table["last"], strict=True)]
    said = "; ".join(
        f"ranks {n}: expected {e:.1f}, observed {o:.0f}"
        for n, e, o in zip(names, expected, observed, strict=True)
    )
    place = np.arange(len(names))
    svg: list[str] = []
    with drawn_axes(
        svg, name="label-reliability", description=f"Known lenses in held-out bins, {said}"
    ) as axes:
        axes.bar(place, expected, width=0.62, color=BLUE, alpha=0.4, label="expected labels")
        whiskers = np.maximum([observed - low, high - observed], 0)
        axes.errorbar(
            place,
            observed,
            whiskers,
            fmt="o",
            color=ORANGE,
            capsize=4,
            ms=7,
            label="observed, 95 %",
        )
        axes.set(xlabel="ranks of held-out rows", ylabel="known lenses in the bin")
        axes.set_xticks(place, names, rotation=30, ha="right")
        axes.set_ylim(bottom=0)
        axes.legend()
    return page.figure(
        svg[0],
        "Reliability on sky cells that no model saw: the known lenses that the probabilities and "
        "the labelled share promise in each bin of ranks, and those that are there with 95 % "
        "limits.",
    )


def _venn_abers(table: Mapping[str, Any]) -> str:
    at, low, high = (np.asarray(table[k], np.float64) for k in ("logit_stack", "p0", "p1"))
    svg: list[str] = []
    widest = float(np.max(high - low, initial=0.0))
    with drawn_axes(
        svg,
        name="venn-abers",
        description=f"Venn–Abers pairs along the score, at most {widest:.2g} apart",
    ) as axes:
        axes.fill_between(at, low, high, color=BLUE, alpha=0.3, lw=0, label="p0 to p1")
        axes.plot(at, low, color=BLUE, lw=1.4)
        axes.plot(at, high, color=BLUE, lw=1.4)
        axes.set(xlabel="stack score (log-odds)", ylabel="p(lens)")
        axes.set_ylim(0, 1.02)
        axes.legend(loc="upper left")
    return page.figure(
        svg[0],
        "Venn–Abers pairs: the probability at each score if one more row there were unlabelled "
        "(p0) or a known lens (p1). A wide pair says that labels are few there; it is not a "
        "confidence interval.",
    )


def _choice(choice: Mapping[str, Any]) -> str:
    if not choice.get("loss"):
        said = choice.get("note") or f"Calibrator: {choice.get('kind', 'unknown')}, as configured."
        return f'<p class="soft">{page.escaped(said)}</p>'
    rows = [
        [
            f"{kind}{' (used)' if kind == choice['kind'] else ''}",
            f"{loss:.4f}",
            f"{loss - choice['loss']['platt']:+.4f} ± {choice['scatter'][kind]:.4f}",
        ]
        for kind, loss in choice["loss"].items()
    ]
    return page.table(
        "Log-loss of the labels of left-out sky cells, nats per known lens",
        ["calibrator", "log-loss", "against Platt"],
        rows,
    )
