import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from clusterray.errors import InputError
from clusterray.pu import ElkanNotoClassifier
from clusterray.pu.elkan_noto import cross_fit_splits


def learner():
    # lbfgs stops too early where positives are rare.
    return LogisticRegression(C=1e4, solver="newton-cholesky")


def world(scenario, *, prior, c, distance, n, seed=0):
    """Two unit Gaussians: x (n, 1), s, true log-odds, and which rows are the survey's."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    s = (y & (rng.random(n) < c)) if scenario == "single-sample" else np.zeros(n, bool)
    if scenario == "case-control":
        y, s = np.append(y, np.ones(n // 20, bool)), np.append(s, np.ones(n // 20, bool))
    x = rng.normal(size=len(y)) + distance * y
    true = logit(prior) + distance * x - distance**2 / 2
    return x[:, None], s.astype(int), true, np.arange(len(x)) < n


def slope_and_mean(log_odds, true, survey, prior):
    """Slope of log-odds on the true ones where both classes occur, and mean(p)/π."""
    both = survey & (np.abs(true) < 5)
    p = expit(log_odds[survey])
    return np.polyfit(true[both], log_odds[both], 1)[0], p.mean() / prior


CELLS = [
    ("single-sample", 0.3, 0.1, 2, 60_000),
    ("single-sample", 0.3, 0.5, 2, 20_000),
    ("single-sample", 0.3, 0.9, 4, 20_000),
    ("single-sample", 0.01, 0.5, 4, 100_000),
    ("case-control", 0.3, None, 2, 20_000),
    ("case-control", 0.01, None, 2, 60_000),
]


@pytest.mark.parametrize(("scenario", "prior", "c", "distance", "n"), CELLS)
def test_posterior_has_unit_slope_and_the_priors_mean(scenario, prior, c, distance, n):
    x, s, true, survey = world(scenario, prior=prior, c=c, distance=distance, n=n)
    model = ElkanNotoClassifier(learner(), scenario=scenario, prior=prior).fit(x, s)
    slope, mean = slope_and_mean(model.decision_function(x), true, survey, prior)
    assert slope == pytest.approx(1.0, abs=0.1)
    assert mean == pytest.approx(1.0, abs=0.06)
    if scenario == "single-sample":
        assert model.c_ == pytest.approx(c, rel=0.05)


@pytest.mark.parametrize("mistake", ["g over pi", "weights 1/c", "single-sample on case-control"])
def test_the_classic_mistakes_fail_that_test(mistake):
    scenario = "case-control" if "case-control" in mistake else "single-sample"
    x, s, true, survey = world(scenario, prior=0.3, c=0.5, distance=2, n=20_000)
    if scenario == "case-control":
        wrong = ElkanNotoClassifier(learner(), scenario="single-sample", prior=0.3).fit(x, s)
        log_odds = wrong.decision_function(x)
    elif mistake == "weights 1/c":
        weight = np.where(s == 1, 1 / 0.5, 1.0)
        log_odds = learner().fit(x, s, sample_weight=weight).decision_function(x)
    else:
        g = cross_val_predict(learner(), x, s, cv=5, method="predict_proba")[:, 1]
        log_odds = logit(np.clip(g / 0.3, 1e-9, 1 - 1e-9))
    slope, mean = slope_and_mean(log_odds, true, survey, 0.3)
    assert abs(slope - 1) > 0.1 or abs(mean - 1) > 0.06


def test_prior_is_estimated_where_it_can_be_and_asked_for_where_not():
    x, s, _, _ = world("single-sample", prior=0.2, c=0.4, distance=4, n=10_000)
    model = ElkanNotoClassifier(learner(), scenario="single-sample").fit(x, s)
    assert model.prior_ == pytest.approx(0.2, rel=0.12)
    assert model.prior_estimate_.source == "estimate"
    few = np.flatnonzero(s == 1)[:10]
    rows = np.append(np.flatnonzero(s == 0), few)
    with pytest.raises(InputError, match="π cannot be estimated from 10 known lenses"):
        ElkanNotoClassifier(learner(), scenario="single-sample").fit(x[rows], s[rows])


def test_subsampled_unlabelled_rows_are_set_back():
    x, s, true, _ = world("single-sample", prior=0.05, c=0.5, distance=3, n=60_000)
    kept = (s == 1) | (np.arange(len(s)) % 5 == 0)
    model = ElkanNotoClassifier(
        learner(), scenario="single-sample", prior=0.05, unlabelled_fraction=0.2
    ).fit(x[kept], s[kept])
    slope, mean = slope_and_mean(model.decision_function(x), true, np.ones(len(s), bool), 0.05)
    assert slope == pytest.approx(1.0, abs=0.1)
    assert mean == pytest.approx(1.0, abs=0.08)


def test_known_non_lenses_push_down_but_leave_c_alone():
    x, s, _, _ = world("single-sample", prior=0.2, c=0.5, distance=3, n=5000)
    twins = np.full((500, 1), 3.0)
    settings = {"scenario": "single-sample", "prior": 0.2}
    plain = ElkanNotoClassifier(learner(), **settings).fit(x, s)
    pushed = ElkanNotoClassifier(learner(), **settings).fit(
        np.append(x, twins, axis=0), np.append(s, np.full(500, -1))
    )
    assert pushed.c_ == plain.c_
    np.testing.assert_array_equal(pushed.label_scores_, plain.label_scores_)
    assert pushed.decision_function([[3.0]]) < plain.decision_function([[3.0]]) - 0.3


def test_scikit_learn_manners():
    model = ElkanNotoClassifier(learner(), scenario="case-control", prior=0.1, cv=3)
    copy = clone(model)
    assert copy.get_params()["prior"] == 0.1
    x, s, _, _ = world("case-control", prior=0.1, c=None, distance=2, n=1000)
    first, again = (m.fit(x, s).predict_proba(x) for m in (model, copy))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first.sum(axis=1), 1)
    np.testing.assert_array_equal(model.predict(x), first[:, 1] > 0.5)


@pytest.mark.parametrize(
    ("s", "options", "match"),
    [
        ([0, 0, 0, 0], {}, "no known lenses"),
        ([1, 1, 1, 1], {}, "no unlabelled rows"),
        ([1, 0, 0, 2], {}, "label 2 found"),
        ([1, 0, 0], {}, r"labels have shape \(3,\), expected \(4,\)"),
        ([1, 0, 0, 0], {}, "1 known lenses cannot be spread over cv = 5"),
        ([1, 1, 0, 0], {"cv": 2, "prior": 0.1}, "0.5 of the rows are known lenses"),
        ([1, 1, 0, 0], {"cv": 2, "prior": 2.0}, "prior is 2.0"),
        ([1, 1, 0, 0], {"cv": 2, "scenario": "both"}, "unknown scenario 'both'"),
    ],
)
def test_bad_input_is_refused(s, options, match):
    model = ElkanNotoClassifier(learner(), **{"scenario": "single-sample", "prior": 0.9, **options})
    with pytest.raises(InputError, match=match):
        model.fit(np.arange(4.0)[:, None], s)


def test_groups_stay_whole_in_cross_fitting():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 400)
    s = (rng.random(400) < 0.1).astype(np.int8)
    for train, test in cross_fit_splits(s, groups=groups, n_splits=4, seed=1):
        assert not set(groups[train]) & set(groups[test])
    with pytest.raises(InputError, match="1 groups with known lenses cannot be spread"):
        cross_fit_splits(s, groups=np.zeros(400), n_splits=2, seed=1)
