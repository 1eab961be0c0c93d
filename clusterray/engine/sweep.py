"""Running a sweep with Ray Tune and Optuna: slots, search, resuming, a line per trial."""

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import fsspec
import optuna
import ray
from pyarrow import fs as pafs
from ray import tune as ray_tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from clusterray import storage
from clusterray.config import Config
from clusterray.engine.search import Objective, Report
from clusterray.engine.search_space import SearchSpace, current_settings
from clusterray.engine.session import cluster_shape
from clusterray.engine.work import cpu_share, unwrap
from clusterray.errors import RunError
from clusterray.provenance import seed_for

__all__ = ["Slots", "Task", "Trial", "absolute", "plan_gpu_slots", "plan_slots", "sweep"]


class Task(Protocol):
    """What is searched, and how one trial is made."""

    @property
    def n_reports(self) -> int:
        """Reports of a whole trial."""
        ...

    @property
    def first_rung(self) -> int:
        """Reports before which no trial is given up."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether a trial uses a GPU where there is one."""
        ...

    def trial(
        self,
        params: Mapping[str, Any],
        *,
        objective: Objective,
        folder: str,
        num_threads: int,
        report: Report,
    ) -> None:
        """Judge one set of parameters, keeping in `folder` what must not be done twice."""
        ...


@dataclass(frozen=True)
class Trial:
    """One judged set of parameters; the `number`-th that was suggested, from 1.

    One that was given up early is not `complete`: its objective is that of its last epoch.
    """

    number: int
    parameters: dict[str, Any]
    objective: float
    placements: tuple[float, ...]
    seconds: float
    complete: bool = True


@dataclass(frozen=True)
class Slots:
    """How many trials run at a time, what each reserves, and its threads."""

    concurrent: int
    num_cpus: float
    num_threads: int
    num_gpus: float = 0.0


def plan_slots(
    cpus: float, largest_node_cpus: float, *, n_trials: int, max_concurrent: int | None
) -> Slots:
    """Share a cluster's CPUs among trials, at most 7/8 of them (see `work.cpu_share`).

    Unless told otherwise at most a quarter of the trials run at a time: TPE learns from trials
    that have ended. A trial is never larger than a node.
    """
    concurrent = max_concurrent or min(max(1, int(cpus)), max(1, n_trials // 4))
    concurrent = min(concurrent, n_trials)
    threads = int(min(cpus / concurrent, largest_node_cpus) * 7 / 8)
    if threads < 2:
        # More trials than CPUs would wait for each other in any case.
        concurrent = min(concurrent, max(1, int(cpus)))
        return Slots(concurrent, cpu_share(cpus, concurrent), 1)
    return Slots(concurrent, float(threads), threads)


def plan_gpu_slots(
    cpus: float, gpus: float, *, gpus_per_trial: float, n_trials: int, max_concurrent: int | None
) -> Slots:
    """Share a cluster's GPUs among trials, `gpus_per_trial` each, and its CPUs alike.

    Unless told otherwise at most a quarter of the trials run at a time, as in `plan_slots`.
    """
    fitting = max(1, int(gpus / gpus_per_trial + 1e-9))
    concurrent = min(max_concurrent or max(1, n_trials // 4), fitting, n_trials)
    share = max(0.5, cpus * 7 / 8) / concurrent
    return Slots(concurrent, min(4.0, share), max(1, int(min(4.0, share))), gpus_per_trial)


def sweep(
    task: Task, space: SearchSpace, *, config: Config, folder: str, n_trials: int, name: str
) -> tuple[list[Trial], tuple[str, ...]]:
    """Run, or take up, the Tune experiment `name`; the trials that ended, and notes on the others.

    The first trial has the current settings. With one trial at a time the suggestions depend on
    (config.seed, task, space) alone; with more, on the order in which trials end as well.

    Raises
    ------
    RunError : no trial ran to its end (the message is the first one's), or Tune's state is not
        whole.
    StorageError : `tune.storage` cannot be reached.
    """
    # Tune's own SIGINT handler turns Ctrl-C into a normal end with the trials so far.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # Weights and samples may be named by paths relative to where the driver stands.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # The newer reporter prints its tables at any verbosity.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # It misses the result files of those loggers; the results are in Tune's state.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = config.tune.storage or storage.join(folder, "ray")
    fs, path = _filesystem(url)
    slots = _slots(task, config, n_trials)
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(
            _trial,
            base=config.train.lightgbm if space.model == "lightgbm" else {},
            objective=space.objective,
            task=task,
            folder=absolute(storage.join(folder, "trials")),
            num_threads=slots.num_threads,
        ),
        {"cpu": slots.num_cpus, **({"gpu": slots.num_gpus} if slots.num_gpus else {})},
    )
    experiment = storage.join(path, name)
    # Before its first saved state there is nothing to take up: Ray 2.60 then restores one trial,
    # and ends.
    saved = storage.list_files(storage.join(url, name), recursive=False)
    begun = any(storage.name_of(entry.url).startswith("experiment_state") for entry in saved)
    if begun and ray_tune.Tuner.can_restore(experiment, storage_filesystem=fs):
        tuner = ray_tune.Tuner.restore(
            experiment, trainable, resume_errored=True, storage_filesystem=fs
        )
    else:
        tuner = ray_tune.Tuner(
            trainable,
            tune_config=ray_tune.TuneConfig(
                search_alg=_searcher(space, config, n_trials),
                scheduler=_scheduler(space, task),
                num_samples=n_trials,
                max_concurrent_trials=slots.concurrent,
                reuse_actors=True,
                trial_dirname_creator=_folder_name,
            ),
            run_config=ray_tune.RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=fs,
                failure_config=ray_tune.FailureConfig(max_failures=1),
                callbacks=[_Lines(n_trials, space.objective)],
                verbose=0,
            ),
        )
    grid = tuner.fit()
    if len(grid) < n_trials:
        raise RunError(
            f"Tune's state in '{storage.redact(url)}' gave {len(grid)} of {n_trials} trials; "
            "remove it and run again: trials that were judged are kept, and not judged again"
        )
    return _collect(grid)


def _filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    """Where Tune keeps its state: by s3fs where that is installed, for Tune makes folders first.

    pyarrow 26 makes one on S3 by writing an empty object, which a server that keeps real folders
    refuses.

    Raises
    ------
    StorageError : the location cannot be looked into.
    """
    fs, path = storage.filesystem(url)
    # s3fs would make a bucket that is not there.
    storage.exists(storage.join(url, "tuner.pkl"))
    if url.startswith("s3://"):
        with suppress(ImportError):
            fs = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("s3")))
    return fs, path


