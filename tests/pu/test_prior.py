import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from clusterray.errors import InputError
from clusterray.pu import (
    PriorEstimate,
    bbe_prior,
    dedpul_prior,
    elkan_noto_prior,
    estimate_prior,
    mixture_prior,
)
from tests.pu.gaussian_worlds import prior_world

SETTINGS = {"seed": 5, "n_bootstrap": 40, "fallback": 7e-3}


# The estimators were developed on seeds from 0 on.
FRESH = 900_000


def check_prior(prior, *, n_unlabelled, factor, n_seeds):
    found = [
        estimate_prior(
            *prior_world(prior, n_unlabelled=n_unlabelled, n_positive=300, distance=4, seed=seed),
            scenario="case-control",
            **SETTINGS,
        )
        for seed in range(FRESH, FRESH + n_seeds)
    ]
    median = np.median([e.value for e in found])
    covered = np.mean([e.interval[0] <= prior <= e.interval[1] for e in found])
    valid = {n: sum(e.estimates[n] is not None for e in found) for n in found[0].estimates}
    print(
        f"π={prior} n_u={n_unlabelled}: median {median / prior:.3f} π, covered {covered}, {valid}"
    )
    assert all(e.source == "estimate" for e in found)
    assert prior / factor < median < prior * factor
    assert covered >= 0.8


@pytest.mark.parametrize(
    ("prior", "n_unlabelled", "factor"),
    [(1e-4, 1_000_000, 1.5), (3e-3, 300_000, 1.3), (0.3, 50_000, 1.1)],
)
def test_case_control_prior_is_found(prior, n_unlabelled, factor):
    check_prior(prior, n_unlabelled=n_unlabelled, factor=factor, n_seeds=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prior", "factor"),
    [(3e-5, 1.8), (1e-4, 1.5), (4e-4, 1.5), (3e-3, 1.5), (1e-2, 1.15), (0.3, 1.15)],
)
def test_prior_of_a_survey_of_a_million(prior, factor):
    check_prior(prior, n_unlabelled=1_000_000, factor=factor, n_seeds=20)


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


def test_only_the_mixture_looks_at_more_than_the_order_of_scores():
    positive, unlabelled = prior_world(0.1, n_unlabelled=5000, n_positive=200, distance=4, seed=0)
    plain = estimate_prior(positive, unlabelled, scenario="case-control", **SETTINGS)
    bent = estimate_prior(np.exp(positive), np.exp(unlabelled), scenario="case-control", **SETTINGS)
    for name in ("elkan_noto", "bbe", "dedpul"):
        assert plain.estimates[name] == bent.estimates[name]
    assert plain.estimates["mixture"] == pytest.approx(0.1, rel=0.15)
    assert bent.estimates["mixture"] is None
    assert any(note.startswith("mixture ignored") for note in bent.notes)


@pytest.mark.parametrize("prior", [0.3, 1e-2, 1e-3])
def test_mixture_is_the_maximum_of_the_likelihood(prior):
    """Against scikit-learn's free mixture where that can see the lenses, else against the truth."""
    positive, unlabelled = prior_world(
        prior, n_unlabelled=200_000, n_positive=400, distance=4, seed=2
    )
    found = mixture_prior(positive, unlabelled)
    if prior > 0.1:
        free = GaussianMixture(2, random_state=0, means_init=[[0.0], [4.0]])
        share = free.fit(unlabelled[:, None]).weights_[1]
        assert found.value == pytest.approx(share, rel=0.02)
    assert found.value == pytest.approx(prior, rel=4 / np.sqrt(200_000 * prior))


def test_mixture_refuses_what_it_cannot_tell_apart():
    positive, unlabelled = prior_world(0.1, n_unlabelled=20_000, n_positive=300, distance=1, seed=0)
    assert "too near" in mixture_prior(positive, unlabelled).reason
    positive, unlabelled = prior_world(
        3e-5, n_unlabelled=20_000, n_positive=300, distance=4, seed=0
    )
    assert mixture_prior(positive, unlabelled).value is None
    assert "one score" in mixture_prior(np.ones(30), np.ones(300)).reason
    rng = np.random.default_rng(0)
    two = np.append(rng.normal(3, 0.3, 200), rng.normal(7, 0.3, 200))
    hidden = np.append(rng.normal(size=20_000), rng.permutation(two)[:40])
    assert "lenses are not normal" in mixture_prior(two, hidden).reason
    heavy = np.append(rng.uniform(-2, 2, 20_000), rng.normal(5, 1, 400))
    assert "no mixture of two normals" in mixture_prior(rng.normal(5, 1, 300), heavy).reason


