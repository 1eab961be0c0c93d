from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional

from clusterray.errors import InputError, RunError
from clusterray.vision import loop, prediction, training
from clusterray.vision.checkpoint import Checkpoints
from clusterray.vision.learner import CutoutLearner
from clusterray.vision.loop import Loop
from clusterray.vision.sources import Blocks
from tests.vision.vision_nets import SIZE_PX, cutouts, tiny, tiny_settings


class Pair(NamedTuple):
    objective: torch.Tensor
    risk: torch.Tensor


def cross_entropy(logits, labels):
    loss = functional.binary_cross_entropy_with_logits(logits, labels.float())
    return Pair(loss, 2 * loss)


def batches_of(n, size, seed=0):
    def batches(epoch):
        order = np.random.default_rng((seed, epoch)).permutation(n)
        return [order[i : i + size] for i in range(0, n - size + 1, size)]

    return batches


def run(model, settings, *, n=64, risk=cross_entropy, **options):
    pixels, step, sigma, labels = cutouts(n)
    return training.fit(
        model, pixels, step=step, noise_sigma=sigma, labels=labels, risk=risk, settings=settings,
        **({"batches": batches_of(n, 16), "seed": 3, "threads": 1} | options),
    )  # fmt: skip


def test_learns_rings_and_logs_each_epoch():
    settings = tiny_settings(epochs=6, learning_rate=3e-3, augment=True)
    seen = []
    model = tiny()
    log = run(model, settings, progress=seen.append)
    assert tuple(seen) == log.epochs
    assert [e.epoch for e in log.epochs] == list(range(6))
    assert log.epochs[-1].objective < 0.6 * log.epochs[0].objective
    assert log.epochs[2].risk == pytest.approx(2 * log.epochs[2].objective)
    assert log.epochs[-1].learning_rate == pytest.approx(0, abs=1e-9)
    assert not model.training
    pixels, step, sigma, labels = cutouts(40, seed=9)
    logit = prediction.predict(model, pixels, step=step, noise_sigma=sigma, micro_batch=16).logit
    assert logit[labels == 1].min() > logit[labels == 0].max()


