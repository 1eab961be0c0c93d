"""A fit that is taken up ends where it would have ended, and foreign states are refused."""

import numpy as np
import pytest
import torch

from clusterray.errors import InputError
from clusterray.vision import checkpoint, loop, training
from clusterray.vision.learner import CutoutLearner
from clusterray.vision.sources import Blocks
from tests.vision.test_training import batches_of, cross_entropy
from tests.vision.vision_nets import OPTIONS, cutouts, tiny, tiny_settings


@pytest.fixture(autouse=True)
def _every_epoch(monkeypatch):
    monkeypatch.setattr(loop, "_MAX_SAVING_SHARE", float("inf"))


class Killed(BaseException):
    pass


def fit(folder, settings, *, model=None, kill_after=None, validation=None):
    pixels, step, sigma, labels = cutouts(48)
    data = training.Data(
        Blocks([(pixels, step, sigma)]), labels, lambda e: [batches_of(48, 16)(e)],
        validation=validation, names=[f"object {k}" for k in range(48)],
    )  # fmt: skip
    model = model or tiny(model_options=settings.model_options)

    def progress(log):
        if log.epoch == kill_after:
            raise Killed

    log = training.run(
        CutoutLearner(model, augmented=True), data, risk=cross_entropy, settings=settings, seed=3,
        checkpoints=checkpoint.Checkpoints(str(folder)), progress=progress, threads=1,
    )  # fmt: skip
    return model.save(), [(e.epoch, e.objective, e.risk, e.learning_rate) for e in log.epochs]


def test_a_killed_fit_is_taken_up_and_ends_the_same(tmp_path):
    options = {**OPTIONS, "drop_path_rate": 0.3}
    settings = tiny_settings(epochs=4, model_options=options, layer_decay=0.7)
    whole = fit(tmp_path / "whole", settings)
    for epoch in (0, 2):
        with pytest.raises(Killed):
            fit(tmp_path / "killed", settings, kill_after=epoch)
    assert fit(tmp_path / "killed", settings) == whole
    # All is done: nothing is fitted, and the same network comes out.
    assert fit(tmp_path / "killed", settings) == whole


def state(settings=None, **options):
    return checkpoint.TrainingState.begin(tiny(**options), settings or tiny_settings())


def test_every_tensor_comes_back_exactly():
    ours, theirs = state(seed=1), state(seed=2)
    for k, p in enumerate(ours.model.parameters()):
        p.grad = torch.full_like(p, 0.1 * k)
    ours.optimizer.step()
    ours.average.update(ours.model, step=5)
    ours.history.append(checkpoint.EpochLog(0, 1.0, 2.0, 3.0, 4.0, 5, 6.0))
    ours.keep_if_best()
    ours.steps, ours.notes = 7, ["said"]
    theirs.load(ours.snapshot().to_bytes(), where="here")
    for a, b in (
        (ours.model.state_dict(), theirs.model.state_dict()),
        (ours.average.module.state_dict(), theirs.average.module.state_dict()),
        (ours.best, theirs.best),
    ):
        assert a.keys() == b.keys() and len(a) > 10
        assert all(torch.equal(a[k], b[k]) for k in a)
    mine, yours = (s.optimizer.state_dict()["state"] for s in (ours, theirs))
    assert mine.keys() == yours.keys()
    assert all(torch.equal(mine[k][m], yours[k][m]) for k in mine for m in mine[k])
    assert (theirs.steps, theirs.history, theirs.notes) == (7, ours.history, ["said"])


def test_frozen_weights_are_not_written():
    from clusterray.vision.vit import freeze

    frozen = tiny()
    freeze(frozen, 2)
    written = checkpoint.TrainingState.begin(frozen, tiny_settings()).snapshot().tensors
    assert {"model.head.weight", "average.pool.gate.weight"} <= written.keys()
    assert not any("blocks" in name for name in written)
    with pytest.raises(InputError, match="another number of blocks frozen"):
        state().load(checkpoint.Snapshot(written, state().snapshot().about).to_bytes(), where="x")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x80\x04cos\nsystem\n", "is no checkpoint of a fit"),
        (b"", "is no checkpoint of a fit"),
        ({"n_bands": 5}, r"another network \(n_bands 5 there, 3 now\); remove it"),
    ],
)
def test_foreign_states_are_refused(data, match):
    if isinstance(data, dict):
        data = state(**data).snapshot().to_bytes()
    with pytest.raises(InputError, match=match):
        state().load(data, where="s3://key:secret@bucket/x")


