import numpy as np
import pytest
from lightgbm import LGBMClassifier
from scipy.special import logit
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.utils.estimator_checks import parametrize_with_checks

from clusterray.errors import InputError
from clusterray.pu import ElkanNotoClassifier, Labelling
from clusterray.pu.elkan_noto import copy_masses, cross_fit_splits
from tests.pu.gaussian_worlds import slope_and_mean, world


def learner():
    # The default tolerance is on the mean of p − y, and as large as π where lenses are rare.
    return LogisticRegression(C=1e4, solver="newton-cholesky", tol=1e-9)


# scenario, π, c, distance, rows, labelled rows (about)
CELLS = [
    ("single-sample", 0.3, 0.1, 2, 60_000),  # 1,800
    ("single-sample", 0.3, 0.1, 4, 200_000),  # 6,000
    ("single-sample", 0.3, 0.5, 2, 30_000),  # 4,500
    ("single-sample", 0.3, 0.5, 4, 100_000),  # 15,000
    ("single-sample", 0.3, 0.9, 2, 30_000),  # 8,100
    ("single-sample", 0.3, 0.9, 4, 60_000),  # 16,200
    ("single-sample", 0.01, 0.5, 2, 70_000),  # 350
    ("single-sample", 0.01, 0.5, 4, 300_000),  # 1,500
    ("single-sample", 0.01, 0.9, 2, 40_000),  # 360
    ("single-sample", 0.01, 0.9, 4, 150_000),  # 1,350
    ("case-control", 0.3, None, 2, 60_000),  # 3,000
    ("case-control", 0.3, None, 4, 200_000),  # 10,000
    ("case-control", 0.01, None, 2, 60_000),  # 3,000
    ("case-control", 0.01, None, 4, 100_000),  # 5,000
]
RARE_CELLS = [
    ("single-sample", 0.01, 0.1, 2, 350_000),  # 350
    ("single-sample", 0.01, 0.1, 4, 1_000_000),  # 1,000
    ("single-sample", 1e-3, 0.1, 2, 3_500_000),  # 350
    ("single-sample", 1e-3, 0.1, 4, 7_000_000),  # 700
    ("single-sample", 1e-3, 0.5, 2, 1_000_000),  # 500
    ("single-sample", 1e-3, 0.5, 4, 2_000_000),  # 1,000
    ("single-sample", 1e-3, 0.9, 2, 1_000_000),  # 900
    ("single-sample", 1e-3, 0.9, 4, 1_000_000),  # 900
    ("case-control", 1e-3, None, 2, 500_000),  # 1,000
    ("case-control", 1e-3, None, 4, 500_000),  # 1,000
    ("single-sample", 1e-4, 0.5, 4, 12_000_000),  # 600
    ("single-sample", 1e-4, 0.9, 2, 8_000_000),  # 720
    ("single-sample", 1e-4, 0.9, 4, 8_000_000),  # 720
    ("case-control", 1e-4, None, 2, 4_000_000),  # 1,000
    ("case-control", 1e-4, None, 4, 4_000_000),  # 1,000
]


def check_cell(scenario, prior, c, distance, n):
    n_known = 1000 if scenario == "case-control" and prior < 0.01 else None
    x, s, true, survey = world(
        scenario, prior=prior, c=c, distance=distance, n=n, n_known=n_known, seed=3
    )
    assert s.sum() >= 300
    model = ElkanNotoClassifier(learner(), scenario=scenario, prior=prior).fit(x, s)
    slope, mean = slope_and_mean(model.decision_function(x), true, survey, prior)
    print(
        f"{scenario} π={prior} c={c} d′={distance} n={n}: slope {slope:.3f}, mean(p)/π {mean:.3f}"
    )
    assert slope == pytest.approx(1.0, abs=0.1)
    # nπ lenses are there, give or take their root.
    assert mean == pytest.approx(1.0, abs=3 / np.sqrt(n * prior))
    if scenario == "single-sample":
        assert model.c_ == pytest.approx(c, rel=4 / np.sqrt(s.sum()))


@pytest.mark.parametrize(("scenario", "prior", "c", "distance", "n"), CELLS)
def test_posterior_has_unit_slope_and_the_priors_mean(scenario, prior, c, distance, n):
    check_cell(scenario, prior, c, distance, n)


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "prior", "c", "distance", "n"), RARE_CELLS)
def test_posterior_has_unit_slope_where_lenses_are_rare(scenario, prior, c, distance, n):
    check_cell(scenario, prior, c, distance, n)


@pytest.mark.parametrize(
    ("scenario", "prior", "c", "distance", "n"),
    [
        ("single-sample", 0.3, 0.5, 2, 40_000),
        ("case-control", 0.05, None, 2, 60_000),
        # A thousand lenses in the survey: with 600 of them the slope scatters by a tenth.
        ("case-control", 0.01, None, 4, 100_000),
    ],
)
def test_boosted_trees_give_the_same_posterior(scenario, prior, c, distance, n):
    """LightGBM as base learner: g that saturates at c, and steps instead of a line."""
    x, s, true, survey = world(scenario, prior=prior, c=c, distance=distance, n=n, seed=3)
    trees = LGBMClassifier(
        n_estimators=60, num_leaves=7, min_child_samples=100, verbosity=-1, n_jobs=1
    )
    model = ElkanNotoClassifier(trees, scenario=scenario, prior=prior).fit(x, s)
    slope, mean = slope_and_mean(model.decision_function(x), true, survey, prior)
    assert slope == pytest.approx(1.0, abs=0.1)
    assert mean == pytest.approx(1.0, abs=3 / np.sqrt(n * prior))


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


