"""Files by URL: plain paths, ``file://``, ``s3://`` and every other scheme pyarrow or fsspec knows.

S3 takes its endpoint, region and credentials from the environment or the node's role
(``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, …), so none of them can enter a
config, a manifest or a log. A write is whole or absent: one PUT, or write-then-rename on a disk.

What a remote store refuses for the moment (503, throttling, a dropped connection) is tried again,
six times in all with growing pauses; what it refuses for good is told at once.
"""

import json
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from clusterray.errors import StorageError

__all__ = [
    "FileEntry",
    "exists",
    "filesystem",
    "free_bytes",
    "has_credentials",
    "is_remote",
    "is_transient",
    "join",
    "list_files",
    "name_of",
    "open_fsspec",
    "open_input",
    "open_parquet",
    "parquet_bytes",
    "read_bytes",
    "read_json",
    "read_table",
    "redact",
    "remove",
    "remove_folder",
    "retried",
    "retry_count",
    "stat",
    "write_bytes",
    "write_json",
    "write_table",
]


T = TypeVar("T")

_ATTEMPTS: Final = 6
_FIRST_PAUSE_SECONDS: Final = 0.25
_CLIENT_ATTEMPTS: Final = 3
"""The S3 client's own for one request, a second or two in all; ours come on top of them."""
_TRANSIENT: Final = re.compile(
    r"HTTP (?:status )?(?:429|500|502|503|504)|SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|"
    r"ServiceUnavailable|INTERNAL_FAILURE|InternalError|NETWORK_CONNECTION|curlCode|"
    r"REQUEST_TIME_?OUT|RequestTimeout|THROTTLING|Throttl|timed? ?out|Connection reset|"
    r"Connection refused|Broken pipe|Remote end closed|ServerDisconnected|"
    # The answer to an upload's end was lost; the whole is written again.
    r"NO_SUCH_UPLOAD|NoSuchUpload",
    re.IGNORECASE,
)
_retries = [0]
_buckets: set[str] = set()
"""Those that were seen: a file may be missing from them, and they need not be asked for again."""


@dataclass(frozen=True)
class FileEntry:
    """One listed file: its URL, size in bytes and modification time (ns since 1970, or None)."""

    url: str
    size: int
    mtime_ns: int | None


def is_remote(url: str) -> bool:
    """Whether the URL names anything but the local disk."""
    return "://" in url and not url.startswith("file://")


def redact(url: str) -> str:
    """The URL without user, password or query: safe to print and to store."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    # A query holds values; a lone question mark is a pattern of file names.
    return f"{scheme}://{re.sub('[?][^?]*=.*', '', rest[len(_userinfo(url)) :])}"


def has_credentials(url: str) -> bool:
    """Whether the URL carries a user or password, which it must not."""
    return bool(_userinfo(url))


def _userinfo(url: str) -> str:
    """What stands before the host, with its ``@``."""
    _, separator, rest = url.partition("://")
    host = rest.partition("/")[0]
    if not separator or "@" not in rest:
        return ""
    if "@" in host:
        return host[: host.rindex("@") + 1]
    # A secret key may hold slashes; a colon that no port follows is the one before a password.
    _, colon, port = host.partition(":")
    return rest[: rest.rindex("@") + 1] if colon and not port.isdigit() else ""


def join(url: str, *parts: str) -> str:
    """Append path components to a URL or path."""
    return "/".join([url.rstrip("/"), *(p.strip("/") for p in parts)])


def name_of(url: str) -> str:
    """The last component of a URL or path."""
    return redact(url).rstrip("/").rpartition("/")[2]


def filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a URL and the path inside it.

    Raises
    ------
    StorageError : the scheme is unknown, its fsspec package is not installed, or the URL carries
        credentials.
    """
    _refuse_credentials(url)
    scheme, _, rest = url.partition("://")
    if not rest:
        return pafs.LocalFileSystem(), str(Path(url).expanduser().absolute())
    if scheme == "file":
        return pafs.LocalFileSystem(), str(Path(rest))
    return _remote_filesystem(scheme), rest.rstrip("/")


def _refuse_credentials(url: str) -> None:
    if has_credentials(url):
        raise StorageError(
            f"'{redact(url)}' was given with credentials in it; put them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or use the node's role"
        )


@lru_cache(maxsize=16)
def _remote_filesystem(scheme: str) -> pafs.FileSystem:
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        # Delayed: what fits into one part is one PUT, not three requests.
        return pafs.S3FileSystem(
            endpoint_override=endpoint,
            region=region,
            allow_delayed_open=True,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_CLIENT_ATTEMPTS),
        )
    try:
        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"no filesystem for '{scheme}://': {error}; use a path, file://, s3://, or install "
            "the fsspec package that serves this scheme"
        ) from error


