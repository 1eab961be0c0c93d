import json
import os
import struct
from pathlib import Path

import pyarrow as pa
import pytest

from clusterray import storage
from clusterray.errors import StorageError

TABLE = pa.table({"object_id": ["a", "b"], "x": [1.0, None]})


@pytest.mark.parametrize(
    ("parts", "want"),
    [
        (("runs/demo", "shards"), "runs/demo/shards"),
        (("runs/demo/", "/shards/", "a.parquet"), "runs/demo/shards/a.parquet"),
        (("s3://bucket", "a", "b"), "s3://bucket/a/b"),
        (("file:///data/", "a"), "file:///data/a"),
        (("/", "data"), "/data"),
        (("runs",), "runs"),
    ],
)
def test_join(parts: tuple[str, ...], want: str) -> None:
    assert storage.join(*parts) == want


@pytest.mark.parametrize(
    ("url", "want"),
    [
        ("runs/a.parquet", "a.parquet"),
        ("a.parquet", "a.parquet"),
        ("s3://bucket/x/a.parquet", "a.parquet"),
        ("s3://bucket/x/", "x"),
        ("https://host/t_g.fits?signature=abc/def", "t_g.fits"),
        ("s3://bucket/a?.fits", "a?.fits"),
    ],
)
def test_name_of(url: str, want: str) -> None:
    assert storage.name_of(url) == want


@pytest.mark.parametrize(
    ("url", "want"),
    [
        ("plain/pa@th:x", "plain/pa@th:x"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("s3://bucket/k@y:1", "s3://bucket/k@y:1"),
        ("s3://KEY:SECRET@bucket/key", "s3://bucket/key"),
        ("s3://KEY:SE/CR@ET@bucket/key", "s3://bucket/key"),
        ("https://user:pa@ss@host:80/x@y?token=SECRET", "https://host:80/x@y"),
        ("https://host:9000/x@y", "https://host:9000/x@y"),
        ("https://token@host/x", "https://host/x"),
        ("s3://bucket/tiles_?.fits", "s3://bucket/tiles_?.fits"),
    ],
)
def test_redact(url: str, want: str) -> None:
    assert storage.redact(url) == want
    assert storage.has_credentials(url) == ("SECRET@" in url or "@bucket" in url or "@host" in url)


@pytest.mark.parametrize(
    ("url", "want"),
    [("a/b", False), ("/a", False), ("file:///a", False), ("s3://b/a", True), ("gs://b", True)],
)
def test_is_remote(url: str, want: bool) -> None:
    assert storage.is_remote(url) is want


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_bytes_go_round(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}{tmp_path}/new/folder/a.bin"
    assert not storage.exists(url)
    storage.write_bytes(url, b"\x00\xff")
    assert storage.read_bytes(url) == b"\x00\xff"
    assert (tmp_path / "new/folder/a.bin").read_bytes() == b"\x00\xff"
    with storage.open_fsspec(url) as stream:
        assert stream.read() == b"\x00\xff"
    entry = storage.stat(url)
    assert entry is not None
    assert (entry.url, entry.size) == (url, 2)
    assert entry.mtime_ns == os.stat(tmp_path / "new/folder/a.bin").st_mtime_ns


def test_relative_paths_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    storage.write_bytes("a.bin", b"1")
    storage.write_bytes("~/b.bin", b"2")
    assert (tmp_path / "a.bin").read_bytes() == b"1"
    assert (tmp_path / "home" / "b.bin").read_bytes() == b"2"
    assert [e.url for e in storage.list_files(".")] == ["./a.bin", "./home/b.bin"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert not storage.exists(str(tmp_path))
    assert storage.stat(str(tmp_path)) is None
    with pytest.raises(StorageError, match="cannot open"):
        storage.read_bytes(str(tmp_path))


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None
) -> None:
    target = tmp_path / "a.bin"
    if old is not None:
        target.write_bytes(old)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write '.*a\.bin': .*No space left"):
        storage.write_bytes(str(target), b"new")
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["a.bin"])
    if old is not None:
        assert target.read_bytes() == old


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    # A reader that has the old file open keeps it whole: the new one is another file.
    os.link(target, tmp_path / ".held")
    seen = []
    real = os.fsync

    def look(descriptor: int) -> None:
        real(descriptor)
        seen.append((target.read_bytes(), storage.list_files(str(tmp_path))))

    monkeypatch.setattr(os, "fsync", look)
    storage.write_bytes(str(target), b"newer")
    ((content, listed),) = seen
    assert content == b"old"
    assert [e.url for e in listed] == [str(target)]
    assert target.read_bytes() == b"newer"
    assert (tmp_path / ".held").read_bytes() == b"old"


def test_files_cut_short_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".a.parquet.0123abcd").write_bytes(b"half")
    (tmp_path / ".b.parquet").write_bytes(b"half")
    assert storage.list_files(str(tmp_path)) == []


