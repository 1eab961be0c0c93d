"""The report's figures as inline SVG that takes its ink from the page around it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterray.rank.drawing import BLUE, GREEN, GREY, INK, ORANGE, drawn_axes, plain_counts

__all__ = [
    "budget_curves",
    "importance",
    "known_recall",
    "rank_bins",
    "reliability",
    "score_histogram",
]

Floats = NDArray[np.float64]


def score_histogram(logit: Floats, *, groups: Sequence[tuple[str, NDArray[np.bool_]]]) -> str:
    """How many objects of each group have which score.

    Parameters
    ----------
    logit : (n,) the stack's logits.
    groups : name and members (n,) of each group, in drawing order; three at most.
    """
    edges = np.histogram_bin_edges(logit, bins=min(60, max(10, int(np.sqrt(len(logit))))))
    svg: list[str] = []
    parts = ", ".join(f"{members.sum()} {name}" for name, members in groups)
    with drawn_axes(
        svg, name="histogram", description=f"Histogram of the scores of {parts}"
    ) as axes:
        for (name, members), colour in zip(groups, (GREY, ORANGE, BLUE), strict=False):
            counts, _ = np.histogram(logit[members], edges)
            axes.stairs(counts, edges, fill=True, alpha=0.35, color=colour)
            axes.stairs(counts, edges, lw=1.8, color=colour, label=f"{name} ({members.sum():,})")
        axes.set(xlabel="stack score (log-odds)", ylabel="objects", yscale="symlog")
        axes.set_ylim(bottom=0)
        plain_counts(axes)
        axes.legend(loc="upper right")
    return svg[0]


def rank_bins(n_ranked: int) -> list[int]:
    """Where the reliability bins end: 10, 20, 50, 100, … and the whole list."""
    edges = [0]
    for step in (10 * m * 10**k for k in range(7) for m in (1, 2, 5)):
        if step >= n_ranked:
            break
        edges.append(step)
    return [*edges, n_ranked]


def reliability(
    expected: Floats, low: Floats, high: Floats, observed: NDArray[np.int64], names: Sequence[str]
) -> str:
    """Lenses that the probabilities promise in each bin of ranks, and lenses that are there.

    Parameters
    ----------
    expected, low, high : (bins,) sums of p_lens and of its interval's ends.
    observed : (bins,) lenses.
    names : (bins,) ranks of each bin.
    """
    svg: list[str] = []
    said = "; ".join(
        f"ranks {n}: expected {e:.1f}, observed {o}"
        for n, e, o in zip(names, expected, observed, strict=True)
    )
    place = np.arange(len(names))
    with drawn_axes(
        svg, name="reliability", description=f"Expected and observed lenses, {said}"
    ) as axes:
        axes.bar(place, expected, width=0.62, color=BLUE, alpha=0.4, label="expected: sum of p")
        whiskers = np.maximum([expected - low, high - expected], 0)
        axes.errorbar(place, expected, whiskers, fmt="none", color=BLUE, capsize=4, lw=1.6)
        axes.plot(place, observed, "o", ms=8, color=ORANGE, label="observed")
        axes.set(xlabel="ranks", ylabel="lenses in the bin")
        axes.set_xticks(place, names)
        axes.set_ylim(bottom=0)
        axes.legend()
    return svg[0]


def budget_curves(
    curves: Sequence[tuple[str, Floats]],
    *,
    budgets: Sequence[int],
    description: str,
    name: str = "budget",
) -> str:
    """Shares in per cent against the number of objects inspected.

    Parameters
    ----------
    curves : name and share (n,) after 1, 2, … n objects; three at most.
    budgets : numbers to mark.
    description : what a screen reader says.
    name : prefix of the ids inside the SVG, its own in each page.
    """
    svg: list[str] = []
    styles: list[dict[str, Any]] = [
        {"color": BLUE, "ls": "--"},
        {"color": ORANGE},
        {"color": GREEN},
    ]
    with drawn_axes(svg, name=name, description=description) as axes:
        for (label, share), style in zip(curves, styles, strict=False):
            at = _sampled(len(share))
            axes.plot(at, 100 * share[at - 1], lw=2, drawstyle="steps-post", label=label, **style)
        for budget in budgets:
            axes.axvline(budget, color=INK, lw=0.7, alpha=0.35)
        axes.set(xlabel="objects inspected, best first", ylabel="per cent", xscale="log")
        axes.set_ylim(0, 103)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.legend(loc="best")
    return svg[0]


def importance(names: Sequence[str], strength: Floats) -> str:
    """Bars of how much each feature or group moves the scores, the strongest on top.

    Parameters
    ----------
    names : (k,), strongest first. strength : (k,) mean absolute contribution, log-odds.
    """
    svg: list[str] = []
    said = "; ".join(f"{n} {v:.2f}" for n, v in zip(names, strength, strict=True))
    with drawn_axes(svg, name="importance", description=f"Mean contributions: {said}") as axes:
        place = np.arange(len(names))
        axes.barh(place, strength, height=0.7, color=BLUE, alpha=0.75)
        axes.set_yticks(place, names, fontsize=9)
        axes.invert_yaxis()
        axes.set(xlabel="mean absolute contribution (log-odds)")
    return svg[0]


def _sampled(length: int) -> NDArray[np.int64]:
    """Every rank up to 100, then some 300 evenly spaced in the logarithm."""
    wide = np.geomspace(1, max(length, 1), 300).astype(np.int64)
    return np.unique(np.concatenate([np.arange(1, min(length, 100) + 1), wide]))


def known_recall(ranks: NDArray[np.int64], n_ranked: int) -> str:
    """Share of the known lenses among the first objects, beside an order that knows nothing.

    Parameters
    ----------
    ranks : (k,) ranks of the known lenses, by their out-of-fold scores.
    """
    at = np.arange(1, n_ranked + 1)
    recall = np.searchsorted(np.sort(ranks), at, side="right") / max(len(ranks), 1)
    middle = f", median rank {np.median(ranks):.0f} of {n_ranked}" if len(ranks) else ""
    return budget_curves(
        [("random order", at / n_ranked), (f"known lenses ({len(ranks)})", recall)],
        budgets=(),
        description=f"Recall of {len(ranks)} known lenses by out-of-fold score{middle}",
        name="recall",
    )
