import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from clusterray.ensemble.bootstrap import bootstrap
from clusterray.ensemble.posterior import PosteriorEnsemble
from clusterray.ensemble.stacking import Stacker
from clusterray.errors import BundleError, InputError
from clusterray.pu import Labelling, PriorEstimate


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
        PosteriorEnsemble.from_json({**first.to_json(), "prior": [1.0]})


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
    monkeypatch.setattr("clusterray.ensemble.posterior._CHUNK_VALUES", 700)
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
        curves=(calibrator.parameters_,) * 20,
        prior=posterior.prior,
        choice=posterior.choice,
    )
    base = np.array([[0.0, 1.0], [2.0, 2.0]])
    given = stacker.decision_function(base) + np.array([1.5, -2.0])
    assert abs(calibrator.parameters_[0] - 1) > 0.01
    for logit_stack in (None, given):
        p, low, high = alike.interval(base, logit_stack=logit_stack)
        np.testing.assert_allclose([low, high], [p, p], rtol=1e-9)


def test_a_hundred_thousand_rows_in_little_memory(posterior):
    members = 200
    large = PosteriorEnsemble(
        posterior.stacker,
        posterior.calibrator,
        *(np.resize(a, (members, *a.shape[1:])) for a in (posterior.coef, posterior.intercept)),
        curves=posterior.curves * 10,
        prior=np.resize(posterior.prior, members),
        choice=posterior.choice,
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


def purity_world(seed, n=9000, prior=0.08, c=0.4):
    return survey(n, prior=prior, c=c, seed=seed)


def check_purity(n_repeats, budgets):
    inside = []
    for seed in range(n_repeats):
        rng = np.random.default_rng(1000 + seed)
        base, s, _, fold, cell = purity_world(seed)
        posterior = bootstrap(
            base, s, fold=fold, cell=cell, models=("lightgbm", "vit"), scenario="single-sample",
            prior=known(0.08), n_bootstrap=40, seed=seed,
        )  # fmt: skip
        fresh, _, fresh_true, _, _ = purity_world(5000 + seed, n=20_000)
        y = rng.random(len(fresh)) < expit(fresh_true)
        order = np.argsort(-posterior.interval(fresh)[0], kind="stable")
        finds, low, high = posterior.expected_finds(fresh[order], budgets, seed=seed)
        found = np.cumsum(y[order])[np.array(budgets) - 1]
        assert np.all((low <= finds) & (finds <= high))
        inside.append((low <= found) & (found <= high))
    return np.mean(inside, axis=0)


def test_purity_at_the_top_is_inside_its_interval():
    assert np.all(check_purity(4, (100, 500)) >= 0.5)


@pytest.mark.slow
def test_purity_at_the_top_is_inside_its_interval_in_fifty_repeats():
    covered = check_purity(50, (100, 500))
    print(f"purity at 100 and 500 inside the interval: {covered}")
    assert np.all(covered >= 0.8)


def test_expected_finds_are_sums_of_p_and_do_not_depend_on_chunks(monkeypatch, posterior):
    base = np.random.default_rng(0).normal(size=(500, 2)) * 2
    p = posterior.interval(base)[0]
    finds, low, high = posterior.expected_finds(base, (1, 10, 500))
    np.testing.assert_allclose(finds, np.cumsum(p)[[0, 9, 499]])
    monkeypatch.setattr("clusterray.ensemble.posterior._CHUNK_VALUES", 20 * 37)
    again = posterior.expected_finds(base, (1, 10, 500))
    np.testing.assert_allclose(again[0], finds)
    np.testing.assert_array_equal(again[1:], (low, high))
    with pytest.raises(InputError, match="budget 501: expected 1 to 500"):
        posterior.expected_finds(base, (501,))


@pytest.mark.parametrize("kind", ["beta", "isotonic", "temperature"])
def test_every_kind_of_calibrator_has_an_ensemble(kind):
    posterior, base, _ = ensemble(n_bootstrap=20, calibrator=kind)
    p, low, high = posterior.interval(base)
    assert np.all((low <= p) & (p <= high))
    assert posterior.choice.kind == kind
    back = PosteriorEnsemble.from_json(json.loads(json.dumps(posterior.to_json())))
    for a, b in zip(back.interval(base), (p, low, high), strict=True):
        np.testing.assert_array_equal(a, b)
    chosen = ensemble(n_bootstrap=20, calibrator="auto")[0]
    assert set(chosen.choice.loss) == {"platt", "beta", "isotonic", "temperature"}


def test_context_moves_the_stack_and_its_interval_alike():
    base, s, _, fold, cell = survey(6000)
    rng = np.random.default_rng(3)
    seeing = rng.normal(size=6000)
    # In bad seeing the models' logits are too low by one.
    blurred = base - 0.5 * (seeing > 0)[:, None]
    context = np.column_stack([seeing, (seeing > 0).astype(float)])
    context[:5, 0] = np.nan
    options = {
        "fold": fold, "cell": cell, "models": ("a", "b"), "scenario": "single-sample",
        "prior": known(), "n_bootstrap": 20, "seed": 2,
    }  # fmt: skip
    names = ("seeing", "bad")
    found = bootstrap(blurred, s, context=context, context_names=names, **options)
    assert found.stacker.context_coef_[1] > 0.3
    stack = found.stacker.decision_function(blurred, context)
    p, low, high = found.interval(blurred, logit_stack=stack)
    np.testing.assert_array_equal(p, found.calibrator.predict_proba(stack))
    assert np.all((low <= p) & (p <= high))
    back = PosteriorEnsemble.from_json(json.loads(json.dumps(found.to_json())))
    np.testing.assert_array_equal(back.stacker.decision_function(blurred, context), stack)
    with pytest.raises(InputError, match=r"expected \(6000, 2\) for seeing, bad"):
        found.interval(blurred)
