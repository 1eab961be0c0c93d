"""Run one benchmark: ``python -m jobs.bench NAME [--options]``.

The last line printed is JSON: name, value, unit, baseline (measured in the same run), ratio,
detail, and the commit, versions and machine it was measured with.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Final

from clusterray.errors import ClusterrayError
from clusterray.provenance import provenance

__all__ = ["BENCHMARKS", "main"]

BENCHMARKS: Final = {
    "engine": "the engine beside a plain loop on CPUs, and what it costs per row group",
    "feature_value": "average precision of LightGBM-PU on all features and on the first form",
    "features": "the feature sets on one core beside a plain implementation",
    "learning": "what models learn from few known lenses, beside the same ones taught the truth",
    "pu": "learning from known lenses and unlabelled rows, beside pulearn and true labels",
    "score": "the engine end to end, beside its network alone and a plain PyTorch loop",
    "shards": "size and decode rate of cutout shards beside a fixed_shape_tensor column",
    "simulate": "lenses rendered, beside a straight lenstronomy rendering of the same scenes",
    "train": "the network's training throughput beside a bare PyTorch loop",
}
"""Name of a module in `jobs.benchmarks`, and what it measures."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print; exit code 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench", description=__doc__)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    given = sys.argv[1:] if arguments is None else list(arguments)
    for name, summary in BENCHMARKS.items():
        sub = names.add_parser(name, help=summary, description=summary)
        # Only the benchmark that runs is imported: some need a GPU or an extra.
        if name in given[:1]:
            importlib.import_module(f"jobs.benchmarks.{name}").add_arguments(sub)
    options = parser.parse_args(given)
    try:
        result = importlib.import_module(f"jobs.benchmarks.{options.name}").measure(options)
    except ClusterrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    line = {
        "name": options.name,
        "value": result.value,
        "unit": result.unit,
        "baseline": result.baseline,
        "ratio": result.value / result.baseline,
        "detail": result.detail,
        **provenance(),
    }
    print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