def test_deterministic_given_the_seed():
    settings = tiny_settings(augment=True, model_options={**tiny_settings().model_options,
                                                          "drop_path_rate": 0.3})  # fmt: skip
    options = {"model_options": settings.model_options}
    results = []
    for seed, stir in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(stir)
        model = tiny(**options)
        log = run(model, settings, seed=seed)
        results.append((model.save(), [e.objective for e in log.epochs]))
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_frozen_parameters_stay():
    from clusterray.vision.vit import freeze

    model = tiny()
    freeze(model, 1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run(model, tiny_settings(epochs=1))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_nan_loss_keeps_the_last_good_weights(ahead, batch, monkeypatch):
    monkeypatch.setitem(loop._STEPS_AHEAD, "cpu", ahead)
    calls = []

    def failing(logits, labels):
        calls.append(1)
        pair = cross_entropy(logits, labels)
        return Pair(pair.objective * float("nan"), pair.risk) if len(calls) == 5 + batch else pair

    model, reference = tiny(), tiny()
    told = rf"NaN.*epoch 1, batch {batch} \(rows .*weights after epoch 0"
    with pytest.raises(RunError, match=told):
        run(model, tiny_settings(epochs=2), risk=failing)
    good = []

    def stop_after_first(epoch):
        good.append(reference.save())
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run(reference, tiny_settings(epochs=2), progress=stop_after_first)
    assert model.save() == good[0]
    assert not model.training


def test_threads_are_put_back():
    before = torch.get_num_threads()
    run(tiny(), tiny_settings(epochs=1), threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pixels": np.zeros((8, 2, SIZE_PX, SIZE_PX), np.int16)}, r"int16\[n, 3"),
        ({"pixels": np.zeros((8, 3, SIZE_PX, SIZE_PX), np.float32)}, r"float32\[8, 3"),
        ({"step": np.ones((7, 3))}, r"step has shape \(7, 3\) beside 8"),
        ({"labels": np.ones((8, 1))}, r"labels has shape"),
        ({"batches": lambda epoch: []}, "no batches"),
    ],
)
def test_bad_input(change, match):
    pixels, step, sigma, labels = cutouts(8)
    given = {"pixels": pixels, "step": step, "noise_sigma": sigma, "labels": labels,
             "batches": batches_of(8, 4)} | change  # fmt: skip
    with pytest.raises(InputError, match=match):
        training.fit(
            tiny(), given.pop("pixels"), risk=cross_entropy, settings=tiny_settings(), seed=0,
            **given,
        )  # fmt: skip


class Crowded(CutoutLearner):
    """A network on a device that holds `room` cutouts at a time."""

    room = 12

    def forward(self, images):
        if len(images) > self.room:
            raise torch.OutOfMemoryError(f"{len(images)} cutouts")
        return super().forward(images)


def run_learner(learner, settings, *, n=64, risk=cross_entropy, names=None):
    pixels, step, sigma, labels = cutouts(n)
    data = training.Data(
        Blocks([(pixels, step, sigma)]), labels, lambda e: [batches_of(n, 16)(e)], names=names
    )
    return training.run(learner, data, risk=risk, settings=settings, seed=3, threads=1)


def test_memory_that_runs_out_halves_the_batch_and_keeps_its_objective():
    """The curve is that of whole batches, though the risk is no mean over rows."""

    def squared_mean(logits, labels):
        loss = (logits[labels == 1].mean() - 1) ** 2 + logits[labels == 0].mean() ** 2
        return Pair(loss, loss.detach())

    settings = tiny_settings(augment=True)
    whole, halves = tiny(), tiny()
    expected = run_learner(CutoutLearner(whole, augmented=True), settings, risk=squared_mean)
    log = run_learner(Crowded(halves, augmented=True), settings, risk=squared_mean)
    np.testing.assert_allclose(
        [e.objective for e in log.epochs], [e.objective for e in expected.epochs], rtol=1e-4
    )
    for name, ours in halves.state_dict().items():
        torch.testing.assert_close(ours, whole.state_dict()[name], rtol=1e-3, atol=1e-5)
    assert expected.notes == ()
    assert len(log.notes) == 1
    assert "in halves: out of memory in epoch 0, batch 0 (16 rows" in log.notes[0]


def test_memory_that_runs_out_again_ends_the_fit(monkeypatch):
    monkeypatch.setattr(Crowded, "room", 6)
    with pytest.raises(RunError, match=r"in halves as well; lower vision\.batch_size"):
        run_learner(Crowded(tiny(), augmented=False), tiny_settings())


def test_objects_without_finite_logits_are_named():
    names = [f"J{k:04d}" for k in range(64)]

    class Blind(CutoutLearner):
        def prepare(self, arrays, seeds):
            images = super().prepare(arrays, seeds)
            bright = arrays[0].float().mean((1, 2, 3))
            images[bright == bright.max()] = float("nan")
            return images

    pixels, *_ = cutouts(64)
    first = batches_of(64, 16)(0)[0]
    worst = first[pixels[first].mean((1, 2, 3)).argmax()]
    with pytest.raises(RunError, match=rf"epoch 0, batch 0 \(objects {names[worst]}, …\)"):
        run_learner(Blind(tiny(), augmented=False), tiny_settings(), names=names)


def test_bfloat16_leaves_pooling_and_head_in_float32():
    seen = set()
    model = tiny()
    model.head.register_forward_hook(lambda m, i, o: seen.add((i[0].dtype, o.dtype)))
    model.trunk.blocks[0].mlp.fc1.register_forward_hook(lambda m, i, o: seen.add(o.dtype))
    run_learner(CutoutLearner(model, augmented=False), tiny_settings(epochs=1, dtype="bfloat16"))
    assert seen == {(torch.float32, torch.float32), torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_fit_follows_the_cpu_fit():
    """The same curve to the rounding of convolutions (TF32); with bfloat16 within 5 %."""
    curves = {}
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        settings = tiny_settings(epochs=3, dtype=dtype)
        curves[device, dtype] = [e.objective for e in run(tiny(), settings, device=device).epochs]
    plain, single, half = curves.values()
    np.testing.assert_allclose(single, plain, rtol=5e-3)
    np.testing.assert_allclose(half, plain, rtol=0.05)


def test_a_group_whose_memory_ran_out_begins_again_in_halves(tmp_path, monkeypatch):
    """One process cannot halve alone: it leaves a mark, fails, and all begin again."""
    store = Checkpoints(str(tmp_path))
    pixels, step, sigma, labels = cutouts(32)
    data = training.Data(Blocks([(pixels, step, sigma)]), labels, lambda e: [batches_of(32, 16)(e)])
    learner = Crowded(tiny(), augmented=False)
    loop = Loop(
        learner, data, cross_entropy, tiny_settings(), 3, training.Ranks(), store,
        torch.device("cpu"),
    )  # fmt: skip
    loop.ranks = training.Ranks(0, 2)
    monkeypatch.setattr(Crowded, "room", 6)
    with pytest.raises(torch.OutOfMemoryError):
        loop.run(None)
    monkeypatch.undo()
    log = training.run(
        learner, data, risk=cross_entropy, settings=tiny_settings(), seed=3, checkpoints=store,
        threads=1,
    )  # fmt: skip
    assert len(log.epochs) == 2
    assert log.notes == ("memory ran out: batches go through the network in halves",)
