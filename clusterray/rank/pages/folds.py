"""Out-of-fold score distributions, fold by fold: a fold that stands apart has leaked or failed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clusterray import page
from clusterray.rank.drawing import GREY, ORANGE, drawn_axes

__all__ = ["section"]


def section(diagnostics: Mapping[str, Any]) -> str:
    """Box of the unlabelled rows' scores and the known lenses' scores, for each fold."""
    folds = diagnostics.get("folds")
    if not folds:
        return ""
    edges = np.asarray(folds["edges"])
    centres = (edges[1:] + edges[:-1]) / 2
    svg: list[str] = []
    n_known = sum(len(f["known"]) for f in folds["each"])
    said = (
        f"Out-of-fold scores of unlabelled rows and of {n_known} known lenses in "
        f"{len(folds['each'])} folds"
    )
    with drawn_axes(svg, name="folds", description=said) as axes:
        for k, fold in enumerate(folds["each"]):
            counts = np.asarray(fold["unlabelled"], np.float64)
            if counts.sum():
                width = 0.42 * np.sqrt(counts / counts.max())
                axes.fill_betweenx(centres, k - width, k + width, color=GREY, alpha=0.5, lw=0)
            known = fold["known"]
            axes.plot(np.full(len(known), k), known, "_", ms=14, mew=1.8, color=ORANGE)
        names = ["held out" if f["fold"] < 0 else str(f["fold"]) for f in folds["each"]]
        axes.set(xlabel="fold", ylabel="stack score (log-odds)")
        axes.set_xticks(np.arange(len(names)), names)
        axes.plot([], [], "_", ms=14, mew=1.8, color=ORANGE, label="known lenses")
        axes.fill_between([], [], color=GREY, alpha=0.5, label="unlabelled (√ of the density)")
        axes.legend(loc="best")
    figure = page.figure(
        svg[0],
        f"{said}. Each row is scored by models that did not see its fold; folds should look alike.",
    )
    return page.section("Are the folds alike", f'<div class="figures">{figure}</div>')
