"""A sweep of one model's settings with Ray Tune and Optuna, on the folds of a training run.

Everything lies under ``<root>/tune/<model>``: the judgements of trials, Tune's own state, the table
of trials, ``best.toml`` and the page ``tune.html``. A sweep that was cut short is taken up where it
stopped.
"""

import json
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from clusterray import storage
from clusterray.config import Config
from clusterray.engine import sample as samples
from clusterray.engine import tune_page
from clusterray.engine.fits import FitContext, lightgbm_options
from clusterray.engine.ledger import Shard, open_run
from clusterray.engine.nnpu_trial import NnpuTask
from clusterray.engine.plan import list_shards
from clusterray.engine.search import TrialData, paired_gain
from clusterray.engine.search_space import SearchSpace, current_settings, read_space, with_best
from clusterray.engine.session import session
from clusterray.engine.sweep import Task, Trial, absolute, sweep
from clusterray.engine.telemetry import RunSummary
from clusterray.engine.train import Training, train
from clusterray.errors import ConfigError, InputError
from clusterray.features import feature_names
from clusterray.provenance import data_fingerprint, digest, seed_for
from clusterray.sky import catalogue
from clusterray.sky.surveys import resolve
from clusterray.vision import vit

__all__ = ["tune"]

_LEAST_FOR_FPR: Final = 1000


def tune(config: Config) -> RunSummary:
    """Search the settings of `tune.model` by its search file; write the best as TOML, and a page.

    With `tune.refit` the models are then trained with them, into `paths.bundle`.

    Raises
    ------
    ConfigError : a search file that cannot be used, or current settings outside its ranges.
    InputError : as `clusterray train`; or an objective that needs more rows than there are.
    RunError : the tune folder holds another sweep, or every trial failed.
    """
    start = time.monotonic()
    space = _space(config)
    n_trials = config.tune.n_trials or space.n_trials
    survey = resolve(config.survey)
    shards = list_shards(
        config.paths.shards,
        bands=survey.band_names,
        size_px=survey.size_px,
        pixel_scale_arcsec=survey.pixel_scale_arcsec,
    )
    labels = catalogue.read_labels(config.paths.labels)
    key = _key(config, space, n_trials) | {
        "shards": data_fingerprint(shard.footer for shard in shards),
        "labels": digest(labels.to_pylist()),
    }
    folder = storage.join(config.paths.root, "tune", space.model)
    key_digest = open_run(folder, key, config=config, verb="tune")
    there = _judged(folder)
    with session(config.cluster):
        task, context, notes = _task(config, space, shards, labels, folder)
        name = f"{space.model}-{key_digest[:12]}"
        trials, failures = sweep(
            task, space, config=config, folder=folder, n_trials=n_trials, name=name
        )
    best = max((t for t in trials if t.complete), key=lambda t: (t.objective, -t.number))
    verdict = _verdict(best, trials[0], space, context.unlabelled_prior, config)
    storage.write_table(storage.join(folder, "trials.parquet"), _table(trials))
    snippet = _snippet(best, config, space, key=key_digest)
    storage.write_bytes(storage.join(folder, "best.toml"), snippet.encode())
    facts = {"search file": space.model_dump(mode="json"), "rows": len(context.s), "notes": notes}
    page = tune_page.render(trials, space, best=best, verdict=verdict, facts=facts)
    storage.write_bytes(storage.join(folder, "tune.html"), page.encode())
    refit = _refit(config, best, folder) if config.tune.refit else ()
    distinct = len({digest(t.parameters) for t in trials})
    summary = RunSummary(
        verb="tune",
        unit="trials",
        done=max(0, distinct - there),
        skipped=min(there, distinct),
        rows=len(context.s),
        rejected=0,
        seconds=time.monotonic() - start,
        outputs={n: storage.join(folder, f) for n, f in _OUTPUTS.items()}
        | ({"bundle": config.paths.bundle} if refit else {}),
        stage_seconds={"trials": round(sum(t.seconds for t in trials), 2)},
        notes=(*notes, *failures, *_given_up(trials), verdict, *refit),
    )
    summary.write(storage.join(folder, "summary.json"))
    return summary


_OUTPUTS: Final = {"best": "best.toml", "trials": "trials.parquet", "page": "tune.html"}


def _space(config: Config) -> SearchSpace:
    """Read the search file, refusing at once what could not be searched later."""
    model = config.tune.model
    space = read_space(config.tune.space or f"tuning/{model}.toml")
    if space.model != model:
        raise ConfigError(
            f"tune.space '{storage.redact(config.tune.space)}' is a search of '{space.model}', "
            f"not of '{model}': run 'clusterray tune {space.model}' or name another file"
        )
    space.starting_point(current_settings(config, model))
    if model == "nnpu":
        survey = resolve(config.survey)
        vit.build(config.vision, n_bands=len(survey.bands), size_px=survey.size_px)
    return space


def _given_up(trials: Sequence[Trial]) -> tuple[str, ...]:
    n = sum(not t.complete for t in trials)
    return (f"{n} of {len(trials)} trials given up early",) if n else ()


