"""`make drill`: lose everything that can be lost, at random moments, and show what came of it.

Prints a table of drills and outcomes and, last, one line of JSON; exits with 1 if one failed.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from clusterray.provenance import provenance
from tests.ray import scarcity
from tests.ray.drill_survey import make
from tests.ray.drills import KINDS, Outcome, drill
from tests.ray.nodes import nodes

__all__ = ["main"]

WHAT = {
    **{name: kind.what for name, kind in KINDS.items()},
    "taken": "SIGKILL of a node, all CPUs taken",
    "disk": "output disk full",
    "read-only": "output place read-only",
    "store": "object store too small",
}
DRILLS = {
    "taken": scarcity.taken_cpus,
    "disk": scarcity.full_disk,
    "read-only": scarcity.read_only,
    "store": scarcity.small_store,
}
SMALL = ("store", "ahead-reader", "ahead-register")
"""Drills of runs whose readers soon find the object store full."""
WIDE: dict[str, Any] = {
    "models": ("lightgbm", "vit"),
    "n_shards": 2,
    "groups_per_shard": 6,
    "rows_per_group": 200,
}
"""240 MB of pixels, to go through a store of 80."""
FEWER = {
    "long-actor": 6, "long-node": 6, "long-driver": 6, "ahead-reader": 4, "ahead-register": 4,
    "taken": 6, "disk": 4, "read-only": 1, "store": 2,
}  # fmt: skip
"""Seeds of the drills of long runs and of what is computed ahead, and of those that are no kill
at a random moment."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drills, print table and JSON."""
    parser = argparse.ArgumentParser(prog="make drill", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="of each kind of SIGKILL")
    parser.add_argument("--only", nargs="+", choices=WHAT, default=list(WHAT))
    options = parser.parse_args(arguments)
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="drills-"))
    outcomes: list[Outcome] = []
    skipped: dict[str, str] = {}
    stopped = False
    try:
        for kind, outcome in _outcomes(options.only, options.seeds, folder):
            if isinstance(outcome, Outcome):
                outcomes.append(outcome)
                _show(outcome)
            else:
                skipped[kind] = str(outcome)
                print(f"{kind}: skipped, {outcome}", flush=True)
    except KeyboardInterrupt:
        stopped = True
    failed = [o for o in outcomes if o.failures]
    seconds = time.monotonic() - start
    print("\n" + table(outcomes, skipped))
    after = "stopped after " if stopped else ""
    print(f"\n{len(outcomes)} drills, {len(failed)} failed, {after}{seconds:.0f} s")
    if failed:
        print(f"what the failed ones left: {folder}")
    else:
        shutil.rmtree(folder)
    line = {
        "name": "drill",
        "drills": len(outcomes),
        "failed": len(failed),
        "stopped": stopped,
        "skipped": skipped,
        "seconds": round(seconds, 1),
        "failures": [asdict(o) for o in failed],
        **provenance(),
    }
    print(json.dumps(line), flush=True)
    return 130 if stopped else int(bool(failed) or not outcomes)


def _outcomes(
    kinds: Sequence[str], seeds: int, folder: Path
) -> Iterator[tuple[str, Outcome | scarcity.NotHereError]]:
    """Every drill's outcome, or why this machine does not allow it."""
    wanted = [
        (kind, seed) for seed in range(seeds) for kind in kinds if seed < FEWER.get(kind, seeds)
    ]
    for small, cpus, survey, store in (
        (False, (2, 2, 2), {}, 100),
        (True, (2,), WIDE, 80),
    ):
        chosen = [w for w in wanted if (w[0] in SMALL) == small]
        if not chosen:
            continue
        made = make(folder / ("wide" if small else "survey"), **survey)
        with nodes(*cpus, object_store_memory=store * 2**20) as running:
            for kind, seed in chosen:
                drilled = DRILLS.get(kind, partial(drill, kind))
                try:
                    yield kind, drilled(seed, running, made, folder=folder)
                except scarcity.NotHereError as reason:
                    yield kind, reason
                except Exception as error:  # one drill that breaks must not end the others
                    running.restore()
                    yield kind, Outcome(kind, seed, False, None, 0, 0, 0, 0.0, [repr(error)])


def _show(outcome: Outcome) -> None:
    went = "; ".join(outcome.failures) or "ok"
    print(
        f"{outcome.kind} {outcome.seed}: struck at {outcome.stood} outputs, {outcome.redone} made "
        f"again, second run made {outcome.second_run}, {outcome.seconds:.1f} s, {went}",
        flush=True,
    )
    if outcome.failures:
        print(outcome.said, flush=True)


def table(outcomes: Sequence[Outcome], skipped: dict[str, str]) -> str:
    """Drills × outcomes, as Markdown."""
    header = (
        *("drill", "seeds", "struck at work", "went on by itself", "outputs made twice, at most"),
        *("same ranking, nothing lost or doubled", "s each"),
    )
    rows = [header, ("---",) * len(header)]
    for kind in dict.fromkeys(o.kind for o in outcomes):
        mine = [o for o in outcomes if o.kind == kind]
        rows.append(
            (
                WHAT[kind],
                str(len(mine)),
                str(sum(o.hit for o in mine)),
                str(sum(o.exit == 0 for o in mine)),
                str(max(o.redone for o in mine)),
                str(sum(not o.failures for o in mine)),
                f"{sum(o.seconds for o in mine) / len(mine):.1f}",
            )
        )
    rows += [(WHAT[k], f"skipped: {why}", *[""] * 5) for k, why in skipped.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
