import io

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits

from clusterray import config, schema, storage
from clusterray.errors import ContractError, StorageError
from clusterray.sky import shards, tiles
from clusterray.sky.surveys import resolve


def clients(monkeypatch: pytest.MonkeyPatch, **environment: str | None) -> None:
    """Have every client start again, with these changes."""
    s3fs = pytest.importorskip("s3fs")
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    storage._remote_filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def changed(s3_server, monkeypatch: pytest.MonkeyPatch):
    """`clients`, undone for the next test."""
    yield lambda **environment: clients(monkeypatch, **environment)
    monkeypatch.undo()
    clients(monkeypatch)


def test_bytes_go_round(s3_server) -> None:
    url = f"{s3_server.url}/a/b.bin"
    assert not storage.exists(url)
    storage.write_bytes(url, b"\x00\xff")
    assert storage.read_bytes(url) == b"\x00\xff"
    entry = storage.stat(url)
    assert entry is not None
    assert (entry.url, entry.size) == (url, 2)
    storage.write_bytes(url, b"later")
    assert storage.read_bytes(url) == b"later"
    with storage.open_fsspec(url) as stream:
        stream.seek(2)
        assert stream.read() == b"ter"


def test_a_file_of_many_parts(s3_server) -> None:
    url = f"{s3_server.url}/large.bin"
    data = np.random.default_rng(1).bytes(12_000_000)
    storage.write_bytes(url, data)
    assert storage.read_bytes(url) == data
    assert [e.url for e in storage.list_files(s3_server.url) if "large" in e.url] == [url]


def test_listing(s3_server) -> None:
    folder = f"{s3_server.url}/list"
    for name in ("b.parquet", "a.parquet", "sub/c.parquet", "d.json"):
        storage.write_bytes(f"{folder}/{name}", b"123")
    want = [f"{folder}/{n}" for n in ("a.parquet", "b.parquet", "sub/c.parquet")]
    assert [e.url for e in storage.list_files(folder, suffix=".parquet")] == want
    flat = storage.list_files(f"{folder}/", suffix=".parquet", recursive=False)
    assert [e.url for e in flat] == want[:2]
    assert {e.size for e in flat} == {3}
    assert storage.list_files(f"{folder}/none") == []
    assert not storage.exists(f"{folder}/sub")


def test_json_and_parquet(s3_server) -> None:
    storage.write_json(f"{s3_server.url}/a.json", {"a": 1})
    assert storage.read_json(f"{s3_server.url}/a.json") == {"a": 1}
    url = f"{s3_server.url}/t.parquet"
    table = pa.table({"object_id": ["a"], "s": pa.array([1], pa.int8())})
    storage.write_table(url, table)
    assert storage.read_table(url).equals(table)
    storage.write_bytes(url, storage.parquet_bytes(table).to_pybytes()[:-20])
    with pytest.raises(StorageError, match=r"s3://survey/t\.parquet' is not a readable Parquet"):
        storage.read_table(url)


@pytest.mark.parametrize("read", [storage.read_bytes, storage.open_fsspec])
def test_missing_file(s3_server, read) -> None:
    with pytest.raises(StorageError, match="cannot open 's3://survey/none': no such file"):
        read(f"{s3_server.url}/none")


@pytest.mark.parametrize(
    "call",
    [
        storage.read_bytes,
        storage.exists,
        storage.open_fsspec,
        storage.list_files,
        lambda url: storage.list_files(f"{url}/deeper"),
        lambda url: storage.write_bytes(url, b""),
    ],
)
def test_missing_bucket(s3_server, call) -> None:
    with pytest.raises(StorageError, match=r"'s3://nobucket/a.*': the bucket does not exist"):
        call("s3://nobucket/a")


