"""Rare-event metrics against brute force over every threshold."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray.errors import InputError
from clusterray.rank import purity_completeness, rare_event_metrics

RATES = {name: Fraction(1, d) for name, d in
         (("1e-4", 10000), ("1e-3", 1000), ("1e-2", 100), ("1e-1", 10))}  # fmt: skip


def slow_tpr(y, score, allowed):
    """Largest TPR over all thresholds "score ≥ t" that at most `allowed` negatives pass."""
    positives = [s for s, label in zip(score, y, strict=True) if label]
    negatives = [s for s, label in zip(score, y, strict=True) if not label]
    best = 0.0
    for t in [*score, np.inf]:
        if sum(n >= t for n in negatives) <= allowed:
            best = max(best, sum(p >= t for p in positives) / len(positives))
    return best


def slow_average_precision(y, score):
    total, before = 0.0, 0.0
    for t in sorted(set(score), reverse=True):
        passed = [label for s, label in zip(score, y, strict=True) if s >= t]
        recall = sum(passed) / sum(y)
        total += (recall - before) * sum(passed) / len(passed)
        before = recall
    return total


def slow_auroc(y, score):
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, a in zip(score, y, strict=True) if a
        for n, b in zip(score, y, strict=True) if not b
    ]  # fmt: skip
    return np.mean(pairs)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=2, max_size=60))
def test_brute_force_with_many_ties(rows):
    y, score = ([r[i] for r in rows] for i in (0, 1))
    if len(set(y)) < 2:
        y[0], y[1] = 0, 1
    found = rare_event_metrics(y, score)
    n_negative = len(y) - sum(y)
    for name, rate in RATES.items():
        if n_negative * rate < 1:
            assert np.isnan(found[f"tpr_at_fpr_{name}"])
            assert np.isnan(found[f"threshold_at_fpr_{name}"])
        else:
            allowed = int(rate * n_negative)
            assert found[f"tpr_at_fpr_{name}"] == slow_tpr(y, score, allowed)
    assert found["tpr0"] == slow_tpr(y, score, 0)
    assert found["tpr10"] == slow_tpr(y, score, 9)
    assert found["average_precision"] == pytest.approx(slow_average_precision(y, score))
    assert found["auroc"] == pytest.approx(slow_auroc(y, score))
    assert (found["n_positive"], found["n_negative"]) == (sum(y), n_negative)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([np.float32, np.float64]))
def test_thresholds_give_the_rates_they_stand_for(seed, dtype):
    rng = np.random.default_rng(seed)
    y = rng.random(1500) < 0.1
    score = (rng.integers(0, 60, 1500) / 7 + 3 * y).astype(dtype)
    found = rare_event_metrics(y, score)
    for name in ("1e-3", "1e-2", "1e-1"):
        passed = score.astype(float) >= found[f"threshold_at_fpr_{name}"]
        assert passed[y].mean() == found[f"tpr_at_fpr_{name}"]
        assert passed[~y].sum() <= int(RATES[name] * int((~y).sum()))


def test_a_tie_with_a_refused_negative_counts_as_missed():
    assert rare_event_metrics([1, 0], [5, 5])["tpr0"] == 0
    assert rare_event_metrics([1, 1, 0], [6, 5, 5])["tpr0"] == 0.5


def test_exact_counts_at_the_edge_of_a_rate():
    score = np.arange(10_001)[::-1]
    for first_negatives, want in ((1, 1.0), (2, 0.0)):
        y = np.zeros(10_001, int)
        y[first_negatives] = 1
        assert rare_event_metrics(y, score)["tpr_at_fpr_1e-4"] == want
    y = np.zeros(10_000, int)
    y[0] = 1
    assert np.isnan(rare_event_metrics(y, score[:10_000])["tpr_at_fpr_1e-4"])


def test_perfect_worst_and_monotone():
    y = np.repeat([1, 0], 100)
    score = np.linspace(3, -3, 200)
    perfect = rare_event_metrics(y, score)
    assert perfect["tpr0"] == perfect["auroc"] == perfect["average_precision"] == 1
    worst = rare_event_metrics(y, -score)
    assert worst["tpr10"] == worst["auroc"] == 0
    noisy = score + np.random.default_rng(0).normal(size=200)
    stretched = rare_event_metrics(y, np.exp(noisy))
    plain = rare_event_metrics(y, noisy)
    assert {k: v for k, v in stretched.items() if "threshold" not in k} == pytest.approx(
        {k: v for k, v in plain.items() if "threshold" not in k}, nan_ok=True
    )


def test_a_missing_class_is_nan_not_a_crash():
    nothing = rare_event_metrics(np.zeros(20, int), np.arange(20))
    assert all(np.isnan(nothing[k]) for k in ("tpr0", "average_precision", "auroc"))
    everything = rare_event_metrics(np.ones(20, int), np.arange(20))
    assert np.isnan(everything["auroc"])
    assert everything["tpr0"] == 1


def test_infinite_scores_are_ordered():
    assert rare_event_metrics([1, 0, 0], [np.inf, 1.0, -np.inf])["tpr0"] == 1


@pytest.mark.parametrize(
    ("y", "score", "message"),
    [
        ([], [], "empty"),
        ([1, 0], [1.0], r"y has shape \(2,\) and score \(1,\)"),
        ([[1, 0]], [[1.0, 2.0]], r"shape \(1, 2\)"),
        ([1, -1], [1.0, 2.0], r"y\[1\] is -1, expected 0 or 1; leave marginal"),
        ([1.0, 0.5], [1.0, 2.0], r"y\[1\] is 0.5"),
        ([1, 0], [1.0, np.nan], r"score\[1\] is NaN \(1 in all\)"),
        ([1, 0], ["high", "low"], "not made of numbers"),
    ],
)
def test_bad_input(y, score, message):
    with pytest.raises(InputError, match=message):
        rare_event_metrics(y, score)
    with pytest.raises(InputError, match=message):
        purity_completeness(y, score, [1], [str(i) for i in range(len(y))])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_purity_and_completeness_by_slow_sort(rows, random):
    ids = [f"id{i:02d}" for i in range(len(rows))]
    shuffled = list(zip(ids, rows, strict=True))
    random.shuffle(shuffled)
    budgets = (1, 5, 100)
    found = purity_completeness(
        [r[0] for _, r in shuffled], [r[1] for _, r in shuffled], budgets, [i for i, _ in shuffled]
    )
    ordered = sorted(zip(ids, rows, strict=True), key=lambda item: (-item[1][1], item[0]))
    total = sum(r[0] for r in rows)
    for k, budget in enumerate(budgets):
        top = [r[0] for _, r in ordered[:budget]]
        assert found.found[k] == sum(top)
        assert found.purity[k] == sum(top) / len(top)
        if total:
            assert found.completeness[k] == sum(top) / total
        else:
            assert found.to_json()["completeness"][k] is None


@pytest.mark.parametrize(
    ("budgets", "ids", "message"),
    [
        ([0], ["a", "b"], "budget 0 is not positive"),
        ([1], ["a"], "holds 1 distinct ids, expected 2"),
        ([1], ["a", "a"], "holds 1 distinct ids, expected 2"),
    ],
)
def test_bad_budgets_and_ids(budgets, ids, message):
    with pytest.raises(InputError, match=message):
        purity_completeness([1, 0], [2.0, 1.0], budgets, ids)
