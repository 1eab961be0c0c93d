"""Drills in which something runs out: CPUs, the disk of the output, the object store."""

import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ray import drivers
from tests.ray.drill_survey import DrillSurvey
from tests.ray.drills import ENDS_SECONDS, Outcome, Run, judge
from tests.ray.nodes import Nodes

ACTORS = 2
"""Of a run with one actor per stage, each of which reserves one CPU."""

__all__ = ["NotHereError", "full_disk", "read_only", "small_store", "taken_cpus"]


class NotHereError(Exception):
    """This machine does not allow the drill; the message says why."""


def taken_cpus(seed: int, nodes: Nodes, survey: DrillSurvey, *, folder: Path) -> Outcome:
    """Lose a node while another driver holds every CPU that the run does not.

    With an even seed a new node comes, and the run goes on; with an odd one none does, and the run
    ends when nothing has moved for `execution_no_progress_timeout_s`.
    """
    start, rng = time.monotonic(), random.Random(f"taken {seed}")
    replaced = seed % 2 == 0
    patience = ENDS_SECONDS if replaced else 20.0
    with drivers.cpus_taken(nodes.address, but=ACTORS):
        out = folder / f"taken-{seed}"
        run = Run(survey, out, nodes.address, no_progress_seconds=patience)
        hit = run.reach(rng.randrange(1, survey.groups))
        nodes.lose(rng.choice(nodes.at_work() or nodes.workers))
        stood = run.outputs()
        if replaced:
            nodes.restore()
        status = run.ended()
    outcome = Outcome("taken", seed, hit, status, len(stood), 0, 0)
    outcome.said = run.driver.said()
    if status is None or (hit and replaced and status):
        outcome.failures.append(f"the run did not end as it should: exit status {status}")
    nodes.restore()
    judge(outcome, run, nodes, stood)
    outcome.seconds = time.monotonic() - start
    return outcome


def full_disk(seed: int, nodes: Nodes, survey: DrillSurvey, *, folder: Path) -> Outcome:
    """Score onto a disk that is too small, make it larger, score again."""
    out = folder / f"disk-{seed}"
    needed = sum(p.stat().st_size for p in (survey.root / "undisturbed/scores").rglob("*.*"))
    share = random.Random(f"disk {seed}").uniform(0.2, 0.9)
    with _disk(out, f"size={int(needed * share)}") as remount:
        return _refused("disk", seed, nodes, survey, out, "No space left on device", remount)


def read_only(seed: int, nodes: Nodes, survey: DrillSurvey, *, folder: Path) -> Outcome:
    """Score where outputs cannot be written, make it writable, score again."""
    out = folder / f"read-only-{seed}"
    with _disk(out / "scores/rows", "ro") as remount:
        return _refused("read-only", seed, nodes, survey, out, "Read-only file system", remount)


def _refused(
    kind: str,
    seed: int,
    nodes: Nodes,
    survey: DrillSurvey,
    out: Path,
    reason: str,
    remount: Callable[[], None],
) -> Outcome:
    start = time.monotonic()
    run = Run(survey, out, nodes.address)
    status = run.ended()
    stood = run.outputs()
    outcome = Outcome(kind, seed, status != 0, status, len(stood), 0, 0)
    if status != 1 or reason not in run.driver.said():
        outcome.failures.append(f"'{reason}' was not told: exit status {status}")
        outcome.said = run.driver.said()
    if list((out / "scores").rglob(".*")):
        outcome.failures.append("halves of files were left")
    remount()
    judge(outcome, run, nodes, stood)
    outcome.seconds = time.monotonic() - start
    return outcome


@contextmanager
def _disk(place: Path, option: str) -> Iterator[Callable[[], None]]:
    """A disk of its own at this place; what is yielded makes it large and writable."""
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        raise NotHereError("needs the right to mount: unshare -Urm make drill")

    def remount() -> None:
        subprocess.run(["mount", "-o", "remount,rw,size=256m", str(place)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", str(place)], check=True)


def small_store(seed: int, nodes: Nodes, survey: DrillSurvey, *, folder: Path) -> Outcome:
    """Score where the object store holds a fraction of what is read ahead."""
    start = time.monotonic()
    run = Run(survey, folder / f"store-{seed}", nodes.address)
    status = run.ended()
    outcome = Outcome("store", seed, True, status, len(run.outputs()), 0, 0)
    if status != 0:
        outcome.failures.append(f"exit status {status}")
        outcome.said = run.driver.said()
    judge(outcome, run, nodes, run.outputs())
    outcome.seconds = time.monotonic() - start
    return outcome
