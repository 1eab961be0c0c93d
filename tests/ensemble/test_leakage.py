"""Labels that mean nothing must not be learnable: shuffled between groups, AUC is one half."""

import numpy as np
import pytest
from lightgbm import LGBMClassifier
from sklearn.metrics import roc_auc_score

from clusterray.ensemble import folds
from clusterray.provenance import seed_for


def near_duplicates(seed, n_groups=400, size=5):
    """Rows of a group are one another but for a little noise, and share a random label."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.normal(size=(n_groups, 12)), size, axis=0)
    x += rng.normal(0, 0.02, x.shape)
    lens = rng.permutation(n_groups) < 40
    return x, np.repeat(np.arange(n_groups), size), np.repeat(lens, size).astype(np.int8)


def out_of_fold_auc(x, groups, s, seed):
    ids = [f"o{i}" for i in range(len(s))]
    fold = folds.assign(
        ids, groups, s, n_folds=5, holdout_fraction=0.1, seed=seed_for(seed, purpose="leak")
    ).fold
    scores = np.zeros(len(s))
    used = fold >= 0
    for k in range(5):
        train, test = used & (fold != k), fold == k
        model = LGBMClassifier(n_estimators=25, num_leaves=15, verbosity=-1, n_jobs=1)
        scores[test] = model.fit(x[train], s[train]).predict_proba(x[test])[:, 1]
        # Ranks within the fold: boosters of unequal folds differ by a constant.
        scores[test] = np.argsort(np.argsort(scores[test])) / test.sum()
    return roc_auc_score(s[used], scores[used])


@pytest.mark.parametrize("grouped", [True, False])
def test_labels_shuffled_between_groups_are_learned_only_across_a_leak(grouped):
    found = []
    for seed in range(10):
        x, groups, s = near_duplicates(seed)
        assert s.sum() >= 150
        found.append(out_of_fold_auc(x, groups if grouped else np.arange(len(s)), s, seed))
    if grouped:
        assert np.mean(found) == pytest.approx(0.5, abs=0.05)
    else:
        assert np.mean(found) > 0.95
