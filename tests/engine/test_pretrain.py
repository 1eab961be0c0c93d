"""`clusterray pretrain` from pairs to a trunk that `vision.weights` takes."""

import pytest

from clusterray import config, storage
from clusterray.engine.pretrain import pretrain
from clusterray.errors import ConfigError, RunError
from clusterray.sky import shards
from clusterray.vision import vit


def settings(root, *overrides):
    return config.load(
        None,
        [
            f"paths.root='{root}'",
            "survey.size_px=48",
            "survey.pixel_scale_arcsec=1.5",
            "pretrain.n_pairs=6",
            "pretrain.lens_share=0.0",
            "pretrain.epochs=2",
            "pretrain.batch_size=3",
            "vision.model='vit_tiny_patch16_224'",
            "vision.model_options={depth = 1, embed_dim = 24, num_heads = 2, patch_size = 8}",
            "vision.image_size_px=null",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def done(ray_session, tmp_path_factory):
    given = settings(tmp_path_factory.mktemp("pretrain"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clusterray.engine.pretrain._PAIRS_PER_SHARD", 4)
        yield given, pretrain(given)


def test_pairs_a_trunk_and_how_to_use_it(done):
    given, summary = done
    assert (summary.done, summary.skipped, summary.rows) == (2, 0, 12)
    folder = storage.join(given.paths.root, "pretrained")
    ids = shards.read(storage.join(folder, "pairs", "P00001.parquet")).object_id.tolist()
    assert ids == ["pair4a", "pair4b", "pair5a", "pair5b"]
    history = storage.read_json(storage.join(folder, "history.json"))
    assert [e["epoch"] for e in history] == [0, 1]
    page = storage.read_bytes(storage.join(folder, "pretrain.html")).decode()
    assert page.count("<img") == 8
    assert "pair3, second view" in page
    assert "<svg" in page
    weights, sha256 = (t.split("'")[1] for t in summary.notes[-1].split(", "))
    vision = given.vision.model_copy(
        update={"weights": weights, "weights_sha256": sha256, "freeze_blocks": 1}
    )
    network = vit.build(vision, n_bands=3, size_px=48)
    assert not network.trunk.patch_embed.proj.weight.requires_grad


def test_taken_up_again(done):
    given, _ = done
    again = pretrain(given)
    assert (again.done, again.skipped) == (0, 2)
    folder = storage.join(given.paths.root, "pretrained")
    trunk = storage.read_bytes(storage.join(folder, "trunk.safetensors"))
    for lost in ("trunk.safetensors", "pairs/P00001.parquet"):
        storage.remove(storage.join(folder, lost))
    assert pretrain(given).done == 1
    assert storage.read_bytes(storage.join(folder, "trunk.safetensors")) == trunk
    with pytest.raises(RunError, match="another pretrain run"):
        pretrain(given.model_copy(update={"seed": 1}))


def test_what_cannot_be_used_is_told_before_anything_is_made(ray_session, tmp_path):
    with pytest.raises(ConfigError, match="not a timm model"):
        pretrain(settings(tmp_path, "vision.model='vit_tyny'"))
    assert not storage.list_files(str(tmp_path))
