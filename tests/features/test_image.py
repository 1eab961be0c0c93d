"""Pixel features against slow loops and scikit-image, and the laws they keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.feature import graycomatrix, graycoprops
from skimage.filters import sobel

from clusterray.errors import InputError
from clusterray.features import image_features
from clusterray.features.geometry import N_ANNULI, patch_edges
from clusterray.features.kernels.levels import quantise
from clusterray.features.measurement import EDGE_SIGMA
from clusterray.features.registry import image_registry

BANDS = ("g", "r", "i")
NOISE = np.array([2.0, 3.0, 5.0])


def field(seed=0, n=4, size=48, bands=3):
    """Noise, a bright centre, and a blue ring: every feature has something to measure."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size, size)) - (size - 1) / 2
    radius = np.hypot(x + 1.5, y - 0.5)
    colours = np.linspace(1.0, 4.0, bands)[:, None, None]
    ring = np.linspace(6.0, 1.0, bands)[:, None, None] * np.exp(-((radius - size / 4) ** 2) / 4)
    noise = np.resize(NOISE, bands)[:, None, None]
    signal = 40 * colours * np.exp(-radius / 4) + 5 * ring
    cutouts = signal + noise * rng.normal(size=(n, bands, size, size))
    return cutouts.astype(np.float32), np.tile(np.resize(NOISE, bands), (n, 1))


def named(cutouts, noise, bands=BANDS, **options):
    matrix = image_features(cutouts, noise_sigma=noise, bands=bands, **options)
    return dict(zip(matrix.names, matrix.values.T, strict=True))


def with_holes(cutouts, seed=3):
    rng = np.random.default_rng(seed)
    holed = cutouts.copy()
    holed[rng.random(cutouts.shape) < 0.1] = np.nan
    return holed


def patch_of(image, row, column, grid=3):
    rows, columns = (patch_edges(length, grid) for length in image.shape)
    return image[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]


def luptitude(flux, sigma):
    b = 1.042 * sigma / 3631e9
    x = flux / 3631e9
    return -2.5 / np.log(10) * (np.arcsinh(x / (2 * b)) + np.log(b))


def test_patch_moments_contrast_and_colours_equal_a_slow_loop():
    cutouts, noise = field()
    holed = with_holes(cutouts)
    values = named(holed, noise)
    for n in range(2):
        for row, column in ((0, 0), (1, 1), (2, 0)):
            name = f"patch_{row}_{column}"
            for band, label in enumerate(BANDS):
                scaled = holed[n, band].astype(float) / NOISE[band]
                inside = np.zeros(scaled.shape, bool)
                patch_of(inside, row, column)[:] = True
                here, rest = scaled[inside], scaled[~inside]
                expected = {
                    "covered": np.isfinite(here).mean(),
                    "mean": np.nanmean(here),
                    "median": np.nanmedian(here),
                    "std": np.nanstd(here),
                    "contrast": (np.nanmean(here) - np.nanmean(rest)) / max(np.nanstd(rest), 1),
                }
                for stat, want in expected.items():
                    assert values[f"{name}_{stat}_{label}"][n] == pytest.approx(want, rel=1e-5)
            for k in (0, 1):
                blue, red = (patch_of(holed[n, k + j], row, column).astype(float) for j in (0, 1))
                both = np.isfinite(blue) & np.isfinite(red)
                blue, red, root = blue[both].mean(), red[both].mean(), np.sqrt(both.sum())
                colour = luptitude(blue, NOISE[k] / root) - luptitude(red, NOISE[k + 1] / root)
                pair = f"{BANDS[k]}_{BANDS[k + 1]}"
                assert values[f"{name}_colour_{pair}"][n] == pytest.approx(colour, abs=1e-4)
                difference = (blue - red) / np.hypot(NOISE[k], NOISE[k + 1])
                assert values[f"{name}_difference_{pair}"][n] == pytest.approx(difference, abs=1e-5)


def test_texture_is_the_glcm_contrast_of_scikit_image():
    cutouts, noise = field()
    values = named(cutouts, noise)
    for band, label in enumerate(BANDS):
        levels = quantise(cutouts[0, band : band + 1] / np.float32(NOISE[band]))[0].astype(np.uint8)
        assert levels.min() < 80
        assert levels.max() > 100
        for row, column in ((0, 1), (1, 1), (2, 2)):
            matrix = graycomatrix(
                patch_of(levels, row, column), [1], [0, np.pi / 2], levels=256, symmetric=True
            )
            both = matrix.sum(axis=3, keepdims=True)
            for stat, prop in (("texture", "contrast"), ("homogeneity", "homogeneity")):
                got = values[f"patch_{row}_{column}_{stat}_{label}"][0]
                assert got == pytest.approx(graycoprops(both, prop)[0, 0], rel=1e-6)