def _folder_name(trial: Any) -> str:
    return str(trial.trial_id)


def _searcher(space: SearchSpace, config: Config, n_trials: int) -> OptunaSearch:
    sampler = optuna.samplers.TPESampler(
        seed=seed_for(config.seed, purpose="tune") % 2**32,
        n_startup_trials=min(10, max(3, n_trials // 3)),
    )
    return OptunaSearch(
        space.distributions(),
        metric="objective",
        mode="max",
        points_to_evaluate=[space.starting_point(current_settings(config, space.model))],
        sampler=sampler,
    )


def _scheduler(space: SearchSpace, task: Task) -> TrialScheduler:
    if space.asha is None:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        metric="objective",
        mode="max",
        max_t=task.n_reports,
        grace_period=min(space.asha.grace or task.first_rung, task.n_reports),
        reduction_factor=space.asha.reduction,
    )


def _slots(task: Task, config: Config, n_trials: int) -> Slots:
    cpus, gpus = cluster_shape()
    max_concurrent = config.tune.max_concurrent
    if task.on_gpu and gpus >= 1:
        return plan_gpu_slots(
            cpus,
            gpus,
            gpus_per_trial=config.tune.gpus_per_trial,
            n_trials=n_trials,
            max_concurrent=max_concurrent,
        )
    nodes = [n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]]
    return plan_slots(
        cpus, max(nodes, default=0.0), n_trials=n_trials, max_concurrent=max_concurrent
    )


def absolute(url: str) -> str:
    """Give a URL as a trial can use it: Tune runs each in a folder of its own."""
    return url if storage.is_remote(url) else storage.filesystem(url)[1]


def _trial(
    config: dict[str, Any],
    *,
    base: Mapping[str, Any],
    objective: Objective,
    task: Task,
    folder: str,
    num_threads: int,
) -> None:
    task.trial(
        {**base, **config},
        objective=objective,
        folder=folder,
        num_threads=num_threads,
        report=ray_tune.report,
    )


def _collect(grid: ray_tune.ResultGrid) -> tuple[list[Trial], tuple[str, ...]]:
    results = [grid[i] for i in range(len(grid))]
    trials = [
        Trial(
            # Of "7_num_leaves=…"; after a restore the grid is in another order.
            number=int(result.metrics["experiment_tag"].partition("_")[0]),
            parameters=result.metrics["parameters"],
            objective=result.metrics["objective"],
            placements=tuple(result.metrics["placements"]),
            seconds=result.metrics["seconds"],
            complete=result.metrics.get("complete", True),
        )
        for result in results
        if result.error is None and result.metrics and "objective" in result.metrics
    ]
    trials.sort(key=lambda t: t.number)
    errors = [result.error for result in results if result.error is not None]
    if not any(t.complete for t in trials):
        reason = str(unwrap(errors[0])) if errors else "Tune ran none"
        raise RunError(f"no trial of the sweep ended: {reason}")
    if not errors:
        return trials, ()
    return trials, (f"{len(errors)} of {len(results)} trials failed: {unwrap(errors[0])}",)


class _Lines(ray_tune.Callback):
    """A line per trial on stderr. Tune pickles it with its state: it holds plain values only."""

    def __init__(self, total: int, objective: str) -> None:
        self.total, self.objective = total, objective

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = [t.last_result["objective"] for t in trials if "objective" in t.last_result]
        last = trial.last_result
        cut = "" if last.get("complete", True) else ", given up"
        print(
            f"tune: {len(values)}/{self.total} trials, {self.objective} {last['objective']:.4f} "
            f"in {last['seconds']:.1f} s{cut}, best {max(values):.4f}",
            file=sys.stderr,
            flush=True,
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        print(f"tune: trial {trial.trial_id} failed", file=sys.stderr, flush=True)