def _key(config: Config, space: SearchSpace, n_trials: int) -> dict[str, Any]:
    """What a trial's judgement follows from, but for the shards and labels."""
    names = feature_names(resolve(config.survey).band_names, config.features)
    key = {
        "seed": config.seed,
        "space": space.model_dump(mode="json", exclude={"n_trials"}),
        "n_trials": n_trials,
        "features": list(names),
        "train": config.train.model_dump(mode="json", exclude={"models", "target_prior"}),
    }
    if space.model == "nnpu":
        key["train"] = config.train.model_dump(mode="json", exclude={"models"})
        key["vision"] = config.vision.model_dump(mode="json")
        scoring = {"micro_batch", "dtype", "views"}
        key["score"] = config.score.model_dump(mode="json", include=scoring)
    return key


def _judged(folder: str) -> int:
    """How many trials have left something in the folder."""
    entries = storage.list_files(storage.join(folder, "trials"), suffix=".json")
    inside = (e.url.rpartition("/trials/")[2] for e in entries)
    return len({name.removesuffix(".json").partition("/")[0] for name in inside})


def _task(
    config: Config,
    space: SearchSpace,
    shards: Sequence[Shard],
    labels: pa.Table,
    folder: str,
) -> tuple[Task, FitContext, tuple[str, ...]]:
    """The rows and folds of the training run, from its own sample where that holds these rows."""
    survey = resolve(config.survey)
    fingerprint = data_fingerprint(shard.footer for shard in shards)
    same = {
        "seed": config.seed,
        "features": config.features.model_dump(mode="json"),
        "sample": samples.SAMPLE_VERSION,
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
    _check_rows(context, space)
    prior = f"prior π = {context.prior:.3g} ({work.prior.source})"
    notes = (*choice.notes, *work.folds.notes, prior)
    if space.model == "nnpu":
        return NnpuTask(context, absolute(url)), context, notes
    data = TrialData(
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
    return data, context, notes


def _check_rows(context: FitContext, space: SearchSpace) -> None:
    if space.objective != "tpr_at_fpr_1e-3":
        return
    folds = np.unique(context.fold[context.fold >= 0])
    least = min(int(np.sum((context.fold == k) & (context.s == 0))) for k in folds)
    if least < _LEAST_FOR_FPR:
        raise InputError(
            f"objective 'tpr_at_fpr_1e-3' with {least} unlabelled rows in a fold: a rate of 1e-3 "
            f"needs {_LEAST_FOR_FPR} at least; raise train.max_unlabelled, lower train.n_folds, or "
            "search by 'auroc'"
        )


def _refit(config: Config, best: Trial, folder: str) -> tuple[str, ...]:
    """Train with the best settings, in a training folder beside the sweep."""
    settings = with_best(config, config.tune.model, best.parameters)
    training = storage.join(folder, "training")
    paths = settings.paths.model_copy(update={"training": training})
    refitted = train(settings.model_copy(update={"paths": paths}))
    return tuple(f"refit: {note}" for note in refitted.notes)


def _table(trials: Sequence[Trial]) -> pa.Table:
    names = sorted({name for t in trials for name in t.parameters})
    columns: dict[str, Any] = {
        "trial": pa.array([t.number for t in trials], pa.int32()),
        "objective": pa.array([t.objective for t in trials], pa.float64()),
        "complete": pa.array([t.complete for t in trials], pa.bool_()),
        "seconds": pa.array([t.seconds for t in trials], pa.float64()),
    }
    columns |= {name: pa.array([t.parameters.get(name) for t in trials]) for name in names}
    columns["placements"] = pa.array([t.placements for t in trials], pa.list_(pa.float64()))
    return pa.table(columns)


def _snippet(best: Trial, config: Config, space: SearchSpace, *, key: str) -> str:
    if space.model == "lightgbm":
        sections = {"train.lightgbm": {**config.train.lightgbm, **best.parameters}}
    else:
        vision = dict(best.parameters)
        train = {n: vision.pop(n) for n in ("target_prior",) if n in vision}
        sections = {name: v for name, v in (("vision", vision), ("train", train)) if v}
    lines = [
        f"# clusterray tune {space.model}, sweep {key[:12]}, trial {best.number}: "
        f"{space.objective} {best.objective:.4f}. Put it in",
        "# your config in place of these settings; training with others wants another "
        "paths.training.",
    ]
    for section, values in sections.items():
        # What JSON and TOML write alike: numbers, strings, true and false.
        lines += [f"[{section}]", *(f"{n} = {json.dumps(v)}" for n, v in values.items()), ""]
    return "\n".join(lines)


def _verdict(
    best: Trial, first: Trial, space: SearchSpace, unlabelled_prior: float, config: Config
) -> str:
    text = f"best {space.objective} {best.objective:.4f} (trial {best.number})"
    if first.number != 1 or not first.complete:
        return f"{text}; the trial of the current settings did not run to its end"
    gain, error = paired_gain(
        np.array(best.placements),
        np.array(first.placements),
        space.objective,
        unlabelled_prior=unlabelled_prior,
        n_bootstrap=config.train.n_bootstrap,
        seed=seed_for(config.seed, purpose="tune gain"),
    )
    return (
        f"{text}; current settings {first.objective:.4f}; gain {gain:.4f} ± {error:.4f} over "
        f"{len(best.placements)} known lenses, flattered by being the best of many trials"
    )