_NO_BUCKET = re.compile("NO_SUCH_BUCKET|NoSuchBucket")
_DENIED = re.compile(
    "ACCESS_DENIED|HTTP 403|Forbidden|InvalidAccessKeyId|INVALID_ACCESS_KEY_ID|"
    "SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|Unable to locate credentials"
)


def _failure(verb: str, url: str, error: Exception) -> StorageError:
    # Drop request ids and the endpoint that some clients append to their messages.
    text = re.sub(r"https?://[^\s\"']+", "<endpoint>", str(error))
    if _NO_BUCKET.search(text) or (isinstance(error, FileNotFoundError) and _no_bucket(url)):
        text = "the bucket does not exist"
    elif isinstance(error, FileNotFoundError):
        text = "no such file or folder"
    elif isinstance(error, PermissionError) or _DENIED.search(text):
        text = (
            "access denied: check the credentials in the environment and the bucket's policy"
            if is_remote(url)
            else "permission denied"
        )
    return StorageError(f"cannot {verb} '{redact(url)}': {text}")


def is_transient(url: str, error: Exception) -> bool:
    """Whether trying again may help: remote storage that is busy or out of reach."""
    return is_remote(url) and bool(_TRANSIENT.search(str(error)))


def retry_count() -> int:
    """How often this process has tried something again so far."""
    return _retries[0]


def retried(verb: str, url: str, call: Callable[[], T]) -> T:
    """The result of `call`, tried again while storage refuses it for the moment.

    Parameters
    ----------
    verb : what is being done, for the error: cannot `verb` 'url'.
    call : may run several times; raises what pyarrow does.

    Raises
    ------
    StorageError : naming the object, where it is refused for good or six times.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return call()
        except (OSError, pa.ArrowException) as error:
            if not is_transient(url, error):
                raise _failure(verb, url, error) from error
            if attempt == _ATTEMPTS:
                gone = OSError(f"{error} ({_ATTEMPTS} attempts)")
                raise _failure(verb, url, gone) from error
            _retries[0] += 1
            # Spread, so that a hundred actors do not come back together.
            time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _require_bucket(url: str) -> None:
    bucket = url.removeprefix("s3://").partition("/")[0]
    if url.startswith("s3://") and bucket not in _buckets:
        if _no_bucket(url):
            raise _failure("look for", url, FileNotFoundError())
        _buckets.add(bucket)


def _no_bucket(url: str) -> bool:
    """Whether a file is missing because its bucket is: a HEAD request does not tell them apart."""
    if not url.startswith("s3://"):
        return False
    fs, path = filesystem(url)
    try:
        return bool(fs.get_file_info(path.partition("/")[0]).type == pafs.FileType.NotFound)
    except (OSError, pa.ArrowException):
        return False


def stat(url: str) -> FileEntry | None:
    """Size and time of a file; None where there is none, or a folder; no bucket is an error."""
    fs, path = filesystem(url)
    info = retried("look for", url, lambda: fs.get_file_info(path))
    if info.type == pafs.FileType.NotFound:
        _require_bucket(url)
    if info.type != pafs.FileType.File:
        return None
    return FileEntry(url, int(info.size), info.mtime_ns)


def exists(url: str) -> bool:
    """Whether a file (not a folder) is there."""
    return stat(url) is not None


def list_files(url: str, *, suffix: str = "", recursive: bool = True) -> list[FileEntry]:
    """Files under a folder, sorted by URL; a missing folder is empty, a missing bucket an error.

    Names that begin with ``.`` are writes that were cut short and are passed over.
    """
    fs, path = filesystem(url)
    selector = pafs.FileSelector(path, recursive=recursive, allow_not_found=not is_remote(url))

    def listed() -> list[Any]:
        try:
            return list(fs.get_file_info(selector))
        except FileNotFoundError:
            if is_remote(url) and "/" not in path:
                raise
            return []

    infos = retried("list", url, listed)
    base, start = url.rstrip("/"), len(path.lstrip("/"))
    found = [
        # Some filesystems begin their paths with a slash, whatever they were asked for.
        FileEntry(base + i.path.lstrip("/")[start:], int(i.size), i.mtime_ns)
        for i in infos
        if i.type == pafs.FileType.File
        and i.path.endswith(suffix)
        and not i.base_name.startswith(".")
    ]
    return sorted(found, key=lambda e: e.url)


def open_input(url: str) -> pa.NativeFile:
    """Open a file for random access through pyarrow."""
    fs, path = filesystem(url)
    return retried("open", url, lambda: fs.open_input_file(path))


def open_fsspec(url: str) -> IO[bytes]:
    """Open a file as a Python file object, read in pieces where it is remote (for astropy)."""
    _refuse_credentials(url)
    try:
        return fsspec.open(url, mode="rb").open()  # type: ignore[no-any-return]
    except Exception as error:  # each scheme has a client library with errors of its own
        raise _failure("open", url, error) from error


def read_bytes(url: str) -> bytes:
    """The whole of a file."""

    def whole() -> bytes:
        with open_input(url) as stream:
            return bytes(stream.read())

    return retried("read", url, whole)


def write_bytes(url: str, data: bytes | pa.Buffer) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    fs, path = filesystem(url)

    def put() -> None:
        with fs.open_output_stream(path) as stream:
            stream.write(data)

    local = isinstance(fs, pafs.LocalFileSystem)
    retried("write", url, (lambda: _write_local(Path(path), data)) if local else put)


def _write_local(target: Path, data: bytes | pa.Buffer) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def free_bytes(url: str) -> int | None:
    """Free space of the disk that holds an existing folder; None for remote storage."""
    if is_remote(url):
        return None
    return shutil.disk_usage(filesystem(url)[1]).free


def remove(url: str) -> None:
    """Remove a file; one that is not there is no error."""
    s3 = _s3fs(url)
    fs, path = filesystem(url)

    def gone() -> None:
        with suppress(FileNotFoundError):
            if s3 is None:
                fs.delete_file(path)
            else:
                s3.rm_file(path)

    retried("remove", url, lambda: _as_oserror(gone))


def remove_folder(url: str) -> None:
    """Remove a folder and all that is in it; one that is not there is no error."""
    s3 = _s3fs(url)
    fs, path = filesystem(url)

    def gone() -> None:
        if s3 is not None:
            s3.invalidate_cache()
            with suppress(FileNotFoundError):
                s3.rm(path, recursive=True)
            return
        fs.delete_dir_contents(path, missing_dir_ok=True)
        if fs.get_file_info(path).type == pafs.FileType.Directory:
            fs.delete_dir(path)

    retried("remove", url, lambda: _as_oserror(gone))


def _s3fs(url: str) -> Any:
    """The fsspec client for S3 where it is installed, else None.

    pyarrow 26 writes an empty object in place of the folder after each removal, which a server
    that keeps real folders takes for a file.
    """
    _refuse_credentials(url)
    if not url.startswith("s3://"):
        return None
    try:
        return fsspec.filesystem("s3")
    except ImportError:
        return None


def _as_oserror(call: Callable[[], T]) -> T:
    try:
        return call()
    except (OSError, pa.ArrowException):
        raise
    except Exception as error:  # each scheme has a client library with errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error


def read_json(url: str) -> Any:
    """A JSON document."""
    try:
        return json.loads(read_bytes(url))
    except ValueError as error:
        raise StorageError(f"'{redact(url)}' is not valid JSON: {error}") from error


def write_json(url: str, value: Any) -> None:
    """Write a JSON document for people to read: indented, keys in the order given."""
    write_bytes(url, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def parquet_bytes(table: pa.Table, **options: Any) -> pa.Buffer:
    """A table as the bytes of a Parquet file with page checksums, zstd unless told otherwise."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{"compression": "zstd", "write_page_checksum": True, **options})
    return sink.getvalue()


