"""What of the network's training a sweep may search, and within which bounds."""

from collections.abc import Mapping
from typing import Final

from clusterray.config import TrainSettings, VisionSettings

__all__ = ["BOUNDS", "DEFAULTS"]

BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "learning_rate": (1e-6, 0.1),
    "weight_decay": (0.0, 1.0),
    "batch_size": (2, 4096),
    "positives_per_batch": (1, 1024),
    "asinh_softening": (0.1, 100.0),
    "freeze_blocks": (0, 64),
    "target_prior": (0.01, 0.99),
}
"""Least and largest value, both allowed, of each number. Epochs are not among them: trials are
compared at equal numbers of epochs."""

DEFAULTS: Final[Mapping[str, int | float | bool]] = {
    **{
        name: getattr(VisionSettings(), name)
        for name in (*BOUNDS, "augment")
        if name != "target_prior"
    },
    "target_prior": TrainSettings().target_prior,
}
"""Every setting of `vision` that may be searched, and `train.target_prior`."""
