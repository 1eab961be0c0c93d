"""Fitting the lens network: a resumable loop over index batches, with the risk passed in.

`fit` is for arrays and one process. `run` is the loop itself: its rows come from a source that may
be shared or streamed, it may be one of several processes, and it can be taken up at any epoch.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from clusterray.config import VisionSettings
from clusterray.vision.checkpoint import Checkpoints, EpochLog
from clusterray.vision.learner import CutoutLearner, Learner, check_cutouts
from clusterray.vision.loop import Data, Loop, Ranks, Risk, TrainingLog
from clusterray.vision.sources import Blocks
from clusterray.vision.vit import LensViT

__all__ = ["Data", "EpochLog", "Ranks", "Risk", "TrainingLog", "cpu_threads", "fit", "run"]


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Run torch on this many CPU threads, then as before; None changes nothing."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    model: LensViT,
    pixels: np.ndarray[Any, np.dtype[np.int16]],
    *,
    step: np.ndarray[Any, Any],
    noise_sigma: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    batches: Callable[[int], Iterable[np.ndarray[Any, Any]]],
    risk: Callable[[torch.Tensor, torch.Tensor], Risk],
    settings: VisionSettings,
    seed: int,
    device: str = "cpu",
    progress: Callable[[EpochLog], None] | None = None,
    threads: int | None = None,
) -> TrainingLog:
    """Train in place on arrays, in this process; ends in eval mode with the averaged weights.

    On a CPU the result is a function of the arguments, `threads` among them.

    Parameters
    ----------
    model : from `vit.build`; frozen parameters stay as they are.
    pixels : (n, b, h, w) int16, −32768 where there is no data.
    step, noise_sigma : (n, b), nJy.
    labels : (n,) integers, handed to `risk` as they are.
    batches : epoch → index arrays into the rows; the same number in every epoch.
    risk : (logits (k,), labels (k,)) → `objective` to step on and `risk` to report.
    settings : epochs, learning rate, weight decay, averaging, augmentation.
    seed : of augmentation and dropout.
    progress : called after each epoch.

    Raises
    ------
    InputError, RunError : as `run`.
    """
    check_cutouts(model, pixels, step=step, noise_sigma=noise_sigma, labels=labels)
    source = Blocks([(pixels, np.asarray(step), np.asarray(noise_sigma))])
    return run(
        CutoutLearner(model, augmented=settings.augment),
        Data(source, np.asarray(labels), lambda epoch: [[np.asarray(b) for b in batches(epoch)]]),
        risk=risk,
        settings=settings,
        seed=seed,
        device=device,
        progress=progress,
        threads=threads,
    )


def run(
    learner: Learner,
    data: Data,
    *,
    risk: Callable[[torch.Tensor, torch.Tensor], Risk],
    settings: VisionSettings,
    seed: int,
    ranks: Ranks | None = None,
    checkpoints: Checkpoints | None = None,
    device: str = "cpu",
    progress: Callable[[EpochLog], None] | None = None,
    threads: int | None = None,
) -> TrainingLog:
    """Train `learner.model` in place with AdamW, a warm-up and a cosine decay.

    Dropout and augmentation follow from (seed, epoch, batch) and (seed, epoch, row), so a fit that
    is taken up at a checkpoint ends where it would have ended, and so, up to rounding, does one on
    another number of processes (but for dropout, which each draws for itself).

    Memory that runs out halves the batch once: its two halves then go through the network one
    after the other, first for the logits of all, from which the risk of the whole batch follows,
    then for its gradients. The objective stays that of the whole batch.

    Parameters
    ----------
    risk : (logits, labels) of this process's part of a batch → the risk of the whole batch, and
        gradients which are right when averaged over the processes.
    ranks : which of the processes this is that share the fit; None where it is the only one.
    checkpoints : where the state is kept after an epoch, unless that would take more than a tenth
        of the time, and taken up from; the first process alone writes.
    progress : called after each epoch, in every process.

    Raises
    ------
    InputError : no batches, or a checkpoint of another network.
    RunError : the loss or its gradient is not finite (the model then holds the weights of the last
        whole epoch, and so does the checkpoint), or memory ran out again.
    """
    place = torch.device(device)
    if place.type == "cuda" and place.index is None:
        # Other threads have another current device.
        place = torch.device("cuda", torch.cuda.current_device())
    loop = Loop(learner, data, risk, settings, seed, ranks or Ranks(), checkpoints, place)
    with torch.random.fork_rng(devices=[]), cpu_threads(threads):
        return loop.run(progress)