def test_density_ratio_and_best_bin_agree_where_lenses_stand_apart():
    positive, unlabelled = prior_world(0.2, n_unlabelled=20_000, n_positive=400, distance=6, seed=1)
    for estimator in (bbe_prior, dedpul_prior):
        assert estimator(positive, unlabelled).value == pytest.approx(0.2, rel=0.08)
    far = dedpul_prior(np.random.default_rng(0).normal(50, 1, 100), unlabelled)
    assert far.value is None and "0 unlabelled rows" in far.reason
    few = dedpul_prior(positive[:19], unlabelled)
    assert "19 known lenses, 20 needed" in few.reason


def test_elkan_noto_where_positives_are_certain_and_where_not():
    positive, unlabelled = prior_world(0.2, n_unlabelled=20_000, n_positive=400, distance=6, seed=1)
    assert elkan_noto_prior(positive, unlabelled, seed=0).value == pytest.approx(0.2, rel=0.05)
    positive, unlabelled = prior_world(
        1e-3, n_unlabelled=200_000, n_positive=400, distance=3, seed=1
    )
    refused = elkan_noto_prior(positive, unlabelled, seed=0)
    assert refused.value is None and "not certain" in refused.reason


def test_best_bin_refuses_what_it_cannot_see():
    rng = np.random.default_rng(0)
    assert "19 known lenses" in bbe_prior(rng.normal(size=19), rng.normal(size=100)).reason
    apart = bbe_prior(rng.normal(50, 1, 100), rng.normal(size=1000))
    assert apart.value is None and "fewer than 10 unlabelled" in apart.reason


def test_too_few_lenses_fall_back_and_say_so():
    positive, unlabelled = prior_world(0.07, n_unlabelled=588, n_positive=12, distance=3, seed=0)
    found = estimate_prior(
        positive, unlabelled, scenario="single-sample", seed=0, n_bootstrap=20, fallback=0.067
    )
    assert (found.value, found.source, found.consistent) == (0.067, "fallback", False)
    assert found.estimates == dict.fromkeys(("elkan_noto", "mixture", "bbe", "dedpul"))
    assert any("elkan_noto ignored: 12 known lenses" in n for n in found.notes)
    assert found.interval == pytest.approx((0.0335, 0.134))
    assert PriorEstimate.from_json(found.to_json()) == found


def test_disagreement_falls_back(monkeypatch):
    from clusterray.pu import prior

    monkeypatch.setattr(prior, "read_elkan_noto", lambda cells, rng: prior.Reading(0.4))
    positive, unlabelled = prior_world(0.2, n_unlabelled=5000, n_positive=200, distance=5, seed=1)
    found = estimate_prior(positive, unlabelled, scenario="case-control", **SETTINGS)
    assert found.source == "fallback" and not found.consistent
    assert found.estimates["elkan_noto"] == 0.4
    assert found.estimates["bbe"] == pytest.approx(0.2, rel=0.15)
    assert found.notes[-1].startswith("valid estimators differ by more than half: elkan_noto 0.4")


@pytest.mark.parametrize(
    ("ratio", "scatter", "source", "said"),
    [
        (2.0, 0.02, "fallback", True),  # large and real
        (2.0, 0.6, "estimate", True),  # large, and what few lenses scatter by
        (1.2, 0.001, "estimate", False),  # real, and too small to matter
        (1.2, 0.6, "estimate", False),
    ],
)
def test_disagreement_is_a_difference_both_large_and_real(
    monkeypatch, ratio, scatter, source, said
):
    """Two estimators of which one reads `ratio` times the other, with this error of log π."""
    from clusterray.pu import prior

    rng = np.random.default_rng(3)
    asked = []

    def reading(value):
        # The first question is about the data, later ones about resamples.
        error = scatter / np.sqrt(2) * rng.normal() if len(asked) >= 2 else 0.0
        asked.append(value)
        return prior.Reading(value * np.exp(error))

    silent = prior.Reading(np.nan, "not asked")
    monkeypatch.setattr(prior, "read_elkan_noto", lambda cells, rng: reading(0.01 * ratio))
    monkeypatch.setattr(prior, "read_best_bin", lambda cells: reading(0.01))
    monkeypatch.setattr(prior, "read_mixture", lambda histogram: silent)
    monkeypatch.setattr(prior, "read_density_ratio", lambda cells: silent)
    scores = prior_world(0.01, n_unlabelled=500, n_positive=50, distance=4, seed=1)
    found = estimate_prior(*scores, scenario="case-control", **SETTINGS)
    assert found.source == source
    assert any("differ by more than half" in note for note in found.notes) == said
    if source == "estimate":
        assert found.interval[0] <= 0.01 <= found.value <= 0.01 * ratio <= found.interval[1]


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
