import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import spearmanr

from clusterray.errors import BundleError, InputError
from clusterray.vision import anomaly


def world(n, d=6, seed=0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d))
    return rng.normal(size=(n, d)) @ mixing.T + 3


def test_large_samples_give_the_mahalanobis_distance():
    train, test = world(20_000), world(50, seed=1)
    inverse = np.linalg.inv(np.cov(train.T))
    expected = [mahalanobis(x, train.mean(0), inverse) for x in test]
    got = anomaly.fit(train).score(test)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0.01)


def test_outliers_of_shape_stand_out_with_fewer_rows_than_dimensions():
    train = world(30, d=64).astype(np.float32)
    usual, odd = world(40, d=64, seed=1), np.random.default_rng(5).normal(size=(40, 64)) * 30
    model = anomaly.fit(train)
    assert np.median(model.score(odd)) > np.median(model.score(usual))
    assert np.isfinite(model.score(odd)).all()


def test_rescaling_a_dimension_changes_nothing():
    train, test = world(500), world(100, seed=1)
    scale = np.array([1, 1e3, 1e-3, 1, 10, 0.1])
    a = anomaly.fit(train).score(test)
    b = anomaly.fit(train * scale).score(test * scale)
    np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("n", [3, 5000])
def test_constant_dimensions(n):
    train = np.hstack([world(n), np.full((n, 2), 7.0)])
    model = anomaly.fit(train)
    score = model.score(train)
    assert np.isfinite(score).all()
    moved = train.copy()
    moved[:, -1] += 1
    assert (model.score(moved) > score).all()
    assert np.isfinite(anomaly.fit(np.ones((4, 3))).score(np.ones((2, 3)))).all()


def test_state_round_trip_and_order():
    model = anomaly.fit(world(200))
    again = anomaly.AnomalyModel.load(model.save())
    test = world(60, seed=2)
    np.testing.assert_array_equal(model.score(test), again.score(test))
    assert spearmanr(model.score(test), np.linalg.norm(test - 3, axis=1)).statistic > 0.2


def test_bad_input():
    with pytest.raises(InputError, match="1 rows; the anomaly model needs at least 2"):
        anomaly.fit(world(1))
    bad = world(5)
    bad[2, 1] = np.nan
    with pytest.raises(InputError, match="1 values not finite"):
        anomaly.fit(bad)
    with pytest.raises(InputError, match=r"expected \(n, 6\)"):
        anomaly.fit(world(9)).score(world(2, d=5))
    with pytest.raises(BundleError, match="not readable"):
        anomaly.AnomalyModel.load(b"nonsense")
