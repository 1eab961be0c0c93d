"""Fitting the lens network: a plain torch loop over index batches, with the risk passed in."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from clusterray.config import VisionSettings
from clusterray.errors import InputError, RunError
from clusterray.provenance import seed_for
from clusterray.vision.augment import augment
from clusterray.vision.preprocess import stretch, to_noise_units
from clusterray.vision.vit import LensViT

__all__ = ["EpochLog", "Risk", "TrainingLog", "cpu_threads", "fit"]

_WARM_UP = 0.1
_MAX_GRADIENT_NORM = 1.0


class Risk(Protocol):
    """What a risk function returns: a scalar to step on, and the scalar to report."""

    @property
    def objective(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def risk(self) -> torch.Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class EpochLog:
    """Means over the batches of one epoch, and the learning rate at its end."""

    epoch: int
    objective: float
    risk: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainingLog:
    """The loss curve of one fit."""

    epochs: tuple[EpochLog, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"epochs": [asdict(e) for e in self.epochs]}


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
    """Train in place with AdamW, a linear warm-up and a cosine decay; ends in eval mode.

    On a CPU the result is a function of the arguments, `threads` among them.

    Parameters
    ----------
    model : from `vit.build`; frozen parameters stay as they are.
    pixels : (n, b, h, w) int16, −32768 where there is no data.
    step, noise_sigma : (n, b), nJy.
    labels : (n,) integers, handed to `risk` as they are.
    batches : epoch → index arrays into the rows; the same number in every epoch.
    risk : (logits (k,), labels (k,)) → `objective` to step on and `risk` to report.
    settings : epochs, learning rate, weight decay, augmentation.
    seed : of augmentation and dropout.
    progress : called after each epoch.

    Raises
    ------
    InputError : arrays that do not belong together, or no batches.
    RunError : the loss or its gradient is not finite. The model then holds the weights of the
        last whole epoch.
    """
    _check(model, pixels, step, noise_sigma, labels)
    model.to(device)
    optimizer = _optimizer(model, settings)
    good = copy.deepcopy(model.state_dict())
    history: list[EpochLog] = []
    with torch.random.fork_rng(devices=[]), cpu_threads(threads):
        for epoch in range(settings.epochs):
            started = time.perf_counter()
            sums = np.zeros(2)
            chosen = list(batches(epoch))
            if not chosen:
                raise InputError(f"epoch {epoch}: no batches; the sampler needs at least one")
            for i, rows in enumerate(chosen):
                generator = _seed_batch(seed, epoch, i)
                rate = _learning_rate(settings, (epoch + (i + 1) / len(chosen)) / settings.epochs)
                images = _images(
                    model, (pixels, step, noise_sigma), rows, device, settings.augment, generator
                )
                target = torch.as_tensor(np.asarray(labels)[rows], device=device)
                loss = risk(model.train()(images).logit, target)
                if not _take_step(model, optimizer, loss.objective, rate):
                    model.load_state_dict(good)
                    model.eval()
                    raise RunError(_not_finite(epoch, i, rows, loss, len(history)))
                sums += float(loss.objective.detach()), float(loss.risk.detach())
            objective, mean_risk = sums / len(chosen)
            seconds = time.perf_counter() - started
            history.append(EpochLog(epoch, float(objective), float(mean_risk), rate, seconds))
            good = copy.deepcopy(model.state_dict())
            if progress is not None:
                progress(history[-1])
    model.eval()
    return TrainingLog(tuple(history))


def _check(model: LensViT, pixels: Any, step: Any, noise_sigma: Any, labels: Any) -> None:
    n_bands = model.settings.n_bands
    if pixels.dtype != np.int16 or pixels.ndim != 4 or pixels.shape[1] != n_bands:
        raise InputError(
            f"training pixels are {pixels.dtype}{list(pixels.shape)}, expected int16[n, {n_bands}, "
            "h, w]: the network was built for that many bands"
        )
    n = len(pixels)
    for name, values, shape in (
        ("step", step, (n, n_bands)),
        ("noise_sigma", noise_sigma, (n, n_bands)),
        ("labels", labels, (n,)),
    ):
        if np.shape(values) != shape:
            raise InputError(
                f"{name} has shape {np.shape(values)} beside {n} cutouts of {n_bands} bands, "
                f"expected {shape}"
            )


def _optimizer(model: LensViT, settings: VisionSettings) -> torch.optim.Optimizer:
    import timm.optim

    # No decay on biases and norms; timm leaves out what is frozen.
    groups = timm.optim.param_groups_weight_decay(  # type: ignore[attr-defined]
        model, settings.weight_decay, no_weight_decay_list=("trunk.pos_embed", "trunk.cls_token")
    )
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _seed_batch(seed: int, epoch: int, batch: int) -> torch.Generator:
    """Seed dropout, and return the generator of the augmentation."""
    torch.manual_seed(seed_for(seed, purpose="dropout", epoch=epoch, batch=batch))
    return torch.Generator().manual_seed(
        seed_for(seed, purpose="augmentation", epoch=epoch, batch=batch)
    )


def _images(
    model: LensViT,
    arrays: tuple[np.ndarray[Any, Any], ...],
    rows: np.ndarray[Any, Any],
    device: str,
    augmented: bool,
    generator: torch.Generator,
) -> torch.Tensor:
    pixels, step, sigma = (torch.from_numpy(np.array(a[rows])).to(device) for a in arrays)
    flux = to_noise_units(pixels, step, noise_sigma=sigma)
    if augmented:
        flux = augment(flux, generator)
    settings = model.settings
    return stretch(flux, softening=settings.asinh_softening, size_px=settings.image_size_px)


def _learning_rate(settings: VisionSettings, done: float) -> float:
    """Linear to the peak over the first tenth of the fit, half a cosine to 0 over the rest."""
    if done < _WARM_UP:
        return settings.learning_rate * done / _WARM_UP
    return (
        settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
    )


def _take_step(
    model: LensViT, optimizer: torch.optim.Optimizer, objective: torch.Tensor, rate: float
) -> bool:
    """One step; False, and no step, where loss or gradient is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    objective.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
    if not (torch.isfinite(objective) and torch.isfinite(norm)):
        return False
    optimizer.step()
    return True


def _not_finite(epoch: int, batch: int, rows: np.ndarray[Any, Any], loss: Risk, n_good: int) -> str:
    kept = f"the weights after epoch {n_good - 1}" if n_good else "the weights it began with"
    shown = ", ".join(map(str, rows[:5]))
    return (
        f"training stopped: objective {float(loss.objective.detach()):g} or its gradient is not "
        f"finite in epoch {epoch}, batch {batch} (rows {shown}, …); the model keeps {kept}: "
        "lower vision.learning_rate, or look at these cutouts"
    )
