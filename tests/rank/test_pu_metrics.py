import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score

from clusterray.errors import InputError
from clusterray.pu import unlabelled_prior
from clusterray.rank.clean_intervals import clean_curve, rare_event_intervals
from clusterray.rank.metrics import rare_event_metrics
from clusterray.rank.pu_metrics import pu_curve, pu_metrics


def slow_pu(s, score, prior, budget):
    """From the definitions, threshold by threshold, for whole-number scores with ties."""
    known, others = score[s == 1], score[s == 0]
    curve = []
    for t in np.unique(known)[::-1]:
        tpr, q = np.mean(known >= t), np.mean(others >= t)
        precision = 1.0 if q <= prior * tpr else prior * tpr / q
        curve.append((t, tpr, max(q - prior * tpr, 0) / (1 - prior), precision))
    found = {
        f"tpr_at_fpr_{name}": max([tpr for _, tpr, fpr, _ in curve if fpr <= f], default=0.0)
        for name, f in (("1e-3", 1e-3), ("1e-2", 1e-2), ("1e-1", 0.1))
    }
    recall = max([tpr for t, tpr, *_ in curve if np.sum(others >= t) <= budget], default=0.0)
    found[f"recall_at_{budget}"] = recall
    found[f"precision_at_{budget}"] = min(prior * recall / min(budget / len(others), 1), 1)
    at = {t: precision for t, *_, precision in curve}
    found["average_precision"] = np.mean([at[t] for t in known])
    wins = [np.mean(others < t) + 0.5 * np.mean(others == t) for t in known]
    found["auroc"] = (np.mean(wins) - prior / 2) / (1 - prior)
    return found


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=40),
    prior=st.floats(0.01, 0.5),
    budget=st.integers(1, 50),
)
def test_measures_are_those_of_a_slow_form(rows, prior, budget):
    s, score = (np.array(v) for v in zip(*rows, strict=True))
    if not (np.any(s == 1) and np.any(s == 0)):
        return
    found = pu_metrics(s, score, unlabelled_prior=prior, budgets=(budget,), n_bootstrap=20, seed=0)
    expected = slow_pu(s, score, prior, budget)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value), name


def world(scenario, seed, *, n=20_000, prior=0.05, c=0.4):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    s = y & (rng.random(n) < c)
    if scenario == "case-control":
        y, s = np.append(y, np.ones(500, bool)), np.append(np.zeros(n, bool), np.ones(500, bool))
    return y, s.astype(np.int8), rng.normal(size=len(y)) + 2.5 * y


@pytest.mark.parametrize("scenario", ["single-sample", "case-control"])
def test_labels_tell_what_truth_tells_about_the_unlabelled_rows(scenario):
    """Within three standard errors over 30 surveys, with π_U; with π_survey it would not be."""
    differences = {name: [] for name in ("average_precision", "auroc", "precision", "tpr", "wrong")}
    for seed in range(30):
        y, s, score = world(scenario, seed)
        hidden = s == 0
        prior = unlabelled_prior(0.05, scenario=scenario, labelled_fraction=float(np.mean(s == 1)))
        options = {"budgets": (500,), "n_bootstrap": 20, "seed": seed}
        found = pu_metrics(s, score, unlabelled_prior=prior, **options)
        clean = rare_event_metrics(y[hidden], score[hidden])
        differences["average_precision"].append(
            found["average_precision"].value - clean["average_precision"]
        )
        differences["auroc"].append(found["auroc"].value - clean["auroc"])
        differences["tpr"].append(found["tpr_at_fpr_1e-2"].value - clean["tpr_at_fpr_1e-2"])
        top = np.argsort(-score[hidden])[:500]
        differences["precision"].append(found["precision_at_500"].value - np.mean(y[hidden][top]))
        wrong = pu_metrics(s, score, unlabelled_prior=0.05, **options)
        differences["wrong"].append(wrong["precision_at_500"].value - np.mean(y[hidden][top]))
    errors = {
        name: abs(np.mean(d)) / (np.std(d) / np.sqrt(len(d))) for name, d in differences.items()
    }
    if scenario == "case-control":
        del errors["wrong"]
    else:
        assert errors.pop("wrong") > 6
    assert max(errors.values()) < 3.0, errors


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    inside = []
    for seed in range(40):
        _, s, score = world("single-sample", seed, n=6000)
        prior = unlabelled_prior(
            0.05, scenario="single-sample", labelled_fraction=float(np.mean(s == 1))
        )
        found = pu_metrics(s, score, unlabelled_prior=prior, n_bootstrap=60, seed=seed)
        truth = norm.cdf(2.5 / np.sqrt(2))
        low, high = found["auroc"].low, found["auroc"].high
        inside.append(low <= truth <= high)
    assert 0.75 <= np.mean(inside) <= 1.0


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=60),
)
def test_clean_measures_are_those_of_the_exact_form(rows):
    y, score = (np.array(v) for v in zip(*rows, strict=True))
    found = rare_event_intervals(y, score, n_bootstrap=20, seed=0)
    if y.all() or not y.any():
        assert found == {} and len(clean_curve(y, score)[0]) == 0
        return
    exact = rare_event_metrics(y, score)
    for name, value in found.items():
        assert value.value == pytest.approx(exact[name], nan_ok=True), name
    tpr, fpr, precision = clean_curve(y, score)
    area = np.sum(np.diff(tpr, prepend=0) * precision)
    assert area == pytest.approx(average_precision_score(y, score))
    assert np.all(np.diff(tpr) > 0) and np.all(np.diff(fpr) >= 0)


def test_curve_and_bad_input():
    _, s, score = world("single-sample", 0)
    tpr, fpr, precision = pu_curve(s, score, unlabelled_prior=0.03)
    assert tpr[-1] == 1.0 and np.all(np.diff(tpr) > 0)
    assert np.all((fpr >= 0) & (fpr <= 1)) and np.all((precision > 0) & (precision <= 1))
    bad = {"unlabelled_prior": 0.03, "n_bootstrap": 20, "seed": 0}
    with pytest.raises(InputError, match="scores: 1 values are not finite"):
        pu_metrics([1, 0], [np.nan, 0.0], **bad)
    with pytest.raises(InputError, match="no known lenses"):
        pu_metrics([0, 0], [1.0, 0.0], **bad)
    with pytest.raises(InputError, match=r"unlabelled_prior is 0\.0"):
        pu_metrics(s, score, **{**bad, "unlabelled_prior": 0.0})
    with pytest.raises(InputError, match="n_bootstrap is 3"):
        pu_metrics(s, score, **{**bad, "n_bootstrap": 3})
