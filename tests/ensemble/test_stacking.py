import json

import numpy as np
import pytest
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from clusterray.ensemble import stacking
from clusterray.ensemble.stacking import Stacker, cross_fitted
from clusterray.errors import BundleError, InputError
from clusterray.pu import Labelling

MODELS = ("lightgbm", "vit")
SURVEY = Labelling("single-sample", 0.1)


def world(n=6000, *, prior=0.1, c=0.5, seed=0):
    """Two base models that each see part of the evidence: their log-odds add up to the truth."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    x = rng.normal(size=(n, 2)) + np.array([2.0, 1.0]) * y[:, None]
    base = logit(prior) + x * [2.0, 1.0] - np.array([2.0, 0.5])
    true = base.sum(axis=1) - logit(prior)
    s = (y & (rng.random(n) < c)).astype(np.int8)
    return base, s, y, true, np.arange(n) % 4


@pytest.mark.parametrize("scenario", ["single-sample", "case-control"])
def test_combination_is_the_true_log_odds(scenario):
    base, s, _, true, fold = world(40_000)
    if scenario == "case-control":
        # All but the drawn lenses make the survey; these come on top.
        extra = np.flatnonzero(s == 1)
        rows = np.append(np.arange(len(s)), extra)
        s = np.append(np.zeros(len(s), np.int8), np.ones(len(extra), np.int8))
        base, true, fold = base[rows], true[rows], fold[rows]
    stacker = Stacker(MODELS).fit(base, s, fold=fold, labelling=Labelling(scenario, 0.1))
    np.testing.assert_allclose(stacker.coef_, [1, 1], atol=0.12)
    stacked = stacker.decision_function(base)
    near = np.abs(true) < 4
    assert np.abs(stacked - true)[near].mean() < 0.25


def test_agrees_with_scikit_learn_where_every_lens_is_known():
    """At c = 1 labels are truths, and the ridge is scikit-learn's at C = 1."""
    base, _, y, _, fold = world(4000)
    s = y.astype(np.int8)
    prior = s.mean() * (1 + 1e-9)
    stacker = Stacker(MODELS).fit(base, s, fold=fold, labelling=Labelling("single-sample", prior))
    x = (base - base.mean(axis=0)) / base.std(axis=0)
    reference = LogisticRegression(C=1.0, tol=1e-10).fit(x, s)
    np.testing.assert_allclose(
        stacker.decision_function(base), reference.decision_function(x), atol=2e-3
    )


def test_a_model_that_knows_nothing_earns_nothing_and_none_is_inverted():
    base, s, _, _, fold = world(3000)
    noise = np.random.default_rng(5).normal(size=3000)
    stacker = Stacker(MODELS).fit(
        np.stack([base[:, 0], noise], axis=1), s, fold=fold, labelling=SURVEY
    )
    assert stacker.coef_[1] < 0.1 * stacker.coef_[0]
    inverted = Stacker(MODELS).fit(
        np.stack([base[:, 0], -base[:, 1]], axis=1), s, fold=fold, labelling=SURVEY
    )
    assert inverted.coef_[1] == 0
    constant = Stacker(MODELS).fit(
        np.stack([base[:, 0], np.ones(3000)], axis=1), s, fold=fold, labelling=SURVEY
    )
    assert constant.coef_[1] == 0 and constant.coef_[0] > 0.5


def test_cross_fitted_rows_do_not_see_their_own_labels():
    base, s, y, _, fold = world(2000)
    options = {"fold": fold, "models": MODELS, "labelling": SURVEY}
    before = cross_fitted(base, s, **options)
    changed = s.copy()
    changed[fold == 2] = np.roll(s[fold == 2], 7)
    after = cross_fitted(base, changed, **options)
    np.testing.assert_array_equal(before[fold == 2], after[fold == 2])
    assert not np.array_equal(before[fold == 1], after[fold == 1])
    assert roc_auc_score(y, before) > max(roc_auc_score(y, b) for b in base.T)
    two = cross_fitted(base, s, **{**options, "fold": fold % 2})
    assert np.isfinite(two).all()


def test_known_non_lenses_take_no_part():
    base, s, _, _, fold = world(2000)
    plain = Stacker(MODELS).fit(base, s, fold=fold, labelling=SURVEY)
    more = Stacker(MODELS).fit(
        np.append(base, np.full((300, 2), 3.0), axis=0),
        np.append(s, np.full(300, -1)),
        fold=np.append(fold, np.zeros(300, int)),
        labelling=SURVEY,
    )
    np.testing.assert_array_equal(plain.coef_, more.coef_)


def test_json_round_trip_clipping_and_row_independence():
    base, s, _, _, fold = world(1000)
    stacker = Stacker(MODELS).fit(base, s, fold=fold, labelling=SURVEY)
    back = Stacker.from_json(json.loads(json.dumps(stacker.to_json())))
    whole = stacker.decision_function(base)
    np.testing.assert_array_equal(back.decision_function(base), whole)
    assert back.models == MODELS
    rows = np.concatenate([stacker.decision_function(base[i : i + 3]) for i in range(0, 1000, 3)])
    np.testing.assert_array_equal(rows, whole)
    far = stacker.decision_function([[1e6, 1e6], [30.0, 30.0]])
    assert far[0] == far[1]
    with pytest.raises(BundleError, match="kind 'tree' with 2 weights for 2 models"):
        Stacker.from_json({**stacker.to_json(), "kind": "tree"})
    with pytest.raises(BundleError, match="1 weights for 2 models"):
        Stacker.from_json({**stacker.to_json(), "coef": [1.0]})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fold": [0, 0, 1, -1]}, "1 of 4 rows have no fold"),
        ({"fold": [0, 0, 0, 0]}, "1 folds are there"),
        ({"fold": [0.0, 1.0, 0.0, 1.0]}, "fold is float64"),
        ({"fold": [0, 1]}, r"of shape \(2,\)"),
        ({"logits": [[0.0, 1.0], [np.nan, 0.0], [0, 0], [1, 1]]}, "the first in row 1"),
        ({"logits": np.zeros((4, 3))}, r"array of shape \(4, 3\), expected \(n, 2\)"),
        ({"s": [0, 0, 0, 0]}, "no known lenses"),
        ({"s": [1, 1, 1, 0]}, "0.75 of the rows are known lenses"),
    ],
)
def test_bad_input_is_refused(change, match):
    arguments = {"logits": np.arange(8.0).reshape(4, 2), "s": [1, 0, 0, 0], "fold": [0, 1, 0, 1]}
    arguments |= change
    with pytest.raises(InputError, match=match):
        Stacker(MODELS).fit(
            arguments["logits"],
            arguments["s"],
            fold=arguments["fold"],
            labelling=Labelling("single-sample", 0.5),
        )


def test_folds_are_aligned_to_the_held_out_rows_without_labels():
    rng = np.random.default_rng(3)
    fold = np.repeat([-1, 0, 1, 2], 20_000)
    truth = rng.normal(-3, 2, len(fold))
    # Each fold's network has a bias of its own; the held-out rows' has none.
    bias = np.array([1.5, -2.0, 0.7, 0.0])[fold]
    aligned = stacking.align_folds(truth + bias, fold=fold)
    np.testing.assert_allclose(aligned[fold == -1], truth[fold == -1])
    for k in range(3):
        shift = (aligned - truth)[fold == k]
        assert np.ptp(shift) < 1e-9
        assert abs(shift.mean()) < 0.06
    unheld = stacking.align_folds(truth[fold >= 0], fold=fold[fold >= 0])
    np.testing.assert_array_equal(unheld, truth[fold >= 0])
