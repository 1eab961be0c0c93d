"""Jobs submitted with the README's own commands to a cluster that asks for a token."""

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterray import storage
from clusterray.config import ClusterSettings
from clusterray.engine.published import latest
from clusterray.engine.rank import rank
from clusterray.engine.session import session
from clusterray.errors import RunError
from tests.ray.drill_survey import DrillSurvey
from tests.ray.heads import BIN, Head, head
from tests.ray.nodes import descendants, title

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def token_head() -> Iterator[Head]:
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    with head("--num-cpus=3", env=settings) as running:
        yield running


@pytest.fixture
def place(survey: DrillSurvey, tmp_path: Path) -> Path:
    """What a user has: the code, and a run.toml."""
    for name in ("clusterray", "jobs", "tuning"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    # One dotted key a line is TOML.
    lines = survey.overrides(tmp_path / "out")
    (tmp_path / "run.toml").write_text("\n".join(lines))
    return tmp_path


def command(verb: str, running: Head) -> list[str]:
    """The README's ``ray job submit`` of a verb, sent to this head."""
    pattern = rf"^ray job submit .*python -m jobs\.{verb} .*$"
    (line,) = set(re.findall(pattern, README, flags=re.MULTILINE))
    assert "http://127.0.0.1:8265" in line
    return shlex.split(line.replace("http://127.0.0.1:8265", running.url))


def ray(words: list[str], running: Head, *, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    assert words[0] == "ray"
    return subprocess.run(
        [str(BIN / "ray"), *words[1:]],
        cwd=cwd,
        env={**running.env, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


def check_ranking(survey: DrillSurvey, place: Path) -> None:
    config = survey.config(place / "out")
    rank(config)
    assert Path(config.paths.ranking, "ranking.parquet").read_bytes() == survey.ranking


def test_score_is_submitted_with_the_token_and_refused_without(survey, token_head, place):
    submit = command("score", token_head)
    refused = ray(submit, token_head, cwd=place, RAY_AUTH_TOKEN="0" * 32)
    assert refused.returncode == 1
    assert "Invalid authentication token" in refused.stdout
    done = ray(submit, token_head, cwd=place)
    assert done.returncode == 0, done.stdout
    assert f"score: {survey.groups} row groups done, 0 already there" in done.stdout
    assert token_head.env["RAY_AUTH_TOKEN"] not in done.stdout
    check_ranking(survey, place)


def test_a_stopped_job_is_taken_up_by_the_next(survey, token_head, place):
    submit = command("score", token_head)
    at = submit.index("--")
    words = [*submit[:at], "--no-wait", "--submission-id", "stopped", *submit[at:]]
    sent = ray(words, token_head, cwd=place)
    assert sent.returncode == 0, sent.stdout
    config = survey.config(place / "out")
    rows = Path(config.paths.scores, "rows")
    deadline = time.monotonic() + 120
    while not list(rows.glob("*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    # Held where it is, for the command takes seconds to start.
    for pid in descendants(token_head.pid):
        if "MapWorker(MapBatches(ReadStage))" in title(pid):
            os.kill(pid, signal.SIGSTOP)
    stop = ["ray", "job", "stop", "--address", token_head.url, "stopped"]
    stopped = ray(stop, token_head, cwd=place)
    assert stopped.returncode == 0, stopped.stdout
    assert "was stopped" in stopped.stdout
    stood = {p.name: p.stat().st_mtime_ns for p in rows.glob("*.parquet")}
    assert 0 < len(stood) < survey.groups
    done = ray(submit, token_head, cwd=place)
    assert done.returncode == 0, done.stdout
    summary = storage.read_json(f"{config.paths.scores}/summary.json")
    assert (summary["skipped"], summary["done"]) == (len(stood), survey.groups - len(stood))
    assert {n: (rows / n).stat().st_mtime_ns for n in stood} == stood
    check_ranking(survey, place)


def test_nightly_is_submitted(survey, token_head, place):
    done = ray(command("nightly", token_head), token_head, cwd=place)
    assert done.returncode == 0, done.stdout
    config = survey.config(place / "out")
    stands = latest(config.paths.nightly)
    assert stands is not None
    ranking = Path(config.paths.nightly, stands.folder, "ranking.parquet")
    assert ranking.read_bytes() == survey.ranking
    again = ray(command("nightly", token_head), token_head, cwd=place)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_verb_that_joins_without_the_token_says_what_is_missing(
    token_head, monkeypatch, tmp_path, mode
):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("HOME", str(tmp_path))
    told = pytest.raises(RunError, match=r"cannot join .*RAY_AUTH_MODE=token and its own token in")
    with told, session(ClusterSettings(address=token_head.address)):
        pass
