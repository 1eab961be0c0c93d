"""Fits of the network on Ray: one process or several, shared or streamed rows, killed processes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from clusterray import storage
from clusterray.engine import row_stream, run_fits
from clusterray.engine.fit_schedule import plan_fits
from clusterray.engine.fits import REFIT, fit
from clusterray.engine.network_fit import checkpoints_url, state_url
from clusterray.engine.sample_rows import share
from clusterray.engine.worker_group import fit_in_group
from clusterray.errors import ContractError, InputError
from clusterray.vision import checkpoint, vit
from clusterray.vision.prediction import predict
from tests.engine.small_fits import KillOnce, outcome, small_context, small_rows

pytestmark = pytest.mark.usefixtures("ray_session")
ONE_OR_A_GROUP = pytest.mark.parametrize(
    "workers", [1, pytest.param(2, marks=pytest.mark.slow, id="group")]
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return small_rows(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """Fitted in one go, in this process."""
    context = small_context(tmp_path_factory.mktemp("whole"), rows)
    fit(context, "vit", 0)
    return outcome(context)


def same(found, whole, *, tolerance=0.0):
    for ours, theirs in zip(found[:2], whole[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    assert found[2] == whole[2]


def test_a_fit_forgets_its_state_and_scores_what_it_did_not_see(rows, whole, tmp_path):
    context = small_context(tmp_path, rows)
    fit(context, "vit", 0)
    assert whole[2] == rows.object_id[context.fold == 0].tolist()
    assert whole[0][:, 0].tolist() == [0, 1, 2, 3]
    assert not Path(checkpoints_url(context, "vit", 0)).exists()
    other = replace(context, prior=0.3)
    assert checkpoints_url(other, "vit", 0) != checkpoints_url(context, "vit", 0)


def test_shared_rows_are_those_of_the_files_and_are_not_copied(rows, whole, tmp_path):
    at = np.array([40, 3, 3, 17])
    shared = share(rows).open(np.empty(0, np.int64))
    direct = rows.open(np.empty(0, np.int64))
    for ours, theirs in zip(shared.take(at), direct.take(at), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not shared.blocks[0][0].flags.owndata


def test_streamed_rows_give_the_same_fit(rows, whole, tmp_path):
    """One window of all rows, read through Ray Data at each epoch."""
    context = small_context(tmp_path, replace(rows, streamed=True), "vision.epochs=1")
    fit(context, "vit", 0)
    single = small_context(tmp_path / "single", rows, "vision.epochs=1")
    fit(single, "vit", 0)
    same(outcome(context), outcome(single))


def test_windows_of_a_stream_come_in_order_with_the_resident_rows(rows):
    resident = np.array([0, 5, 10])
    stream = row_stream.RowStream(
        rows.urls, kind="cutouts", rows_per_file=rows.rows_per_file, place=rows.place,
        shape=rows.shape, resident=resident,
    )  # fmt: skip
    direct = rows.open(resident)
    windows = [np.array([5, 1, 2, 44]), np.array([10, 0, 7]), np.array([30])]
    for at, take in zip(windows, stream.windows(windows), strict=True):
        for ours, theirs in zip(take(at[::-1], np.empty), direct.take(at[::-1]), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_two_processes_fit_as_one_and_a_killed_one_is_replaced(rows, whole, tmp_path):
    """Ray Train, gloo; to 1e-4, for gradients are added up in another order."""
    context = small_context(tmp_path, share(rows), "vision.workers=2")
    plan = plan_fits(2, 0, n_fits=1, batch_size=13, workers=2)
    fit_in_group(context, "vit", 0, plan=plan, board=KillOnce(1, tmp_path / "killed"))
    assert (tmp_path / "killed").exists()
    same(outcome(context), whole, tolerance=1e-4)
    assert not Path(checkpoints_url(context, "vit", 0)).exists()


def test_a_killed_task_is_taken_up_where_it_was(rows, whole, tmp_path, monkeypatch):
    """The same bits, for it is one process again."""
    board = KillOnce(2, tmp_path / "killed")
    monkeypatch.setattr(run_fits, "Queue", lambda **options: board)
    context = small_context(tmp_path, rows)
    assert [m for m, _ in run_fits.run_fits(context, [("vit", 0)])] == ["vit"]
    assert (tmp_path / "killed").exists()
    same(outcome(context), whole)


@pytest.mark.timeout(600)
@ONE_OR_A_GROUP
def test_a_killed_driver_is_taken_up_by_the_next(rows, whole, tmp_path, workers):
    overrides = [f"vision.workers={workers}"]
    context = small_context(tmp_path, rows, *overrides)
    state = Path(state_url(context, "vit", 0), "state.safetensors")
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.small_fits", str(tmp_path), str(tmp_path / "again"),
         *overrides],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not state.exists() and time.monotonic() < deadline:
        assert driver.poll() is None, "the driver ended by itself"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not Path(f"{tmp_path}/scores").exists()
    begun = len(checkpoint._read(state.read_bytes(), "state")[0]["history"])
    assert begun in (1, 2)
    list(run_fits.run_fits(context, [("vit", 0)]))
    same(outcome(context), whole, tolerance=0.0 if workers == 1 else 1e-4)


@ONE_OR_A_GROUP
def test_errors_that_trying_again_does_not_mend_are_told_at_once(rows, tmp_path, workers):
    """A state of another network, found by every process."""
    context = small_context(tmp_path, rows, f"vision.workers={workers}")
    other = small_context(tmp_path, rows, "vision.image_size_px=32")
    network = vit.build(other.config.vision, n_bands=3, size_px=24)
    state = checkpoint.TrainingState.begin(network, other.config.vision).snapshot()
    storage.write_bytes(f"{state_url(context, 'vit', 0)}/state.safetensors", state.to_bytes())
    with pytest.raises(InputError, match="is of another network"):
        list(run_fits.run_fits(context, [("vit", 0)]))


def test_rows_of_other_bands_are_told(rows, tmp_path):
    wrong = replace(rows, shape=(5, 24, 24))
    with pytest.raises(
        ContractError, match=r"cutouts of a row are \[3, 24, 24\], expected \[5, 24, 24\]"
    ):
        list(run_fits.run_fits(small_context(tmp_path, wrong), [("vit", 0)]))


def test_a_frozen_trunk_is_run_once_for_all_folds(rows, tmp_path):
    """Kept tokens, then fits without the trunk; scores as of the network that comes out."""
    base = small_context(tmp_path, rows)
    trunk = vit.build(base.config.vision, n_bands=3, size_px=24, seed=5).trunk
    weights = str(tmp_path / "trunk.safetensors")
    safetensors.torch.save_file(dict(trunk.state_dict()), weights)
    frozen = (f"vision.weights='{weights}'", "vision.freeze_blocks=2", "vision.cached_views=2",
              "vision.epochs=2", "networks.half={freeze_blocks = 1}",
              "cluster.workers=1")  # fmt: skip
    context = small_context(tmp_path, rows, *frozen)
    list(run_fits.run_fits(context, [("vit", REFIT)]))
    (kept,) = Path(tmp_path, "tokens").iterdir()
    made = {p.name: p.stat().st_mtime_ns for p in kept.iterdir()}
    assert sorted(made) == ["0.parquet", "1.parquet", "2.parquet", "3.parquet"]
    log = storage.read_json(f"{tmp_path}/logs/vit.refit.json")
    assert any("2 frozen blocks were run once; in place of" in n for n in log["notes"])
    network = vit.LensViT.load(
        storage.read_bytes(f"{tmp_path}/models/vit.safetensors"),
        storage.read_json(f"{tmp_path}/models/vit.json"),
    )
    for name, value in trunk.blocks.state_dict().items():
        assert torch.equal(network.trunk.blocks.state_dict()[name], value)
    held = context.unseen(REFIT)
    pixels, step, sigma = rows.open(held).take(held)
    scores = predict(network, pixels, step=step, noise_sigma=sigma, micro_batch=4, threads=1)
    np.testing.assert_allclose(outcome(context, "vit.refit")[1], scores.logit, atol=1e-5)
    list(run_fits.run_fits(context, [("vit", 1), ("half", 1)]))
    assert {p.name: p.stat().st_mtime_ns for p in kept.iterdir()} == made
    assert len(list(Path(tmp_path, "tokens").iterdir())) == 2
    log = storage.read_json(f"{tmp_path}/logs/half.fold1.json")
    assert any("1 frozen blocks were run once; in place of" in n for n in log["notes"])


@pytest.mark.slow
def test_an_elastic_group_fits_as_one_process(rows, whole, tmp_path):
    context = small_context(tmp_path, rows, "vision.workers=[1, 2]")
    list(run_fits.run_fits(context, [("vit", 0)]))
    same(outcome(context), whole, tolerance=1e-4)


class Stopped(BaseException):
    pass


def test_the_state_of_a_fit_may_lie_in_a_bucket(rows, whole, s3_server):
    context = small_context(f"{s3_server.url}/training", rows)

    def stop(log):
        if log.epoch == 1:
            raise Stopped

    with pytest.raises(Stopped):
        fit(context, "vit", 0, progress=stop)
    state = f"{state_url(context, 'vit', 0)}/state.safetensors"
    assert storage.exists(state)
    fit(context, "vit", 0)
    same(outcome(context), whole)
    assert not storage.exists(state)