def test_quantise_rounds_the_asinh_stretch():
    flux = np.linspace(-3, 1000, 200_001).astype(np.float32).reshape(1, 3, -1)
    place = 255 * (np.arcsinh(flux.astype(float) / 3) - np.arcsinh(-1))
    place /= np.arcsinh(1000 / 3) - np.arcsinh(-1)
    assert np.abs(quantise(flux) - place).max() <= 0.5 + 1e-3


def test_quantise_clips_and_never_wraps():
    ramp = np.array([-1e9, -3.0, 0.0, 10.0, 1000.0, 1e9], np.float32)
    levels = quantise(ramp[None, None])[0, 0]
    assert levels[0] == levels[1] == 0
    assert levels[-1] == levels[-2] == 255
    assert (np.diff(levels) >= 0).all()


def test_edges_count_the_sobel_response_above_its_noise():
    cutouts, noise = field()
    values = named(cutouts, noise)
    for band, label in enumerate(BANDS):
        scaled = cutouts[0, band].astype(float) / NOISE[band]
        # scikit-image divides each kernel by 4 and takes the rms of the two directions.
        edges = sobel(scaled) * 4 * np.sqrt(2) > EDGE_SIGMA * np.sqrt(12)
        inner = np.zeros(scaled.shape, bool)
        inner[1:-1, 1:-1] = True
        for row, column in ((0, 0), (1, 1)):
            counted = patch_of(inner, row, column)
            want = patch_of(edges, row, column)[counted].mean()
            got = values[f"patch_{row}_{column}_edges_{label}"][0]
            assert got == pytest.approx(want, rel=1e-5)


def test_pure_noise_passes_the_edge_threshold_as_often_as_derived():
    rng = np.random.default_rng(5)
    values = named(7 * rng.normal(size=(4, 1, 510, 510)), np.full((4, 1), 7.0), ("r",))
    share = np.mean([v for k, v in values.items() if "_edges_" in k])
    assert share == pytest.approx(np.exp(-(EDGE_SIGMA**2) / 2), rel=0.15)


def test_annuli_equal_a_slow_loop():
    cutouts, noise = field()
    holed = with_holes(cutouts)
    values = named(holed, noise)
    size = cutouts.shape[-1]
    y, x = np.indices((size, size)) - (size - 1) / 2
    ring = np.floor(np.hypot(x, y) / (size / 2) * N_ANNULI)
    g, i = (holed[0, band].astype(float) for band in (0, 2))
    both = np.isfinite(g) & np.isfinite(i)
    alpha = g[both & (ring == 0)].sum() / i[both & (ring == 0)].sum()
    excess = g - alpha * i > 3 * np.hypot(NOISE[0], alpha * NOISE[2])
    for k in range(N_ANNULI):
        for band, label in enumerate(BANDS):
            here = holed[0, band].astype(float)[ring == k] / NOISE[band]
            here = here[np.isfinite(here)]
            assert values[f"annulus_{k}_mean_{label}"][0] == pytest.approx(here.mean(), rel=1e-5)
            assert values[f"annulus_{k}_std_{label}"][0] == pytest.approx(here.std(), rel=1e-5)
            assert values[f"annulus_{k}_bright_{label}"][0] == pytest.approx((here > 3).mean())
        want = excess[both & (ring == k)].mean()
        assert values[f"annulus_{k}_blue_residual_g_i"][0] == pytest.approx(want)


def test_a_blue_ring_about_a_red_centre_stands_out():
    cutouts, noise = field(n=1)
    values = named(cutouts, noise)
    excess = [values[f"annulus_{k}_colour_excess_g_r"][0] for k in range(1, N_ANNULI)]
    residual = [values[f"annulus_{k}_blue_residual_g_i"][0] for k in range(N_ANNULI)]
    assert np.argmin(excess) + 1 == 2
    assert excess[1] < -0.5
    assert np.argmax(residual) == 2
    assert residual[2] > 0.3


def test_colour_of_bright_light_is_the_ab_colour():
    cutouts = np.ones((1, 2, 9, 9), np.float32) * np.array([100.0, 250.0])[None, :, None, None]
    values = named(cutouts, np.full((1, 2), 1e-3), ("g", "r"))
    want = -2.5 * np.log10(100 / 250)
    assert values["patch_0_0_colour_g_r"][0] == pytest.approx(want, abs=1e-4)


def test_colour_of_pure_noise_stays_small():
    rng = np.random.default_rng(2)
    values = named(rng.normal(size=(50, 2, 30, 30)), np.ones((50, 2)), ("g", "r"))
    colours = np.concatenate([v for k, v in values.items() if "_colour_g_r" in k])
    assert np.abs(colours).max() < 6
    assert np.isfinite(colours).all()


