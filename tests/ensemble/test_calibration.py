import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binom
from sklearn.metrics import log_loss

from clusterray.ensemble.calibration import Calibrator, choose, shift_prior
from clusterray.ensemble.calibration_curves import KINDS
from clusterray.errors import BundleError, InputError
from clusterray.pu import Labelling


def world(n, *, prior, c, distance=3.0, scenario="single-sample", seed=0):
    """Scores 0.7 × true log-odds + 1.3, labels, truth, and which rows are the survey's."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    s = y & (rng.random(n) < c)
    if scenario == "case-control":
        extra = int(n * prior * c)
        s, y = np.append(np.zeros(n), np.ones(extra)), np.append(y, np.ones(extra, bool))
    x = rng.normal(size=len(y)) + distance * y
    true = logit(prior) + distance * x - distance**2 / 2
    return 0.7 * true + 1.3, np.asarray(s, np.int8), y, true, np.arange(len(y)) < n


@pytest.mark.parametrize("scenario", ["single-sample", "case-control"])
@pytest.mark.parametrize(
    ("prior", "c", "n"), [(0.3, 0.1, 80_000), (0.3, 0.9, 20_000), (0.01, 0.5, 100_000)]
)
def test_calibrated_log_odds_are_the_true_ones(scenario, prior, c, n):
    z, s, y, true, survey = world(n, prior=prior, c=c, scenario=scenario)
    calibrator = Calibrator().fit(z, s, labelling=Labelling(scenario, prior))
    found = calibrator.decision_function(z)
    slope = np.polyfit(true, found, 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)
    p = calibrator.predict_proba(z)
    assert p.max() <= 1
    assert p[survey].mean() == pytest.approx(prior, rel=0.05)
    # Observed against expected lenses in the top bins, inside binomial limits (99.9 %).
    best = np.flatnonzero(survey)[np.argsort(-z[survey])]
    for rows in (best[:50], best[50:200], best[200:500]):
        low, high = binom.ppf([5e-4, 1 - 5e-4], len(rows), p[rows].mean())
        assert low <= y[rows].sum() <= high


def test_dividing_by_the_prior_instead_would_fail():
    z, s, _, true, _ = world(20_000, prior=0.3, c=0.5)
    from sklearn.linear_model import LogisticRegression

    g = LogisticRegression().fit(z[:, None], s).predict_proba(z[:, None])[:, 1]
    p = np.clip(g / 0.3, 1e-9, 1 - 1e-9)
    assert abs(np.polyfit(true, logit(p), 1)[0] - 1) > 0.1 or abs(p.mean() / 0.3 - 1) > 0.05


def test_three_lenses_give_a_sober_answer():
    """A demo's held-out set: the prior on the slope and on the count carry it."""
    found = []
    for seed in range(20):
        z, s, _, _, _ = world(120, prior=0.07, c=0.3, seed=seed)
        if not s.any():
            continue
        labelling = Labelling("single-sample", 0.07, labelled_fraction=0.02)
        calibrator = Calibrator().fit(z, s, labelling=labelling)
        assert 0.3 < calibrator.parameters_[0] < 3
        found.append(calibrator.predict_proba(z).mean())
    assert np.mean(found) == pytest.approx(0.07, rel=0.2)


def test_constant_scores_give_the_prior():
    s = np.array([1] * 5 + [0] * 95)
    calibrator = Calibrator().fit(np.full(100, 2.0), s, labelling=Labelling("single-sample", 0.2))
    np.testing.assert_allclose(calibrator.predict_proba(np.full(3, 2.0)), 0.2, rtol=1e-3)


def test_subsampled_unlabelled_rows_do_not_change_the_answer():
    z, s, _, _, _ = world(50_000, prior=0.1, c=0.5)
    whole = Calibrator().fit(z, s, labelling=Labelling("single-sample", 0.1))
    kept = (s == 1) | (np.arange(len(s)) % 10 == 0)
    part = Calibrator().fit(
        z[kept], s[kept], labelling=Labelling("single-sample", 0.1, unlabelled_fraction=0.1)
    )
    grid = np.linspace(-3, 4, 8)
    np.testing.assert_allclose(
        part.decision_function(grid), whole.decision_function(grid), atol=0.35
    )


def test_known_non_lenses_take_no_part():
    z, s, _, _, _ = world(2000, prior=0.2, c=0.5)
    labelling = Labelling("single-sample", 0.2)
    plain = Calibrator().fit(z, s, labelling=labelling)
    more = Calibrator().fit(
        np.append(z, np.full(300, 5.0)), np.append(s, np.full(300, -1)), labelling=labelling
    )
    np.testing.assert_array_equal(plain.parameters_, more.parameters_)


def test_json_round_trip():
    z, s, _, _, _ = world(2000, prior=0.2, c=0.5)
    calibrator = Calibrator().fit(z, s, labelling=Labelling("single-sample", 0.2))
    state = json.loads(json.dumps(calibrator.to_json()))
    np.testing.assert_array_equal(
        Calibrator.from_json(state).predict_proba(z), calibrator.predict_proba(z)
    )
    with pytest.raises(BundleError, match=r"starting \[-1.0, .* expected a rising curve"):
        Calibrator.from_json({**state, "parameters": [-1.0, -1.0, 0.0]})
    with pytest.raises(BundleError, match="calibrator of kind 'plat'"):
        Calibrator.from_json({**state, "kind": "plat"})
    with pytest.raises(InputError, match="not fitted"):
        Calibrator().predict_proba(z)


