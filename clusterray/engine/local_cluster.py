"""A Ray head of our own on this machine, started and stopped, and jobs submitted to it."""

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from clusterray.errors import RunError
from clusterray.provenance import COMMIT_ENV, git_state

__all__ = ["LocalCluster", "local_cluster"]

_START_SECONDS = 90.0
_CHATTER = re.compile(
    r"^(\[\d{4}-.* core_worker\.cc|\d{4}-.*INFO (worker|job_manager)\.py|Running entry)"
)
"""What Ray says of itself in a job's log; it stays in the log."""


class LocalCluster:
    """A running head node that takes jobs at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = JobSubmissionClient(address)
        # Every file that is not uploaded would be named, three times.
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def submit(self, module: str, arguments: Sequence[str], *, working_dir: str) -> None:
        """Submit ``python -m module arguments``, show its output, wait for its end.

        Raises
        ------
        RunError : the job failed or was stopped.
        """
        command = shlex.join(["python", "-m", module, *arguments])
        # RAY_ADDRESS is set by Ray inside the job: the driver joins this cluster.
        variables = {COMMIT_ENV: git_state(), "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "disabled"}
        environment = {
            "working_dir": working_dir,
            "excludes": ["/runs", "/.venv", "/.git", "/tests"],
            "env_vars": variables,
        }
        job = self._submit(command, environment)
        try:
            status = self._follow(job)
        except KeyboardInterrupt:
            self._client.stop_job(job)
            raise
        if status != JobStatus.SUCCEEDED:
            raise RunError(f"job '{module}' ended as {status.value}; its output is above")

    def _submit(self, command: str, environment: dict[str, Any]) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._client.submit_job(entrypoint=command, runtime_env=environment)
            except RuntimeError as error:
                # The head answers before the agent that starts jobs is there.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise RunError(f"the job was not taken: {error}") from error
                time.sleep(0.5)

    def _follow(self, job: str) -> JobStatus:
        shown = 0
        while True:
            status = self._client.get_job_status(job)
            log = self._client.get_job_logs(job)
            # Whole lines: the rest of one that is being written comes with the next look.
            end = len(log) if status.is_terminal() else log.rfind("\n") + 1
            fresh, shown = log[shown:end], max(shown, end)
            for line in fresh.splitlines():
                if not _CHATTER.search(line):
                    print(f"  {line}", flush=True)
            if status.is_terminal():
                return status
            time.sleep(0.5)


@contextmanager
def local_cluster(*, num_cpus: int | None = None) -> Iterator[LocalCluster]:
    """Start a head node in a process session of its own; end exactly that session on leaving.

    Raises
    ------
    RunError : it does not come up; the message says where its log is.
    """
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # The agent, which starts jobs, has a fixed port by default: another Ray here may hold it.
    port, dashboard, agent = _free_ports(3)
    folder = Path(tempfile.mkdtemp(prefix="clusterray-"))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
        f"--dashboard-agent-listen-port={agent}",
        *("--node-ip-address=127.0.0.1", "--disable-usage-stats", f"--temp-dir={folder}"),
        *([f"--num-cpus={num_cpus}"] if num_cpus else []),
    ]
    # Jobs start `python` by name: they must find this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    log = folder / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PATH": path},
        )
    try:
        yield _wait_for(head, f"http://127.0.0.1:{dashboard}", log)
    finally:
        _stop(head)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for(head: subprocess.Popen[bytes], address: str, log: Path) -> LocalCluster:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            cluster = LocalCluster(address)
            cluster._client.list_jobs()
            return cluster
        time.sleep(0.5)
    state = "ended" if head.poll() is not None else f"did not answer in {_START_SECONDS:.0f} s"
    raise RunError(f"the local Ray head {state}; its log is {log}")


def _stop(head: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=5)
            break
    # The head ends its own daemons on SIGTERM; what is left of its session goes now.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()
