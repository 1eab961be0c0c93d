"""A trunk that learns without labels: two skies behind one lens should look alike to it."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from clusterray.errors import InputError, RunError
from clusterray.provenance import seed_for
from clusterray.vision.augment import augment
from clusterray.vision.preprocess import stretch, to_noise_units
from clusterray.vision.training import cpu_threads
from clusterray.vision.vit import LensViT

__all__ = ["LenSiam", "PretrainingEpoch", "fit", "spread", "symmetric_loss", "trunk_weights"]

_COLLAPSED: Final = 0.3
"""Spread below which a representation says nothing of an image; a healthy one has about 1."""
_WARM_UP: Final = 0.1

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PretrainingEpoch:
    """Mean loss (−1 is perfect agreement) and spread of the projections over one epoch."""

    epoch: int
    loss: float
    spread: float
    learning_rate: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class LenSiam(nn.Module):
    """A trunk with projector and predictor (SimSiam; Chen & He 2021, CVPR, fig. 1).

    The mean of an image's tokens goes through a projector of two layers, batch norm on the hidden
    one alone (their table 3b), and a predictor with a bottleneck.

    Parameters
    ----------
    model : whose trunk learns; pooling and head stay as they are.
    dim : length of a projection.
    """

    def __init__(self, model: LensViT, dim: int) -> None:
        super().__init__()
        self.model = model
        self.projector = _two_layers(model.grid.dim, dim, dim)
        self.predictor = _two_layers(dim, dim // 4, dim)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction and projection, (n, dim) each, float32, of (n, b, size, size) images."""
        tokens = self.model.tokens(images)
        with torch.autocast(images.device.type, enabled=False):
            z = self.projector(tokens.float().mean(1))
            return self.predictor(z), z


def _two_layers(dim_in: int, hidden: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim_in, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, dim_out),
    )


