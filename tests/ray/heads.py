"""Ray heads of their own, as `ray start --head` makes them: with a token, with an autoscaler."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ray.nodes import descendants, kill

__all__ = ["Head", "free_ports", "head"]

BIN = Path(sys.executable).parent
START_SECONDS = 120.0


@dataclass(frozen=True)
class Head:
    """A running head: address for drivers, URL for jobs, environment of its clients."""

    address: str
    url: str
    env: Mapping[str, str]
    pid: int


@contextmanager
def head(
    *arguments: str, env: Mapping[str, str], ports: Sequence[int] | None = None
) -> Iterator[Head]:
    """``ray start --head --block`` in a process session of its own; ends exactly that.

    Parameters
    ----------
    arguments : more of ``ray start``'s.
    env : of the head, on top of this process's.
    ports : of GCS, dashboard and agent; None takes free ones.
    """
    gcs, dashboard, agent = ports or free_ports(3)
    folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-agent-listen-port={agent}", "--node-ip-address=127.0.0.1"),
        *("--disable-usage-stats", f"--temp-dir={folder}", *arguments),
    ]
    # Jobs start `python` by name: they must find this interpreter.
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    whole = {**os.environ, "PATH": path, **env}
    whole.pop("RAY_ADDRESS", None)
    log = folder / "head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=whole
        )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _answers(url, process, log)
        yield Head(f"127.0.0.1:{gcs}", url, whole, process.pid)
    finally:
        kill(*descendants(process.pid))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_bound()) for _ in range(count)]
        return [int(s.getsockname()[1]) for s in sockets]


def _bound() -> socket.socket:
    probe = socket.socket()
    probe.bind(("127.0.0.1", 0))
    return probe


def _answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5).close()
            return
        except urllib.error.HTTPError:
            # It answers, if only that it wants a token.
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the head did not come up:\n{log.read_text()[-3000:]}")