def write_table(url: str, table: pa.Table, **options: Any) -> None:
    """Write a Parquet file so that a reader sees all of it or nothing."""
    write_bytes(url, parquet_bytes(table, **options))


def read_table(url: str, *, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file.

    Raises
    ------
    StorageError : the file is missing, truncated, damaged or not Parquet.
    """

    def whole() -> pa.Table:
        with open_parquet(url) as (file, _):
            return file.read(columns=columns)

    return retried("read", url, whole)


@contextmanager
def open_parquet(
    url: str, *, way_out: str = "", **options: Any
) -> Iterator[tuple[pq.ParquetFile, pa.NativeFile]]:
    """Open a Parquet file inside the block, and the stream it lies in; for inside `retried`.

    Pages are compared with their checksums, where the file has them: zstd alone does not notice
    bytes that changed in place. What goes wrong in the block becomes a StorageError, but for what
    may pass.

    Parameters
    ----------
    way_out : what to do about a file that cannot be read.
    """
    with open_input(url) as stream:
        try:
            yield pq.ParquetFile(stream, page_checksum_verification=True, **options), stream
        except (OSError, pa.ArrowException) as error:
            if is_transient(url, error):
                raise
            said = str(error).rstrip(". ")
            raise StorageError(
                f"'{redact(url)}' is not a readable Parquet file: {said}; it may be truncated, "
                f"damaged or of another format{way_out and '; '}{way_out}"
            ) from error
