import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray.pu.score_cells import ScoreCells

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30)


@settings(deadline=None)
@given(positive=scores, other=scores)
def test_counts_are_those_of_a_slow_loop(positive, other):
    cells = ScoreCells.count(positive, other)
    thresholds = sorted(set(positive), reverse=True)
    assert cells.n_positive == len(positive) and cells.n_other == len(other)
    for k, t in enumerate(thresholds):
        assert cells.positive_above[k] == sum(p >= t for p in positive)
        assert cells.other_above[k] == sum(o >= t for o in other)
        assert cells.tied[k] == sum(o == t for o in other)
        above = thresholds[k - 1] if k else np.inf
        assert cells.between[k] == sum(t < o < above for o in other)
    assert cells.between[-1] == sum(o < thresholds[-1] for o in other)


@settings(deadline=None)
@given(positive=scores, other=scores, seed=st.integers(0, 1000))
def test_a_resample_draws_as_many_from_the_same_cells(positive, other, seed):
    cells = ScoreCells.count(positive, other)
    drawn = cells.resampled(np.random.default_rng(seed))
    assert (drawn.n_positive, drawn.n_other) == (len(positive), len(other))
    assert not np.any(drawn.tied[cells.tied == 0])
    assert not np.any(drawn.between[cells.between == 0])