def test_known_non_lenses_count_as_one_row_of_the_survey():
    """A tenth of the unlabelled rows and 2,000 extra non-lenses: they are 200 of 90,000 rows.

    With weight 1 instead of f they would be 2,000 of 9,000 and the log-odds lower by 0.2.
    """
    x, s, true, _ = world("single-sample", prior=0.1, c=0.5, distance=3, n=100_000, seed=7)
    kept = (s == 1) | (np.random.default_rng(5).random(len(s)) < 0.1)
    extra = np.random.default_rng(8).normal(size=(2000, 1))
    settings = {"scenario": "single-sample", "prior": 0.1, "unlabelled_fraction": 0.1}
    plain = ElkanNotoClassifier(learner(), **settings).fit(x[kept], s[kept])
    pushed = ElkanNotoClassifier(learner(), **settings).fit(
        np.append(x[kept], extra, axis=0), np.append(s[kept], np.full(2000, -1))
    )
    near = np.abs(true) < 3
    fall = plain.decision_function(x[near]) - pushed.decision_function(x[near])
    assert 0.0 < fall.mean() < 0.06
    masses = copy_masses(
        np.array([1, 0, -1]),
        np.array([1.0, 0.25, 0.0]),
        labelling=Labelling("single-sample", 0.1, unlabelled_fraction=0.1),
    )
    np.testing.assert_allclose(masses, [[0.1, 0.25, 0.0], [0.0, 0.75, 0.1]])


@pytest.mark.parametrize("class_weight", ["balanced", {1: 50.0}, {0: 0.1, 1: 3.0}])
def test_class_weights_are_set_back(class_weight):
    x, s, true, survey = world("single-sample", prior=0.05, c=0.5, distance=3, n=60_000)
    plain = ElkanNotoClassifier(learner(), prior=0.05).fit(x, s)
    weighted = ElkanNotoClassifier(learner().set_params(class_weight=class_weight), prior=0.05)
    found = weighted.fit(x, s).decision_function(x)
    assert abs(weighted.log_odds_shift_) > 1
    both = survey & (np.abs(true) < 4)
    np.testing.assert_allclose(found[both], plain.decision_function(x)[both], atol=0.25)


def test_positive_weight_of_boosted_trees_is_set_back_and_an_unknown_one_refused():
    x, s, true, _ = world("single-sample", prior=0.1, c=0.5, distance=2, n=40_000)
    options = {"n_estimators": 50, "num_leaves": 5, "verbosity": -1, "n_jobs": 1}
    trees = LGBMClassifier(scale_pos_weight=20.0, **options)
    model = ElkanNotoClassifier(trees, prior=0.1).fit(x, s)
    assert model.log_odds_shift_ == pytest.approx(np.log(20))
    near = np.abs(true) < 3
    assert np.abs(np.mean(model.decision_function(x)[near] - true[near])) < 0.15
    with pytest.raises(InputError, match=r"is_unbalance=True\): how far it shifts"):
        ElkanNotoClassifier(LGBMClassifier(is_unbalance=True, **options), prior=0.1).fit(x, s)


def test_weights_count_rows():
    """Doubled rows and weights of two give the same posterior."""
    x, s, true, _ = world("single-sample", prior=0.2, c=0.5, distance=3, n=20_000)
    twice = np.arange(len(s)) % 2 == 0
    weighted = ElkanNotoClassifier(learner(), prior=0.2).fit(
        x, s, sample_weight=np.where(twice, 2.0, 1.0)
    )
    doubled = ElkanNotoClassifier(learner(), prior=0.2).fit(
        np.concatenate([x, x[twice]]), np.concatenate([s, s[twice]])
    )
    near = np.abs(true) < 4
    np.testing.assert_allclose(
        weighted.decision_function(x[near]), doubled.decision_function(x[near]), atol=0.1
    )
    assert weighted.c_ == pytest.approx(doubled.c_)
    with pytest.raises(InputError, match="negative"):
        weighted.fit(x, s, sample_weight=-np.ones(len(s)))


LABELS_HAVE_MEANING = "labels are 1, 0 and −1 and mean known lens, unlabelled, known non-lens"
DOES_NOT_APPLY = {
    "check_classifiers_classes": LABELS_HAVE_MEANING,
    "check_classifier_not_supporting_multiclass": LABELS_HAVE_MEANING,
    "check_estimators_dtypes": LABELS_HAVE_MEANING,
    "check_classifier_data_not_an_array": LABELS_HAVE_MEANING,
    "check_sample_weights_not_an_array": LABELS_HAVE_MEANING,
    "check_sample_weights_shape": LABELS_HAVE_MEANING,
    "check_sample_weights_not_overwritten": LABELS_HAVE_MEANING,
    "check_fit2d_1feature": LABELS_HAVE_MEANING,
    "check_sample_weight_equivalence_on_dense_data": "a row taken twice may fall into two splits",
    "check_sample_weights_pandas_series": "its twelve rows hold more known lenses than π = 0.95",
}


@parametrize_with_checks(
    [ElkanNotoClassifier(LogisticRegression(), prior=0.95, cv=2)],
    expected_failed_checks=lambda _: DOES_NOT_APPLY,
)
def test_scikit_learns_estimator_checks(estimator, check):
    check(estimator)


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