CALLS = {
    "read": storage.read_bytes,
    "list": lambda url: storage.list_files(url.rpartition("/")[0]),
    "look": storage.exists,
    "write": lambda url: storage.write_bytes(url, b"1"),
    "fsspec": storage.open_fsspec,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys(s3_server, changed, name: str, call: str) -> None:
    url = f"{s3_server.url}/secret/a.bin"
    storage.write_bytes(url, b"1")
    changed(**{name: "WRONG"})
    with pytest.raises(
        StorageError, match=r"'s3://survey/secret.*': access denied: check"
    ) as caught:
        CALLS[call](url)
    for secret in ("WRONG", *s3_server.env.values()):
        assert secret not in str(caught.value)


def test_no_keys_at_all(s3_server, changed) -> None:
    changed(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    for call in (storage.read_bytes, storage.open_fsspec):
        with pytest.raises(StorageError, match="cannot open 's3://survey/a'"):
            call(f"{s3_server.url}/a")


def test_credentials_in_the_url_are_refused(s3_server) -> None:
    key, secret = (s3_server.env[f"AWS_{n}"] for n in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    for call in CALLS.values():
        with pytest.raises(StorageError, match=r"'s3://survey.*' was given with cred") as caught:
            call(f"s3://{key}:{secret}@survey/x/a")
        assert key not in str(caught.value)
        assert secret not in str(caught.value)


def shard(url: str) -> np.ndarray:
    cutouts = np.random.default_rng(2).normal(0, 4, (6, 2, 16, 16)).astype(np.float32)
    cutouts[0, 1, :3] = np.nan
    shards.write(
        url,
        object_id=[f"o{i}" for i in range(6)],
        ra_deg=np.arange(6.0),
        dec_deg=np.zeros(6),
        cutouts_nchw=cutouts,
        noise_sigma=np.full((6, 2), 4.0),
        bands=("g", "r"),
        row_group_size=4,
        pixel_scale_arcsec=0.5,
    )
    return cutouts


def test_shards(s3_server) -> None:
    url = f"{s3_server.url}/shards/a.parquet"
    cutouts = shard(url)
    about = shards.describe(url)
    assert (about["rows"], about["row_groups"], about["bands"]) == (6, [4, 2], ["g", "r"])
    batch = shards.read(url)
    np.testing.assert_allclose(batch.cutouts_nchw, cutouts, rtol=0, atol=0.2501)
    np.testing.assert_array_equal(np.isnan(batch.cutouts_nchw), np.isnan(cutouts))
    part = shards.read_row_group(url, 1)
    np.testing.assert_array_equal(part.cutouts_nchw, batch.cutouts_nchw[4:])


def test_a_foreign_parquet_file_is_no_shard(s3_server) -> None:
    url = f"{s3_server.url}/foreign.parquet"
    storage.write_table(url, pa.table({"x": [1]}))
    with pytest.raises(ContractError, match=r"s3://survey/foreign\.parquet: not a clusterray cut"):
        shards.read(url)


def test_tables_keep_their_schema(s3_server) -> None:
    url = f"{s3_server.url}/labels.parquet"
    row = {"object_id": "a", "source": "x", "date": "2026-01-02", "s": 1, "grade": None}
    storage.write_table(url, pa.Table.from_pylist([row], schema=schema.LABELS))
    assert schema.check(storage.read_table(url), schema.LABELS, where=url).to_pylist() == [row]


def test_tiles_are_found_and_scanned(s3_server) -> None:
    header = fits.Header()
    header.update(
        CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=150.0, CRVAL2=2.0, CRPIX1=32.5, CRPIX2=32.5,
        CD1_1=-1e-4, CD1_2=0.0, CD2_1=0.0, CD2_2=1e-4, FILTER="r", MAGZERO=30.0,
    )  # fmt: skip
    stream = io.BytesIO()
    fits.PrimaryHDU(np.ones((64, 64), np.float32), header).writeto(stream)
    url = f"{s3_server.url}/tiles/t_r.fits"
    storage.write_bytes(url, stream.getvalue())
    assert tiles.find([f"{s3_server.url}/tiles"]) == [url]
    assert tiles.find([f"{s3_server.url}/tiles/*_r.fits"]) == [url]
    (plane,) = tiles.scan(
        url, survey=resolve(config.SurveySettings()), settings=config.IngestSettings()
    )
    assert (plane.url, plane.band, plane.shape) == (url, "r", (64, 64))
    # AB magnitude 30 for one count is 10^((31.4 − 30) / 2.5) nJy.
    assert plane.to_njy == pytest.approx(10**0.56)