@pytest.mark.parametrize(
    ("z", "s", "match"),
    [
        ([0.0, np.inf], [1, 0], "stack logits: 1 values are not finite"),
        ([0.0, 1.0], [0, 0], "no known lenses"),
        ([0.0, 1.0], [1, 1], "no unlabelled rows"),
        ([0.0, 1.0], [1, 0, 0], r"shape \(3,\), expected \(2,\)"),
        ([0.0, 1.0], [1, 0], "0.5 of the rows are known lenses"),
    ],
)
def test_bad_input_is_refused(z, s, match):
    with pytest.raises(InputError, match=match):
        Calibrator().fit(z, s, labelling=Labelling("single-sample", 0.1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", ["single-sample", "case-control"])
def test_every_kind_finds_the_true_log_odds(kind, scenario):
    z, s, y, true, survey = world(60_000, prior=0.1, c=0.5, scenario=scenario)
    # A temperature has no offset to set right.
    z = 0.7 * true if kind == "temperature" else z
    calibrator = Calibrator(kind).fit(z, s, labelling=Labelling(scenario, 0.1))
    found = calibrator.decision_function(z)
    near = survey & (np.abs(true) < 4)
    assert np.polyfit(true[near], found[near], 1)[0] == pytest.approx(1.0, abs=0.1)
    p = calibrator.predict_proba(z)[survey]
    assert p.mean() == pytest.approx(0.1, rel=0.05)
    # Log-loss within 5 % of the true posterior's.
    best = log_loss(y[survey], expit(true[survey]))
    assert log_loss(y[survey], p) < 1.05 * best
    state = json.loads(json.dumps(calibrator.to_json()))
    np.testing.assert_array_equal(Calibrator.from_json(state).decision_function(z), found)


@settings(max_examples=30, deadline=None)
@given(z=st.lists(st.floats(-60, 60), min_size=2, max_size=30), kind=st.sampled_from(KINDS))
def test_curves_rise(z, kind):
    base, s, *_ = world(600, prior=0.2, c=0.5)
    calibrator = Calibrator(kind).fit(base, s, labelling=Labelling("single-sample", 0.2))
    assert np.all(np.diff(calibrator.decision_function(np.sort(z))) >= -1e-12)


def test_beta_is_chosen_where_platt_cannot_follow():
    """Overconfident at one end only: log-odds bent at zero."""
    true, s, _, _, _ = world(6000, prior=0.3, c=0.6, distance=4.0)
    true = (true - 1.3) / 0.7
    bent = np.where(true > 0, 4 * true, 0.5 * true)
    cell = np.random.default_rng(0).integers(0, 200, len(s))
    options = {"cell": cell, "labelling": Labelling("single-sample", 0.3), "seed": 1}
    chosen = choose(bent, s, **options)
    assert chosen.kind == "beta" and chosen.loss["beta"] < chosen.loss["platt"]
    assert set(chosen.loss) == set(KINDS)
    straight = choose(true, s, **options)
    assert straight.kind == "platt"
    few = np.flatnonzero(s == 1)[19:]
    s[few] = 0
    assert choose(bent, s, **options).note == "Platt calibration: 19 known lenses held out"


def test_another_prevalence_is_bayes_rule():
    p = np.array([0.0, 0.01, 0.5, 1.0])
    moved = shift_prior(p, prior=0.01, new_prior=1e-3)
    odds = p[1:3] / (1 - p[1:3]) * (1e-3 * 0.99) / (0.999 * 0.01)
    np.testing.assert_allclose(moved, [0, *(odds / (1 + odds)), 1])
    np.testing.assert_allclose(shift_prior(moved, prior=1e-3, new_prior=0.01), p)
    with pytest.raises(InputError, match="new_prior is 1"):
        shift_prior(p, prior=0.1, new_prior=1.0)
    with pytest.raises(InputError, match="did you mean 'isotonic'"):
        Calibrator("isotonc").fit([0.0, 1.0], [0, 1], labelling=Labelling("single-sample", 0.6))


def check_top_bins(n_seeds):
    """Inside the binomial 95 % limits in nineteen of twenty bins, but for the fit's own error."""
    inside = []
    for seed in range(n_seeds):
        z, s, *_ = world(30_000, prior=0.05, c=0.5, seed=seed)
        calibrator = Calibrator().fit(z, s, labelling=Labelling("single-sample", 0.05))
        fresh, _, y, _, _ = world(30_000, prior=0.05, c=0.5, seed=100 + seed)
        p = calibrator.predict_proba(fresh)
        order = np.argsort(-p)
        for rows in (order[:50], order[50:200], order[200:500], order[500:1500]):
            # Sums of unequal chances scatter less than a binomial of their mean.
            low, high = binom.ppf([0.025, 0.975], len(rows), p[rows].mean())
            inside.append(low <= y[rows].sum() <= high)
    assert np.mean(inside) >= 0.9


def test_top_bins_hold_as_many_lenses_as_promised():
    check_top_bins(3)


@pytest.mark.slow
def test_top_bins_hold_as_many_lenses_as_promised_in_many_surveys():
    check_top_bins(40)
