"""The report: one HTML page on which people judge a ranking and look at its best candidates."""

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.stats import binom_conf_interval
from numpy.typing import NDArray

from clusterray import page, schema
from clusterray.config import RankSettings
from clusterray.errors import InputError
from clusterray.rank import explanations, figures
from clusterray.rank.evidence import Evidence, gather
from clusterray.rank.metrics import rare_event_metrics
from clusterray.rank.pages import (
    calibration,
    candidates,
    curves,
    discovery,
    folds,
    prior,
    scar,
    unlike,
)
from clusterray.rank.pages.discovery import Finds
from clusterray.rank.ranking import models_of
from clusterray.sky.thumbnails import Thumbnail

__all__ = ["render"]


def render(
    ranking: pa.Table,
    *,
    thumbnails: Mapping[str, Thumbnail],
    bands: Sequence[str],
    provenance: Mapping[str, Any],
    settings: RankSettings,
    truth: pa.Table | None = None,
    labels: pa.Table | None = None,
    beside: Sequence[tuple[str, str]] = (),
    contributions: pa.Table | None = None,
    feature_groups: Mapping[str, str] | None = None,
    diagnostics: Mapping[str, Any] | None = None,
    finds: Finds | None = None,
) -> str:
    """Write the report of a ranking as one self-contained HTML page.

    The page loads nothing from elsewhere, and equal inputs give equal text.

    Parameters
    ----------
    ranking : of `ranking.build`.
    thumbnails : cutout (bands, h, w) and noise (bands,), both in nJy, of the objects to show; one
        that is missing is shown as such.
    bands : of the thumbnails, blue to red.
    provenance : plain nested values: run key, commit, versions, config, and under "prior" which
        one was used and why.
    settings : budgets, how many to show, and which bands are red, green and blue.
    truth, labels : where known; with truth the list is measured, without it only labels speak.
    beside : pages in the report's folder to link to: (name, what it is).
    contributions : of features to the candidates' scores, where `clusterray candidates` made them.
    feature_groups : what features are summed over in their figure, by name.
    diagnostics : what the training run measured of itself (the bundle's).
    finds : 90 % interval of the lenses among the first rows, by their number.

    Raises
    ------
    ContractError : a table breaks its schema.
    InputError : an empty ranking, or thumbnails that do not fit the bands.
    """
    ranking = schema.check(
        ranking, schema.ranking(models_of(ranking, where="ranking")), where="ranking"
    )
    if not len(ranking):
        raise InputError("the ranking is empty: there is nothing to report; score some cutouts")
    evidence = gather(ranking, labels=labels, truth=truth)
    budgets = sorted({min(b, len(ranking)) for b in settings.budgets})
    known = diagnostics or {}
    draw = candidates.Cards(evidence, thumbnails, bands, settings.rgb_bands)
    parts = [
        f'<p class="soft">{escape(_opening(ranking, evidence))}</p>',
        page.headline(_headline(ranking, evidence, budgets)),
        page.section("How good is the list", _budget_table(ranking, evidence, budgets)),
        _figures(ranking, evidence, budgets),
        discovery.section(ranking, settings, budgets, finds or {}),
        curves.section(_place(ranking), evidence, known),
        calibration.section(known),
        prior.section(provenance.get("prior") or {}),
        folds.section(known),
        scar.section(known),
        *([page.links(beside)] if beside else []),
        *_explanations(contributions, feature_groups or {}),
        candidates.section(ranking, settings.report_top, draw),
        unlike.section(ranking, settings.unlike_top, draw),
        _provenance(provenance),
    ]
    return page.document("Cluster–cluster lens candidates", [part for part in parts if part])


def _opening(ranking: pa.Table, evidence: Evidence) -> str:
    known, refuted = int((evidence.s == 1).sum()), int((evidence.s == -1).sum())
    text = (
        f"{len(ranking):,} clusters ranked by the calibrated probability p that a background "
        f"cluster is multiply imaged (known lenses: {known:,}; known non-lenses: {refuted:,}). "
        "Objects that were trained on stand where their out-of-fold score puts them."
    )
    if evidence.y is not None:
        lenses = int(evidence.lens.sum())
        text += f" Truth is known: {lenses:,} of them are lenses"
        text += (
            f" ({evidence.n_unranked:,} more were never ranked)." if evidence.n_unranked else "."
        )
    return text


def _headline(
    ranking: pa.Table, evidence: Evidence, budgets: Sequence[int]
) -> list[tuple[str, str]]:
    # The second budget is the demo's 40: about a night of looking.
    budget = budgets[min(1, len(budgets) - 1)]
    expected = ranking["expected_finds"].to_numpy()[budget - 1]
    numbers = [(f"{expected:.1f}", f"lenses expected in the first {budget:,}")]
    if evidence.y is not None:
        lens, hidden = evidence.lens, evidence.lens & (evidence.s != 1)
        numbers += [
            (f"{lens[:budget].sum()} of {lens.sum()}", f"lenses are in the first {budget:,}"),
            (
                f"{hidden[:budget].sum()} of {hidden.sum()}",
                f"lenses that nobody knew are in the first {budget:,}",
            ),
        ]
        found = _measure(ranking, evidence)
        if found:
            numbers.append((_share(found["tpr0"]), "of lenses before the first false positive"))
    known = np.flatnonzero(evidence.s == 1) + 1
    if len(known):
        numbers.append((f"{np.median(known):,.0f}", f"median rank of {len(known)} known lenses"))
    return numbers


