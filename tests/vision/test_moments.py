import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from clusterray.errors import InputError
from clusterray.vision import anomaly
from clusterray.vision.moments import StreamedMoments


def rows(n=500, d=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 300 * rng.normal(size=d)
    x[:, -1] = 7.0
    return x


@pytest.mark.parametrize("n", [5, 40, 500])
@pytest.mark.parametrize("batch", [3, 17, 500])
def test_stream_gives_what_scikit_learn_gives_for_all_rows_at_once(n, batch):
    x = rows(n)
    moments = StreamedMoments()
    for start in range(0, n, batch):
        moments.update(x[start : start + batch])
    mean, scale = moments.mean_and_scale()
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(scale[:-1], x.std(0)[:-1])
    assert scale[-1] == 1.0
    whole = LedoitWolf(assume_centered=True).fit((x - x.mean(0)) / scale)
    np.testing.assert_allclose(moments.covariance(), whole.covariance_, atol=1e-9)


def test_model_of_batches_is_that_of_the_whole():
    x = rows(3000)
    whole = anomaly.fit(x)
    pieces = anomaly.fit(x[k : k + 100] for k in range(0, 3000, 100))
    np.testing.assert_allclose(pieces.score(x), whole.score(x), rtol=1e-5)
    holed = x.copy()
    holed[0] = np.nan
    assert whole.score_features(holed)[0] == 0.0
    np.testing.assert_array_equal(whole.score_features(holed)[1:], whole.score(x)[1:])


def test_what_cannot_be_streamed_is_refused():
    moments = StreamedMoments()
    with pytest.raises(InputError, match="0 rows; the anomaly model needs at least 2"):
        moments.covariance()
    moments.update(rows(5))
    with pytest.raises(InputError, match="rows of 3 values after rows of 12"):
        moments.update(np.zeros((2, 3)))
    with pytest.raises(InputError, match="1 values not finite"):
        moments.update(np.array([[np.nan, *range(11)]]))