def symmetric_loss(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """−½ [cos(p₁, z₂) + cos(p₂, z₁)], no gradient through z (Chen & He 2021, eq. 4).

    Without the stopped gradient, or the predictor, everything is mapped to one point.
    """
    (p1, z1), (p2, z2) = first, second
    one = functional.cosine_similarity(p1, z2.detach()).mean()
    other = functional.cosine_similarity(p2, z1.detach()).mean()
    return -0.5 * (one + other)


def spread(z: torch.Tensor) -> float:
    """√d times the mean standard deviation of z/|z|, (n, d) → about 1; 0 is a collapse.

    1/√d is what directions spread evenly over the sphere have (Chen & He 2021, sect. 4.1).
    """
    deviation = functional.normalize(z.float(), dim=1).std(0).mean()
    return float(deviation) * math.sqrt(z.shape[1])


def fit(
    model: LensViT,
    pixels: Array,
    *,
    step: Array,
    noise_sigma: Array,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    weight_decay: float = 1e-4,
    dim: int = 256,
    device: str = "cpu",
    threads: int | None = None,
) -> Iterator[PretrainingEpoch]:
    """Train the trunk of `model` in place, an epoch at a time, as long as epochs are asked for.

    Each side of a pair is augmented on its own.

    AdamW, a linear warm-up and a cosine decay; on a GPU the trunk runs in bfloat16. On a CPU the
    result is a function of the arguments.

    Parameters
    ----------
    model : from `vit.build`; in eval mode after every epoch.
    pixels : (n, 2, b, h, w) int16, two cutouts of one lens each, −32768 where there is no data.
    step, noise_sigma : (n, 2, b), nJy.
    batch_size : pairs.
    dim : length of a projection.

    Raises
    ------
    InputError : arrays that do not belong together, or fewer pairs than a batch.
    RunError : the representation collapsed, or a loss that is not finite. The model then holds
        the weights of the epoch before.
    """
    _check(model, pixels, step, noise_sigma, batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, purpose="lensiam"))
        siamese = LenSiam(model, dim).to(device)
    optimizer = torch.optim.AdamW(siamese.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = _Schedule(learning_rate, epochs * (len(pixels) // batch_size))
    arrays = (pixels, step, noise_sigma)
    for epoch in range(epochs):
        good = copy.deepcopy(model.state_dict())
        with torch.random.fork_rng(devices=[]), cpu_threads(threads):
            done = _epoch(siamese, optimizer, schedule, arrays, batch_size, seed, epoch)
        model.eval()
        if not (math.isfinite(done.loss) and done.spread >= _COLLAPSED):
            model.load_state_dict(good)
            raise RunError(_broken(done))
        yield done


@dataclass
class _Schedule:
    peak: float
    steps: int
    taken: int = 0

    def next(self) -> float:
        self.taken += 1
        done = self.taken / self.steps
        if done < _WARM_UP:
            return self.peak * done / _WARM_UP
        return self.peak * 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def _epoch(
    siamese: LenSiam,
    optimizer: torch.optim.Optimizer,
    schedule: _Schedule,
    arrays: tuple[Array, Array, Array],
    batch_size: int,
    seed: int,
    epoch: int,
) -> PretrainingEpoch:
    started = time.perf_counter()
    device = next(siamese.parameters()).device
    order = np.random.default_rng(seed_for(seed, purpose="order", epoch=epoch))
    rows = order.permutation(len(arrays[0]))[: len(arrays[0]) // batch_size * batch_size]
    losses, projections, rate = [], [], 0.0
    for batch, chosen in enumerate(rows.reshape(-1, batch_size)):
        labels = {"purpose": "lensiam views", "epoch": epoch, "batch": batch}
        generator = torch.Generator().manual_seed(seed_for(seed, **labels))
        torch.manual_seed(seed_for(seed, **labels))
        seen = []
        for side in (0, 1):
            images = _images(siamese.model, [a[chosen, side] for a in arrays], device, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                seen.append(siamese.train()(images))
        loss = symmetric_loss(seen[0], seen[1])
        rate = schedule.next()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        projections.append(seen[0][1].detach())
    mean = float(torch.stack(losses).mean())
    seconds = time.perf_counter() - started
    return PretrainingEpoch(epoch, mean, spread(torch.cat(projections)), rate, seconds)


def _images(
    model: LensViT, arrays: list[Array], device: torch.device, generator: torch.Generator
) -> torch.Tensor:
    pixels, step, sigma = (torch.from_numpy(np.array(a)).to(device) for a in arrays)
    flux = augment(to_noise_units(pixels, step, noise_sigma=sigma), generator)
    settings = model.settings
    return stretch(flux, softening=settings.asinh_softening, size_px=settings.image_size_px)


def _check(model: LensViT, pixels: Array, step: Array, noise_sigma: Array, batch_size: int) -> None:
    n_bands = model.settings.n_bands
    shape = (len(pixels), 2, n_bands)
    if pixels.dtype != np.int16 or pixels.ndim != 5 or pixels.shape[:3] != shape:
        raise InputError(
            f"pairs are {pixels.dtype}{list(pixels.shape)}, expected int16[n, 2, {n_bands}, h, w]"
        )
    for name, values in (("step", step), ("noise_sigma", noise_sigma)):
        if np.shape(values) != shape:
            raise InputError(f"{name} has shape {np.shape(values)}, expected {shape}")
    if not 2 <= batch_size <= len(pixels):
        raise InputError(
            f"{len(pixels)} pairs in batches of {batch_size}: a batch needs 2 pairs at least and "
            "as many as there are at most; raise pretrain.n_pairs or lower pretrain.batch_size"
        )


def _broken(epoch: PretrainingEpoch) -> str:
    if not math.isfinite(epoch.loss):
        return (
            f"self-supervised training stopped: loss {epoch.loss:g} in epoch {epoch.epoch}; the "
            "network keeps the weights before it: lower pretrain.learning_rate"
        )
    return (
        f"self-supervised training stopped: the representation collapsed in epoch {epoch.epoch}, "
        f"spread {epoch.spread:.3f} (1 is healthy, below {_COLLAPSED} all images look alike) at "
        f"loss {epoch.loss:.3f}; the network keeps the weights before it: lower "
        "pretrain.learning_rate or raise pretrain.batch_size"
    )


def trunk_weights(model: LensViT) -> bytes:
    """The trunk alone as safetensors, for `vision.weights`."""
    state = model.trunk.state_dict()
    return safetensors.torch.save(
        {f"trunk.{n}": v.detach().cpu().contiguous() for n, v in state.items()}
    )
