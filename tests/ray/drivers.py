"""Drivers in processes of their own, to be killed: what `clusterray VERB` is, without the import.

They are forked from a server process that has imported the engine and is connected to nothing, so
one starts in a tenth of a second.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from tests.ray.nodes import kill

__all__ = ["Driver", "cpus_taken", "start"]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["clusterray.cli", "clusterray.engine.score"])


@dataclass
class Driver:
    """A verb at work; its output goes to `log`."""

    process: BaseProcess
    log: Path

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def wait(self, *, timeout_seconds: float) -> int | None:
        """Exit status; None if it has not ended by then."""
        self.process.join(timeout_seconds)
        return self.process.exitcode

    def kill(self) -> bool:
        """SIGKILL; whether it was still there."""
        was = self.running
        kill(self.process.pid or 0)
        self.process.join()
        return was

    def said(self) -> str:
        """The last lines of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])


def start(
    verb: str,
    overrides: Sequence[str],
    *,
    address: str,
    log: Path,
    no_progress_seconds: float | None = None,
    ahead: bool = False,
) -> Driver:
    """Start a verb on the cluster at this address.

    `no_progress_seconds` : after which Ray Data gives up; None leaves its half hour.
    `ahead` : readers compute features ahead, as where there is a GPU.
    """
    words = [verb, *(word for o in overrides for word in ("--set", o))]
    about = (words, address, str(log), no_progress_seconds, ahead)
    process = _SERVER.Process(target=_drive, args=about, daemon=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    process.start()
    return Driver(process, log)


def _drive(
    words: list[str], address: str, log: str, no_progress_seconds: float | None, ahead: bool
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "disabled",
        # How long a driver looks for a head that is gone: 60 s by default.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    }
    from ray.data import DataContext

    from clusterray.cli import main
    from clusterray.engine import score

    if ahead:
        score._computes_ahead = lambda *_, **__: True
    if no_progress_seconds is not None:
        DataContext.get_current().execution_no_progress_timeout_s = no_progress_seconds
    sys.exit(main(words))


@contextmanager
def cpus_taken(address: str, *, but: int) -> Iterator[None]:
    """Another driver holds all CPUs but so many, inside the block."""
    ready = _SERVER.Event()
    hog = _SERVER.Process(target=_take, args=(address, but, ready), daemon=True)
    hog.start()
    try:
        if not ready.wait(120):
            raise RuntimeError("the CPUs could not be taken")
        yield
    finally:
        hog.kill()
        hog.join()


def _take(address: str, but: int, ready: Event) -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="error")

    @ray.remote
    class Holder:
        def here(self) -> None:
            """Answers once it has its CPU."""

    held = []
    while (free := int(ray.available_resources().get("CPU", 0))) > but:
        held += [Holder.options(num_cpus=1).remote() for _ in range(free - but)]
        ray.get([holder.here.remote() for holder in held])
    ready.set()
    signal.pause()
