import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterray.vision.augment import augment_rows, row_uniforms
from clusterray.vision.feeding import Ahead, Feed
from clusterray.vision.sources import Blocks


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.randoms())
def test_rows_are_the_same_in_any_blocks(sizes, random):
    n = sum(sizes)
    if not n:
        return
    place = np.array(random.sample(range(n), n))
    stacked = np.arange(3 * n, dtype=np.int16).reshape(n, 3), np.arange(n) / 2
    ends = np.cumsum(sizes)
    blocks = [tuple(a[e - k : e] for a in stacked) for k, e in zip(sizes, ends, strict=True)]
    rows = np.array([random.randrange(n) for _ in range(7)])
    for given_blocks in (blocks, [stacked]):
        taken = Blocks(given_blocks, place).take(rows)
        for ours, all_rows in zip(taken, stacked, strict=True):
            np.testing.assert_array_equal(ours, all_rows[place][rows])
            assert ours.dtype == all_rows.dtype


def feed_all(device):
    values = np.arange(40, dtype=np.int16).reshape(20, 2)
    source = Blocks([(values[:8],), (values[8:],)], np.arange(20)[::-1])
    windows = [[np.array([3, 1]), np.array([0])], [np.array([19, 2, 4])]]
    for limit in (0.5, 0.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("clusterray.vision.feeding._SHARE_OF_DEVICE", limit)
            feed = Feed(source, torch.device(device))
        for _ in range(2):
            found = list(feed(windows))
            assert [r.tolist() for r, _ in found] == [[3, 1], [0], [19, 2, 4]]
            for rows, (tensor,) in found:
                assert tensor.device.type == device
                np.testing.assert_array_equal(tensor.cpu().numpy(), values[::-1][rows])


def test_batches_arrive_in_order():
    feed_all("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_arrive_in_order_on_a_gpu_whole_or_copied_ahead():
    feed_all("cuda")


@pytest.mark.parametrize("threaded", [True, False])
def test_batches_prepared_ahead_are_those_of_their_own_epoch(threaded):
    values = np.arange(12, dtype=np.float32)
    feed = Feed(Blocks([(values,)], np.arange(12)), torch.device("cpu"))
    ahead = Ahead(lambda rows, arrays: arrays[0] + 100, torch.device("cpu"), threaded=threaded)
    for epoch in range(3):
        plan = [np.array([epoch, 5]), np.array([7, epoch])]
        ahead.begin(feed([plan]))
        for rows in plan:
            batch = ahead.take()
            ahead.look()
            assert batch.rows.tolist() == rows.tolist()
            if threaded:
                assert batch.inputs.tolist() == (values[rows] + 100).tolist()
            else:
                assert batch.inputs is None
        if epoch == 1:
            assert ahead.take() is None


def test_an_augmented_cutout_depends_on_its_own_seed_alone():
    flux = torch.randn(6, 2, 24, 24, generator=torch.Generator().manual_seed(1))
    seeds = np.array([5, 2**63 + 11, 7, 2**64 - 1, 0, 1], np.uint64)
    whole = augment_rows(flux, seeds)
    for part in ([0], [4, 1], [3, 5, 2]):
        torch.testing.assert_close(
            augment_rows(flux[part], seeds[part]), whole[part], rtol=0, atol=1e-5, equal_nan=True
        )
    other = augment_rows(flux, seeds + np.uint64(1))
    assert all(not torch.allclose(a, b, equal_nan=True) for a, b in zip(whole, other, strict=True))


def test_row_uniforms_are_splitmix_and_uniform():
    def splitmix(state, n):
        """One by one, with Python's integers (Steele, Lea & Flood 2014)."""
        mask = 2**64 - 1
        for _ in range(n):
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            yield ((z ^ (z >> 31)) >> 11) / 2**53

    seeds = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    found = row_uniforms(seeds, 5)
    assert found.tolist() == [list(splitmix(int(s), 5)) for s in seeds]
    many = row_uniforms(np.arange(20_000, dtype=np.uint64), 3)
    assert many.min() >= 0 and many.max() < 1
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(many.T) - np.eye(3), 0, atol=0.03)