def test_the_newest_state_stands_and_the_folder_remembers_a_split(tmp_path):
    store = checkpoint.Checkpoints(str(tmp_path / "fit"))
    assert store.load() is None and not store.split()
    for steps in (1, 2):
        snapshot = state().snapshot()
        store.save(checkpoint.Snapshot(snapshot.tensors, snapshot.about.replace(
            '"steps": 0', f'"steps": {steps}')))  # fmt: skip
    store.wait()
    again = state()
    again.load(store.load(), where=store.url)
    assert again.steps == 2
    store.remember_split()
    assert checkpoint.Checkpoints(str(tmp_path / "fit")).split()


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    settings = tiny_settings(epochs=2)
    with pytest.raises(Exception, match=r"cannot|Not a directory"):
        fit(tmp_path / "file" / "below", settings)


def test_early_stopping_ends_with_the_weights_of_the_best_epoch(tmp_path, monkeypatch):
    """The criterion, judged from the middle on, is made least in epoch 7: `patience` epochs later
    the fit ends."""
    told = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(loop.Loop, "_criterion", lambda self: next(told))
    settings = tiny_settings(epochs=12, patience=3, ema_decay=0.9)
    weights, curve = fit(tmp_path / "a", settings, validation=np.arange(8))
    assert [c[0] for c in curve] == list(range(11))
    other, _ = checkpoint._read((tmp_path / "a" / "state.safetensors").read_bytes(), "a")
    assert other["history"][-1]["epoch"] == 10
    told = iter([3.0, 1.0])
    monkeypatch.setattr(loop.Loop, "_criterion", lambda self: next(told))
    kept = fit_until(tmp_path / "b", settings, 7)
    assert weights == kept


def fit_until(folder, settings, last):
    """The averaged weights at the end of an epoch."""
    with pytest.raises(Killed):
        fit(folder, settings, kill_after=last, validation=np.arange(8))
    model = tiny(model_options=settings.model_options)
    there = checkpoint.TrainingState.begin(model, settings)
    there.load((folder / "state.safetensors").read_bytes(), where="b")
    model.load_state_dict(there.average.module.state_dict())
    return model.save()


def test_criterion_is_the_risk_of_the_averaged_weights_on_the_slice(tmp_path):
    settings = tiny_settings(epochs=1, ema_decay=0.5, augment=False, patience=2, batch_size=8)
    validation = np.array([1, 4, 5, 8, 20])
    with pytest.raises(Killed):
        fit(tmp_path, settings, kill_after=0, validation=validation)
    there = checkpoint.TrainingState.begin(tiny(), settings)
    there.load((tmp_path / "state.safetensors").read_bytes(), where="b")
    pixels, step, sigma, labels = cutouts(48)
    images = CutoutLearner(there.model, augmented=False).prepare(
        tuple(torch.from_numpy(a[validation]) for a in (pixels, step, sigma)), None
    )
    with torch.no_grad():
        logits = there.average.module(images).logit
    want = cross_entropy(logits, torch.from_numpy(labels[validation])).risk
    assert there.history[0].criterion == pytest.approx(float(want), rel=1e-5)


def test_saving_takes_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    """Saving that takes four epochs' time is done at the first epoch, and then no more in ten."""
    monkeypatch.setattr(loop, "_MAX_SAVING_SHARE", 0.1)
    clock, saved = [0.0], []
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

    class Slow(checkpoint.Checkpoints):
        def save(self, snapshot):
            clock[0] += 4.0
            saved.append(snapshot)

    class Ticking(CutoutLearner):
        def prepare(self, arrays, seeds):
            clock[0] += 0.5
            return super().prepare(arrays, seeds)

    pixels, step, sigma, labels = cutouts(8)
    data = training.Data(Blocks([(pixels, step, sigma)]), labels, lambda e: [batches_of(8, 4)(e)])
    training.run(
        Ticking(tiny(), augmented=False), data, risk=cross_entropy,
        settings=tiny_settings(epochs=45), seed=3, checkpoints=Slow(str(tmp_path)), threads=1,
    )  # fmt: skip
    assert len(saved) == 2
