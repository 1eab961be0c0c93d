"""Networks of every kind behind one head: tokens, attention maps, layers, freezing."""

import json

import numpy as np
import pytest
import torch

from clusterray.errors import ConfigError
from clusterray.vision import trunk as trunks
from clusterray.vision import vit
from tests.vision.vision_nets import timm

SIDE_PX = 64
NETWORKS = {
    "test_vit": ("NLC", 4, 6),
    "test_resnet": ("NCHW", 2, 4),
    "test_convnext": ("NCHW", 2, 4),
    "test_efficientnet": ("NCHW", 2, 5),
    "test_mambaout": ("NHWC", 2, 4),
}


def network(name, n_bands=3, side_px=SIDE_PX, **options):
    torch.manual_seed(3)
    return vit.LensViT(vit.Architecture(name, options, n_bands, side_px, 3.0))


def images(n=2, n_bands=3):
    return torch.randn(n, n_bands, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_are_the_pixels_of_the_last_map_in_reading_order(name):
    layout, side, _ = NETWORKS[name]
    model = network(name, n_bands=5).eval()
    grid = model.grid
    assert (grid.layout, grid.rows, grid.columns) == (layout, side, side)
    with torch.no_grad():
        raw = model.trunk(images(2, 5))
        tokens = model.tokens(images(2, 5))
    assert tokens.shape == (2, side * side, grid.dim)
    for row in range(side):
        for column in range(side):
            expected = {
                "NLC": lambda r, c: raw[:, grid.prefix + r * side + c],
                "NCHW": lambda r, c: raw[:, :, r, c],
                "NHWC": lambda r, c: raw[:, r, c],
            }[layout](row, column)
            torch.testing.assert_close(tokens[:, row * side + column], expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_in_float32_whatever_the_trunk_runs_in_and_travels(name):
    model = network(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(images())
    with torch.no_grad():
        whole = model(images())
    assert {t.dtype for t in half} == {torch.float32}
    torch.testing.assert_close(half.attention.sum(1), torch.ones(2))
    assert 0 < float((half.logit - whole.logit).abs().max()) < 0.05
    again = vit.LensViT.load(model.save(), json.loads(json.dumps(model.architecture())))
    with torch.no_grad():
        assert torch.equal(again(images()).logit, whole.logit)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_hold_every_parameter_once_in_order(name):
    trunk = network(name).trunk
    found = trunks.layers(trunk)
    assert len(found) == NETWORKS[name][2] + 1
    listed = [n for layer in found for n in layer]
    assert sorted(listed) == sorted(n for n, _ in trunk.named_parameters())
    # timm's own decay grows along them.
    groups = timm.optim.param_groups_layer_decay(trunk, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    named = dict(trunk.named_parameters())
    means = [np.mean([scale[id(named[n])] for n in layer]) for layer in found]
    assert (np.diff(means) > 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_freezing_counts_blocks_or_stages(name):
    model = network(name)
    stem, *blocks = trunks.layers(model.trunk)

    def frozen():
        return {n for n, p in model.trunk.named_parameters() if not p.requires_grad}

    for k in (1, len(blocks) - 1):
        vit.freeze(model, k)
        assert frozen() == {*stem, *(n for b in blocks[:k] for n in b)}
    vit.freeze(model, len(blocks))
    assert frozen() == {n for n, _ in model.trunk.named_parameters()}
    assert all(p.requires_grad for m in (model.pool, model.head) for p in m.parameters())
    vit.freeze(model, 0)
    assert not frozen()
    with pytest.raises(ConfigError, match=f"has {len(blocks)} blocks; choose 0 to {len(blocks)}"):
        vit.freeze(model, len(blocks) + 1)


def test_frozen_stages_keep_their_batch_statistics():
    model = network("test_resnet")
    vit.freeze(model, 2)
    before = {n: b.clone() for n, b in model.trunk.named_buffers()}
    model.train()(images(4))
    moved = {n for n, b in model.trunk.named_buffers() if not torch.equal(b, before[n])}
    assert moved
    assert all(n.startswith(("layer3", "layer4")) for n in moved)
    assert model.training
    assert not model.trunk.layer2.training


def test_convolutional_networks_take_any_size_and_others_say_what_they_want():
    assert network("test_resnet", side_px=96).n_tokens == 9
    with pytest.raises(ConfigError, match="65 px, no multiple of the 16 px patches"):
        network("test_vit", side_px=65)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("crossvit_9_240", "cannot be built"),
        ("vit_tiny_patch16_225", "did you mean 'vit_tiny_patch16_224'"),
    ],
)
def test_networks_without_a_grid_of_tokens_are_refused(name, match):
    with pytest.raises(ConfigError, match=match):
        network(name)
