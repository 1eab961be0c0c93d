"""Counts and flux densities, binning, medians, the patch table: one computation, many shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray.errors import InputError
from clusterray.features import image_features, patch_table
from clusterray.features.geometry import bin_factor
from clusterray.features.patches import aggregate, patch_positions
from clusterray.sky.byte_planes import dequantise, encode
from tests.features.test_image import BANDS, field, with_holes


def stored(seed=0, n=3, size=30):
    cutouts, noise = field(seed, n=n, size=size)
    counts, step, _ = encode(with_holes(cutouts, seed), noise)
    return counts, step, noise


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(9, 40), factor=st.integers(1, 3))
def test_counts_and_the_fluxes_they_stand_for_give_the_same_values(seed, size, factor):
    counts, step, noise = stored(seed, size=size)
    options = {"noise_sigma": noise, "bands": BANDS, "max_size_px": -(-size // factor)}
    from_counts = image_features(counts, step=step, **options).values
    from_floats = image_features(dequantise(counts, step), **options).values
    np.testing.assert_array_equal(from_counts, from_floats)


def test_large_cutouts_are_those_of_their_binned_copy():
    cutouts, noise = field(n=2, size=60)
    cutouts[0, 1, 10, 20] = np.nan
    blocks = cutouts.reshape(2, 3, 30, 2, 30, 2).sum(axis=(3, 5))
    binned = image_features(cutouts, noise_sigma=noise, bands=BANDS, max_size_px=30)
    direct = image_features(blocks, noise_sigma=2 * noise, bands=BANDS)
    np.testing.assert_allclose(binned.values, direct.values, rtol=1e-4, atol=1e-4)
    assert binned.names == direct.names
    covered = dict(zip(binned.names, binned.values[0], strict=True))["patch_0_1_covered_r"]
    assert covered == pytest.approx(0.99)


@pytest.mark.parametrize(("size", "want"), [(128, 1), (129, 2), (224, 2), (384, 3), (16, 1)])
def test_bin_factor(size, want):
    assert bin_factor(size, 128) == want


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["noise", "eighths", "star", "constant", "sky", "few", "heavy"]),
)
def test_medians_are_those_of_numpy(seed, kind):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(1, 1, 13, 14))
    if kind == "eighths":
        image = np.rint(8 * image) / 8
    elif kind == "star":
        image[0, 0, rng.integers(13), rng.integers(14)] = 1e6
    elif kind == "constant":
        image[:] = rng.normal()
    elif kind == "sky":
        image += 1e4
    elif kind == "few":
        image[rng.random(image.shape) < 0.97] = np.nan
    elif kind == "heavy":
        image = rng.standard_cauchy(image.shape) * 100
    image = image.astype(np.float32)
    matrix = image_features(image, noise_sigma=np.ones((1, 1)), bands=("r",), grid=1)
    got = dict(zip(matrix.names, matrix.values[0], strict=True))["patch_0_0_median_r"]
    known = image[np.isfinite(image)]
    want = np.median(known) if len(known) else np.nan
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_patch_table_holds_the_same_values_and_the_position():
    counts, step, noise = stored(n=4)
    whole = image_features(counts, step=step, noise_sigma=noise, bands=BANDS)
    table = patch_table(counts, step=step, noise_sigma=noise, bands=BANDS)
    assert table.values.shape == (4 * 9, len(table.names))
    columns = dict(zip(table.names, table.values.reshape(4, 9, -1).transpose(2, 0, 1), strict=True))
    for name, values in zip(whole.names, whole.values.T, strict=True):
        if name.startswith("patch_"):
            _, row, column, rest = name.split("_", 3)
            np.testing.assert_array_equal(columns[rest][:, 3 * int(row) + int(column)], values)
    np.testing.assert_array_equal(
        columns["position_x"][0], np.tile([-2 / 3, 0, 2 / 3], 3).astype("f4")
    )
    assert columns["position_radius"][0, 4] == 0
    # A cutout's own vector does not hold the position: it would be constant.
    assert not [name for name in whole.names if "position" in name]


def test_positions_are_symmetric():
    where = patch_positions(4)
    np.testing.assert_allclose(where[:, :2].sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(where[:, 2], where[::-1, 2])


def test_patch_scores_are_put_together_by_their_best():
    scores = np.array([1.0, 5, 3, 2, -1, -1, -1, -4])
    np.testing.assert_allclose(aggregate(scores, n_patches=4), [5, -1])
    np.testing.assert_allclose(aggregate(scores, n_patches=4, how="top3"), [10 / 3, -1])
    np.testing.assert_allclose(aggregate(scores[:2], n_patches=1, how="top3"), [1, 5])
    with pytest.raises(InputError, match="not those of whole cutouts"):
        aggregate(scores, n_patches=3)
    with pytest.raises(InputError, match="how is 'mean'"):
        aggregate(scores, n_patches=4, how="mean")


def test_saturated_stars_and_zero_flux_are_defined():
    cutouts = np.zeros((1, 3, 24, 24), np.float32)
    cutouts[0, :, 12, 12] = 1e7
    counts, step, clipped = encode(cutouts, np.ones((1, 3)))
    assert (clipped > 0).all()
    matrix = image_features(counts, step=step, noise_sigma=np.ones((1, 3)), bands=BANDS)
    edgeless = np.array(["_blue_alignment_" in name for name in matrix.names])
    assert np.isfinite(matrix.values[:, ~edgeless]).all()


COUNTS, STEP, NOISE = stored()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": None}, "int16 and step is missing"),
        ({"cutouts_nchw": COUNTS.astype("f4")}, "float32 and step is given"),
        ({"step": STEP[:, :2]}, r"step has shape \(3, 2\), expected \(3, 3\)"),
        ({"step": 0 * STEP}, "finite and above 0"),
        ({"max_size_px": 10, "grid": 12}, r"30×30 px, binned 3×3, cannot be cut into 12×12"),
    ],
)
def test_pixels_that_do_not_fit_are_named(change, message):
    arguments = {"cutouts_nchw": COUNTS, "step": STEP, "noise_sigma": NOISE} | change
    with pytest.raises(InputError, match=message):
        image_features(arguments.pop("cutouts_nchw"), bands=BANDS, **arguments)


def test_a_mask_blanks_counts_too():
    mask = np.random.default_rng(0).random((3, 30, 30)) < 0.8
    masked = np.where(mask[:, None], COUNTS, np.int16(-32768))
    options = {"step": STEP, "noise_sigma": NOISE, "bands": BANDS}
    np.testing.assert_array_equal(
        image_features(COUNTS, mask=mask, **options).values,
        image_features(masked, **options).values,
    )
