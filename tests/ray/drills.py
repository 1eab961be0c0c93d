"""What is lost on purpose while a survey is scored, and what must hold afterwards.

After every drill the same command is run again, and then: every row group has one output, none
that stood when something was lost is made again by the second run, and the ranking equals the
undisturbed one byte for byte.
"""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clusterray import storage
from clusterray.engine.costs import MeasuredCosts
from clusterray.engine.rank import rank
from clusterray.ensemble import bundle as bundles
from tests.ray import drivers
from tests.ray.drill_survey import DrillSurvey
from tests.ray.nodes import Nodes, kill

__all__ = ["ENDS_SECONDS", "KINDS", "Outcome", "Run", "drill", "judge"]

ENDS_SECONDS = 240.0
IN_FLIGHT = 10
"""Row groups at work at a time: Ray Data hands an actor twice as many as it works on at once, and
there is one that reads, one by one, and one that finishes, up to four at once."""


@dataclass
class Outcome:
    """How one drill went.

    `hit` : the run was at work when it was struck. `exit` : its status, -9 where it was killed;
    None where it had to be ended.
    `stood` : outputs at that moment; `redone` : those of them that the struck run itself wrote
    once more. `failures` : what did not hold.
    """

    kind: str
    seed: int
    hit: bool
    exit: int | None
    stood: int
    redone: int
    second_run: int
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    said: str = ""


class Run:
    """A scoring run of the survey in a folder of its own.

    `long` : it expects to take long, so that each actor does all stages.
    `ahead` : its readers compute features ahead while the network is loaded.
    """

    def __init__(
        self,
        survey: DrillSurvey,
        out: Path,
        address: str,
        *,
        no_progress_seconds: float | None = None,
        long: bool = False,
        ahead: bool = False,
    ) -> None:
        shutil.rmtree(out, ignore_errors=True)
        self.survey, self.out, self.long, self.ahead = survey, out, long, ahead
        if long:
            digest = bundles.load(str(survey.root / "bundle")).digest
            # So slow that one row group left over is long, too.
            slow = MeasuredCosts({"read": 100.0}, 1.0, 1, digest, "cpu", "a drill")
            slow.write(str(out / "scores"))
        self.driver = self.start(address, no_progress_seconds)

    def start(self, address: str, no_progress_seconds: float | None = None) -> drivers.Driver:
        """Start `clusterray score`, for the first time or once more."""
        return drivers.start(
            "score",
            self.survey.overrides(self.out, workers=None if self.long else 1),
            address=address,
            log=self.out.parent / f"{self.out.name}.log",
            no_progress_seconds=no_progress_seconds,
            ahead=self.ahead,
        )

    def outputs(self) -> dict[str, int]:
        """Every output with the time it was written, ns."""
        found = {}
        for path in (self.out / "scores/rows").glob("*.parquet"):
            found[path.name] = path.stat().st_mtime_ns
        return found

    def reach(self, outputs: int) -> bool:
        """Wait until so many row groups are done; False if the run ends before."""
        deadline = time.monotonic() + ENDS_SECONDS
        while len(self.outputs()) < outputs and self.driver.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return self.driver.running

    def ended(self) -> int | None:
        """Wait for the end; the status, or None where it had to be killed."""
        status = self.driver.wait(timeout_seconds=ENDS_SECONDS)
        if status is None:
            self.driver.kill()
        return status


Strike = Callable[[Nodes, Run, random.Random], bool]


@dataclass(frozen=True)
class Kind:
    """One drill: what is struck, whether the run goes on by itself, and what kind of run it is."""

    what: str
    strike: Strike
    survives: bool = True
    long: bool = False
    ahead: bool = False


def _worker(nodes: Nodes, run: Run, rng: random.Random) -> bool:
    pids = [pid for pid in nodes.ray_workers() if pid not in nodes.ray_workers(doing="Agent")]
    return bool(pids) and kill(rng.choice(pids)) == 1


def _actor(nodes: Nodes, run: Run, rng: random.Random) -> bool:
    # One in the middle of its work, if there is one.
    pids = nodes.ray_workers(doing=".submit") or nodes.ray_workers(doing="MapWorker")
    return bool(pids) and kill(rng.choice(pids)) == 1


def _node(nodes: Nodes, run: Run, rng: random.Random) -> bool:
    nodes.lose(rng.choice(nodes.at_work() or nodes.workers))
    return True


def _driver(nodes: Nodes, run: Run, rng: random.Random) -> bool:
    return run.driver.kill()


def _ahead(doing: str) -> Strike:
    """At any moment from when readers are there: most of them lie before the network is."""

    def strike(nodes: Nodes, run: Run, rng: random.Random) -> bool:
        while run.driver.running and not nodes.ray_workers(doing="ReadStage"):
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 10))
        return run.driver.running and kill(*nodes.ray_workers(doing=doing)) == 1

    return strike


