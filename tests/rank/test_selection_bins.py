"""Bins: round edges that leave nothing out."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clusterray.rank.selection_bins import Bin, binned, round_edges

VALUES = st.lists(st.floats(-1e6, 1e6).map(lambda v: round(v, 3)), min_size=1, max_size=60)


@given(VALUES, st.integers(1, 8))
@example([0.7], 1)
@example([1e6, np.nextafter(1e6, 2e6)], 3)
def test_edges_rise_enclose_every_value_and_are_no_more_than_asked_for(values, n_bins):
    edges = round_edges(np.array(values), n_bins=n_bins)
    assert 2 <= len(edges) <= n_bins + 1
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= min(values)
    assert edges[-1] > max(values)


@pytest.mark.parametrize(
    ("values", "n_bins", "edges"),
    [
        (np.linspace(0.2, 0.6, 101), 4, [0.2, 0.3, 0.4, 0.5, 0.62]),
        (np.arange(100.0), 5, [0, 20, 40, 60, 80, 100]),
        (np.geomspace(1, 1000, 301), 3, [0, 10, 100, 1200]),
        ([7.0], 3, [7.0, 7.5]),
        ([0.0, 0.0], 2, [0.0, 1e-10]),
    ],
)
def test_edges_are_round(values, n_bins, edges):
    np.testing.assert_allclose(round_edges(np.asarray(values), n_bins=n_bins), edges, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_bins_of_smooth_values_hold_about_equally_many(seed, n_bins):
    values = np.random.default_rng(seed).lognormal(2, 0.5, 2000)
    counts = np.histogram(values, round_edges(values, n_bins=n_bins))[0]
    assert len(counts) == n_bins
    assert counts.min() > 0.5 * 2000 / n_bins
    assert counts.max() < 1.7 * 2000 / n_bins


@given(VALUES, st.booleans())
def test_every_value_is_in_the_one_bin_that_says_so(values, with_unknown):
    x = np.array([*values, np.nan] if with_unknown else values)
    edges = [-100.0, 0.0, 250.0]
    bins, place = binned(x, edges)
    assert (Bin(None, None) in bins) == with_unknown
    for value, at in zip(x, place, strict=True):
        low, high = bins[at].low, bins[at].high
        assert np.isnan(value) == (low is None and high is None)
        assert low is None or value >= low
        assert high is None or value < high


def test_bins_between_the_edges_stand_even_where_they_are_empty():
    bins, place = binned(np.array([5.0]), [0, 1, 2, 10])
    assert [str(b) for b in bins] == ["0 to 1", "1 to 2", "2 to 10"]
    assert place.tolist() == [2]
