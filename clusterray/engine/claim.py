"""At most one run at a time in a folder, on any storage whose listings are up to date.

A run writes a claim, then lists all claims: it may go on if there is no other. Of two that come
together at least one sees the other, whatever the timing, so two never go on. Who sees another
withdraws and comes again after a random pause, but for the first by name of those that only try,
which waits for the others to leave. This asks only that a listing shows what was written before
it, as those of local disks, S3 (since 2020), GCS and Azure do; no conditional write is needed,
which not every S3 server has.

A claim is a file that is written once: to renew it, the next one is written before the last is
removed, so that a listing always shows one. It is renewed while its run lives; one that was not
for `expires_seconds` is that of a dead run, and the next run removes it. Ages are differences of
the storage's own times, so the nodes' clocks do not matter.
"""

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from clusterray import storage
from clusterray.engine.ledger import read_record
from clusterray.errors import ClusterrayError, RunError, StorageError

__all__ = ["Claim", "Holder", "claimed"]

_TRIES: Final = 6
_LOOKS: Final = 20
_LOOK_SECONDS: Final = 0.2
_TRYING, _HELD = "trying", "held"
_PAUSE_SECONDS: Final = (0.2, 1.5)


@dataclass(frozen=True)
class Holder:
    """Another run: it holds the folder, or is trying to."""

    host: str
    pid: int
    since: str
    token: str
    held: bool

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Claim:
    """A claim of this process, renewed by a thread of its own for as long as it is held.

    `clock_ahead_seconds` : this node's clock against the storage's, when the claim was won.
    """

    def __init__(self, folder: str, *, expires_seconds: float) -> None:
        self.folder, self.expires = folder, expires_seconds
        self.token = uuid.uuid4().hex
        self.url = ""
        self._about = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.clock_ahead_seconds = 0.0
        self._written, self._renewed = 0, 0.0
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, daemon=True)

    def try_once(self) -> Holder | None:
        """Claim; None if it is ours now, else another one's, with ours withdrawn."""
        self._write(_TRYING)
        other = None
        for _ in range(_LOOKS):
            other = self._other()
            if other is None:
                self._write(_HELD)
                self.clock_ahead_seconds = self._clock_ahead()
                self._thread.start()
                return None
            # Of those that only try, the first by name stays and waits for the others to leave.
            if other.held or other.token < self.token:
                break
            time.sleep(_LOOK_SECONDS)
        storage.remove(self.url)
        return other

    def check(self) -> None:
        """Refuse to go on if this claim has expired meanwhile.

        Raises
        ------
        RunError : it has; another run may be at work.
        """
        # One that only tries will see this claim and withdraw.
        other = None if self._expired() else self._other()
        if self._lost or (other is not None and other.held):
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

    def _write(self, state: str) -> None:
        before, self._written = self.url, self._written + 1
        url = storage.join(self.folder, f"{self.token}-{self._written:06d}-{state}.json")
        storage.write_json(url, self._about)
        self.url, self._renewed = url, time.monotonic()
        if before:
            storage.remove(before)

    def _clock_ahead(self) -> float:
        """0 where the storage keeps no times."""
        entry = storage.stat(self.url)
        return time.time() - entry.mtime_ns / 1e9 if entry and entry.mtime_ns else 0.0

    def _expired(self) -> bool:
        # Whoever takes over removes it, which a process that slept may learn in no other way.
        silent, url = time.monotonic() - self._renewed, self.url
        gone = not storage.exists(url) and url == self.url
        self._lost = self._lost or silent > self.expires or gone
        return self._lost

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self.expires / 5):
            # The next renewal may succeed.
            with suppress(StorageError):
                if self._expired():
                    return
                self._write(_HELD)

    def _other(self) -> Holder | None:
        """A live claim of another run, one that holds before one that tries; dead ones go."""
        for _ in range(_LOOKS):
            entries = storage.list_files(self.folder, suffix=".json")
            mine = [e for e in entries if self.token in e.url]
            if mine:
                break
            # Some servers' listings lag; none may be trusted that does not show what is there.
            time.sleep(_LOOK_SECONDS)
        else:
            raise RunError(
                f"'{storage.redact(self.url)}' was written and is not listed: it was removed, or "
                "this storage cannot keep two runs apart; run it again"
            )
        now = max(e.mtime_ns or 0 for e in mine)
        live = []
        for entry in (e for e in entries if e not in mine):
            if (now - (entry.mtime_ns or 0)) / 1e9 > self.expires:
                storage.remove(entry.url)
            else:
                live.append(entry.url)
        if not live:
            return None
        return _holder(min(live, key=lambda url: (not url.endswith(f"-{_HELD}.json"), url)))


def _holder(url: str) -> Holder:
    """Whose claim this is, as far as it can still be read."""
    token, held = storage.name_of(url).partition("-")[0], url.endswith(f"-{_HELD}.json")
    try:
        about = read_record(url, {"host": str, "pid": int, "since": str})
    except ClusterrayError:
        about = {"host": "another node", "pid": 0, "since": "just now"}
    return Holder(**about, token=token, held=held)


def _explain(folder: str) -> None:
    # Some servers keep folders, and remove one with its last file, whoever is writing into it.
    url = storage.join(folder, "about.txt")
    if not storage.exists(url):
        text = "Claims (*.json) of runs at work. The next run removes one that is not renewed.\n"
        storage.write_bytes(url, text.encode())


@contextmanager
def claimed(folder: str, *, expires_seconds: float) -> Iterator[Claim | Holder]:
    """Hold the folder inside the block, or be told who does.

    Raises
    ------
    StorageError : the folder cannot be listed or written.
    """
    _explain(folder)
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
