"""Where a result comes from: digests, derived seeds, versions, git state and hardware."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "COMMIT_ENV",
    "canonical_json",
    "data_fingerprint",
    "digest",
    "git_state",
    "hardware",
    "provenance",
    "seed_for",
    "uniform_for",
    "versions",
]

COMMIT_ENV = "CLUSTERRAY_GIT_STATE"
"""Carries the git state into a submitted job, whose working directory has no `.git`."""

_PACKAGES = (
    "clusterray", "ray", "torch", "timm", "numpy", "scipy", "pyarrow", "astropy", "drizzle",
    "lightgbm", "scikit-learn", "lenstronomy", "optuna",
)  # fmt: skip


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spare spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of bytes, or of the canonical JSON of anything else."""
    data = value if isinstance(value, (bytes, memoryview)) else canonical_json(value).encode()
    return hashlib.sha256(data).hexdigest()


def data_fingerprint(digests: Iterable[str]) -> str:
    """One digest for a set of files, whatever order they were listed in."""
    return digest(sorted(digests))


def seed_for(root: int, **labels: object) -> int:
    """A 63-bit seed derived from the root seed and labels, e.g. ``seed_for(7, fold=2)``."""
    return int(digest({"root": root, **{k: str(v) for k, v in labels.items()}})[:16], 16) >> 1


def uniform_for(root: int, object_ids: Iterable[str], *, purpose: str) -> list[float]:
    """A number in [0, 1) for each object that depends on (seed, purpose, object_id) alone."""
    prefix = f"{root}|{purpose}|".encode()
    return [
        int.from_bytes(hashlib.sha256(prefix + i.encode()).digest()[:7], "big") / 2**56
        for i in object_ids
    ]


def versions() -> dict[str, str]:
    """Versions of Python and of every package that can change a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> str:
    """The commit, with ``+dirty`` where the tree differs from it, or ``unknown``."""
    if COMMIT_ENV in os.environ:
        return os.environ[COMMIT_ENV]
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def hardware() -> dict[str, Any]:
    """Processor, cores and memory of this machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(pages / 2**30, 1)}


def provenance() -> dict[str, Any]:
    """What every manifest says about the code and machine that made it."""
    return {"commit": git_state(), "versions": versions(), "machine": hardware()}
