import numpy as np
import pytest
from scipy.special import expit, logit

from clusterray.ensemble.scar import scar_sensitivity, scar_test
from clusterray.errors import InputError
from clusterray.pu import Labelling


def world(seed, *, bias=0.0, n=6000, prior=0.1, scenario="single-sample"):
    """Lenses are brighter; bright ones are labelled e^bias times as often per σ."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    x = rng.normal(size=n) + 2 * y
    brightness = rng.normal(size=n) + 0.7 * y
    seeing = rng.normal(size=n)
    p = expit(logit(prior) + 2 * x - 2 + 0.7 * brightness - 0.245)
    chance = np.minimum(0.3 * np.exp(bias * (brightness - 0.7) - bias**2 / 2), 1)
    drawn = y & (rng.random(n) < chance)
    if scenario == "case-control":
        s = np.append(np.zeros(n, np.int8), np.ones(drawn.sum(), np.int8))
        p, brightness, seeing, y = (np.append(v, v[drawn]) for v in (p, brightness, seeing, y))
    else:
        s = drawn.astype(np.int8)
    return {"brightness": brightness, "seeing": seeing}, p, s, y


@pytest.mark.parametrize("scenario", ["single-sample", "case-control"])
def test_random_labels_pass_and_bright_ones_do_not(scenario):
    labelling = Labelling(scenario, 0.1)
    least = []
    for seed in range(12):
        covariates, p, s, _ = world(seed, scenario=scenario)
        found = scar_test(covariates, p, s, labelling=labelling, seed=seed)
        least.append(min(f["p_adjusted"] for f in found.values()))
    assert np.mean(np.array(least) < 0.05) <= 0.25
    covariates, p, s, _ = world(0, bias=1.0, scenario=scenario)
    found = scar_test(covariates, p, s, labelling=labelling, seed=0)
    assert found["brightness"]["p_adjusted"] < 0.01 and found["brightness"]["difference"] > 0.2
    assert found["seeing"]["p_adjusted"] > 0.05


def test_purity_moves_as_the_truth_does():
    """Labels twice as frequent per σ: the r = 2 row says what purity really is."""
    errors = []
    for seed in range(6):
        covariates, p, s, y = world(seed, n=40_000)
        table = scar_sensitivity(covariates["brightness"], p, s, prior=0.1, budgets=(200, 1000))
        assert table["purity"][0][0] == pytest.approx(np.sort(p)[-200:].mean(), rel=1e-3)
        purity = [y[np.argsort(-p)[:b]].mean() for b in (200, 1000)]
        errors.append(np.array(table["purity"][0]) - purity)
        assert np.all(np.diff(np.array(table["purity"])[:, 1]) < 0)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.03


def test_covariates_that_are_hardly_known_are_left_out_and_bad_ones_refused():
    covariates, p, s, _ = world(0)
    covariates["theta_e"] = np.where(np.arange(len(s)) < 20, 1.0, np.nan)
    found = scar_test(covariates, p, s, labelling=Labelling("single-sample", 0.1), seed=0)
    assert set(found) == {"brightness", "seeing"}
    with pytest.raises(InputError, match="covariate 'x' has shape"):
        scar_test({"x": [1.0]}, p, s, labelling=Labelling("single-sample", 0.1), seed=0)
    with pytest.raises(InputError, match=r"probabilities: 1\.5 in row 0 is no probability"):
        scar_sensitivity(p, np.append(1.5, p[1:]), s, prior=0.1, budgets=(10,))
    with pytest.raises(InputError, match="covariate has shape"):
        scar_sensitivity([1.0], p, s, prior=0.1, budgets=(10,))
