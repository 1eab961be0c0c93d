import numpy as np
import pytest

from clusterray.errors import InputError
from clusterray.pu import PriorEstimate, bbe_prior, elkan_noto_prior, estimate_prior

SETTINGS = {"seed": 5, "n_bootstrap": 40, "fallback": 7e-3}


def world(prior, *, n_unlabelled, n_positive, distance, seed):
    rng = np.random.default_rng(seed)
    k = rng.binomial(n_unlabelled, prior)
    hidden = rng.normal(distance, 1, k)
    return (
        rng.normal(distance, 1, n_positive),
        np.concatenate([rng.normal(size=n_unlabelled - k), hidden]),
    )


@pytest.mark.parametrize(
    ("prior", "n_unlabelled", "factor"),
    [(1e-4, 1_000_000, 1.5), (3e-3, 300_000, 1.3), (0.3, 50_000, 1.1)],
)
def test_case_control_prior_is_found(prior, n_unlabelled, factor):
    found = [
        estimate_prior(
            *world(prior, n_unlabelled=n_unlabelled, n_positive=300, distance=4, seed=seed),
            scenario="case-control",
            **SETTINGS,
        )
        for seed in range(5)
    ]
    assert all(e.source == "estimate" for e in found)
    assert prior / factor < np.median([e.value for e in found]) < prior * factor
    assert sum(e.interval[0] <= prior <= e.interval[1] for e in found) >= 3


def test_single_sample_gives_the_surveys_prior():
    """π of the survey, not π_U: at c = 0.9 they differ tenfold."""
    rng = np.random.default_rng(2)
    y = rng.random(40_000) < 0.05
    s = y & (rng.random(40_000) < 0.9)
    x = rng.normal(size=40_000) + 4 * y
    found = estimate_prior(x[s], x[~s], scenario="single-sample", **SETTINGS)
    assert found.source == "estimate"
    assert found.value == pytest.approx(0.05, rel=0.08)
    # One in ten of the unlabelled rows kept: told so, the answer is the same.
    kept = estimate_prior(
        x[s], x[~s][::10], scenario="single-sample", unlabelled_fraction=0.1, **SETTINGS
    )
    assert kept.value == pytest.approx(0.05, rel=0.15)


def test_only_the_order_of_scores_matters():
    positive, unlabelled = world(0.1, n_unlabelled=5000, n_positive=200, distance=4, seed=0)
    plain = estimate_prior(positive, unlabelled, scenario="case-control", **SETTINGS)
    bent = estimate_prior(np.exp(positive), np.exp(unlabelled), scenario="case-control", **SETTINGS)
    assert plain == bent


def test_elkan_noto_where_positives_are_certain_and_where_not():
    positive, unlabelled = world(0.2, n_unlabelled=20_000, n_positive=400, distance=6, seed=1)
    assert elkan_noto_prior(positive, unlabelled, seed=0).value == pytest.approx(0.2, rel=0.05)
    positive, unlabelled = world(1e-3, n_unlabelled=200_000, n_positive=400, distance=3, seed=1)
    refused = elkan_noto_prior(positive, unlabelled, seed=0)
    assert refused.value is None and "not certain" in refused.reason


def test_best_bin_refuses_what_it_cannot_see():
    rng = np.random.default_rng(0)
    assert "19 known lenses" in bbe_prior(rng.normal(size=19), rng.normal(size=100)).reason
    apart = bbe_prior(rng.normal(50, 1, 100), rng.normal(size=1000))
    assert apart.value is None and "fewer than 10 unlabelled" in apart.reason


def test_too_few_lenses_fall_back_and_say_so():
    positive, unlabelled = world(0.07, n_unlabelled=588, n_positive=12, distance=3, seed=0)
    found = estimate_prior(
        positive, unlabelled, scenario="single-sample", seed=0, n_bootstrap=20, fallback=0.067
    )
    assert (found.value, found.source, found.consistent) == (0.067, "fallback", False)
    assert found.estimates == {"elkan_noto": None, "bbe": None}
    assert any("elkan_noto ignored: 12 known lenses" in n for n in found.notes)
    assert found.interval == pytest.approx((0.0335, 0.134))
    assert PriorEstimate.from_json(found.to_json()) == found


def test_disagreement_falls_back(monkeypatch):
    from clusterray.pu import prior

    monkeypatch.setattr(prior, "_elkan_noto", lambda cells, rng: prior.Estimate(0.4))
    positive, unlabelled = world(0.2, n_unlabelled=5000, n_positive=200, distance=5, seed=1)
    found = estimate_prior(positive, unlabelled, scenario="case-control", **SETTINGS)
    assert found.source == "fallback" and not found.consistent
    assert found.estimates["elkan_noto"] == 0.4
    assert found.estimates["bbe"] == pytest.approx(0.2, rel=0.15)
    assert "valid estimators differ by more than half" in found.notes


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"positive": []}, r"known lenses: array of shape \(0,\)"),
        ({"unlabelled": [[1.0]]}, "unlabelled rows: array of shape"),
        ({"unlabelled": [0.0, np.nan]}, "1 values are not finite, the first in row 1"),
        ({"scenario": "case control"}, "did you mean 'case-control'"),
        ({"fallback": 0.0}, "fallback is 0.0"),
        ({"n_bootstrap": 3}, "n_bootstrap is 3"),
        ({"fallback": 0.01, "scenario": "single-sample"}, "below the share of known lenses 0.333"),
    ],
)
def test_bad_input_is_refused(change, match):
    arguments = {"positive": [1.0], "unlabelled": [0.0, 2.0], "scenario": "case-control"}
    arguments |= {**SETTINGS, **change}
    with pytest.raises(InputError, match=match):
        estimate_prior(arguments.pop("positive"), arguments.pop("unlabelled"), **arguments)


def test_constant_scores_fall_back():
    found = estimate_prior(np.ones(50), np.ones(500), scenario="case-control", **SETTINGS)
    assert found.source == "fallback" or found.value > 0.9, "an upper bound of 1 says nothing"
