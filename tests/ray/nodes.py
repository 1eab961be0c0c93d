"""Ray nodes on this machine that can be lost on purpose, and the processes they consist of."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

__all__ = ["Nodes", "descendants", "kill", "nodes", "title"]


class Nodes:
    """A head that runs no work and nodes of some CPUs each; only what it started is ever killed."""

    def __init__(self, cpus_per_node: list[int], **node: Any) -> None:
        self._node = {"object_store_memory": 100 * 2**20, **node}
        self.cluster = self._head()
        self._wanted = cpus_per_node
        self.restore()

    def _head(self) -> Cluster:
        about = {"num_cpus": 0, "include_dashboard": False, **self._node}
        return Cluster(initialize_head=True, head_node_args=about)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    @property
    def workers(self) -> list[Any]:
        """Nodes other than the head."""
        return list(self.cluster.worker_nodes)

    def restore(self) -> None:
        """Start nodes, or the whole cluster, in place of those that were lost; main thread only."""
        if self.cluster.head_node is None:
            self.cluster = self._head()
        for cpus in self._wanted[len(self.workers) :]:
            self.cluster.add_node(num_cpus=cpus, **self._node)

    def lose(self, node: Any) -> None:
        """SIGKILL a node with everything on it."""
        kill(*self._processes(node))
        self.cluster.remove_node(node, allow_graceful=False)

    def lose_all(self) -> None:
        """SIGKILL every process of every node."""
        nodes = [*self.workers, self.cluster.head_node]
        kill(*(pid for node in nodes for pid in self._processes(node)))
        self.stop()

    def stop(self) -> None:
        """End what this object started."""
        self.cluster.shutdown()

    def ray_workers(self, *, doing: str = "", on: Any = None) -> list[int]:
        """Processes that Ray started for work (on one node), with these words in their title."""
        roots = [
            started.process.pid
            for node in ([on] if on else self.workers)
            for started in node.all_processes.get("raylet", [])
        ]
        return [
            pid
            for pid in descendants(*roots)
            if (words := title(pid)).startswith("ray::") and doing in words
        ]

    def at_work(self) -> list[Any]:
        """Nodes that hold an actor of a stage."""
        return [n for n in self.workers if self.ray_workers(doing="MapWorker", on=n)]

    @staticmethod
    def _processes(node: Any) -> list[int]:
        own = [p.process.pid for kind in node.all_processes.values() for p in kind]
        # The children first: they would be orphans, and not be found, once their raylet is gone.
        return [*descendants(*own), *own]


def descendants(*pids: int) -> list[int]:
    """Children of these processes, and their children, the deepest first."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in brackets may hold anything, brackets as well.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(path.parent.name))
    found, todo = [], list(pids)
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found[::-1]


def kill(*pids: int) -> int:
    """SIGKILL processes; how many were still there."""
    alive = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            alive += 1
    return alive


def title(pid: int) -> str:
    """A process's command line, which Ray's workers rewrite to say what they do."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    return ""


@contextmanager
def nodes(*cpus_per_node: int, **node: Any) -> Iterator[Nodes]:
    """Nodes for the length of a block, with everything they write in a folder of their own."""
    # Who calls ray.init() elsewhere on this machine must not find them. Ray makes sockets below
    # it, whose paths may not be long.
    folder = tempfile.mkdtemp(prefix="drill-", dir="/tmp")
    settings = {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    running = Nodes(list(cpus_per_node), **node)
    try:
        yield running
    finally:
        running.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
