import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binom

from clusterray.ensemble.calibration import Calibrator, PosteriorEnsemble, bootstrap
from clusterray.ensemble.stacking import Stacker
from clusterray.errors import BundleError, InputError
from clusterray.pu import Labelling, PriorEstimate


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
        assert 0.3 < calibrator.a_ < 3
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
    assert (plain.a_, plain.b_) == (more.a_, more.b_)


def test_json_round_trip():
    z, s, _, _, _ = world(2000, prior=0.2, c=0.5)
    calibrator = Calibrator().fit(z, s, labelling=Labelling("single-sample", 0.2))
    state = json.loads(json.dumps(calibrator.to_json()))
    np.testing.assert_array_equal(
        Calibrator.from_json(state).predict_proba(z), calibrator.predict_proba(z)
    )
    with pytest.raises(BundleError, match="slope -1"):
        Calibrator.from_json({**state, "a": -1.0})
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


def survey(n=1500, *, prior=0.1, c=0.5, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    x = rng.normal(size=(n, 2)) + np.array([2.0, 1.0]) * y[:, None]
    base = logit(prior) + x * [2.0, 1.0] - np.array([2.0, 0.5])
    true = base.sum(axis=1) - logit(prior)
    cell = rng.integers(0, 120, n)
    fold = np.where(cell < 36, -1, cell % 4)
    return base, (y & (rng.random(n) < c)).astype(np.int8), true, fold, cell


def known(prior=0.1, spread=1.2):
    return PriorEstimate(prior, (prior / spread, prior * spread), {}, True, "estimate")


def ensemble(n=1500, *, n_bootstrap=30, seed=0, **options):
    base, s, true, fold, cell = survey(n, seed=seed)
    arguments = {
        "fold": fold, "cell": cell, "models": ("lightgbm", "vit"), "scenario": "single-sample",
        "prior": known(), "n_bootstrap": n_bootstrap, "seed": 1, **options,
    }  # fmt: skip
    return bootstrap(base, s, **arguments), base, true


@pytest.fixture(scope="module")
def posterior():
    return ensemble(n_bootstrap=20)[0]


def test_intervals_hold_the_true_posterior():
    covered = []
    for seed in range(8):
        posterior, base, true = ensemble(2000, seed=seed)
        grid = np.argsort(-true)[np.array([10, 50, 150, 500])]
        _, low, high = posterior.interval(base[grid])
        covered.append((low <= expit(true[grid])) & (expit(true[grid]) <= high))
    assert np.mean(covered) > 0.75


def test_ensemble_is_repeatable_whatever_the_order_of_rows_and_survives_json():
    base, s, _, fold, cell = survey()
    options = {"models": ("a", "b"), "scenario": "single-sample", "prior": known(), "seed": 2}
    first = bootstrap(base, s, fold=fold, cell=cell, n_bootstrap=20, **options)
    order = np.random.default_rng(0).permutation(len(s))
    again = bootstrap(
        base[order], s[order], fold=fold[order], cell=cell[order], n_bootstrap=20, **options
    )
    for a, b in zip(first.interval(base), again.interval(base), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)
    back = PosteriorEnsemble.from_json(json.loads(json.dumps(first.to_json())))
    for a, b in zip(first.interval(base), back.interval(base), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(np.unique(first.prior)) == 20
    with pytest.raises(BundleError, match="posterior members have shapes"):
        PosteriorEnsemble.from_json({**first.to_json(), "a": [1.0]})


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(-40, 40), st.floats(-40, 40)), min_size=1, max_size=20),
    step=st.floats(0, 20),
    column=st.integers(0, 1),
    level=st.floats(0.05, 0.99),
)
def test_interval_is_ordered_and_rises_with_every_logit(posterior, rows, step, column, level):
    base = np.array(rows)
    risen = base.copy()
    risen[:, column] += step
    before, after = (posterior.interval(z, level=level) for z in (base, risen))
    p, low, high = before
    assert np.all((low >= 0) & (low <= p) & (p <= high) & (high <= 1))
    for a, b in zip(before, after, strict=True):
        assert np.all(b >= a)


