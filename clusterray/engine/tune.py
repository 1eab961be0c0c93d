"""A sweep of LightGBM-PU settings with Ray Tune and Optuna, on the folds of a training run.

Everything lies under ``<root>/tune``: one file per judged trial, Tune's own state, the table of
trials and ``best.toml``. A sweep that was cut short is taken up where it stopped.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clusterray import storage
from clusterray.config import Config
from clusterray.engine import sample as samples
from clusterray.engine import search
from clusterray.engine.fits import lightgbm_options
from clusterray.engine.ledger import Shard, open_run
from clusterray.engine.plan import list_shards
from clusterray.engine.session import session
from clusterray.engine.sweep import Trial, sweep
from clusterray.engine.telemetry import RunSummary
from clusterray.engine.train import Training
from clusterray.features import feature_names
from clusterray.provenance import data_fingerprint, digest, seed_for
from clusterray.sky import catalogue
from clusterray.sky.surveys import resolve

__all__ = ["tune"]


def tune(config: Config) -> RunSummary:
    """Search `train.lightgbm` settings by the file `tune.space`; write the best as TOML.

    Raises
    ------
    ConfigError : a search file that cannot be used, or current settings outside its ranges.
    InputError : as `clusterray train`.
    RunError : the tune folder holds another sweep, or every trial failed.
    """
    start = time.monotonic()
    space = search.read_space(config.tune.space)
    n_trials = config.tune.n_trials or space.n_trials
    space.starting_point(config.train.lightgbm)
    survey = resolve(config.survey)
    shards = list_shards(
        config.paths.shards,
        bands=survey.band_names,
        size_px=survey.size_px,
        pixel_scale_arcsec=survey.pixel_scale_arcsec,
    )
    labels = catalogue.read_labels(config.paths.labels)
    key = {
        "seed": config.seed,
        "space": space.model_dump(mode="json", exclude={"n_trials"}),
        "n_trials": n_trials,
        "features": list(feature_names(survey.band_names, config.features)),
        "train": config.train.model_dump(mode="json", exclude={"models", "target_prior"}),
        "shards": data_fingerprint(shard.footer for shard in shards),
        "labels": digest(labels.to_pylist()),
    }
    folder = storage.join(config.paths.root, "tune")
    key_digest = open_run(folder, key, config=config, verb="tune")
    there = len(storage.list_files(storage.join(folder, "trials"), suffix=".json"))
    with session(config.cluster):
        data, notes = _data(config, shards, labels, folder)
        trials, failures = sweep(
            data,
            space,
            config=config,
            folder=folder,
            n_trials=n_trials,
            name=f"lightgbm-{key_digest[:12]}",
        )
    best = max(trials, key=lambda t: (t.objective, -t.number))
    storage.write_table(storage.join(folder, "trials.parquet"), _table(trials))
    snippet = _snippet(best, config.train.lightgbm, objective=space.objective, key=key_digest)
    storage.write_bytes(storage.join(folder, "best.toml"), snippet.encode())
    distinct = len({digest(t.parameters) for t in trials})
    summary = RunSummary(
        verb="tune",
        unit="trials",
        done=max(0, distinct - there),
        skipped=min(there, distinct),
        rows=len(data.s),
        rejected=0,
        seconds=time.monotonic() - start,
        outputs={
            "best": storage.join(folder, "best.toml"),
            "trials": storage.join(folder, "trials.parquet"),
        },
        stage_seconds={"trials": round(sum(t.seconds for t in trials), 2)},
        notes=(*notes, *failures, _verdict(best, trials[0], space, data, config)),
    )
    summary.write(storage.join(folder, "summary.json"))
    return summary


def _data(
    config: Config, shards: Sequence[Shard], labels: pa.Table, folder: str
) -> tuple[search.TrialData, tuple[str, ...]]:
    """The rows and folds of the training run, from its own sample where that holds these rows."""
    survey = resolve(config.survey)
    fingerprint = data_fingerprint(shard.footer for shard in shards)
    same = {
        "seed": config.seed,
        "features": config.features.model_dump(mode="json"),
        "shards": fingerprint,
        "labels": digest(labels.to_pylist()),
    }
    place = folder
    run = storage.join(config.paths.training, "run.json")
    if storage.exists(run):
        standing = storage.read_json(run)["key"]
        rows = standing.get("train", {}).get("max_unlabelled")
        if rows == config.train.max_unlabelled and same.items() <= standing.items():
            place = config.paths.training
    url = storage.join(place, "sample")
    choice = samples.choose(shards, labels, config=config)
    samples.gather(choice, url, config=config)
    work = Training(config, survey, folder=folder, sample_url=url, choice=choice, labels=labels)
    context = work.context()
    data = search.TrialData(
        features=work.sample.features,
        s=context.s,
        fold=context.fold,
        cell=context.cell,
        feature_names=context.feature_names,
        scenario=config.train.scenario,
        prior=context.prior,
        unlabelled_prior=context.unlabelled_prior,
        unlabelled_fraction=context.unlabelled_fraction,
        seed=config.seed,
        options=lightgbm_options(config.train, context.feature_names),
    )
    prior = f"prior π = {context.prior:.3g} ({work.prior.source})"
    return data, (*choice.notes, *work.folds.notes, prior)


def _table(trials: Sequence[Trial]) -> pa.Table:
    names = sorted({name for t in trials for name in t.parameters})
    columns: dict[str, Any] = {
        "trial": pa.array([t.number for t in trials], pa.int32()),
        "objective": pa.array([t.objective for t in trials], pa.float64()),
        "seconds": pa.array([t.seconds for t in trials], pa.float64()),
    }
    columns |= {name: pa.array([t.parameters.get(name) for t in trials]) for name in names}
    columns["placements"] = pa.array([t.placements for t in trials], pa.list_(pa.float64()))
    return pa.table(columns)


def _snippet(best: Trial, base: Mapping[str, Any], *, objective: str, key: str) -> str:
    values = {**base, **best.parameters}
    return "\n".join(
        [
            f"# clusterray tune, sweep {key[:12]}, trial {best.number}: "
            f"{objective} {best.objective:.4f}. Put it in your config in place of its",
            "# [train.lightgbm]; training with other settings wants another paths.training.",
            "[train.lightgbm]",
            # What JSON and TOML write alike: numbers, strings, true and false.
            *(f"{name} = {json.dumps(value)}" for name, value in values.items()),
            "",
        ]
    )


def _verdict(
    best: Trial,
    first: Trial,
    space: search.SearchSpace,
    data: search.TrialData,
    config: Config,
) -> str:
    text = f"best {space.objective} {best.objective:.4f} (trial {best.number})"
    if first.number != 1:
        return f"{text}; the trial of the current settings failed"
    gain, error = search.paired_gain(
        np.array(best.placements),
        np.array(first.placements),
        space.objective,
        unlabelled_prior=data.unlabelled_prior,
        n_bootstrap=config.train.n_bootstrap,
        seed=seed_for(config.seed, purpose="tune gain"),
    )
    return (
        f"{text}; current settings {first.objective:.4f}; gain {gain:.4f} ± {error:.4f} over "
        f"{len(best.placements)} known lenses, flattered by being the best of many trials"
    )
