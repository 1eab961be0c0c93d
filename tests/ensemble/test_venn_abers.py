import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import isotonic_regression

from clusterray.ensemble.reliability import label_reliability
from clusterray.ensemble.venn_abers import venn_abers, venn_abers_table
from clusterray.pu import Labelling


def world(n, *, prior=0.2, c=0.5, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    x = rng.normal(size=n) + 2 * y
    return logit(prior) + 2 * x - 2, (y & (rng.random(n) < c)).astype(np.int8)


def test_pair_is_that_of_a_slow_form():
    z, s = world(300)
    labelling = Labelling("single-sample", 0.2)
    c = np.mean(s) / 0.2
    points = np.quantile(z, [0.1, 0.6, 0.97]) + 1e-6
    found = venn_abers(z, s, points, labelling=labelling)
    for k, point in enumerate(points):
        for label in (0, 1):
            order = np.argsort(np.append(z, point))
            fitted = isotonic_regression(np.append(s, label).astype(float)[order])
            g = fitted[np.flatnonzero(order == len(z))[0]]
            assert found[label][k] == pytest.approx(min(g / c, 1), abs=1e-12)


def test_pairs_close_as_labels_come_in():
    labelling = Labelling("single-sample", 0.2)
    widths = []
    for n in (200, 20_000):
        z, s = world(n)
        table = venn_abers_table(z, s, labelling=labelling)
        low, high = np.array(table["p0"]), np.array(table["p1"])
        assert np.all(low <= high)
        at = np.array(table["logit_stack"])
        widths.append(np.interp(0.0, at, high - low))
        if n > 1000:
            middle = np.abs(at) < 1.5
            np.testing.assert_allclose(((low + high) / 2)[middle], expit(at[middle]), atol=0.15)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("scenario", ["single-sample", "case-control"])
def test_reliability_holds_for_true_probabilities_and_not_for_wrong_ones(scenario):
    z, s = world(20_000)
    if scenario == "case-control":
        z = np.append(z, z[s == 1])
        s = np.append(np.zeros(20_000, np.int8), np.ones(int(s.sum()), np.int8))
    labelling = Labelling(scenario, 0.2)

    def outside(p):
        table = label_reliability(p, s, labelling=labelling)
        assert sum(table["observed"]) == s.sum()
        assert table["first"][0] == 1 and table["last"][-1] == len(s)
        low, high, expected = (np.array(table[k]) for k in ("low", "high", "expected"))
        return np.sum((expected < low) | (expected > high))

    assert outside(expit(z)) <= 1
    assert outside(expit(z + 1)) >= 3
