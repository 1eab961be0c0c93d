"""From a row's stored arrays to its logit: what a fit steps on, whole or behind a frozen trunk."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusterray.errors import InputError
from clusterray.vision.augment import augment_rows
from clusterray.vision.preprocess import stretch, to_noise_units
from clusterray.vision.vit import LensViT

__all__ = ["CutoutLearner", "Learner", "check_cutouts"]


class Learner(Protocol):
    """A torch module that holds `model` and makes logits of prepared rows."""

    model: LensViT

    def prepare(self, arrays: tuple[torch.Tensor, ...], seeds: NDArray[Any] | None) -> torch.Tensor:
        """Input of the network from a batch of a source; varied where seeds (n,) are given."""
        ...

    def twin(self, model: LensViT) -> "Learner":
        """The same for other weights."""
        ...

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (n,) of prepared rows."""
        ...


class CutoutLearner(nn.Module):
    """The whole network, on rows of (pixels, step, noise_sigma) as `preprocess` takes them."""

    def __init__(self, model: LensViT, *, augmented: bool) -> None:
        super().__init__()
        self.model, self.augmented = model, augmented

    def prepare(self, arrays: tuple[torch.Tensor, ...], seeds: NDArray[Any] | None) -> torch.Tensor:
        """Stretched images (n, b, side, side), augmented by the rows' seeds where given."""
        pixels, step, noise_sigma = arrays
        flux = to_noise_units(pixels, step, noise_sigma=noise_sigma)
        if self.augmented and seeds is not None:
            flux = augment_rows(flux, seeds)
        about = self.model.settings
        return stretch(flux, softening=about.asinh_softening, size_px=about.image_size_px)

    def twin(self, model: LensViT) -> "CutoutLearner":
        """The same for other weights."""
        return CutoutLearner(model, augmented=self.augmented)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n,)."""
        logits: torch.Tensor = self.model(images).logit
        return logits


def check_cutouts(model: LensViT, pixels: Any, *, step: Any, noise_sigma: Any, labels: Any) -> None:
    """Refuse arrays that do not belong together or to this network.

    Raises
    ------
    InputError : pixels that are not int16 of the network's bands, or shapes that differ.
    """
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
