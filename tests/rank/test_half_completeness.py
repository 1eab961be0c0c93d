"""Where completeness passes one half: against scikit-learn, a scan, and its promised coverage."""

import numpy as np
import pytest
from scipy.stats import binomtest, chi2
from sklearn.linear_model import LogisticRegression

from clusterray.rank.half_completeness import half_point


def drawn(n, *, seed, half=8.0, slope=1.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(8, 2, n)
    return x, rng.random(n) < 1 / (1 + np.exp(-slope * (x - half)))


@pytest.mark.parametrize("slope", [1.5, -0.8])
def test_it_is_where_an_unregularised_logistic_regression_crosses(slope):
    x, found = drawn(300, seed=1, slope=slope)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(x[:, None], found)
    point = half_point(x, found)
    assert point.value == pytest.approx(-model.intercept_[0] / model.coef_[0, 0], abs=2e-3)


def test_its_interval_is_where_the_profile_likelihood_says():
    """Against a scan over both parameters."""
    x, found = drawn(80, seed=4)
    sign = np.where(found, 1, -1)
    halves, slopes = np.linspace(4, 12, 801), np.linspace(-6, 6, 601)
    best = np.array(
        [
            2 * np.logaddexp(0, -slopes[:, None] * sign * (x - half)).sum(axis=1).min()
            for half in halves
        ]
    )
    inside = halves[best <= best.min() + chi2.ppf(0.95, 1)]
    point = half_point(x, found)
    assert (point.low, point.high) == pytest.approx((inside[0], inside[-1]), abs=0.02)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    repeats = 150
    covered = 0
    for seed in range(repeats):
        x, found = drawn(120, seed=100 + seed)
        point = half_point(x, found)
        assert point.low is not None and point.high is not None
        covered += point.low <= 8 <= point.high
    assert binomtest(covered, repeats, 0.95).pvalue > 0.001


def test_a_logarithm_is_undone():
    x, found = drawn(200, seed=2)
    straight, bent = half_point(x, found), half_point(np.exp(x), found, scale="log")
    assert bent.scale == "log"
    assert np.log([bent.low, bent.value, bent.high]) == pytest.approx(
        [straight.low, straight.value, straight.high], abs=1e-6
    )


def test_a_sharp_step_lies_between_the_last_missed_and_the_first_found():
    x = np.concatenate([np.linspace(1, 4, 30), np.linspace(5, 9, 30)])
    point = half_point(x, x > 4.5)
    assert 4 <= point.value <= 5
    assert point.low < 4.1
    assert point.high > 4.9


def test_an_end_beyond_the_lenses_is_open():
    x = np.linspace(0, 1, 200)
    found = np.arange(200) % 10 < np.floor(1 + 5 * x)
    point = half_point(x, found)
    assert point.value is not None
    assert point.high is None
    assert point.low < point.value


@pytest.mark.parametrize(
    ("x", "found", "note"),
    [
        (np.arange(30.0), np.arange(30) < 9, "fewer than 10"),
        (np.zeros(0), np.zeros(0, bool), "fewer than 10"),
        (np.ones(40), np.arange(40) % 2 == 0, "one value"),
        (np.arange(40.0), np.arange(40) % 2 == 0, "no trend"),
        (np.arange(600.0), np.arange(600) % 60 < np.arange(600) // 60 * 2 + 2, "below half"),
        (np.arange(600.0), np.arange(600) % 60 >= np.arange(600) // 60 * 2 + 2, "above half"),
    ],
)
def test_where_nothing_can_be_said_it_says_why(x, found, note):
    point = half_point(x, found)
    assert (point.value, point.low, point.high) == (None, None, None)
    assert note in point.note


def test_a_logarithm_needs_positive_values():
    x, found = drawn(100, seed=3)
    assert "no logarithm" in half_point(x - 8, found, scale="log").note
