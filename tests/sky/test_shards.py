import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clusterray import schema
from clusterray.errors import ContractError, InputError, StorageError
from clusterray.sky import byte_planes as codec
from clusterray.sky import shards

BANDS = ("g", "r", "i")
INT16 = hnp.arrays(
    np.int16,
    st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    elements=st.integers(-32768, 32767),
)


def made(n=7, *, size=16, seed=0, bands=BANDS):
    """Arguments of `write`: noise of σ between 0.5 and 2 nJy, a corner without data."""
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.5, 2.0, (n, len(bands))).astype(np.float32)
    flux = rng.normal(size=(n, len(bands), size, size)) * sigma[:, :, None, None]
    flux[:, 0, :3, :4] = np.nan
    return {
        "object_id": [f"J{i:04d}+01" for i in range(n)],
        "ra_deg": rng.uniform(0, 360, n),
        "dec_deg": rng.uniform(-90, 90, n),
        "cutouts_nchw": flux.astype(np.float32),
        "noise_sigma": sigma,
        "bands": bands,
    }


def slow_planes(pixels):
    """The format of the image column, byte by byte."""
    rows = []
    for cutout in pixels:
        zigzag = [2 * v if v >= 0 else -2 * v - 1 for v in cutout.ravel().tolist()]
        rows.append([z % 256 for z in zigzag] + [z // 256 for z in zigzag])
    return np.array(rows, np.uint8).reshape(len(pixels), 2 * math.prod(pixels.shape[1:]))


# The byte planes


@given(INT16)
@settings(max_examples=60, deadline=None)
def test_planes_are_the_stated_bytes_and_come_back(pixels):
    found = codec.to_planes(pixels)
    np.testing.assert_array_equal(found, slow_planes(pixels))
    np.testing.assert_array_equal(codec.from_planes(found, pixels.shape[1:]), pixels)


@given(INT16, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_dequantise_is_pixels_times_step(pixels, seed):
    step = np.random.default_rng(seed).uniform(1e-3, 1e3, pixels.shape[:2]).astype(np.float32)
    want = pixels.astype(np.float32) * step[:, :, None, None]
    want[pixels == -32768] = np.nan
    np.testing.assert_array_equal(codec.dequantise(pixels, step), want)


def test_results_go_into_an_array_given_for_them():
    pixels = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    into = np.empty((1, 2, 3, 4), np.int16)
    assert codec.from_planes(codec.to_planes(pixels), (2, 3, 4), out=into) is into
    np.testing.assert_array_equal(into, pixels)
    with pytest.raises(InputError, match=r"out is float64\[1, 2, 3, 4\], expected C-contiguous"):
        codec.dequantise(pixels, np.ones((1, 2), np.float32), out=np.empty((1, 2, 3, 4)))
    with pytest.raises(InputError, match="24 bytes a cutout, expected 48"):
        codec.from_planes(codec.to_planes(pixels)[:, :24].copy(), (2, 3, 4))
    with pytest.raises(InputError, match=r"step is \[2, 2\], expected \[1, 2\]"):
        codec.dequantise(pixels, np.ones((2, 2), np.float32))


def test_compiles_where_no_cache_can_be_written(tmp_path):
    # A locator that finds no place is what numba meets on a read-only installation.
    code = (
        "import numpy as np; from clusterray.sky import byte_planes as p;"
        "x = np.array([[[[-3, -32768]]]], np.int16);"
        "assert (p.from_planes(p.to_planes(x), (1, 1, 2)) == x).all()"
    )
    env = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)


# Quantisation


@given(
    hnp.arrays(
        np.float32,
        (2, 2, 5, 5),
        elements=st.floats(-1e6, 1e6, width=32) | st.just(math.nan),
    ),
    st.integers(2, 64),
)
@settings(max_examples=100, deadline=None)
def test_quantisation_law(flux, steps_per_sigma):
    sigma = np.array([[0.5, 3.0], [40.0, 1e3]], np.float32)
    pixels, step, clipped = shards.encode(flux, sigma, steps_per_sigma=steps_per_sigma)
    assert np.all(step >= sigma / steps_per_sigma)
    assert np.all(step <= sigma / 2)
    blank = np.isnan(flux)
    np.testing.assert_array_equal(pixels == schema.BLANK, blank)
    wide = step.astype(np.float64)[:, :, None, None]
    over = ~blank & (np.abs(np.rint(flux / wide)) > 32767)
    error = np.abs(pixels * wide - flux)
    assert np.all(
        error[~over & ~blank] <= (wide / 2 * (1 + 1e-9) * np.ones_like(flux))[~over & ~blank]
    )
    np.testing.assert_array_equal(pixels[over], 32767 * np.sign(flux[over]))
    np.testing.assert_allclose(clipped, over.mean(axis=(2, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    ("peak", "step", "count", "clipped"),
    [
        (100.0, 0.125, 800, 0),  # 8 steps per σ
        (-32767 / 8, 0.125, -32767, 0),  # the last that fits
        (8191.75, 0.25, 32767, 0),  # enlarged just as far as needed
        (16383.5, 0.5, 32767, 0),  # σ/2
        (16384.0, 0.5, 32767, 1 / 256),  # beyond: clipped and counted
        (-1e9, 0.5, -32767, 1 / 256),
    ],
)
def test_bright_pixels_enlarge_the_step_and_then_clip(peak, step, count, clipped):
    flux = np.zeros((1, 2, 16, 16), np.float32)
    flux[0, 1, 3, 4] = peak
    pixels, steps, fraction = shards.encode(flux, [[1.0, 1.0]], steps_per_sigma=8)
    np.testing.assert_allclose(steps, [[0.125, step]], rtol=1e-6)
    assert pixels[0, 1, 3, 4] == count
    np.testing.assert_allclose(fraction, [[0, clipped]])


def test_rounds_half_to_even():
    flux = (np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5]) / 8).astype(np.float32)
    pixels, _, _ = shards.encode(flux.reshape(1, 1, 2, 3), [[1.0]])
    assert pixels.ravel().tolist() == [0, 2, 2, 0, -2, -2]


def test_error_bias_blank_and_size_of_a_noise_shard(tmp_path):
    n, size, bands = 256, 64, ("g", "r", "i", "z", "y")
    rng = np.random.default_rng(1)
    sigma = rng.uniform(0.1, 30, (n, len(bands))).astype(np.float32)
    sky = rng.normal(size=(n, len(bands), size, size)).astype(np.float32)
    flux = (sky + np.float32(0.3)) * sigma[:, :, None, None]
    flux[5, 2] = np.nan
    path = str(tmp_path / "noise.parquet")
    where = {"ra_deg": np.zeros(n), "dec_deg": np.zeros(n)}
    ids = [f"o{i}" for i in range(n)]
    shards.write(path, object_id=ids, **where, cutouts_nchw=flux, noise_sigma=sigma, bands=bands)
    found = shards.read(path)
    np.testing.assert_array_equal(np.isnan(found.cutouts_nchw), np.isnan(flux))
    in_steps = (found.cutouts_nchw.astype(np.float64) - flux) / found.step[:, :, None, None]
    assert np.nanmax(np.abs(in_steps)) <= 0.5 + 1e-4
    assert abs(np.nanmean(in_steps)) <= 0.01
    _, counts = np.unique(
        np.rint(flux / found.step[:, :, None, None])[~np.isnan(flux)], return_counts=True
    )
    share = counts / counts.sum()
    entropy_bytes = -(share * np.log2(share)).sum() / 8 * counts.sum()
    about = shards.describe(path)
    assert about["image_bytes"] <= 1.05 * entropy_bytes
    assert about["bytes"] <= 1.05 * entropy_bytes


# Files


def test_write_and_read(tmp_path):
    given = made()
    n = len(given["object_id"])
    extra = {
        "survey": ["hsc", None] + ["des"] * (n - 2),
        "z_lens": [0.3, None, math.nan] + [0.5] * (n - 3),
        "richness": np.ma.masked_equal(np.arange(n), 2),
        "psf_fwhm_arcsec": [[0.7, math.nan, 0.9]] * n,
        "depth_mag": (26.0, 25.5, 25.0),
    }
    path = str(tmp_path / "folder" / "a.parquet")
    shards.write(path, **given, pixel_scale_arcsec=0.336, row_group_size=3, **extra)
    found = shards.read(path)
    assert list(found.object_id) == given["object_id"]
    assert all(type(v) is str for v in found.object_id)
    assert found.bands == BANDS
    assert found.pixel_scale_arcsec == 0.336
    assert len(found) == n
    assert found.cutouts_nchw.dtype == np.float32
    flux = given["cutouts_nchw"]
    np.testing.assert_array_equal(np.isnan(found.cutouts_nchw), np.isnan(flux))
    np.testing.assert_array_equal(found.noise_sigma, given["noise_sigma"])
    np.testing.assert_array_equal(found.step, given["noise_sigma"] / 8)
    columns = found.columns
    np.testing.assert_array_equal(columns["ra_deg"], given["ra_deg"])
    np.testing.assert_array_equal(columns["dec_deg"], given["dec_deg"])
    assert list(columns["survey"]) == extra["survey"]
    np.testing.assert_array_equal(columns["z_lens"], np.array(extra["z_lens"], float))
    assert np.flatnonzero(np.isnan(columns["richness"])).tolist() == [2]
    assert np.isnan(columns["ebv"]).all()
    np.testing.assert_array_equal(
        columns["psf_fwhm_arcsec"], np.array(extra["psf_fwhm_arcsec"], np.float32)
    )
    np.testing.assert_array_equal(columns["depth_mag"], np.tile([26.0, 25.5, 25.0], (n, 1)))
    np.testing.assert_array_equal(columns["zero_point"], np.full((n, 3), 31.4, np.float32))
    assert columns["noise_correlation"].shape == (n, 3)
    assert np.isnan(columns["noise_correlation"]).all()
    np.testing.assert_allclose(columns["coverage"], np.tile([1 - 12 / 256, 1, 1], (n, 1)))
    np.testing.assert_array_equal(columns["clipped_fraction"], np.zeros((n, 3)))
    assert set(columns) == set(schema.cutouts(BANDS, 16).names) - {
        "object_id", "noise_sigma", "step", "image",
    }  # fmt: skip
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["a.parquet"]


def test_integers_times_step_are_the_floats(tmp_path):
    path = str(tmp_path / "a.parquet")
    shards.write(path, **made(), row_group_size=4)
    counts, flux = shards.read(path, integers=True), shards.read(path)
    assert counts.cutouts_nchw.dtype == np.int16
    want = counts.cutouts_nchw * counts.step[:, :, None, None]
    want[counts.cutouts_nchw == schema.BLANK] = np.nan
    np.testing.assert_array_equal(flux.cutouts_nchw, want)


def test_row_groups_together_are_the_file(tmp_path):
    path = str(tmp_path / "a.parquet")
    shards.write(path, **made(8), row_group_size=3, z_lens=np.linspace(0.1, 0.8, 8))
    whole = shards.read(path)
    parts = [shards.read_row_group(path, i) for i in range(3)]
    assert [len(p) for p in parts] == [3, 3, 2]
    for name in ("object_id", "cutouts_nchw", "noise_sigma", "step"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name)
        )
    for name, values in whole.columns.items():
        np.testing.assert_array_equal(np.concatenate([p.columns[name] for p in parts]), values)
    raw = shards.read_row_group(path, 1, raw=True)
    assert isinstance(raw, pa.Table)
    np.testing.assert_array_equal(
        shards.pixels(raw), shards.read(path, integers=True).cutouts_nchw[3:6]
    )
    np.testing.assert_array_equal(shards.batch(raw).cutouts_nchw, parts[1].cutouts_nchw)
    for index in (3, -1):
        with pytest.raises(InputError, match=rf"a.parquet: row group {index} asked for, it has 3"):
            shards.read_row_group(path, index)


def test_more_rows_than_are_decoded_at_once():
    given = made(37, size=5)
    found = shards.batch(shards.to_table(**given))
    error = np.abs(found.cutouts_nchw - given["cutouts_nchw"]) / found.step[:, :, None, None]
    assert np.nanmax(error) <= 0.5 + 1e-4
    np.testing.assert_array_equal(np.isnan(found.cutouts_nchw), np.isnan(given["cutouts_nchw"]))


def test_an_empty_shard(tmp_path):
    path = str(tmp_path / "none.parquet")
    shards.write(path, **made(0))
    found = shards.read(path)
    assert len(found) == 0
    assert found.cutouts_nchw.shape == (0, 3, 16, 16)
    assert shards.describe(path)["bytes_per_cutout"] is None


def test_same_content_same_bytes(tmp_path):
    for name in ("a", "b"):
        shards.write(str(tmp_path / name), **made())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_describe(tmp_path):
    path = tmp_path / "a.parquet"
    shards.write(str(path), **made(8), row_group_size=3, steps_per_sigma=4, pixel_scale_arcsec=0.5)
    about = shards.describe(str(path))
    assert json.loads(json.dumps(about)) == about
    assert about["rows"] == 8
    assert about["row_groups"] == [3, 3, 2]
    assert about["bands"] == ["g", "r", "i"]
    assert (about["size_px"], about["pixel_scale_arcsec"], about["steps_per_sigma"]) == (16, 0.5, 4)
    assert (about["format_version"], about["schema_version"]) == (1, schema.VERSIONS["cutouts"])
    assert about["bytes"] == path.stat().st_size
    assert about["bytes_per_cutout"] == path.stat().st_size / 8
    assert 0 < about["image_bytes"] < about["bytes"]
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    assert about["footer_sha256"] == hashlib.sha256(data[-8 - length : -8]).hexdigest()


def test_shards_that_differ_have_footers_that_differ(tmp_path):
    given = made(2) | {"object_id": ["a", "b"]}
    one, two = np.full((2, 2, 3, 16, 16), [[[[[1.0]]]], [[[[2.0]]]]], np.float32)
    variants = {
        "one": {"cutouts_nchw": one},
        "two": {"cutouts_nchw": two},
        "step": {"cutouts_nchw": one, "noise_sigma": given["noise_sigma"] * 2},
        "psf": {"cutouts_nchw": one, "psf_fwhm_arcsec": 0.7},
        "other psf": {"cutouts_nchw": one, "psf_fwhm_arcsec": 0.8},
    }
    given["noise_sigma"] = np.ones((2, 3), np.float32)
    footers = set()
    for name, changes in variants.items():
        shards.write(str(tmp_path / name), **(given | changes))
        footers.add(shards.describe(str(tmp_path / name))["footer_sha256"])
    assert len(footers) == len(variants)


# Tables in memory


@pytest.fixture(scope="module")
def table():
    return shards.to_table(**made(9))


def test_slices_and_batches_honour_their_offset(table):
    whole = shards.pixels(table)
    for start, length in ((0, 9), (4, 3), (8, 1), (9, 0)):
        part = table.slice(start, length)
        np.testing.assert_array_equal(shards.pixels(part), whole[start : start + length])
        found = shards.batch(part)
        np.testing.assert_array_equal(found.step, shards.batch(table).step[start : start + length])
    record = table.slice(2).to_batches()[0].slice(3, 2)
    np.testing.assert_array_equal(shards.pixels(record), whole[5:7])
    chunked = pa.concat_tables([table.slice(5, 2), table.slice(0, 1)])
    np.testing.assert_array_equal(shards.pixels(chunked), whole[[5, 6, 0]])
    np.testing.assert_array_equal(shards.pixels(table.slice(0, 0)), whole[:0])
    into = np.zeros((3, 3, 16, 16), np.int16)
    assert shards.pixels(table.slice(4, 3), out=into) is into
    np.testing.assert_array_equal(into, whole[4:7])


def test_tables_put_together_make_the_same_shard(table, tmp_path):
    shards.write(str(tmp_path / "a.parquet"), **made(9), row_group_size=4)
    parts = pa.concat_tables([table.slice(0, 2), table.slice(2, 6), table.slice(8)])
    shards.write_table(str(tmp_path / "b.parquet"), parts, row_group_size=4)
    one, other = (shards.read(str(tmp_path / name)) for name in ("a.parquet", "b.parquet"))
    assert list(one.object_id) == list(other.object_id)
    np.testing.assert_array_equal(one.cutouts_nchw, other.cutouts_nchw)
    for name, values in one.columns.items():
        np.testing.assert_array_equal(values, other.columns[name])
    assert shards.describe(str(tmp_path / "b.parquet"))["row_groups"] == [4, 4, 1]
    digests = {
        pq.read_schema(tmp_path / name).metadata[b"clusterray.content_sha256"]
        for name in ("a.parquet", "b.parquet")
    }
    assert len(digests) == 1
    twice = pa.concat_tables([table, table.slice(1, 1)])
    with pytest.raises(ContractError, match=r"c\.parquet: 1 ids in 'object_id' stand more"):
        shards.write_table(str(tmp_path / "c.parquet"), twice)
    with pytest.raises(ContractError, match=r"c\.parquet: a cutouts table needs column 'step'"):
        shards.write_table(str(tmp_path / "c.parquet"), table.drop_columns(["step"]))
    assert not (tmp_path / "c.parquet").exists()


def test_null_lists_are_unknown_whatever_lies_beneath(table):
    kind = table.schema.field("psf_fwhm_arcsec").type
    flat = pa.array(np.arange(27), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array([True] + [False] * 8))
    index = table.schema.get_field_index("psf_fwhm_arcsec")
    found = shards.batch(table.set_column(index, table.schema.field(index), column).slice(0, 2))
    np.testing.assert_array_equal(found.columns["psf_fwhm_arcsec"], [[math.nan] * 3, [3, 4, 5]])


def test_planes_of_one_chunk_are_a_view(table):
    part = table.slice(2, 5)
    buffer = part.column("image").chunk(0).buffers()[1]
    view = shards.planes(part)
    assert view.ctypes.data == buffer.address + 2 * view.shape[1]
    assert view.shape == (5, 2 * 3 * 16 * 16)


def test_pixels_without_metadata_take_a_shape(table):
    bare = table.replace_schema_metadata(None)
    with pytest.raises(ContractError, match="not a clusterray cutout shard"):
        shards.pixels(bare)
    np.testing.assert_array_equal(shards.pixels(bare, shape=(3, 16, 16)), shards.pixels(table))


# Bad files


def write_parquet(path, table):
    pq.write_table(table, path)


def with_layout(table, **changes):
    field = table.schema.field("image")
    spec = json.loads(field.metadata[b"clusterray.image"]) | changes
    field = field.with_metadata({"clusterray.image": json.dumps(spec)})
    index = table.schema.get_field_index("image")
    return table.cast(table.schema.set(index, field))


def with_version(table, version):
    return table.replace_schema_metadata({**table.schema.metadata, b"clusterray.version": version})


BAD_TABLES = {
    "foreign": (lambda t: pa.table({"id": [1], "image": [b"x"]}), "not a clusterray cutout shard"),
    "no image": (lambda t: t.drop_columns(["image"]), "not a clusterray cutout shard"),
    "bare": (lambda t: t.replace_schema_metadata(None), "not a clusterray cutout shard"),
    "image version": (
        lambda t: with_layout(t, version=2),
        "image version is 2, this release reads 1",
    ),
    "encoding": (lambda t: with_layout(t, encoding="png"), "image encoding is png"),
    "dtype": (lambda t: with_layout(t, dtype="int32"), "image dtype is int32"),
    "shape": (lambda t: with_layout(t, shape=[3, 8, 8]), r"expected fixed_size_binary\[384\]"),
    "not square": (lambda t: with_layout(t, shape=[3, 16, 8]), r"image shape is \[3, 16, 8\]"),
    "band count": (lambda t: with_layout(t, bands=["g"]), r"image shape is \[3, 16, 16\]"),
    "damaged": (lambda t: with_layout(t, bands=None), "description of its images is damaged"),
    "table version": (lambda t: with_version(t, b"7"), "version is 7, expected 1"),
    "column gone": (lambda t: t.drop_columns(["step"]), "needs column 'step'"),
    "column new": (
        lambda t: t.append_column("zlens", pa.nulls(len(t), pa.float64())),
        "column 'zlens' does not belong in a cutouts table; did you mean 'z_lens'",
    ),
    "ids repeated": (
        lambda t: pa.concat_tables([t, t.slice(3, 1)]),
        r"1 ids in 'object_id' stand more than once \(J0003\+01\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_other_tables_are_refused(name, table, tmp_path):
    spoil, match = BAD_TABLES[name]
    path = str(tmp_path / "bad.parquet")
    write_parquet(path, spoil(table))
    with pytest.raises(ContractError, match=match) as caught:
        shards.read(path)
    assert "bad.parquet" in str(caught.value)


@pytest.mark.parametrize(
    "reader", [shards.read, shards.describe, lambda p: shards.read_row_group(p, 0)]
)
@pytest.mark.parametrize("keep", [0, 5, 300, -100, -1])
def test_truncated_files(reader, keep, tmp_path):
    path = tmp_path / "cut.parquet"
    shards.write(str(path), **made())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError, match=r"cut\.parquet' is not a readable Parquet file"):
        reader(str(path))


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_changed_in_place(seed, tmp_path):
    """Wherever they lie: zstd alone reads most of such damage as other pixels."""
    path = tmp_path / "bits.parquet"
    shards.write(str(path), **made())
    data = bytearray(path.read_bytes())
    start = np.random.default_rng(seed).integers(4, len(data) - 24)
    data[start : start + 16] = bytes(b ^ 0x55 for b in data[start : start + 16])
    path.write_bytes(data)
    with pytest.raises((StorageError, ContractError), match=r"bits\.parquet"):
        shards.read(str(path))


def test_other_files(tmp_path):
    (tmp_path / "a.fits").write_bytes(b"SIMPLE  =                    T" + b" " * 2850)
    with pytest.raises(StorageError, match=r"a\.fits' is not a readable Parquet file"):
        shards.read(str(tmp_path / "a.fits"))
    with pytest.raises(StorageError, match=r"cannot open .*none\.parquet': no such file"):
        shards.read(str(tmp_path / "none.parquet"))


# Bad arguments


def patched(name, index, value):
    def spoil(given):
        array = np.array(given[name])
        array[index] = value
        return {name: array}

    return spoil


BAD_ARGUMENTS = {
    "noise nan": (patched("noise_sigma", (2, 1), math.nan), r"noise_sigma\[2, 1\] is nan"),
    "noise zero": (patched("noise_sigma", (2, 1), 0), r"noise_sigma\[2, 1\] is 0.0"),
    "noise negative": (patched("noise_sigma", (0, 0), -1), "expected a finite number above 0"),
    "noise infinite": (patched("noise_sigma", (0, 0), math.inf), r"noise_sigma\[0, 0\] is inf"),
    "noise tiny": (patched("noise_sigma", (0, 0), 1e-40), r"noise_sigma\[0, 0\] is (1|9\.9\d*)e-4"),
    "noise shape": (lambda g: {"noise_sigma": g["noise_sigma"].T}, r"\[3, 7\], expected \[7, 3\]"),
    "noise words": (lambda g: {"noise_sigma": "loud"}, "noise_sigma is not numeric"),
    "inf pixels": (patched("cutouts_nchw", (4, 1, 0, 0), math.inf), r"cutouts_nchw\[4\] .* band 1"),
    "one axis less": (lambda g: {"cutouts_nchw": g["cutouts_nchw"][0]}, r"expected \[7 objects"),
    "objects": (lambda g: {"object_id": g["object_id"][:-1]}, r"expected \[6 objects"),
    "bands": (lambda g: {"bands": ("g", "r")}, r"2 bands \(g r\)"),
    "bands as a word": (lambda g: {"bands": "gri"}, "expected names such as"),
    "band twice": (lambda g: {"bands": ("g", "r", "g")}, "a band stands twice"),
    "not square": (lambda g: {"cutouts_nchw": g["cutouts_nchw"][..., 1:]}, "square cutouts"),
    "complex": (lambda g: {"cutouts_nchw": g["cutouts_nchw"] * 1j}, "expected real numbers"),
    "id number": (lambda g: {"object_id": list(range(7))}, r"object_id\[0\] is 0 \(int\)"),
    "id empty": (lambda g: {"object_id": [*g["object_id"][:6], ""]}, r"object_id\[6\] is ''"),
    "id none": (lambda g: {"object_id": [None, *g["object_id"][1:]]}, r"object_id\[0\] is None"),
    "id twice": (lambda g: {"object_id": ["a"] * 7}, r"1 ids in 'object_id' .* \(a\)"),
    "ra": (patched("ra_deg", 3, 361.0), r"ra_deg\[3\] is 361.0, expected 0 to 360"),
    "ra nan": (patched("ra_deg", 3, math.nan), r"ra_deg\[3\] is nan"),
    "dec": (patched("dec_deg", 0, -91.0), r"dec_deg\[0\] is -91.0, expected -90 to 90"),
    "ra short": (lambda g: {"ra_deg": g["ra_deg"][1:]}, r"'ra_deg' is \[6\], expected \[7\]"),
    "ra words": (lambda g: {"ra_deg": ["12:30"] * 7}, "column 'ra_deg' is not numeric"),
    "unknown column": (lambda g: {"zlens": [0.1] * 7}, r"'zlens' .* did you mean 'z_lens'"),
    "computed column": (lambda g: {"step": [0.1] * 7}, "no column 'step' to give: it is computed"),
    "z shape": (lambda g: {"z_lens": [0.1] * 6}, r"column 'z_lens' is \[6\], expected \[7\]"),
    "z words": (lambda g: {"z_lens": ["far"] * 7}, "column 'z_lens' is not numeric"),
    "z infinite": (lambda g: {"z_lens": [math.inf] * 7}, "'z_lens' holds an infinite value"),
    "psf per object": (
        lambda g: {"psf_fwhm_arcsec": [0.7] * 7},
        r"'psf_fwhm_arcsec' is \[7\], expected \[7, 3\]",
    ),
    "coverage": (lambda g: {"coverage": 1.5}, "expected 0 to 1"),
    "survey short": (lambda g: {"survey": ["hsc"]}, "'survey' has 1 values, expected 7"),
    "steps": (lambda g: {"steps_per_sigma": 1}, "steps_per_sigma is 1, expected 2 or more"),
    "row groups": (lambda g: {"row_group_size": 0}, "row_group_size is 0, expected 1"),
    "pixel scale": (lambda g: {"pixel_scale_arcsec": 0.0}, "pixel_scale_arcsec is 0.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name, tmp_path):
    spoil, match = BAD_ARGUMENTS[name]
    given = made()
    path = tmp_path / "a.parquet"
    with pytest.raises((InputError, ContractError), match=match):
        shards.write(str(path), **(given | spoil(given)))
    assert not path.exists()


def test_benchmark_ends_with_a_line_of_json():
    options = ["--cutouts", "64", "--size-px", "64", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bench", "shards", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    line = json.loads(done.stdout.splitlines()[-1])
    assert {"name", "unit", "baseline", "detail", "commit", "versions", "machine"} <= set(line)
    assert line["ratio"] == pytest.approx(line["value"] / line["baseline"])
    # Noise of 8 steps per σ: log2 of 8 √(2πe) bit a pixel.
    assert line["detail"]["entropy_bytes_per_cutout"] == pytest.approx(
        5 * 64 * 64 / 8 * (3 + math.log2(math.sqrt(2 * math.pi * math.e))), rel=1e-3
    )


def test_a_table_without_rows_has_no_planes_and_no_pixels(tmp_path):
    path = str(tmp_path / "a.parquet")
    shards.write(
        path,
        object_id=["a"],
        ra_deg=[1.0],
        dec_deg=[2.0],
        cutouts_nchw=np.zeros((1, 2, 16, 16), np.float32),
        noise_sigma=np.ones((1, 2)),
        bands=("g", "r"),
    )
    table = shards.read_row_group(path, 0, raw=True)
    nothing = table.filter(pa.array([False]))
    assert shards.planes(nothing).shape == (0, 2 * 2 * 16 * 16)
    assert shards.batch(nothing).cutouts_nchw.shape == (0, 2, 16, 16)
