"""The page of a sweep: how it went, what mattered, and which settings were good together."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import optuna
from matplotlib.ticker import MaxNLocator

from clusterray import page
from clusterray.engine.search_space import Range, SearchSpace
from clusterray.engine.sweep import Trial
from clusterray.rank.drawing import BLUE, GREY, ORANGE, drawn_axes

__all__ = ["importances", "render"]

_LEAST: Final = 4
"""Trials from which importances are said."""


def importances(trials: Sequence[Trial], space: SearchSpace) -> dict[str, float]:
    """Share of the objective's variance over the search space that each parameter explains.

    By a random forest (fANOVA; Hutter et al. 2014), from trials that ran to their end; empty with
    fewer than four of those, or where none differs from the others.
    """
    whole = [t for t in trials if t.complete]
    if len(whole) < _LEAST or len({t.objective for t in whole}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    distributions = space.distributions()
    for t in whole:
        study.add_trial(
            optuna.trial.create_trial(
                params={n: t.parameters[n] for n in distributions},
                distributions=distributions,
                value=t.objective,
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {n: float(v) for n, v in found.items()}


def render(
    trials: Sequence[Trial],
    space: SearchSpace,
    *,
    best: Trial,
    verdict: str,
    facts: Mapping[str, Any],
) -> str:
    """Write the sweep as one self-contained HTML page."""
    given_up = sum(not t.complete for t in trials)
    parts = [
        page.headline(
            [
                (f"{best.objective:.4f}", f"best {space.objective}"),
                (str(best.number), "its trial"),
                (str(len(trials)), "trials"),
                (str(given_up), "given up early"),
                (f"{sum(t.seconds for t in trials):.0f} s", "spent in trials"),
            ]
        ),
        f"<p>{page.escaped(verdict)}</p>",
        _figures(trials, space, best),
        page.section("Trials, the best first", _trials(trials, space)),
        page.section("The sweep", page.facts(facts)),
        page.section(
            "Files",
            page.links(
                [("best.toml", "Best settings"), ("trials.parquet", "All trials (parquet)")]
            ),
        ),
    ]
    return page.document(f"Sweep of {space.model}", parts)


def _figures(trials: Sequence[Trial], space: SearchSpace, best: Trial) -> str:
    shown = [page.figure(_history(trials, space), "Each trial, and the best until then. Hollow: "
                         "given up early, by the folds it had fitted.")]  # fmt: skip
    weights = importances(trials, space)
    if weights:
        text = (
            "How much of the objective's variance over the search space each parameter explains "
            "(fANOVA), by complete trials. It says where to search on, and rests on few trials."
        )
        shown.append(page.figure(_importances(weights), text))
    shown.append(
        page.figure(
            _parallel(trials, space, best),
            "Every trial as a line through its settings: orange the best, blue the best quarter of "
            "the complete ones.",
        )
    )
    return f'<div class="figures">{"".join(shown)}</div>'


def _history(trials: Sequence[Trial], space: SearchSpace) -> str:
    svg: list[str] = []
    text = f"{space.objective} of each trial, and the best of all complete trials until then"
    with drawn_axes(svg, name="history", description=text) as axes:
        for complete, face in ((True, BLUE), (False, "none")):
            some = [t for t in trials if t.complete is complete]
            x, y = [t.number for t in some], [t.objective for t in some]
            axes.scatter(x, y, s=28, facecolors=face, edgecolors=BLUE if complete else GREY)
        whole = [t for t in trials if t.complete]
        until = np.maximum.accumulate([t.objective for t in whole])
        axes.step([t.number for t in whole], until, where="post", color=ORANGE)
        axes.set_xlabel("trial")
        axes.set_ylabel(space.objective)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return svg[0]


def _importances(weights: Mapping[str, float]) -> str:
    svg: list[str] = []
    names = sorted(weights, key=lambda n: weights[n])
    text = "importance: " + ", ".join(f"{n} {weights[n]:.2f}" for n in reversed(names))
    size = (6.4, 1.2 + 0.34 * len(names))
    with drawn_axes(svg, name="importances", description=text, size_in=size) as axes:
        axes.barh(names, [weights[n] for n in names], color=BLUE)
        axes.set_xlabel("share of the variance explained")
        axes.set_xlim(0, 1)
    return svg[0]


def _parallel(trials: Sequence[Trial], space: SearchSpace, best: Trial) -> str:
    svg: list[str] = []
    names = list(space.parameters)
    good = np.quantile([t.objective for t in trials if t.complete], 0.75)
    text = f"settings of all trials: {', '.join(names)}"
    size = (max(6.4, 1.1 * len(names)), 4.2)
    with drawn_axes(svg, name="parallel", description=text, size_in=size) as axes:
        for t in sorted(trials, key=lambda t: (t is best, t.objective)):
            fine = t.complete and t.objective >= good
            colour = ORANGE if t is best else BLUE if fine else GREY
            heights = [_height(t.parameters[n], space, n) for n in names]
            width = 2.4 if t is best else 1.0
            axes.plot(range(len(names)), heights, color=colour, linewidth=width, alpha=0.9)
        for k, n in enumerate(names):
            low, high = (_text(v) for v in _ends(space, n))
            axes.axvline(k, color=GREY, linewidth=0.6)
            axes.annotate(low, (k, -0.03), ha="center", va="top", fontsize=9)
            axes.annotate(high, (k, 1.03), ha="center", va="bottom", fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.tick_params(axis="x", length=0, pad=14)
        axes.set_yticks([])
        axes.set_ylim(-0.1, 1.1)
        axes.spines[["left", "bottom"]].set_visible(False)
    return svg[0]


def _ends(space: SearchSpace, name: str) -> tuple[Any, Any]:
    span = space.parameters[name]
    if isinstance(span, Range):
        return span.low, span.high
    return span.choices[0], span.choices[-1]


def _height(value: Any, space: SearchSpace, name: str) -> float:
    """Where a value stands between the ends of its axis, 0 to 1."""
    span = space.parameters[name]
    if not isinstance(span, Range):
        return span.choices.index(value) / (len(span.choices) - 1)
    ends = (float(span.low), float(value), float(span.high))
    low, x, high = (math.log(v) for v in ends) if span.log else ends
    return (x - low) / (high - low)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def _trials(trials: Sequence[Trial], space: SearchSpace) -> str:
    names = list(space.parameters)
    ordered = sorted(trials, key=lambda t: (not t.complete, -t.objective, t.number))
    rows = [
        [
            str(t.number),
            f"{t.objective:.4f}",
            "whole" if t.complete else "given up",
            f"{t.seconds:.1f}",
            *(_text(t.parameters[n]) for n in names),
        ]
        for t in ordered
    ]
    header = ["trial", space.objective, "ended", "seconds", *names]
    return page.table(f"{len(rows)} trials", header, rows)
