import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clusterray.errors import BundleError, ConfigError
from clusterray.vision import vit
from clusterray.vision.mil import GatedAttention
from tests.vision.vision_nets import OPTIONS, SIZE_PX, tiny, tiny_settings


def images(n=2, n_bands=3):
    return torch.randn(n, n_bands, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(2))


def test_gated_attention_agrees_with_the_paper():
    torch.manual_seed(0)
    pool = GatedAttention(6, 4).double()
    tokens = torch.randn(2, 5, 6, dtype=torch.float64)
    pooled, attention = pool(tokens)
    V, bV = (p.detach().numpy() for p in pool.value.parameters())
    U, bU = (p.detach().numpy() for p in pool.gate.parameters())
    w = pool.weight.weight.detach().numpy()[0]
    for i in range(2):
        h = tokens[i].numpy()
        scores = [w @ (np.tanh(V @ hk + bV) / (1 + np.exp(-(U @ hk + bU)))) for hk in h]
        a = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(attention[i].detach(), a, rtol=1e-12)
        np.testing.assert_allclose(pooled[i].detach(), a @ h, rtol=1e-12)


@pytest.mark.parametrize("n_bands", [1, 3, 5])
def test_forward_shapes(n_bands):
    model = tiny(n_bands)
    out = model(images(4, n_bands))
    assert out.logit.shape == (4,)
    assert out.embedding.shape == (4, 24)
    assert out.attention.shape == (4, model.n_tokens) == (4, 16)
    torch.testing.assert_close(out.attention.sum(1), torch.ones(4))


def test_pooling_and_head_are_float32_under_bfloat16():
    model = tiny().eval()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images())
        tokens = model.trunk.forward_features(images())
        assert model.trunk.blocks[0].mlp.fc1(tokens).dtype == torch.bfloat16
    assert {t.dtype for t in out} == {torch.float32}
    pooled, _ = model.pool(tokens[:, 1:].float())
    torch.testing.assert_close(out.logit, model.head(pooled).squeeze(-1), rtol=0, atol=0)


def test_weights_are_a_function_of_the_seed_and_leave_the_global_one_alone():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    a, b, c = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert a.save() == b.save() != c.save()


def test_saved_network_scores_the_same_and_travels_as_json():
    model = tiny().eval()
    architecture = json.loads(json.dumps(model.architecture()))
    again = vit.LensViT.load(model.save(), architecture)
    assert not again.training
    assert again.settings == model.settings
    for x, y in zip(model(images()), again(images()), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_bands": 4}, "4 bands"),
        ({"model_options": {**OPTIONS, "depth": 3}}, "do not fit 'vit_tiny"),
    ],
)
def test_weights_of_another_architecture_are_refused(changes, match):
    model = tiny()
    with pytest.raises(BundleError, match=match):
        vit.LensViT.load(model.save(), model.architecture() | changes)


def test_architecture_of_another_release_is_refused():
    with pytest.raises(BundleError, match="another release"):
        vit.LensViT.from_architecture(tiny().architecture() | {"rope": True})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "vit_tiny_patch16_225"}, "did you mean 'vit_tiny_patch16_224'"),
        ({"model": "hf-hub:someone/vit"}, "not a timm model"),
        ({"model_options": {"dept": 2}}, "cannot be built.*dept"),
        ({"model_options": {"in_chans": 2}}, "'in_chans' is set by clusterray"),
        ({"image_size_px": 33}, "33 px.*8 px patches.*image_size_px = 32"),
        ({"freeze_blocks": 1}, "vision.weights is empty"),
    ],
)
def test_impossible_settings(changes, match):
    with pytest.raises(ConfigError, match=match):
        tiny(**changes)


def test_input_size_defaults_to_the_cutouts():
    model = vit.build(tiny_settings(image_size_px=None), n_bands=1, size_px=40, seed=0)
    assert model.settings.image_size_px == 40


def trainable(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_freezing_counts_whole_blocks():
    model = tiny()
    everything = trainable(model)
    vit.freeze(model, 1)
    frozen = everything - trainable(model)
    assert all(n.startswith(("trunk.patch_embed", "trunk.pos_embed", "trunk.cls_token",
                             "trunk.blocks.0.")) for n in frozen)  # fmt: skip
    assert {n for n in everything if n.startswith("trunk.blocks.0.")} < frozen
    assert "trunk.patch_embed.proj.weight" in frozen
    vit.freeze(model, 0)
    assert trainable(model) == everything
    with pytest.raises(ConfigError, match=r"3.*has 2 blocks; choose 0 to 2"):
        vit.freeze(model, 3)


@pytest.mark.parametrize("loads", [True, False])
def test_operators_are_declared_only_where_the_library_does_not_load(tmp_path, loads):
    """A stand-in torchvision that, as the real one, asks for its operators on import."""
    package = tmp_path / "torchvision"
    package.mkdir()
    asks = "" if loads else "import torch\nassert torch.ops.torchvision.nms\n"
    (package / "__init__.py").write_text(asks)
    library = Path(np.random.mtrand.__file__).read_bytes() if loads else b"not a library"
    (package / "_C.so").write_bytes(library)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from clusterray.vision.torchvision_ops import declare_missing\n"
        "print(declare_missing(), declare_missing())\n"
        "import torchvision\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(not loads)] * 2


def test_importing_the_modules_does_not_import_timm_or_ray():
    script = (
        "import sys, clusterray.vision.training, clusterray.vision.prediction\n"
        "print(sorted({'timm', 'torchvision', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