def test_constant_sky_and_scale_act_as_defined():
    cutouts, noise = field()
    base = named(cutouts, noise)
    brighter = named(cutouts.astype(np.float64) * 10, noise * 10)
    lifted = named(cutouts.astype(np.float64) + 100 * NOISE[:, None, None], noise)
    for name in base:
        if "_blue_residual_" in name or "_blue_alignment_" in name:
            continue
        np.testing.assert_allclose(brighter[name], base[name], rtol=2e-3, atol=1e-3)
    for row, column in ((0, 0), (1, 2)):
        patch = f"patch_{row}_{column}"
        np.testing.assert_allclose(
            lifted[f"{patch}_mean_r"], base[f"{patch}_mean_r"] + 100, rtol=1e-5
        )
        for stat in ("std_r", "contrast_r", "edges_r"):
            np.testing.assert_allclose(
                lifted[f"{patch}_{stat}"], base[f"{patch}_{stat}"], rtol=1e-3, atol=2e-3
            )


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("length", [8, 31, 128, 224])
def test_patch_edges_cut_evenly_and_mirror(length, grid):
    edges = np.array(patch_edges(length, grid))
    widths = np.diff(edges)
    assert edges[0] == 0
    assert edges[-1] == length
    assert len(widths) == grid
    assert widths.min() >= 1
    assert widths.max() - widths.min() <= 2
    if length % 2 == 0 or grid % 2:
        np.testing.assert_array_equal(widths, widths[::-1])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(5)), st.integers(1, 5))
def test_neither_batch_size_nor_order_changes_a_bit(seed, order, size):
    cutouts, noise = field(seed, n=5, size=24)
    cutouts = with_holes(cutouts, seed)
    noise = noise * np.arange(1, 6)[:, None]
    whole = image_features(cutouts, noise_sigma=noise, bands=BANDS).values
    order = list(order)
    parts = [
        image_features(cutouts[part], noise_sigma=noise[part], bands=BANDS).values
        for part in (order[i : i + size] for i in range(0, 5, size))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole[order])
    transposed = np.asfortranarray(cutouts)
    np.testing.assert_array_equal(
        image_features(transposed, noise_sigma=noise, bands=BANDS).values, whole
    )


MOVES = {
    "rot90": (lambda a: np.rot90(a, axes=(-2, -1)), lambda r, c: (2 - c, r)),
    "rot180": (lambda a: np.rot90(a, 2, axes=(-2, -1)), lambda r, c: (2 - r, 2 - c)),
    "flip_x": (lambda a: a[..., ::-1], lambda r, c: (r, 2 - c)),
    "flip_y": (lambda a: a[..., ::-1, :], lambda r, c: (2 - r, c)),
    "transpose": (lambda a: a.swapaxes(-2, -1), lambda r, c: (c, r)),
}


@pytest.mark.parametrize("move", MOVES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(12, 40))
def test_turned_and_flipped_images_permute_patches_and_keep_annuli(move, seed, size):
    cutouts, noise = field(seed, n=2, size=size)
    cutouts = with_holes(cutouts, seed)
    turn, moved_to = MOVES[move]
    before, after = named(cutouts, noise), named(turn(cutouts), noise)
    for name, values in before.items():
        kind, *rest = name.split("_")
        if kind == "patch":
            row, column = moved_to(int(rest[0]), int(rest[1]))
            name = "_".join(["patch", str(row), str(column), *rest[2:]])
        if kind == "annulus" and "std" in rest:
            # A variance is what is left between two squares, each with float32's rounding.
            square = before[name.replace("std", "mean")].astype(np.float64) ** 2 + values**2.0
            change = np.abs(after[name] ** 2.0 - values**2.0)
            np.testing.assert_array_less(change[square > 0], 1e-6 * square[square > 0], name)
            np.testing.assert_array_equal(np.isnan(after[name]), np.isnan(values), name)
            continue
        # Share of edge pixels may move by one where the gradient lies on the threshold.
        counted = ("_edges_", "_residual_", "_extended_")
        atol = 0.02 if any(word in name for word in counted) else 1e-4
        np.testing.assert_allclose(after[name], values, rtol=1e-4, atol=atol, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(
    mask=hnp.arrays(bool, (2, 15, 15)),
    junk=st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 0.0]),
)
def test_masked_pixels_never_matter(mask, junk):
    cutouts, noise = field(n=2, size=15)
    clean = image_features(cutouts, noise_sigma=noise, bands=BANDS, mask=mask).values
    spoilt = np.where(mask[:, None], cutouts, np.float32(junk))
    again = image_features(spoilt, noise_sigma=noise, bands=BANDS, mask=mask).values
    np.testing.assert_array_equal(clean, again)
    holed = np.where(mask[:, None], cutouts, np.float32(np.nan))
    np.testing.assert_array_equal(
        clean, image_features(holed, noise_sigma=noise, bands=BANDS).values
    )