def _place(ranking: pa.Table) -> NDArray[np.float64]:
    """(n,) where each row stands, ties alike.

    Where p ties the logit orders, as in the list; object_id, its last resort, is no score.
    """
    keys = np.stack([ranking[name].to_numpy() for name in ("p_lens", "logit_stack")])
    steps = (np.diff(keys, axis=1, prepend=keys[:, :1]) != 0).any(axis=0)
    return np.cumsum(steps).astype(np.float64)


def _measure(ranking: pa.Table, evidence: Evidence) -> dict[str, float]:
    """Metrics over the objects whose truth is known and not marginal; empty without any."""
    measured = evidence.measured
    if evidence.y is None or not measured.any():
        return {}
    return rare_event_metrics(evidence.y[measured], -_place(ranking)[measured])


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.0f} %"


def _budget_table(ranking: pa.Table, evidence: Evidence, budgets: Sequence[int]) -> str:
    header = ["inspect the first", "lenses expected", "expected purity"]
    finds = ranking["expected_finds"].to_numpy()
    purity = ranking["expected_purity"].to_numpy()
    known = evidence.s == 1
    rows = [[f"{b:,}", f"{finds[b - 1]:.1f}", f"{100 * purity[b - 1]:.1f} %"] for b in budgets]
    if evidence.y is not None:
        header += ["lenses found", "purity (95 % interval)", "completeness"]
        lens, measured = evidence.lens, evidence.measured
        total = int(lens.sum()) + evidence.n_unranked
        for row, budget in zip(rows, budgets, strict=True):
            found, inspected = int(lens[:budget].sum()), int(measured[:budget].sum())
            row += [f"{found:,}", _purity(found, inspected)]
            row.append(_share(found / total) if total else "–")
    if known.any():
        header.append("known lenses among them")
        for row, budget in zip(rows, budgets, strict=True):
            row.append(f"{known[:budget].sum()} of {known.sum()}")
    return page.table("What inspecting the top of the list brings", header, rows)


def _purity(found: int, inspected: int) -> str:
    if not inspected:
        return "–"
    low, high = binom_conf_interval(found, inspected, 0.95, interval="wilson")
    return f"{100 * found / inspected:.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def _figures(ranking: pa.Table, evidence: Evidence, budgets: Sequence[int]) -> str:
    drawn = [
        page.figure(
            figures.score_histogram(ranking["logit_stack"].to_numpy(), groups=_groups(evidence)),
            "Scores of the stacked model. Trained-on objects enter with out-of-fold scores.",
        )
    ]
    if evidence.y is not None:
        drawn += [_reliability(ranking, evidence), _curves(ranking, evidence, budgets)]
    else:
        drawn.append(_curves(ranking, evidence, budgets))
        if (evidence.s == 1).any():
            ranks = ranking["rank"].to_numpy()[evidence.s == 1]
            drawn.append(
                page.figure(
                    figures.known_recall(ranks, len(ranking)),
                    "How far down the list the known lenses stand, each by a score of models that "
                    "did not see its label. Known lenses are the bright ones: hidden ones may "
                    "stand lower.",
                )
            )
    return f'<div class="figures">{"".join(drawn)}</div>'


def _groups(evidence: Evidence) -> list[tuple[str, NDArray[np.bool_]]]:
    known = evidence.s == 1
    if evidence.y is None:
        groups = [("others", ~known), ("known lenses", known)]
    else:
        lens = evidence.lens
        groups = [
            ("not lenses", ~lens & ~known),
            ("hidden lenses", lens & ~known),
            ("known lenses", known),
        ]
    return [(name, members) for name, members in groups if members.any()]


def _reliability(ranking: pa.Table, evidence: Evidence) -> str:
    edges = figures.rank_bins(len(ranking))
    measured, lens = evidence.measured, evidence.lens

    def per_bin(values: NDArray[Any]) -> NDArray[Any]:
        return np.add.reduceat(np.where(measured, values, 0), edges[:-1])

    expected, low, high = (
        per_bin(ranking[name].to_numpy()) for name in ("p_lens", "p_lens_low", "p_lens_high")
    )
    names = [f"{a + 1:,}–{b:,}" for a, b in itertools.pairwise(edges)]
    return page.figure(
        figures.reliability(expected, low, high, per_bin(lens.astype(np.int64)), names),
        "Reliability: in each bin of ranks, the lenses that the probabilities promise (with the "
        "sums of the ends of their 90 % intervals) and the lenses that are there.",
    )


def _curves(ranking: pa.Table, evidence: Evidence, budgets: Sequence[int]) -> str:
    curves = [("expected purity", ranking["expected_purity"].to_numpy())]
    said = "Expected purity against the number of objects inspected"
    if evidence.y is not None:
        found = np.cumsum(evidence.lens)
        curves.append(("purity", found / np.maximum(np.cumsum(evidence.measured), 1)))
        curves.append(("completeness", found / max(int(found[-1]) + evidence.n_unranked, 1)))
        said = "Purity, expected purity and completeness against the number of objects inspected"
    return page.figure(
        figures.budget_curves(curves, budgets=budgets, description=said),
        f"{said}. Thin lines mark the configured budgets.",
    )


def _explanations(contributions: pa.Table | None, groups: Mapping[str, str]) -> list[str]:
    if contributions is None or not len(contributions):
        return []
    return [explanations.section(contributions, groups)]


def _provenance(provenance: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in provenance.items() if not isinstance(v, Mapping)}
    nested = {k: v for k, v in provenance.items() if isinstance(v, Mapping)}
    parts = [page.facts(plain)]
    for name in sorted(nested, key=lambda k: k != "prior"):
        state = " open" if name == "prior" else ""
        parts.append(
            f"<details{state}><summary>{escape(name)}</summary>{page.facts(nested[name])}</details>"
        )
    return page.section("Where this comes from", *parts)
