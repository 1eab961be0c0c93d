"""What a training run measures of itself, as plain values: the bundle keeps them for the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterray.config import Config
from clusterray.engine.fits import FitContext
from clusterray.ensemble.posterior import PosteriorEnsemble
from clusterray.ensemble.reliability import label_reliability
from clusterray.ensemble.scar import scar_sensitivity, scar_test
from clusterray.ensemble.venn_abers import venn_abers_table
from clusterray.provenance import seed_for
from clusterray.rank.pu_metrics import pu_curve, pu_metrics

__all__ = ["diagnose"]

_COVARIATES = ("theta_e_arcsec", "richness", "z_lens")
_CURVE_POINTS = 300
_BINS = 40

Floats = NDArray[np.float64]


def diagnose(
    context: FitContext, posterior: PosteriorEnsemble, *, stack: Floats, features: NDArray[Any]
) -> dict[str, Any]:
    """Calibration, label metrics, folds and SCAR of a training sample.

    Parameters
    ----------
    stack : (n,) stack logits: out-of-fold where fold ≥ 0, of the scoring models elsewhere.
    features : (n, f) of the sample.
    """
    labelling = posterior.calibrator.labelling_
    p = posterior.calibrator.predict_proba(stack)
    held, trained = context.fold < 0, context.fold >= 0
    s, config = context.s, context.config
    seed = seed_for(config.seed, purpose="diagnostics")
    return {
        "scenario": labelling.scenario,
        "prior": labelling.prior,
        "unlabelled_prior": context.unlabelled_prior,
        "calibration": posterior.choice.to_json(),
        "reliability": label_reliability(p[held], s[held], labelling=labelling),
        "venn_abers": venn_abers_table(stack[held], s[held], labelling=labelling),
        **_labels(context, stack[trained], s[trained], seed),
        "folds": _folds(stack, s, context.fold),
        "scar": _scar(context, p, features, seed),
    }


def _labels(context: FitContext, stack: Floats, s: NDArray[np.int8], seed: int) -> dict[str, Any]:
    prior = context.unlabelled_prior
    # Budgets are numbers of the survey's rows; those at hand are a share of them.
    here = context.unlabelled_fraction * float(np.mean(context.fold >= 0))
    budgets = {b: round(b * here) for b in context.config.rank.budgets}
    usable = sorted({b for b in budgets.values() if b >= 1})
    if not 0.0 < prior < 1.0:
        return {"pu_metrics": {}, "pu_curve": {}, "pu_budgets": {}}
    found = pu_metrics(
        s,
        stack,
        unlabelled_prior=prior,
        budgets=usable,
        n_bootstrap=context.config.train.n_bootstrap,
        seed=seed,
    )
    curve = pu_curve(s, stack, unlabelled_prior=prior)
    at = np.unique(np.linspace(0, len(curve[0]) - 1, _CURVE_POINTS).astype(np.int64))
    names = ("tpr", "fpr", "precision")
    return {
        "pu_metrics": {name: value.to_json() for name, value in found.items()},
        "pu_curve": {n: v[at].tolist() for n, v in zip(names, curve, strict=True)},
        "pu_budgets": {str(b): rows for b, rows in budgets.items() if rows >= 1},
    }


def _folds(stack: Floats, s: NDArray[np.int8], fold: NDArray[np.int8]) -> dict[str, Any]:
    """Histogram of the unlabelled rows' logits, and the known lenses', of each fold."""
    low, high = (float(v) for v in np.quantile(stack, [0.001, 1.0]))
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    clipped = np.clip(stack, edges[0], edges[-1])
    each = [
        {
            "fold": int(k),
            "unlabelled": np.histogram(clipped[(fold == k) & (s == 0)], edges)[0].tolist(),
            "known": np.sort(stack[(fold == k) & (s == 1)]).tolist(),
        }
        for k in np.unique(fold)
    ]
    return {"edges": edges.tolist(), "each": each}


def _scar(context: FitContext, p: Floats, features: NDArray[Any], seed: int) -> dict[str, Any]:
    names, labelling = context.feature_names, context.labelling
    chosen = _covariates(context.config, context.bands, names)
    columns = {name: features[:, names.index(name)].astype(np.float64) for name in chosen}
    found: dict[str, Any] = {
        "test": scar_test(columns, p, context.s, labelling=labelling, seed=seed),
        "sensitivity": None,
    }
    known = [name for name in chosen if np.isfinite(columns[name]).any()]
    if known:
        found["covariate"] = known[0]
        found["sensitivity"] = scar_sensitivity(
            columns[known[0]],
            p,
            context.s,
            prior=context.prior,
            budgets=context.config.rank.budgets,
            unlabelled_fraction=context.unlabelled_fraction,
        )
    return found


def _covariates(config: Config, bands: Sequence[str], names: Sequence[str]) -> list[str]:
    """Brightness of the centre in the reddest band first, then θ_E and what stands for it."""
    middle = config.features.grid // 2
    red = bands[-1]
    bright = (f"annulus_0_mean_{red}", f"patch_{middle}_{middle}_mean_{red}")
    centre = [name for name in bright if name in names][:1]
    return [*centre, *(name for name in _COVARIATES if name in names)]