def _cluster(nodes: Nodes, run: Run, rng: random.Random) -> bool:
    was = run.driver.running
    nodes.lose_all()
    # One on a machine of its own stays, and has to notice.
    if rng.random() < 0.5:
        run.driver.kill()
    return was


KINDS = {
    "worker": Kind("SIGKILL of a worker process", _worker),
    "actor": Kind("SIGKILL of an actor at work", _actor),
    "node": Kind("SIGKILL of a node", _node),
    "driver": Kind("SIGKILL of the driver", _driver, survives=False),
    "cluster": Kind("SIGKILL of every process of the cluster", _cluster, survives=False),
    "long-actor": Kind("SIGKILL of an actor that does all stages", _actor, long=True),
    "long-node": Kind("SIGKILL of a node of such actors", _node, long=True),
    "long-driver": Kind("SIGKILL of their driver", _driver, survives=False, long=True),
    "ahead-reader": Kind(
        "SIGKILL of a reader that computes ahead", _ahead("ReadStage"), ahead=True
    ),
    "ahead-register": Kind(
        "SIGKILL of the register of what is ahead", _ahead("Register"), ahead=True
    ),
}


def drill(kind: str, seed: int, nodes: Nodes, survey: DrillSurvey, *, folder: Path) -> Outcome:
    """Strike a run at a random moment, run it again, and look at what is there."""
    start, rng = time.monotonic(), random.Random(f"{kind} {seed}")
    how = KINDS[kind]
    run = Run(survey, folder / f"{kind}-{seed}", nodes.address, long=how.long, ahead=how.ahead)
    outputs = 0 if how.ahead else rng.randrange(survey.groups)
    hit = run.reach(outputs)
    if not outputs:
        time.sleep(rng.uniform(0, 3))
    hit = how.strike(nodes, run, rng) and hit
    stood = run.outputs()
    status = run.ended()
    outcome = Outcome(kind, seed, hit, status, len(stood), 0, 0)
    if status is None or (how.survives and status != 0):
        went = "did not go on by itself" if how.survives else "did not end"
        outcome.failures.append(f"the run {went}: exit status {status}")
        outcome.said = run.driver.said()
    _check_pools(outcome, run)
    if how.ahead and stood and status == 0:
        summary = storage.read_json(str(run.out / "scores/summary.json"))
        if not summary["stage_seconds"].get("ahead"):
            outcome.failures.append("nothing that was computed ahead was used")
    nodes.restore()
    judge(outcome, run, nodes, stood)
    outcome.seconds = time.monotonic() - start
    return outcome


def _check_pools(outcome: Outcome, run: Run) -> None:
    """Note a long run that ended, had work, and had a pool for each stage all the same."""
    url = str(run.out / "scores/summary.json")
    if run.long and storage.exists(url):
        summary = storage.read_json(url)
        if summary["done"] and not summary["forecast"]["pools"]["fused"]:
            outcome.failures.append("its actors did not do all stages")


def judge(outcome: Outcome, run: Run, nodes: Nodes, stood: dict[str, int]) -> None:
    """Run again, rank, and note what does not hold."""
    survey, fail = run.survey, outcome.failures.append
    between = run.outputs()
    outcome.redone = sum(between.get(name) != at for name, at in stood.items())
    if outcome.redone > IN_FLIGHT:
        fail(f"{outcome.redone} outputs that stood were made again")
    run.driver = run.start(nodes.address)
    if run.ended() != 0:
        outcome.said = run.driver.said()
        fail("the second run failed")
        return
    _check_pools(outcome, run)
    after, config = run.outputs(), survey.config(run.out)
    summary = storage.read_json(f"{config.paths.scores}/summary.json")
    outcome.second_run = summary["done"]
    # Actors outlive their driver by a moment, and may finish what they had begun.
    late = summary["skipped"] - len(between)
    if not 0 <= late <= IN_FLIGHT or summary["done"] + summary["skipped"] != survey.groups:
        fail(
            f"{len(between)} outputs stood, the second run skipped {summary['skipped']} and made "
            f"{summary['done']} of {survey.groups}"
        )
    if any(after.get(name) != at for name, at in between.items()):
        fail("the second run wrote an output that stood")
    if len(after) != survey.groups:
        fail(f"{len(after)} outputs for {survey.groups} row groups")
    rank(config)
    if Path(config.paths.ranking, "ranking.parquet").read_bytes() != survey.ranking:
        fail("the ranking is another one")
    if not outcome.failures:
        shutil.rmtree(run.out, ignore_errors=True)
