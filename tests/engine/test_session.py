import os
import platform
import socket
import subprocess
import sys

import pytest
import ray
from ray.exceptions import AuthenticationError

from clusterray.config import ClusterSettings
from clusterray.engine import session as session_module
from clusterray.engine.session import WORKER_MEMORY, session
from clusterray.errors import RunError


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    """As in a process that has joined none; the other modules' may be running."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_an_address_where_nothing_listens_is_told_at_once(closed_port):
    address = f"127.0.0.1:{closed_port}"
    refused = pytest.raises(RunError, match=f"cannot join the Ray .* '{address}': .*refused")
    with refused, session(ClusterSettings(address=address)):
        pass


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999"])
def test_what_is_no_address_is_told(address):
    told = pytest.raises(RunError, match=f"cannot join .* '{address}': .*; check cluster.address")
    with told, session(ClusterSettings(address=address)):
        pass


def test_a_token_that_is_missing_is_told(monkeypatch):
    def refuse(**settings: object) -> None:
        raise AuthenticationError("no authentication token was found")

    monkeypatch.setattr(ray, "init", refuse)
    told = pytest.raises(RunError, match=r"no authentication token .*wants RAY_AUTH_MODE=token")
    with told, session(ClusterSettings(address="ray-head")):
        pass


@pytest.mark.parametrize(("gigabytes", "expected"), [(16, None), (512, 32 * 10**9)])
def test_a_local_object_store_is_bounded_on_a_large_host(monkeypatch, gigabytes, expected):
    sizes = {"SC_PHYS_PAGES": gigabytes * 10**9 // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(session_module.os, "sysconf", sizes.__getitem__)
    assert session_module._object_store_bytes(ClusterSettings()) == expected
    given = ClusterSettings(object_store_gb=2)
    assert session_module._object_store_bytes(given) == 2 * 10**9


_SECOND_BLOCK = """
import resource, threading
def work():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = b"\\1" * 2**26
        del block
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_a_worker_uses_the_memory_it_freed_again():
    def faults(**settings: str) -> int:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        command = [sys.executable, "-c", _SECOND_BLOCK]
        said = subprocess.run(
            command, env=environment | settings, capture_output=True, text=True, check=True
        )
        return int(said.stdout)

    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert faults() >= pages
    assert faults(**WORKER_MEMORY) < 0.01 * pages


def test_workers_inherit_those_settings_and_what_the_user_set_wins(monkeypatch):
    seen = {}
    monkeypatch.setattr(ray, "init", lambda **settings: seen.update(os.environ))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in WORKER_MEMORY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    with session(ClusterSettings()):
        here = {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}
    expected = {**WORKER_MEMORY, "MALLOC_ARENA_MAX": "4"}
    assert {k: v for k, v in seen.items() if k.startswith("MALLOC_")} == expected
    assert here == {"MALLOC_ARENA_MAX": "4"}


def test_workers_of_a_cluster_that_is_joined_get_them_by_its_runtime_environment(monkeypatch):
    given = {}
    monkeypatch.setattr(ray, "init", lambda **settings: given.update(settings["runtime_env"]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with session(ClusterSettings(address="ray-head")):
        pass
    assert given["env_vars"].items() >= {
        **WORKER_MEMORY, "MALLOC_ARENA_MAX": "4", "AWS_REGION": "eu-west-1"
    }.items()  # fmt: skip
