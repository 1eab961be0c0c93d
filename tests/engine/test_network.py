"""The scoring network beside `vision.prediction.predict`, which does the same the plain way."""

import os
import tempfile
import threading

import numpy as np
import pytest
import torch

from clusterray.config import ScoreSettings, VisionSettings
from clusterray.engine import network as network_module
from clusterray.engine.network import ScoringNetwork
from clusterray.errors import InputError
from clusterray.sky.byte_planes import to_planes
from clusterray.vision import anomaly, vit
from clusterray.vision.prediction import predict

N, BANDS, SIZE = 21, 3, 32
RNG = np.random.default_rng(5)
PIXELS = RNG.integers(-60, 300, (N, BANDS, SIZE, SIZE)).astype(np.int16)
PIXELS[3, 1] = -32768
PLANES = to_planes(PIXELS)
STEP = RNG.uniform(0.1, 0.2, (N, BANDS)).astype(np.float32)
SIGMA = np.ones((N, BANDS), np.float32)
ANOMALY = anomaly.fit(RNG.normal(size=(100, 24)))


def model():
    settings = VisionSettings(
        model="vit_tiny_patch16_224",
        model_options={"depth": 1, "embed_dim": 24, "num_heads": 2},
        image_size_px=48,
    )
    return vit.build(settings, n_bands=BANDS, size_px=SIZE, seed=1).eval()


def network(*, anomaly_model=ANOMALY, **settings):
    options = {"micro_batch": 8, "keep_embedding": True, "keep_attention": True} | settings
    return ScoringNetwork(
        model(),
        anomaly=anomaly_model,
        size_px=SIZE,
        settings=ScoreSettings(**options),
        device="cpu",
    )


def scored(net, rows=slice(None)):
    return net.score(PLANES[rows], step=STEP[rows], noise_sigma=SIGMA[rows])


def plain(dtype="float32", rows=slice(None)):
    return predict(
        model(), PIXELS[rows], step=STEP[rows], noise_sigma=SIGMA[rows], micro_batch=8,
        dtype=dtype, threads=1,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_those_of_predict_to_the_last_bit(dtype):
    ours, theirs = scored(network(dtype=dtype)), plain(dtype)
    for name in ("logit", "embedding", "attention"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_allclose(ours.anomaly, ANOMALY.score(theirs.embedding), rtol=1e-6)


def test_only_what_is_wanted_comes_back():
    lean = scored(network(anomaly_model=None, keep_embedding=False, keep_attention=False))
    assert (lean.anomaly, lean.embedding, lean.attention) == (None, None, None)
    np.testing.assert_array_equal(lean.logit, plain().logit)
    with_anomaly = scored(network(keep_embedding=False, keep_attention=False))
    assert with_anomaly.embedding is None
    np.testing.assert_allclose(with_anomaly.anomaly, ANOMALY.score(plain().embedding), rtol=1e-6)


def test_a_row_group_of_no_rows():
    empty = scored(network(), slice(0, 0))
    assert [v.shape for v in (empty.logit, empty.anomaly, empty.embedding)] == [(0,), (0,), (0, 24)]


def test_threads_do_not_disturb_each_other():
    net = network()
    parts = [slice(0, 9), slice(9, 14), slice(14, N)]
    alone = [scored(net, rows).logit for rows in parts]
    found = [None] * 12
    start = threading.Barrier(len(found))

    def work(k):
        start.wait()
        found[k] = scored(net, parts[k % 3]).logit

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, logit in enumerate(found):
        np.testing.assert_array_equal(logit, alone[k % 3])


def test_planes_of_another_layout_are_refused():
    with pytest.raises(InputError, match=r"uint8\[21, 10\], expected uint8\[n, 6144\]"):
        network().score(PLANES[:, :10], step=STEP, noise_sigma=SIGMA)
    with pytest.raises(InputError, match="int16"):
        network().score(PIXELS, step=STEP, noise_sigma=SIGMA)


@pytest.mark.slow
def test_compiled_scores_are_close_to_plain_ones():
    net = network(compile=True)
    net.warm_up()
    np.testing.assert_allclose(scored(net).logit, plain().logit, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_nearly_the_scores_of_a_cpu():
    net = ScoringNetwork(
        model(), anomaly=ANOMALY, size_px=SIZE, settings=ScoreSettings(micro_batch=8), device="cuda"
    )
    found = scored(net)
    np.testing.assert_allclose(found.logit, plain().logit, atol=1e-3)
    np.testing.assert_allclose(found.anomaly, ANOMALY.score(plain().embedding), rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("", True), ("{tmp}/torchinductor_root", True), ("{tmp}/of_the_user", False)],
)
def test_what_is_compiled_is_kept_at_home_unless_the_user_named_a_place(
    monkeypatch, tmp_path, given, kept
):
    monkeypatch.setattr(network_module, "_CACHE", tmp_path / "home")
    given = given.format(tmp=tempfile.gettempdir())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
    network_module.keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (str(tmp_path / "home") if kept else given)
