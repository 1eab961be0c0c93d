"""How the lens network's weights move: parameter groups, learning rate, averaged weights."""

import math
from typing import Any

import torch

from clusterray.config import VisionSettings
from clusterray.vision.vit import LensViT

__all__ = ["averaged", "learning_rate", "make_optimizer", "set_rate"]

_PRETRAINED_LAYER_DECAY = 0.75
_NO_DECAY = ("pos_embed", "cls_token", "reg_token")


def make_optimizer(model: LensViT, settings: VisionSettings) -> torch.optim.AdamW:
    """AdamW over what is not frozen, slower towards the input; pooling and head at the full rate.

    No weight decay on biases, norms and position embeddings. The rate of a layer is that of the
    next times `layer_decay` (Clark et al. 2020; Bao et al. 2022), in the order that timm gives.
    """
    from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay

    decay = settings.layer_decay or (_PRETRAINED_LAYER_DECAY if settings.weights else 1.0)
    groups: list[dict[str, Any]] = list(
        param_groups_layer_decay(
            model.trunk,
            settings.weight_decay,
            no_weight_decay_list=_NO_DECAY,
            layer_decay=decay,
        )
    )
    for part in (model.pool, model.head):
        groups += param_groups_weight_decay(part, settings.weight_decay)
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=on_gpu or None)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its part of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def learning_rate(settings: VisionSettings, done: float) -> float:
    """Linear to the peak over the warm-up, half a cosine to 0 over the rest.

    Parameters
    ----------
    done : share of all steps that are done when the step is taken, in (0, 1].
    """
    if done < settings.warm_up:
        return settings.learning_rate * done / settings.warm_up
    rest = (done - settings.warm_up) / (1 - settings.warm_up)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))


def averaged(model: LensViT, settings: VisionSettings) -> Any:
    """An exponential moving average of the weights (Polyak & Juditsky 1992), beginning with these.

    The decay begins at 0 and nears `ema_decay` as 1 − (1 + step)^−2/3, so that a short fit is not
    averaged with what it began with.

    Returns
    -------
    timm's ModelEmaV3: `module` holds the average, `update(model, step=…)` goes on with it.
    """
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True)
