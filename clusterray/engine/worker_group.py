"""A network's fit shared by several processes: Ray Train, DDP over gloo or NCCL.

Each process goes through its part of every batch; the risk is that of the whole batch. The state
of the last epoch is in the fit's own folder, which Ray Train is told of, so a group that lost a
process, or whose driver died, goes on from there, with as many processes as there are places for.
"""

import os
from typing import Any

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from torch import distributed

from clusterray import errors, storage
from clusterray.engine.fit_context import FitContext
from clusterray.engine.fit_schedule import FitPlan
from clusterray.engine.fits import fit
from clusterray.engine.network_fit import checkpoints_url, forget, state_url
from clusterray.engine.work import unwrap
from clusterray.errors import ConfigError, InputError, RunError
from clusterray.vision.checkpoint import EpochLog
from clusterray.vision.training import Ranks

__all__ = ["fit_in_group"]

_RENDEZVOUS_SECONDS = 600


def fit_in_group(
    context: FitContext, model: str, leave_out: int, *, plan: FitPlan, board: Any
) -> None:
    """Run `fits.fit` for a network in a worker group, and wait for its end.

    Parameters
    ----------
    board : queue that takes (model, leave_out, EpochLog) after each epoch; None tells nobody.

    Raises
    ------
    ClusterrayError : what the fit raised, where trying again is of no use.
    RunError : processes failed more than `vision.max_failures` times.
    """
    max_failures = context.config.network(model).max_failures
    # Paths in the settings are relative to the folder that the driver was started in.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    fs, path = storage.filesystem(checkpoints_url(context, model, leave_out))
    parent, _, name = path.rpartition("/")
    low, high = plan.workers
    # Its annotations are those of the first version of Ray Train.
    make: Any = TorchTrainer
    trainer = make(
        _loop,
        train_loop_config={
            "context": context,
            "model": model,
            "leave_out": leave_out,
            "board": board,
        },
        torch_config=TorchConfig(timeout_s=_RENDEZVOUS_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=low if low == high else (low, high),
            use_gpu=plan.num_gpus > 0,
            resources_per_worker={
                "CPU": plan.num_cpus,
                **({"GPU": plan.num_gpus} if plan.num_gpus else {}),
            },
        ),
        run_config=RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=max_failures),
            logging_config=LoggingConfig("ERROR"),
        ),
    )
    try:
        result: Any = trainer.fit()
    except Exception as error:
        raise _explained(error, max_failures) from error
    told = result.return_value
    if told is not None:
        raise getattr(errors, told["kind"])(told["message"])
    forget(context, model, leave_out)


def _loop(config: dict[str, Any]) -> dict[str, str] | None:
    """What each process runs; an error that all of them meet is returned, and not tried again."""
    train = ray.train.get_context()
    world = train.get_world_size()
    ranks = Ranks(train.get_world_rank(), world, distributed.group.WORLD if world > 1 else None)
    given: FitContext = config["context"]
    model, leave_out, board = config["model"], config["leave_out"], config["board"]
    state = storage.filesystem(state_url(given, model, leave_out))[1]

    def progress(log: EpochLog) -> None:
        kept = None
        if ranks.rank == 0:
            kept = Checkpoint(state, train.get_storage().storage_filesystem)
            if board is not None:
                board.put_nowait((model, leave_out, log))
        metrics = {"epoch": log.epoch, "objective": log.objective, "risk": log.risk}
        ray.train.report(metrics, kept, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    try:
        fit(given, model, leave_out, ranks=ranks, progress=progress)
    except (ConfigError, InputError, RunError) as error:
        return {"kind": type(error).__name__, "message": str(error)}
    return None


def _explained(error: Exception, max_failures: int) -> errors.ClusterrayError:
    if "OutOfMemoryError" in str(error):
        return RunError(
            "training stopped: out of memory, with batches in halves as well; lower "
            "vision.batch_size, or choose a smaller vision.model or vision.image_size_px"
        )
    cause = unwrap(error)
    return RunError(
        f"a fit's processes failed more than {max_failures} times (vision.max_failures), the last "
        f"time: {cause}; what was done is kept: run the same command again"
    )
