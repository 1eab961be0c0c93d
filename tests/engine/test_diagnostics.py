"""What a training run says of itself can be written, read and shown."""

import json

import numpy as np
import pytest
from scipy.special import logit

from clusterray.config import resolve
from clusterray.engine.diagnostics import diagnose
from clusterray.engine.fits import FitContext
from clusterray.ensemble.bootstrap import bootstrap
from clusterray.pu import PriorEstimate
from clusterray.rank.pages import calibration, folds, scar

NAMES = ("annulus_0_mean_i", "theta_e_arcsec", "richness", "psf_fwhm_arcsec_i")


def context(n_known, *, n=900, fraction=0.5, scenario="single-sample"):
    rng = np.random.default_rng(0)
    y = rng.random(n) < 0.15
    s = np.zeros(n, np.int8)
    s[np.flatnonzero(y)[:n_known]] = 1
    s[np.flatnonzero(~y)[:5]] = -1
    cell = rng.integers(0, 90, n)
    features = rng.normal(size=(n, len(NAMES))).astype(np.float32)
    features[:, 0] += y
    features[::3, 1] = np.nan
    logits = (logit(0.15) + 2 * rng.normal(size=n) + 3 * y - 1)[:, None]
    return logits, features, FitContext(
        config=resolve({"train": {"scenario": scenario}, "rank": {"budgets": [10, 100]}}),
        folder="",
        groups=(),
        bands=("g", "r", "i"),
        size_px=64,
        feature_names=NAMES,
        unlabelled_fraction=fraction,
        prior=0.15,
        s=s,
        fold=np.where(cell < 30, -1, cell % 3).astype(np.int8),
        cell=cell,
    )  # fmt: skip


@pytest.mark.parametrize("n_known", [12, 60])
@pytest.mark.parametrize("scenario", ["single-sample", "case-control"])
def test_diagnostics_are_plain_values_that_every_page_can_show(n_known, scenario):
    logits, features, given = context(n_known, scenario=scenario)
    posterior = bootstrap(
        logits, given.s, fold=given.fold, cell=given.cell, models=("lightgbm",),
        scenario=scenario, prior=PriorEstimate(0.15, (0.1, 0.2), {}, True, "estimate"),
        n_bootstrap=20, seed=1, unlabelled_fraction=given.unlabelled_fraction, calibrator="auto",
    )  # fmt: skip
    stack = posterior.stacker.decision_function(logits)
    found = diagnose(given, posterior, stack=stack, features=features)
    back = json.loads(json.dumps(found, allow_nan=False))
    assert back == found
    if n_known == 12:
        assert "Platt calibration" in found["calibration"]["note"]
    assert set(found["scar"]["test"]) <= {"annulus_0_mean_i", "theta_e_arcsec", "richness"}
    assert found["scar"]["covariate"] == "annulus_0_mean_i"
    purity = np.array(found["scar"]["sensitivity"]["purity"])
    assert np.all(np.diff(purity[:, 0]) <= 0)
    assert sum(len(f["known"]) for f in found["folds"]["each"]) == n_known
    # A third of the rows is held out and half of the others was drawn.
    assert found["pu_budgets"]["100"] == pytest.approx(100 * 0.5 * np.mean(given.fold >= 0), abs=1)
    assert 0.5 < found["pu_metrics"]["auroc"][0] <= 1.01
    for page in (calibration, folds, scar):
        assert page.section(back).startswith("<section>")
