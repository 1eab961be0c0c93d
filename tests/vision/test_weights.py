"""Weights that come from elsewhere: digests, pickles, hubs, bands, sizes and classifiers."""

import hashlib
import logging
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from clusterray.errors import InputError
from clusterray.vision import weights
from clusterray.vision.trunk import build_trunk
from tests.vision.vision_nets import OPTIONS, SIZE_PX, timm, tiny


def trainable(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def rgb_checkpoint(path, **changes):
    """Weights as a hub would have them: three channels, another size, a classifier."""
    trunk = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=10, **(OPTIONS | changes)
    )
    safetensors.torch.save_file(trunk.state_dict(), path)
    return trunk


@pytest.mark.parametrize("n_bands", [1, 3, 5])
def test_pretrained_weights_are_fitted_to_bands_and_size(tmp_path, n_bands):
    path = tmp_path / "rgb.safetensors"
    rgb = rgb_checkpoint(path)
    model = tiny(n_bands, weights=str(path), freeze_blocks=1)
    assert torch.equal(model.trunk.blocks[1].mlp.fc1.weight, rgb.blocks[1].mlp.fc1.weight)
    grey = torch.rand(1, 1, SIZE_PX, SIZE_PX)
    torch.testing.assert_close(
        model.trunk.patch_embed.proj(grey.expand(-1, n_bands, -1, -1)),
        rgb.patch_embed.proj(grey.expand(-1, 3, -1, -1)),
        rtol=1e-4,
        atol=1e-5,
    )
    assert "trunk.blocks.0.mlp.fc1.weight" not in trainable(model)


def test_pinned_digest(tmp_path):
    path = tmp_path / "rgb.safetensors"
    rgb_checkpoint(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.load_weights(str(path), sha256=digest.upper())
    with pytest.raises(InputError, match=f"SHA-256 {digest}, expected 00"):
        weights.load_weights(str(path), sha256="00")


class Trap:
    def __reduce__(self):
        return (open, (Trap.path, "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_is_refused_unopened(tmp_path, writer):
    Trap.path = str(tmp_path / "sprung")
    path = tmp_path / "weights.safetensors"
    if writer == "torch":
        torch.save({"w": Trap()}, path)
    else:
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="pickle, which can run code"):
        weights.load_weights(str(path))
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0not json at all!")
    with pytest.raises(InputError, match="no readable safetensors"):
        weights.load_weights(str(path))


def test_pretrained_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "rgb.safetensors"
    rgb_checkpoint(path, depth=1)
    with pytest.raises(InputError, match=r"do not fit this network[\s\S]*blocks\.1"):
        tiny(weights=str(path))


def test_each_band_takes_the_channel_where_it_lies():
    """Columns red, green, blue; by hand from the wavelengths."""
    for bands, expected in (
        (("g", "r", "i"), [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
        (
            ("g", "r", "i", "z", "y"),
            [[0, 0, 1], [0, 0.5, 0], [0, 0.5, 0], [0.5, 0, 0], [0.5, 0, 0]],
        ),
        (("VIS", "Y", "J", "H"), [[0, 0, 1], [0, 0.5, 0], [0, 0.5, 0], [1, 0, 0]]),
        (("g", "i"), [[0, 1, 1], [1, 0, 0]]),
        (("r",), [[1, 1, 1]]),
        (("a", "b", "c"), [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
    ):
        np.testing.assert_allclose(weights.channel_shares(bands), expected, err_msg=str(bands))
    for n in range(1, 9):
        np.testing.assert_allclose(weights.channel_shares(n).sum(axis=0), 1.0)


def test_three_bands_are_what_timm_makes_of_them_blue_first():
    weight = torch.randn(4, 3, 5, 5)
    adapted = timm.models.adapt_input_conv(3, weight)
    assert torch.equal(weights.inflate(weight, ("g", "r", "i")), adapted.flip(1))


@pytest.mark.parametrize("bands", [("r",), ("g", "r"), ("g", "r", "i", "z", "y"), 7])
def test_a_grey_image_gives_what_it_gave(bands):
    weight = torch.randn(4, 3, 5, 5)
    inflated = weights.inflate(weight, bands)
    assert inflated.shape[1] == (bands if isinstance(bands, int) else len(bands))
    torch.testing.assert_close(inflated.sum(1), weight.sum(1))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_convolutional_weights_fit_too_and_the_classifier_is_left_out_and_named(
    tmp_path, name, caplog
):
    rgb = timm.create_model(name, num_classes=7)
    safetensors.torch.save_file(rgb.state_dict(), tmp_path / "w.safetensors")
    trunk = build_trunk(name, {}, n_bands=5, side_px=64)
    state = weights.load_weights(str(tmp_path / "w.safetensors"))
    with caplog.at_level(logging.WARNING, logger="clusterray"):
        dropped = weights.load_into(trunk, state, where="w", bands=("g", "r", "i", "z", "y"))
    head = rgb.pretrained_cfg["classifier"]
    assert dropped == (f"{head}.bias", f"{head}.weight")
    assert f"left out {head}.bias, {head}.weight" in caplog.text
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            trunk.eval()(grey.expand(-1, 5, -1, -1)),
            rgb.eval().forward_features(grey.expand(-1, 3, -1, -1))
            if name != "test_convnext"
            else rgb.head.norm(rgb.eval().forward_features(grey.expand(-1, 3, -1, -1))),
            rtol=1e-3,
            atol=1e-4,
        )


def test_positions_are_resampled_as_timm_does(tmp_path):
    path = tmp_path / "rgb.safetensors"
    rgb = rgb_checkpoint(path)
    model = tiny(weights=str(path), bands=("g", "r", "i"))
    expected = timm.layers.resample_abs_pos_embed(
        rgb.pos_embed, new_size=[4, 4], old_size=[8, 8], num_prefix_tokens=1
    )
    torch.testing.assert_close(model.trunk.pos_embed.data, expected)


def test_our_own_networks_keep_their_bands(tmp_path):
    path = tmp_path / "ours.safetensors"
    first = tiny(seed=1)
    path.write_bytes(first.save())
    again = tiny(seed=2, weights=str(path))
    for name, value in first.trunk.state_dict().items():
        assert torch.equal(value, again.trunk.state_dict()[name])
    assert not torch.equal(first.head.weight, again.head.weight)


def test_hub_weights_are_pinned_and_safetensors_only(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    rgb_checkpoint(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    asked = []

    def download(name, filename, *, revision):
        asked.append((name, filename, revision))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for url in ("hf-hub:owner/net@abc", "timm/net"):
        with pytest.raises(InputError, match=r"set vision.weights_sha256"):
            weights.load_weights(url)
    assert not asked
    assert weights.load_weights("hf-hub:owner/net@abc", sha256=digest)
    assert weights.load_weights("timm/net", sha256=digest)
    with pytest.raises(InputError, match="expected 00"):
        weights.load_weights("timm/net", sha256="00")
    assert asked[:2] == [
        ("owner/net", "model.safetensors", "abc"),
        ("timm/net", "model.safetensors", None),
    ]


def test_a_hub_that_does_not_answer_is_said(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"no model.safetensors of 'nobody/nothing'"):
        weights.load_weights("hf-hub:nobody/nothing", sha256="00")