def test_interval_of_a_row_does_not_depend_on_its_neighbours_or_chunks(monkeypatch, posterior):
    base = np.random.default_rng(0).normal(size=(1000, 2)) * 3
    whole = posterior.interval(base)
    monkeypatch.setattr("clusterray.ensemble.calibration._CHUNK_VALUES", 700)
    for a, b in zip(whole, posterior.interval(base), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_rows_keep_their_cross_fitted_logit(posterior):
    base = np.array([[0.0, 1.0], [2.0, 2.0]])
    stack = posterior.stacker.decision_function(base)
    for a, b in zip(
        posterior.interval(base), posterior.interval(base, logit_stack=stack), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    p, low, high = posterior.interval(base, logit_stack=stack - 1)
    np.testing.assert_array_equal(p, posterior.calibrator.predict_proba(stack - 1))
    assert np.all(high < posterior.interval(base)[2]) and np.all(low < p)


def test_members_that_agree_give_an_interval_of_no_width_for_any_stack_logit(posterior):
    stacker, calibrator = posterior.stacker, posterior.calibrator
    alike = PosteriorEnsemble(
        stacker,
        calibrator,
        coef=np.tile(stacker.coef_, (20, 1)),
        intercept=np.full(20, stacker.intercept_),
        a=np.full(20, calibrator.a_),
        b=np.full(20, calibrator.b_),
        prior=posterior.prior,
    )
    base = np.array([[0.0, 1.0], [2.0, 2.0]])
    given = stacker.decision_function(base) + np.array([1.5, -2.0])
    assert abs(calibrator.a_ - 1) > 0.01
    for logit_stack in (None, given):
        p, low, high = alike.interval(base, logit_stack=logit_stack)
        np.testing.assert_allclose([low, high], [p, p], rtol=1e-9)


def test_a_hundred_thousand_rows_in_little_memory(posterior):
    members = 200
    large = PosteriorEnsemble(
        posterior.stacker,
        posterior.calibrator,
        *(np.resize(a, (members, *a.shape[1:])) for a in (posterior.coef, posterior.intercept)),
        *(np.resize(a, members) for a in (posterior.a, posterior.b, posterior.prior)),
    )
    base = np.random.default_rng(0).normal(size=(100_000, 2))
    tracemalloc.start()
    large.interval(base)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80e6, "all at once would be 160 MB"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n_bootstrap": 5}, "n_bootstrap is 5"),
        ({"fold": np.zeros(1500, int)}, "no row is held out"),
        ({"cell": np.arange(1500) % 7}, "has rows in training and held out"),
        ({"cell": np.arange(3)}, r"cell has shape \(3,\)"),
        ({"prior": known(1e-3)}, "of the rows are known lenses"),
    ],
)
def test_bad_bootstraps_are_refused(change, match):
    with pytest.raises(InputError, match=match):
        ensemble(**change)


def test_replicates_without_a_known_lens_are_survived():
    base, s, _, fold, cell = survey(300)
    s[:] = 0
    s[np.flatnonzero(fold == -1)[:1]] = s[np.flatnonzero(fold == 0)[:1]] = 1
    s[np.flatnonzero(fold == 1)[:1]] = 1
    for scenario in ("single-sample", "case-control"):
        posterior = bootstrap(
            base, s, fold=fold, cell=cell, models=("a", "b"), scenario=scenario, prior=known(),
            n_bootstrap=20, seed=0,
        )  # fmt: skip
        assert all(np.isfinite(part).all() for part in posterior.interval(base))


def test_the_parts_are_those_fitted_alone(posterior):
    base, s, _, fold, _ = survey()
    labelling = Labelling("single-sample", 0.1, labelled_fraction=float(np.mean(s == 1)))
    train = fold >= 0
    stacker = Stacker(("lightgbm", "vit")).fit(
        base[train], s[train], fold=fold[train], labelling=labelling
    )
    np.testing.assert_array_equal(stacker.coef_, posterior.stacker.coef_)
