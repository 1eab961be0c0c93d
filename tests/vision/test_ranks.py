"""Two processes that share a fit do what one does: gradients, curve and weights."""

import multiprocessing

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import distributed

from clusterray.pu.nnpu import nnpu_risk, two_stream_batches
from clusterray.vision import training
from clusterray.vision.checkpoint import Checkpoints
from clusterray.vision.learner import CutoutLearner
from clusterray.vision.sources import Blocks
from tests.vision.vision_nets import cutouts, tiny, tiny_settings

N, BATCH = 40, 9


def plan(epoch):
    _, _, _, labels = cutouts(N)
    return [
        list(two_stream_batches(labels, batch_size=BATCH, positives_per_batch=3, seed=1,
                                epoch=epoch))
    ]  # fmt: skip


def fit(folder, rank, world):
    """Fit, and leave gradients of the first step, weights and curve in `folder`."""
    group = None
    if world > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
        )
        group = distributed.group.WORLD
    pixels, step, sigma, labels = cutouts(N)
    gradients = {}

    def risk(logits, target):
        return nnpu_risk(logits, target, prior=0.2, loss="logistic", target_prior=0.5, group=group)

    model = tiny()
    original = torch.nn.utils.clip_grad_norm_

    def noted(parameters, limit):
        if not gradients:
            gradients.update({f"gradient.{n}": p.grad.clone() for n, p in model.named_parameters()})
        return original(parameters, limit)

    torch.nn.utils.clip_grad_norm_ = noted
    log = training.run(
        CutoutLearner(model, augmented=True),
        training.Data(Blocks([(pixels, step, sigma)]), labels, plan, validation=np.arange(0, 9)),
        risk=risk, settings=tiny_settings(epochs=3, batch_size=BATCH, patience=5, augment=True),
        seed=3, ranks=training.Ranks(rank, world, group), threads=1,
        checkpoints=Checkpoints(f"{folder}/state"),
    )  # fmt: skip
    torch.nn.utils.clip_grad_norm_ = original
    # The first epochs of a fit are not judged.
    curve = [(e.objective, e.risk, e.criterion or 0.0) for e in log.epochs]
    assert [e.criterion is None for e in log.epochs] == [True, False, False]
    tensors = {**model.state_dict(), **gradients, "curve": torch.tensor(curve)}
    safetensors.torch.save_file(tensors, f"{folder}/rank{rank}of{world}.safetensors")
    if world > 1:
        distributed.destroy_process_group()


def test_two_processes_do_what_one_does(tmp_path):
    """To 1e-5 of float32 gradients and losses; batches of nine rows do not share out evenly."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fit, args=(str(tmp_path), r, 2)) for r in range(2)]
    for process in processes:
        process.start()
    (tmp_path / "alone").mkdir()
    fit(tmp_path / "alone", 0, 1)
    for process in processes:
        process.join(timeout=240)
        assert process.exitcode == 0
    one = safetensors.torch.load_file(tmp_path / "alone" / "rank0of1.safetensors")
    for rank in range(2):
        two = safetensors.torch.load_file(tmp_path / f"rank{rank}of2.safetensors")
        assert two.keys() == one.keys()
        for name, value in one.items():
            # AdamW divides by gradients' sizes: what is nearly nothing in them shows in weights.
            tolerance = 1e-5 if name.startswith(("gradient", "curve")) else 2e-4
            torch.testing.assert_close(two[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("world", [2, 3])
def test_parts_of_a_batch_are_disjoint_and_whole(world):
    rows = np.arange(10, 21)
    parts = [training.Ranks(r, world).part(rows) for r in range(world)]
    assert sorted(np.concatenate(parts)) == rows.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
