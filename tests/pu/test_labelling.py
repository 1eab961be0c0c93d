import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from clusterray.errors import InputError
from clusterray.pu import LabelError, Labelling, LabelModel, unlabelled_prior
from clusterray.pu.labelling import check_weights


@given(
    eta=st.lists(st.floats(-40, 40), min_size=1, max_size=20),
    c=st.floats(0.01, 1.0),
    fraction=st.floats(0.01, 1.0),
)
def test_likelihood_is_that_of_thinned_labels(eta, c, fraction):
    """P(s) written out: label with c, keep unlabelled rows with f."""
    eta = np.array(eta)
    labelled, kept = c * expit(eta), fraction * (1 - c + c * expit(-eta))
    model = LabelModel(gain=c / fraction, c=c)
    for flag, share in ((True, labelled), (False, kept)):
        value, _ = model.negative_log_likelihood(eta, np.full(len(eta), flag))
        expected = -np.log(share) + np.log(labelled + kept)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model", [LabelModel(2.0, 0.6), LabelModel(1.0, 1.0), LabelModel(50.0, 0)])
def test_gradient(model):
    eta = np.linspace(-20, 20, 41)
    for flag in (True, False):
        labelled = np.full(len(eta), flag)
        above, _ = model.negative_log_likelihood(eta + 1e-5, labelled)
        below, _ = model.negative_log_likelihood(eta - 1e-5, labelled)
        _, gradient = model.negative_log_likelihood(eta, labelled)
        np.testing.assert_allclose(gradient, (above - below) / 2e-5, atol=1e-6)


@pytest.mark.parametrize("model", [LabelModel(2.0, 0.6), LabelModel(1.0, 1.0), LabelModel(50.0, 0)])
def test_scoring_step_is_the_gradient_and_its_variance(model):
    eta = np.linspace(-20, 20, 41)
    yes, no = (np.full(len(eta), flag) for flag in (True, False))
    slopes = []
    for labelled in (yes, no):
        value, slope = model.negative_log_likelihood(eta, labelled)
        np.testing.assert_allclose(model.loss(eta, labelled), value, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(model.newton(eta, labelled)[0], slope, rtol=1e-6, atol=1e-12)
        slopes.append(slope)
    p = np.exp(-model.negative_log_likelihood(eta, yes)[0])
    variance = p * slopes[0] ** 2 + (1 - p) * slopes[1] ** 2
    np.testing.assert_allclose(model.newton(eta, yes)[1], variance, rtol=1e-5, atol=1e-12)
    # Finite where nothing is left to learn.
    assert np.isfinite(model.newton(np.array([-800.0, 800.0]), np.array([False, False]))).all()


@given(eta=st.floats(-8, 8), c=st.floats(0.01, 0.99))
def test_scoring_step_is_that_of_two_copies(eta, c):
    """Cross-entropy of a row in two copies of weights w and 1 − w has the gradient σ − w."""
    p = expit(eta)
    w = (1 - c) / c * (c * p) / (1 - c * p)
    slope, _ = LabelModel(gain=c, c=c).newton(np.array([eta, eta]), np.array([True, False]))
    np.testing.assert_allclose(slope, [p - 1, p - w], rtol=1e-9, atol=1e-12)


def test_posterior_is_g_over_c_and_the_case_control_formula():
    g = np.array([0.01, 0.1, 0.25])
    single = Labelling("single-sample", 0.4, labelled_fraction=0.1).model(np.array([1, 0]))
    np.testing.assert_allclose(single.posterior(g / (1 - g)), g / 0.25)
    s = np.array([1] * 30 + [0] * 600)
    control = Labelling("case-control", 0.02).model(s)
    np.testing.assert_allclose(control.posterior(g / (1 - g)), 0.02 * 600 / 30 * g / (1 - g))
    np.testing.assert_array_equal(single.posterior(np.array([np.inf])), [1.0])


def test_two_prevalences():
    """π_U counted in a made survey of 1000 rows, 40 lenses, 10 known."""
    assert unlabelled_prior(
        0.04, scenario="single-sample", labelled_fraction=0.01
    ) == pytest.approx(30 / 990)
    assert unlabelled_prior(0.04, scenario="case-control", labelled_fraction=0.3) == 0.04
    prior, c = 0.04, 0.25
    assert prior * (1 - c) / (1 - prior * c) == pytest.approx(30 / 990)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scenario": "single_sample"}, "did you mean 'single-sample'"),
        ({"prior": 0.0}, "prior is 0.0"),
        ({"prior": float("nan")}, "prior is nan"),
        ({"labelled_fraction": 0.2}, "0.2 of the rows are known lenses"),
        ({"unlabelled_fraction": 0.0}, "unlabelled_fraction is 0.0"),
    ],
)
def test_bad_settings_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        Labelling(**{"scenario": "single-sample", "prior": 0.1, **options})


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        ([1.0, -0.5, 1.0], "weight -0.5 in row 1 is negative"),
        ([1.0, np.nan, 1.0], "weights: 1 values are not finite, the first in row 1"),
        ([1.0, 1.0], r"array of shape \(2,\), expected \(3\)"),
        ([0.0, 1.0, 1.0], "all known lenses have zero weight"),
        ([1.0, 0.0, 1.0], "all unlabelled rows have zero weight"),
    ],
)
def test_bad_weights_are_refused(weight, match):
    with pytest.raises(LabelError, match=match):
        check_weights(weight, np.array([1, 0, -1]), where="here")


def test_more_known_lenses_than_the_prior_allows():
    s = np.array([1] * 12 + [0] * 588)
    with pytest.raises(InputError, match=r"prior π = 0.0001, but 0.02 of the rows"):
        Labelling("single-sample", 1e-4).model(s)
    # Twelve known lenses among 588 / 1e-3 rows fit well.
    assert Labelling("single-sample", 1e-4, unlabelled_fraction=1e-3).model(s).c < 0.21
