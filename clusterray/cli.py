"""The command line: ``clusterray VERB --config run.toml [--set section.key=value]…``."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol

from clusterray import __version__, config
from clusterray.errors import ClusterrayError, ConfigError

__all__ = ["main"]

_VERBS = {
    "simulate": "make a small survey with known lenses: tiles, catalogue, labels, truth",
    "ingest": "cut catalogue objects out of survey tiles into shards",
    "features": "write the feature table of every cutout",
    "pretrain": "let the network's trunk learn from simulated pairs, without labels",
    "train": "train the models on labelled shards and write a bundle",
    "tune": "search the settings of LightGBM-PU or of the network, with Tune and Optuna",
    "score": "score every cutout with a bundle",
    "rank": "calibrate the scores into a ranking and write its report",
    "candidates": "measure segments and explain the scores of the ranking's best, for triage",
    "nightly": "score what is new, rank everything, publish a dated output, measure drift",
    "doctor": "check storage, bundle, shards and cluster; predict time and cost of scoring",
}


class Outcome(Protocol):
    """What a verb returns: its text is shown, its exit code returned."""

    @property
    def exit_code(self) -> int:
        """0 (ok), or 3 where a configured limit is exceeded; a report of checks also 1 or 2."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns 0 (ok), 1 (failed), 2 (bad usage or input), 3 (a limit exceeded)."""
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "export":
            return _export(options.shard, options.out, options.layout)
        chosen = [f"tune.model={options.model}"] if getattr(options, "model", None) else []
        settings = config.load(options.config, [*options.set, *chosen])
        if options.verb == "features" and options.list:
            return _list_features(settings)
        _show(settings)
        _refuse_lost_outputs(settings)
        # A verb is the function of its own name in the engine's module of that name; imported
        # late, for Ray and torch take seconds and a misspelt key should not wait for them.
        run: Callable[[config.Config], Outcome] = getattr(
            import_module(f"clusterray.engine.{options.verb}"), options.verb
        )
        outcome = run(settings)
        print(outcome, flush=True)
        return outcome.exit_code
    except ClusterrayError as error:
        print(f"clusterray {options.verb}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nclusterray {options.verb}: stopped; run it again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clusterray",
        description="Find cluster-cluster gravitational lenses in a survey, on Ray.",
        epilog="exit status: 0 ok, 1 failed, 2 bad usage or input, 3 a configured limit exceeded",
    )
    parser.add_argument("--version", action="version", version=f"clusterray {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in _VERBS.items():
        command = verbs.add_parser(verb, help=text, description=text)
        command.add_argument("--config", metavar="TOML", help="settings (all default without it)")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            help="replace one setting; may be given again",
        )
        if verb == "tune":
            command.add_argument(
                "model",
                nargs="?",
                choices=("lightgbm", "nnpu"),
                help="what to search the settings of (tune.model where it is not given)",
            )
        if verb == "features":
            command.add_argument(
                "--list", action="store_true", help="print what every feature is, and do nothing"
            )
    text = "write the cutouts of a shard as FITS or in the Multimodal-Universe layout"
    export = verbs.add_parser("export", help=text, description=text)
    export.add_argument("shard", help="path or URL of a shard")
    export.add_argument("out", help="folder to write to")
    export.add_argument("--layout", choices=("fits", "mmu"), default="fits")
    return parser


def _show(settings: config.Config) -> None:
    for section, values in settings.dump().items():
        if isinstance(values, dict):
            shown = ", ".join(f"{k}={json.dumps(v)}" for k, v in values.items())
            print(f"[{section}] {shown}")
        else:
            print(f"{section} = {json.dumps(values)}")
    sys.stdout.flush()


def _refuse_lost_outputs(settings: config.Config) -> None:
    """A submitted job runs in a copy of its working directory, which Ray removes."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    copied = "working_dir" in (job.get("runtime_env") or {})
    if copied and not (os.path.isabs(settings.paths.root) or "://" in settings.paths.root):
        raise ConfigError(
            f"paths.root is '{settings.paths.root}', but this job runs in a copy of its working "
            "directory that is removed later; give an absolute path or a URL that every node sees"
        )


def _list_features(settings: config.Config) -> int:
    from clusterray.features.registry import describe, patch_registry, registry
    from clusterray.features.segment_registry import segment_registry
    from clusterray.sky.surveys import resolve

    bands = resolve(settings.survey).band_names
    features = registry(bands, settings.features)
    for title, listed in (
        (f"{len(features)} features of a cutout, in bands {', '.join(bands)}", features),
        ("Columns of the per-patch table", patch_registry(bands)),
        ("Features of candidates (clusterray candidates)", segment_registry(bands)),
    ):
        try:
            print(f"{title}\n{'=' * len(title)}\n\n{describe(listed)}\n", flush=True)
        except BrokenPipeError:
            # The reader, such as head or a pager, has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            break
    return 0


def _export(shard: str, out: str, layout: str) -> int:
    from clusterray.sky.export import export

    files = export(shard, out, layout="mmu" if layout == "mmu" else "fits")
    print(f"export: {len(files)} files in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
