"""At most one run at a time in a folder, on any storage whose listings are up to date.

A run writes a claim, then lists all claims: it may go on if there is no other. Of two that come
together at least one sees the other, whatever the timing, so two never go on; who sees another
withdraws and tries again after a random pause, until the other one says that it holds. This asks
only that a listing shows what was written before it, as local disks, S3 (since 2020), GCS and
Azure do; no conditional write is needed, which not every S3 server has.

A claim is renewed while its run lives. One that was not for `expires_seconds` is that of a dead
run, and the next run removes it. Ages are differences of the storage's own times, so the nodes'
clocks do not matter.
"""

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from clusterray import storage
from clusterray.engine.ledger import read_record
from clusterray.errors import RunError, StorageError

__all__ = ["Claim", "Holder", "claimed"]

_TRIES: Final = 8
_PAUSE_SECONDS: Final = (0.2, 1.5)


@dataclass(frozen=True)
class Holder:
    """Another run: it holds the folder, or is trying to."""

    host: str
    pid: int
    since: str
    held: bool

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Claim:
    """A claim of this process, renewed by a thread of its own for as long as it is held."""

    def __init__(self, folder: str, *, expires_seconds: float) -> None:
        self.folder, self.expires = folder, expires_seconds
        self.url = storage.join(folder, f"{uuid.uuid4().hex}.json")
        self.since = datetime.now(UTC).isoformat(timespec="seconds")
        self._renewed = 0.0
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, daemon=True)

    def try_once(self) -> Holder | None:
        """Claim; None if it is ours now, else another one's, with ours withdrawn."""
        self._write(held=False)
        other = self._other()
        if other is not None:
            storage.remove(self.url)
            return other
        self._write(held=True)
        self._thread.start()
        return None

    def check(self) -> None:
        """Refuse to go on if this claim has expired meanwhile.

        Raises
        ------
        RunError : it has; another run may be at work.
        """
        if self._expired() or self._other() is not None:
            raise RunError(
                f"this run could not renew its claim on '{storage.redact(self.folder)}' for "
                f"{self.expires:.0f} s, and another may have taken over; nothing was published, "
                "run it again"
            )

    def release(self) -> None:
        """End the renewals and remove the claim."""
        self._ended.set()
        self._thread.join()
        with suppress(StorageError):
            storage.remove(self.url)

    def _write(self, *, held: bool) -> None:
        about = Holder(socket.gethostname(), os.getpid(), self.since, held)
        storage.write_json(self.url, asdict(about))
        self._renewed = time.monotonic()

    def _expired(self) -> bool:
        # Whoever takes over removes it, which a process that slept may learn in no other way.
        silent = time.monotonic() - self._renewed
        self._lost = self._lost or silent > self.expires or not storage.exists(self.url)
        return self._lost

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self.expires / 5):
            # The next renewal may succeed.
            with suppress(StorageError):
                if self._expired():
                    return
                self._write(held=True)

    def _other(self) -> Holder | None:
        """A live claim of another run, one that holds before one that tries; dead ones go."""
        entries = {e.url: e for e in storage.list_files(self.folder, suffix=".json")}
        mine = entries.pop(self.url, None)
        if mine is None:
            raise RunError(
                f"'{storage.redact(self.url)}' was written and is not listed: it was removed, or "
                "this storage cannot keep two runs apart; run it again"
            )
        live = []
        for entry in entries.values():
            age = ((mine.mtime_ns or 0) - (entry.mtime_ns or 0)) / 1e9
            if age > self.expires:
                storage.remove(entry.url)
                continue
            found = _read(entry.url)
            if found is not None:
                live.append(found)
        return max(live, key=lambda holder: holder.held, default=None)


def _read(url: str) -> Holder | None:
    """A claim; None if it was withdrawn since it was listed."""
    kinds = {"host": str, "pid": int, "since": str, "held": bool}
    try:
        return Holder(**read_record(url, kinds))
    except StorageError:
        if storage.exists(url):
            raise
        return None


@contextmanager
def claimed(folder: str, *, expires_seconds: float) -> Iterator[Claim | Holder]:
    """Hold the folder inside the block, or be told who does.

    Raises
    ------
    StorageError : the folder cannot be listed or written.
    RunError : a claim in it is damaged.
    """
    holder: Holder | None = None
    for _ in range(_TRIES):
        claim = Claim(folder, expires_seconds=expires_seconds)
        holder = claim.try_once()
        if holder is None:
            try:
                yield claim
            finally:
                claim.release()
            return
        if holder.held:
            break
        time.sleep(random.uniform(*_PAUSE_SECONDS))
    assert holder is not None
    yield holder
