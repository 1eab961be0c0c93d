"""Opening FITS files by URL so that a damaged one is an error and not a short array."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from astropy.io import fits

from clusterray import storage
from clusterray.errors import InputError

__all__ = ["open_fits"]


@contextmanager
def open_fits(url: str) -> Iterator[fits.HDUList]:
    """The HDUs of a FITS file, plain, tile-compressed (``.fz``) or gzipped.

    A remote file is read in pieces, a gzipped one as a whole.

    Raises
    ------
    InputError : not FITS, or cut short; also for what goes wrong while its data are read.
    StorageError : a file that cannot be reached.
    """
    where = storage.redact(url)
    with _stream(url) as stream:
        try:
            hdus = fits.open(stream, memmap=False, lazy_load_hdus=False)
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise _not_whole(where, error) from error
        with hdus:
            _require_whole(hdus, stream, where=where)
            try:
                yield hdus
            except (OSError, EOFError, zlib.error) as error:
                raise _not_whole(where, error) from error


def _not_whole(where: str, error: Exception) -> InputError:
    return InputError(
        f"{where}: not a whole FITS file ({type(error).__name__}: {error}); it may be truncated or "
        "of another format: fetch it again"
    )


def _stream(url: str) -> IO[bytes]:
    if not storage.redact(url).lower().endswith(".gz"):
        return storage.open_fsspec(url)
    try:
        return io.BytesIO(gzip.decompress(storage.read_bytes(url)))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{storage.redact(url)}: not a whole gzip file ({error}); it may be truncated: fetch "
            "it again"
        ) from error


def _require_whole(hdus: fits.HDUList, stream: IO[bytes], *, where: str) -> None:
    # astropy warns of both cases, but a warning filter would not be safe between threads.
    have, end = stream.seek(0, io.SEEK_END), 0
    for hdu in hdus:
        info: dict[str, Any] = hdu.fileinfo() or {}
        end = int(info.get("datLoc", 0)) + int(info.get("datSpan", 0))
        if end > have:
            raise InputError(
                f"{where}: the file is truncated: extension {hdu.name} ends at byte {end:,}, the "
                f"file at {have:,}; fetch it again"
            )
    stream.seek(end)
    if stream.read(8) == b"XTENSION":
        raise InputError(
            f"{where}: the header of extension {len(hdus)} is truncated or damaged; fetch the file "
            "again"
        )