def test_list_files(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "sub/c.parquet", "d.json"):
        storage.write_bytes(f"{tmp_path}/{name}", b"123")

    def listed(url: str, **options: object) -> list[str]:
        return [e.url for e in storage.list_files(url, **options)]  # type: ignore[arg-type]

    root = str(tmp_path)
    want = [f"{root}/{n}" for n in ("a.parquet", "b.parquet", "sub/c.parquet")]
    assert listed(root, suffix=".parquet") == want
    assert listed(root, suffix=".parquet", recursive=False) == want[:2]
    assert listed(f"file://{root}/sub/") == [f"file://{root}/sub/c.parquet"]
    assert {e.size for e in storage.list_files(root)} == {3}


def test_list_files_of_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert storage.list_files(str(tmp_path / "none")) == []


def test_json(tmp_path: Path) -> None:
    url = str(tmp_path / "a.json")
    storage.write_json(url, {"b": [1, None], "a": "θ"})
    assert storage.read_json(url) == {"b": [1, None], "a": "θ"}
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert text.index('"b"') < text.index('"a"')
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(url, float("nan"))
    assert json.loads((tmp_path / "a.json").read_text())["a"] == "θ"


def test_parquet(tmp_path: Path) -> None:
    url = str(tmp_path / "a.parquet")
    storage.write_table(url, TABLE)
    assert storage.read_table(url).equals(TABLE)
    assert storage.read_table(url, columns=["x"]).column_names == ["x"]
    assert storage.parquet_bytes(TABLE).to_pybytes() == (tmp_path / "a.parquet").read_bytes()


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _damaged(data: bytes) -> bytes:
    return data[:4] + bytes(40) + data[44:]


@pytest.mark.parametrize(
    "spoil", [_truncated, _damaged, lambda _: b"", lambda _: b"PAR1", lambda _: b"x,y\n1,2\n"]
)
def test_parquet_that_cannot_be_read(tmp_path: Path, spoil) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(spoil(storage.parquet_bytes(TABLE).to_pybytes()))
    with pytest.raises(
        StorageError, match=r"(?s)a\.parquet' is not a readable Parquet file: .*trunc"
    ):
        storage.read_table(str(path))


def test_values_that_changed_in_place_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    plain = {"compression": "none", "use_dictionary": False}
    data = storage.parquet_bytes(pa.table({"x": [float(i) for i in range(9)]}), **plain)
    assert data.to_pybytes().count(struct.pack("<d", 5.0)) == 1
    path.write_bytes(data.to_pybytes().replace(struct.pack("<d", 5.0), struct.pack("<d", 6.0)))
    with pytest.raises(StorageError, match=r"a\.parquet' is not a readable .* checksum"):
        storage.read_table(str(path))


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"a\.json' is not valid JSON"):
        storage.read_json(str(path))


@pytest.mark.parametrize(
    "read", [storage.read_bytes, storage.read_json, storage.read_table, storage.open_fsspec]
)
def test_missing_files(tmp_path: Path, read) -> None:
    with pytest.raises(StorageError, match=r"cannot open '.*none': no such file or folder"):
        read(str(tmp_path / "none"))


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write '.*file/a': "):
        storage.write_bytes(str(tmp_path / "file" / "a"), b"")


@pytest.mark.parametrize("call", [storage.read_bytes, storage.list_files, storage.open_fsspec])
def test_unknown_scheme(call) -> None:
    with pytest.raises(StorageError, match="nosuch"):
        call("nosuch://host/a")


@pytest.mark.parametrize(
    "call", [storage.read_bytes, storage.list_files, storage.exists, storage.open_fsspec]
)
@pytest.mark.parametrize("userinfo", ["USER:HUNTER@", "USER:HUN/TER@", "USER@"])
def test_urls_with_credentials(call, userinfo: str) -> None:
    with pytest.raises(
        StorageError, match="'s3://bucket/key' was given with credentials"
    ) as caught:
        call(f"s3://{userinfo}bucket/key")
    assert "HUN" not in str(caught.value)
    assert "USER" not in str(caught.value)


def test_other_schemes_go_through_fsspec() -> None:
    url = "memory://folder/a.json"
    storage.write_json(url, [1])
    assert storage.read_json(url) == [1]
    assert storage.exists(url)
    assert [storage.name_of(e.url) for e in storage.list_files("memory://folder")] == ["a.json"]


def test_listed_urls_of_an_fsspec_store_lead_to_the_files() -> None:
    url = "memory://listing/a/b.bin"
    storage.write_bytes(url, b"1")
    assert [e.url for e in storage.list_files("memory://listing")] == [url]
    assert [e.url for e in storage.list_files("memory://listing/a/")] == [url]
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_folders_are_removed_with_all_that_is_in_them(tmp_path: Path) -> None:
    for name in ("a/b.bin", "a/c/d.bin", "e.bin"):
        storage.write_bytes(f"{tmp_path}/{name}", b"1")
    storage.remove_folder(f"{tmp_path}/a")
    storage.remove_folder(f"{tmp_path}/a")
    assert [p.name for p in tmp_path.iterdir()] == ["e.bin"]
