import math

import pytest
import torch

from clusterray.vision.optimisation import averaged, learning_rate, make_optimizer, set_rate
from clusterray.vision.vit import freeze
from tests.vision.vision_nets import tiny, tiny_settings


def rates(model, settings):
    """Learning rate and weight decay of each parameter, by name."""
    optimizer = make_optimizer(model, settings)
    set_rate(optimizer, 1.0)
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_rates_fall_towards_the_input_and_pooling_and_head_have_all_of_it():
    found = rates(tiny(), tiny_settings(layer_decay=0.5, weight_decay=0.1))
    assert set(found) == {n for n, _ in tiny().named_parameters()}
    for part in ("head", "pool", "trunk.norm"):
        assert {r for n, (r, _) in found.items() if n.startswith(part)} == {1.0}
    first, second = (found[f"trunk.blocks.{k}.mlp.fc1.weight"][0] for k in (0, 1))
    stem = found["trunk.patch_embed.proj.weight"][0]
    assert (first / second, stem / first) == (0.5, 0.5)
    assert found["trunk.pos_embed"][0] == stem
    decayed = {n for n, (_, w) in found.items() if w == 0.1}
    never = ("trunk.pos_embed", "trunk.cls_token")
    assert decayed == {n for n, p in tiny().named_parameters() if p.ndim > 1 and n not in never}


def test_layer_decay_is_for_pretrained_weights_unless_told():
    assert {r for r, _ in rates(tiny(), tiny_settings()).values()} == {1.0}
    pretrained = tiny_settings(weights="trunk.safetensors")
    assert min(r for r, _ in rates(tiny(), pretrained).values()) < 0.6


def test_frozen_parameters_are_left_out():
    model = tiny()
    freeze(model, 2)
    assert all(n.startswith(("head", "pool", "trunk.norm")) for n in rates(model, tiny_settings()))


def test_warm_up_and_cosine():
    settings = tiny_settings(warm_up=0.2, learning_rate=2.0)
    for done, want in ((0.05, 0.5), (0.2, 2.0), (0.6, 1.0), (1.0, 0.0)):
        assert learning_rate(settings, done) == pytest.approx(want, abs=1e-12)
    at = 0.2 + 0.8 / 3
    assert learning_rate(settings, at) == pytest.approx(1 + math.cos(math.pi / 3))
    assert learning_rate(tiny_settings(warm_up=0, learning_rate=2.0), 1e-9) == pytest.approx(2)


def test_average_follows_the_recurrence():
    model = tiny()
    average = averaged(model, tiny_settings(ema_decay=0.6))
    value = want = model.head.bias.item()
    for step in range(1, 7):
        value += step
        with torch.no_grad():
            model.head.bias.fill_(value)
        average.update(model, step=step)
        decay = 0.0 if step == 1 else min(0.6, 1 - step ** (-2 / 3))
        want = decay * want + (1 - decay) * value
        assert average.module.head.bias.item() == pytest.approx(want, rel=1e-6)
