import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray.ensemble import duplicates, folds
from clusterray.errors import InputError


def scenes(n, *, seed=0, size=48):
    """Clusters of one shape in noise: a bright middle is no reason to be a duplicate."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size, size)) - size / 2
    bright = 40 * np.exp(-(x**2 + y**2) / 60)
    return rng.normal(0, 5, (n, size, size)) + rng.uniform(0.5, 2, (n, 1, 1)) * bright


def test_the_same_image_again_is_found_and_no_other():
    images = scenes(400)
    rng = np.random.default_rng(1)
    again = 1.3 * images[:20] + 2.0 + rng.normal(0, 0.15, (20, 48, 48))
    holed = images[20:25].copy()
    holed[:, :2, :2] = np.nan
    everything = np.concatenate([images, again, holed])
    pairs = duplicates.image_pairs(duplicates.image_hashes(everything))
    expected = [[i, 400 + i] for i in range(25)]
    np.testing.assert_array_equal(pairs, expected)


def test_blank_images_are_no_duplicates():
    images = np.concatenate([np.zeros((3, 32, 32)), scenes(3, size=32)])
    assert duplicates.image_pairs(duplicates.image_hashes(images)).shape == (0, 2)
    with pytest.raises(InputError, match=r"expected \(n, h, w\) with h, w ≥ 17"):
        duplicates.image_hashes(np.zeros((3, 16, 16)))


@settings(deadline=None)
@given(seed=st.integers(0, 100), flips=st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_pairs_are_those_of_a_slow_loop(seed, flips):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (len(flips), 256)).astype(bool)
    copies = bits.copy()
    for row, k in enumerate(flips):
        where = rng.choice(256, k, replace=False)
        copies[row, where] ^= True
    both = np.concatenate([bits, copies])
    hashes = np.ascontiguousarray(np.packbits(both, axis=1)).view(np.uint32)
    expected = [
        [i, j]
        for i in range(len(both))
        for j in range(i + 1, len(both))
        if np.sum(both[i] != both[j]) <= 7
    ]
    np.testing.assert_array_equal(duplicates.image_pairs(hashes), np.reshape(expected, (-1, 2)))


def test_injection_twin_and_source_share_a_group():
    """Wherever on the sky the injected copies are put."""
    ra, dec = np.array([10.0, 80.0, 150.0, 220.0]), np.array([0.0, 20.0, -30.0, 5.0])
    names = ["J1+2", "J1+3", "J1+2+lens", "J1+2+off"]
    assert duplicates.origins(names) == ["J1+2", "J1+3", "J1+2", "J1+2"]
    same = duplicates.origin_pairs(duplicates.origins(names))
    np.testing.assert_array_equal(same, [[0, 2], [0, 3]])
    group = folds.sky_groups(ra, dec, nside=64, same=same)
    assert group[0] == group[2] == group[3] != group[1]
    assert len(np.unique(folds.sky_groups(ra, dec, nside=64))) == 4
    with pytest.raises(InputError, match="same names rows 0 to 9 of 4"):
        folds.sky_groups(ra, dec, nside=64, same=[[0, 9]])
    with pytest.raises(InputError, match=r"expected rows \(k, 2\)"):
        folds.sky_groups(ra, dec, nside=64, same=[1, 2])
