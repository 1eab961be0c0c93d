"""The Dockerfile against the repository: what can be held without a Docker engine."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = [x for x in text.splitlines() if not x.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = [line.strip().split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in split]


INSTRUCTIONS = _instructions((ROOT / "deploy" / "Dockerfile").read_text())
COPIED = [
    source
    for name, rest in INSTRUCTIONS
    if name == "COPY"
    for source in [p for p in rest.split() if not p.startswith("--")][:-1]
]


@pytest.mark.parametrize("source", COPIED)
def test_what_it_copies_exists(source: str) -> None:
    assert (ROOT / source).exists()


def test_it_copies_what_a_job_needs() -> None:
    assert {"clusterray", "jobs", "tuning", "constraints.txt", "pyproject.toml"} <= set(COPIED)


def test_ray_version_is_the_pinned_one() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    bases = [rest for name, rest in INSTRUCTIONS if name == "FROM"]
    assert len(bases) == 1
    match = re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d)(\d+)", bases[0])
    assert match
    assert match[1] == pins["ray"]
    assert (int(match[2]), int(match[3])) == (3, 11)


def test_it_does_not_run_as_root() -> None:
    users = [rest for name, rest in INSTRUCTIONS if name == "USER"]
    assert users
    assert users[-1] not in {"root", "0"}


def test_requirements_are_installed_with_the_pins() -> None:
    installs = [rest for name, rest in INSTRUCTIONS if name == "RUN" and "pip install" in rest]
    assert installs
    assert all(re.search(r"-c \S*constraints\.txt", rest) for rest in installs)