@settings(max_examples=25, deadline=None)
@given(mask=hnp.arrays(bool, (1, 3, 10, 10)))
def test_nan_leaves_only_where_it_is_declared_and_for_the_declared_reason(mask):
    cutouts, noise = field(n=1, size=10)
    matrix = image_features(cutouts, noise_sigma=noise, bands=BANDS, mask=mask)
    values = dict(zip(matrix.names, matrix.values[0], strict=True))
    for feature in image_registry(BANDS):
        assert feature.may_be_nan or np.isfinite(values[feature.name]), feature
        assert not np.isinf(values[feature.name])
    for row in range(3):
        for column in range(3):
            for band, label in enumerate(BANDS):
                empty = not patch_of(mask[0, band], row, column).any()
                for stat in ("mean", "std"):
                    got = values[f"patch_{row}_{column}_{stat}_{label}"]
                    assert np.isnan(got) == empty


def test_whole_cutouts_have_no_nan_and_every_column_varies():
    cutouts, noise = field(n=12)
    scale = np.random.default_rng(0).uniform(0.05, 6, (12, 3, 1, 1)).astype(np.float32)
    cutouts = with_holes(cutouts * scale)
    matrix = image_features(cutouts, noise_sigma=noise, bands=BANDS)
    # Only the alignment of edges may have nothing to say of an image without edges.
    edgeless = np.array(["_blue_alignment_" in name for name in matrix.names])
    assert np.isfinite(matrix.values[:, ~edgeless]).all()
    assert matrix.values.dtype == np.float32
    assert (np.nanstd(matrix.values, axis=0) > 0).all()


@pytest.mark.parametrize(("bands", "grid"), [(("r",), 3), (("g", "r"), 2), (BANDS, 1)])
def test_any_number_of_bands_and_patches(bands, grid):
    cutouts, noise = field(bands=len(bands))
    matrix = image_features(cutouts, noise_sigma=noise, bands=bands, grid=grid)
    assert matrix.names == tuple(f.name for f in image_registry(bands, grid=grid))
    edgeless = np.array(["_blue_alignment_" in name for name in matrix.names])
    if grid > 1:
        assert np.isfinite(matrix.values[:, ~edgeless]).all()


def test_a_missing_band_is_unknown_and_needs_no_noise():
    cutouts, noise = field(n=1)
    cutouts[:, 1] = np.nan
    noise[:, 1] = np.nan
    values = named(cutouts, noise)
    assert values["patch_1_1_covered_r"][0] == 0
    assert np.isnan(values["patch_1_1_mean_r"][0])
    assert np.isfinite(values["patch_1_1_mean_g"][0])
    assert np.isfinite(values["annulus_2_blue_residual_g_i"][0])


def test_empty_batch():
    matrix = image_features(np.empty((0, 3, 12, 12)), noise_sigma=np.empty((0, 3)), bands=BANDS)
    assert matrix.values.shape == (0, len(matrix.names))


CUTOUTS, NOISES = field(n=3, size=12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutouts_nchw": CUTOUTS[0]}, r"shape \(3, 12, 12\), expected \(n, 3, h, w\)"),
        ({"bands": ("g", "r")}, "expected .n, 2, h, w. for bands g, r"),
        ({"bands": ("g", "r", "g")}, "a name stands twice"),
        ({"cutouts_nchw": CUTOUTS[..., :2]}, "12×2 px cannot be cut into 3×3 patches"),
        ({"noise_sigma": NOISES[:, 0]}, r"noise_sigma has shape \(3,\), expected \(3, 3\)"),
        ({"noise_sigma": NOISES * [[1], [1], [0]]}, r"noise_sigma\[2, 0\] is 0.0, expected > 0"),
        ({"noise_sigma": NOISES * np.nan}, r"noise_sigma\[0, 0\] is nan"),
        ({"noise_sigma": -NOISES}, "9 such values: reject these rows"),
        ({"mask": np.ones((3, 5, 5), bool)}, r"mask has shape \(3, 5, 5\)"),
        ({"mask": np.ones((3, 12, 12))}, "type float64, expected bool"),
        ({"grid": 0}, "grid is 0"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    good = {"cutouts_nchw": CUTOUTS, "noise_sigma": NOISES, "bands": BANDS}
    arguments = {**good, **change}
    with pytest.raises(InputError, match=message):
        image_features(arguments.pop("cutouts_nchw"), **arguments)
