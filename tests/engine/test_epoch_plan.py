"""Batches of an epoch: what is in them, in which order, and what is held back to judge by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray.config import VisionSettings
from clusterray.engine.epoch_plan import EpochPlan, validation_slice
from clusterray.errors import InputError


def sample(n, n_known, n_files, seed=0):
    rng = np.random.default_rng(seed)
    s = np.zeros(n, np.int8)
    s[rng.choice(n, n_known, replace=False)] = 1
    s[np.flatnonzero(s == 0)[: n // 10]] = -1
    return s, rng.integers(0, n_files, n)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(20, 300), n_files=st.integers(1, 12), shuffle=st.integers(10, 400),
    epoch=st.integers(0, 3),
)  # fmt: skip
def test_every_row_comes_once_an_epoch_and_lenses_in_every_batch(n, n_files, shuffle, epoch):
    s, file_of = sample(n, 6, n_files)
    rows = np.flatnonzero(np.arange(n) % 5 != 0)
    rows = np.union1d(rows, np.flatnonzero(s == 1)[:2])
    vision = VisionSettings(batch_size=16, positives_per_batch=3, shuffle_rows=shuffle)
    windows = EpochPlan(rows, s, file_of, vision, seed=4)(epoch)
    known = rows[s[rows] == 1]
    others = [row for w in windows for b in w for row in b.tolist() if s[row] != 1]
    assert sorted(others) == rows[s[rows] != 1].tolist()
    for batch in (b for w in windows for b in w):
        assert len(np.intersect1d(batch, known)) == min(3, len(known))
        assert len(batch) <= 16
    files = [{file_of[r] for b in w for r in b if s[r] != 1} for w in windows]
    assert sum(map(len, files)) == len(set.union(*files)), "a file in two windows"


def test_the_order_depends_on_seed_and_epoch_alone():
    s, file_of = sample(200, 8, 7)
    vision = VisionSettings(batch_size=16, shuffle_rows=50)
    rows = np.arange(200)

    def order(seed, epoch):
        windows = EpochPlan(rows, s, file_of, vision, seed)(epoch)
        return [b.tolist() for w in windows for b in w]

    assert len(EpochPlan(rows, s, file_of, vision, 1)(0)) > 1
    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@pytest.mark.parametrize("labels", [np.zeros(20, np.int8), np.ones(20, np.int8)])
def test_rows_without_both_streams_are_refused(labels):
    with pytest.raises(InputError, match=r"known lenses among 20 rows .* use fewer folds"):
        EpochPlan(np.arange(20), labels, np.zeros(20, np.int64), VisionSettings(), 1)


def test_the_slice_is_of_whole_cells_and_only_where_it_holds_enough_lenses():
    rng = np.random.default_rng(1)
    n = 3000
    s = (rng.random(n) < 0.2).astype(np.int8)
    cell = rng.integers(0, 150, n)
    rows = np.flatnonzero(cell % 5 != 0)
    vision = VisionSettings(validation_fraction=0.2)
    learnt, held, notes = validation_slice(rows, s, cell=cell, settings=vision, seed=3)
    assert notes == ()
    assert np.array_equal(np.union1d(learnt, held), rows)
    assert not np.intersect1d(cell[learnt], cell[held]).size
    assert len(held) == pytest.approx(0.2 * len(rows), rel=0.1)
    assert s[held].mean() == pytest.approx(s[rows].mean(), rel=0.1)
    few = np.where(np.cumsum(s) <= 30, s, 0)
    learnt, held, notes = validation_slice(rows, few, cell=cell, settings=vision, seed=3)
    assert (len(held), learnt.tolist()) == (0, rows.tolist())
    known = few[rows].sum()
    assert notes == (f"no early stopping: {known} known lenses, 50 needed",)
    never = VisionSettings(patience=None)
    assert validation_slice(rows, s, cell=cell, settings=never, seed=3)[2] == ()
