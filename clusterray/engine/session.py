"""Joining a Ray cluster, or starting a local one for the length of a run."""

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray.exceptions import AuthenticationError

from clusterray.config import ClusterSettings
from clusterray.errors import RunError
from clusterray.provenance import COMMIT_ENV, git_state

__all__ = ["WORKER_MEMORY", "cluster_shape", "planned_shape", "session"]

WORKER_MEMORY: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
"""What keeps freed memory in a worker for its next row group (glibc; elsewhere of no effect).

Else the kernel takes it back, and hands it out anew page by page: a quarter of the time of a
network on a CPU. Actors work in threads, and only glibc's first arena holds blocks of this size.
"""

_FORWARDED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
)

_TOKEN: Final = (
    "; a cluster with token authentication wants RAY_AUTH_MODE=token and its own token in "
    "RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
)

_RAYS_SHARE: Final = 0.3
_MOST_STORE_BYTES: Final = 32 * 10**9


@contextmanager
def session(settings: ClusterSettings) -> Iterator[None]:
    """Be connected to Ray inside the block; a cluster that was joined is left running.

    Raises
    ------
    RunError : the address does not answer.
    """
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        # Ray 2.60 otherwise writes a token file that later clients of this machine trip over.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    variables = {COMMIT_ENV: git_state(), **WORKER_MEMORY}
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    try:
        if address is None:
            # By a runtime environment, the workers that Ray starts ahead would be of no use.
            with _inherited(variables):
                ray.init(
                    address="local",
                    num_cpus=settings.num_cpus,
                    object_store_memory=_object_store_bytes(settings),
                    include_dashboard=False,
                    **quiet,
                )
        else:
            _knock(address)
            ray.init(address=address, runtime_env={"env_vars": _forwarded(variables)}, **quiet)
    except (AuthenticationError, OSError, OverflowError, RuntimeError, ValueError) as error:
        raise RunError(
            f"cannot join the Ray cluster at '{address or 'local'}': {error}; "
            "check cluster.address or RAY_ADDRESS, or leave both empty for a local cluster"
            f"{_TOKEN if address else ''}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Have processes that are started inside the block see the variables, if not set otherwise."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _forwarded(variables: Mapping[str, str]) -> dict[str, str]:
    """The same for workers of a cluster that was joined, and where to find object storage."""
    names = (*_FORWARDED, *variables)
    found = {**variables, **{name: os.environ[name] for name in names if name in os.environ}}
    # Ray refuses a variable that a job's workers have from the job already.
    given = _given_to_job()
    return {name: value for name, value in found.items() if name not in given}


def _object_store_bytes(settings: ClusterSettings) -> int | None:
    """Size of a local cluster's object store; None leaves it to Ray."""
    if settings.object_store_gb is not None:
        return int(settings.object_store_gb * 1e9)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Each actor on a GPU registers all of it with CUDA, at tenths of a second a GB.
    return _MOST_STORE_BYTES if _RAYS_SHARE * memory > _MOST_STORE_BYTES else None


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at host:port, for which Ray 2.60 waits many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _given_to_job() -> list[str]:
    """Environment variables that ``ray job submit`` was told to set, if this is a job."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return list((job.get("runtime_env") or {}).get("env_vars") or {})


def cluster_shape() -> tuple[float, float]:
    """CPUs and GPUs of the cluster that is joined."""
    resources = ray.cluster_resources()
    return float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0))


def planned_shape(settings: ClusterSettings) -> tuple[float, float]:
    """CPUs and GPUs to plan for: what stands, or what the autoscaler may bring if that is more."""
    cpus, gpus = cluster_shape()
    return max(cpus, settings.expected_cpus or 0.0), max(gpus, settings.expected_gpus or 0.0)
