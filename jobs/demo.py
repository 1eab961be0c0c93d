"""`make demo`: the whole way on a made survey, each step a job on a Ray cluster of its own."""

import argparse
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from clusterray import config
from clusterray.engine.local_cluster import local_cluster
from clusterray.errors import ClusterrayError
from clusterray.sky import catalogue

STEPS = ("simulate", "ingest", "train", "score", "rank", "candidates")


def main() -> int:
    """Run the steps, then show what came of them."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--config", default="jobs/demo.toml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args()
    start = time.monotonic()
    try:
        settings = config.load(options.config, options.set)
        # A job runs in a copy of this folder: outputs must not lie in it.
        paths = (f"paths.{k}={Path(v).absolute()}" for k, v in _places(settings).items())
        overrides = [*options.set, *paths]
        settings = config.load(options.config, overrides)
        arguments = ["--config", options.config]
        arguments += [word for override in overrides for word in ("--set", override)]
        with local_cluster(num_cpus=settings.cluster.num_cpus) as cluster:
            print(f"demo: Ray is up at {cluster.address}", flush=True)
            for number, step in enumerate(STEPS, 1):
                print(f"demo: {number}/{len(STEPS)} {step}", flush=True)
                cluster.submit(f"jobs.{step}", arguments, working_dir=".")
    except ClusterrayError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ndemo: stopped; run it again to go on", file=sys.stderr)
        return 130
    _show(settings)
    print(f"demo: {time.monotonic() - start:.0f} s in all")
    return 0


def _places(settings: config.Config) -> dict[str, str]:
    return {"root": settings.paths.root, "truth": settings.paths.truth}


def _show(settings: config.Config) -> None:
    """The best ten with the truth beside them, and what the first 40 hold."""
    paths = settings.paths
    ranked = pq.read_table(f"{paths.ranking}/ranking.parquet").to_pylist()
    truth = {row["object_id"]: row for row in pq.read_table(paths.truth).to_pylist()}
    labels = catalogue.read_labels(paths.labels).to_pylist()
    known = {row["object_id"] for row in labels if row["s"] == 1}
    print("\nrank  object     ra_deg   dec_deg  p_lens  (90 % interval)  truth")
    for row in ranked[:10]:
        kind = truth[row["object_id"]]["kind"] + (", known" if row["object_id"] in known else "")
        print(
            f"{row['rank']:4d}  {row['object_id']:>6} {row['ra_deg']:10.5f} {row['dec_deg']:+9.5f}"
            f"  {row['p_lens']:6.2f}  ({row['p_lens_low']:.2f} to {row['p_lens_high']:.2f})"
            f"     {kind}"
        )
    lenses = {i for i, row in truth.items() if row["y"] == 1}
    found = {row["object_id"] for row in ranked[:40]} & lenses
    print(
        f"\nthe top 40 hold {len(found - known)} of {len(lenses - known)} hidden lenses "
        f"and {len(found & known)} of {len(known)} known ones"
    )
    print(f"report: {paths.ranking}/report.html")


if __name__ == "__main__":
    sys.exit(main())
