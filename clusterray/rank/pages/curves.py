"""Precision–recall and ROC curves: against the truth where it is known, else from labels alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterray import page
from clusterray.rank.clean_intervals import clean_curve, rare_event_intervals
from clusterray.rank.drawing import BLUE, GREY, ORANGE, drawn_axes
from clusterray.rank.evidence import Evidence
from clusterray.rank.metrics import rare_event_metrics

__all__ = ["section"]

_N_BOOTSTRAP = 200
_NAMES = {
    "tpr_at_fpr_1e-4": "share of lenses found at 1 false positive in 10,000",
    "tpr_at_fpr_1e-3": "share of lenses found at 1 in 1,000",
    "tpr_at_fpr_1e-2": "share of lenses found at 1 in 100",
    "tpr_at_fpr_1e-1": "share of lenses found at 1 in 10",
    "tpr0": "share of lenses found before the first false positive",
    "tpr10": "share of lenses found before the tenth false positive",
    "average_precision": "average precision",
    "auroc": "area under the ROC curve (says little at this prevalence)",
}

Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats, Floats]


def section(place: Floats, evidence: Evidence, diagnostics: Mapping[str, Any]) -> str:
    """Both figures and the measures with intervals.

    Parameters
    ----------
    place : (n,) rank of each row, ties alike.
    """
    curves: dict[str, Curve] = {}
    tables = []
    measured = evidence.measured
    if evidence.y is not None and measured.any():
        y, score = evidence.y[measured], -place[measured]
        curve = clean_curve(y, score)
        if len(curve[0]):
            curves["truth"] = curve
        tables.append(_truth(y, score))
    stored = diagnostics.get("pu_curve") or {}
    if stored:
        tpr, fpr, precision = (np.asarray(stored[k]) for k in ("tpr", "fpr", "precision"))
        curves["labels alone"] = tpr, fpr, precision
        tables.append(_labels(diagnostics))
    if not tables:
        return ""
    figures = [_precision(curves), _roc(curves)] if curves else []
    drawn = f'<div class="figures">{"".join(figures)}</div>'
    return page.section("Precision, recall and false positives", drawn, *tables)


def _truth(y: NDArray[np.int8], score: Floats) -> str:
    values = rare_event_metrics(y, score)
    intervals = rare_event_intervals(y, score, n_bootstrap=_N_BOOTSTRAP, seed=0)
    rows = [[text, _shown(intervals.get(n, (values[n], None, None)))] for n, text in _NAMES.items()]
    counts = f"{values['n_positive']:,} lenses and {values['n_negative']:,} others"
    caption = (
        f"Against the truth: {counts}, marginal left out, with 90 % bootstrap intervals. A dash: "
        "too few objects to say."
    )
    return page.table(caption, ["measure", "value"], rows)


def _shown(value: Any) -> str:
    middle, low, high = (np.nan if v is None else float(v) for v in value)
    if np.isnan(middle):
        return "–"
    return f"{middle:.3f}" if np.isnan(low) else f"{middle:.3f} ({low:.3f}–{high:.3f})"


def _labels(diagnostics: Mapping[str, Any]) -> str:
    budgets = {rows: int(b) for b, rows in diagnostics.get("pu_budgets", {}).items()}
    rows = []
    for name, value in diagnostics["pu_metrics"].items():
        text = _NAMES.get(name)
        if text is None:
            what, _, at = name.partition("_at_")
            budget = budgets.get(int(at))
            if budget is None:
                continue
            said = {"recall": "share of lenses", "precision": "precision"}[what]
            text = f"{said} among the first {budget:,} of the survey"
        rows.append([text, _shown(value)])
    prior = diagnostics["unlabelled_prior"]
    return page.table(
        f"From labels alone, out-of-fold, at a prevalence of {prior:.3g} among unlabelled rows "
        "(right if known lenses are a random draw), 90 % bootstrap",
        ["measure", "value"],
        rows,
    )


def _precision(curves: Mapping[str, Curve]) -> str:
    svg: list[str] = []
    said = "Precision against recall"
    with drawn_axes(svg, name="precision-recall", description=said) as axes:
        for (name, (tpr, _, precision)), colour in zip(
            curves.items(), (ORANGE, BLUE), strict=False
        ):
            axes.plot(tpr, precision, lw=2, color=colour, label=name, drawstyle="steps-pre")
        axes.set(xlabel="recall (share of lenses)", ylabel="precision")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.03)
        axes.legend(loc="best")
    return page.figure(svg[0], f"{said}, at each lens's score.")


def _roc(curves: Mapping[str, Curve]) -> str:
    svg: list[str] = []
    said = "Share of lenses found against the share of false positives, which is logarithmic"
    with drawn_axes(svg, name="roc", description=said) as axes:
        least = 1e-1
        for (name, (tpr, fpr, _)), colour in zip(curves.items(), (ORANGE, BLUE), strict=False):
            shown = fpr > 0
            least = min(least, float(fpr[shown].min(initial=least)))
            axes.plot(fpr[shown], tpr[shown], lw=2, color=colour, label=name)
        at = np.geomspace(least, 1, 50)
        axes.plot(at, at, lw=1, ls=":", color=GREY)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xscale="log")
        axes.set_ylim(0, 1.02)
        axes.legend(loc="best")
    return page.figure(svg[0], f"{said}; dotted: chance.")
