"""Fits of a tiny network on 48 made cutouts in four gathered files, without a survey."""

import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
from ray.util.queue import Empty

from clusterray import config, storage
from clusterray.engine.fit_context import FitContext
from clusterray.engine.sample_rows import SampleRows
from clusterray.sky import shards

N, SIZE_PX, BANDS = 48, 24, ("g", "r", "i")
SETTINGS = (
    "vision.model='vit_tiny_patch16_224'",
    "vision.model_options={depth = 2, embed_dim = 24, num_heads = 2, patch_size = 8}",
    f"vision.image_size_px={SIZE_PX}",
    "vision.epochs=4",
    "vision.batch_size=13",
    "vision.positives_per_batch=3",
    "score.micro_batch=4",
)


def labels():
    s = np.zeros(N, np.int8)
    s[::5] = 1
    s[7] = -1
    return s


def small_rows(folder: Path) -> SampleRows:
    """Write the files; rows are in the order of their ids, files in another."""
    rng = np.random.default_rng(2)
    ids = np.array([f"J{k:03d}" for k in range(N)])
    order = rng.permutation(N)
    sizes = (20, 3, 0, 25)
    start, urls = 0, []
    for k, size in enumerate(sizes):
        rows = order[start : start + size]
        flux = rng.normal(size=(size, 3, SIZE_PX, SIZE_PX))
        flux[labels()[rows] == 1, :, 8:16, 8:16] += 4
        table = shards.to_table(
            object_id=ids[rows], ra_deg=np.zeros(size), dec_deg=np.zeros(size),
            cutouts_nchw=flux, noise_sigma=np.ones((size, 3)), bands=BANDS,
        )  # fmt: skip
        urls.append(f"{folder}/rows/{k}.parquet")
        storage.write_table(urls[-1], table)
        start += size
    return SampleRows(ids, tuple(urls), sizes, np.argsort(order), (3, SIZE_PX, SIZE_PX))


def small_context(folder: Path, rows: SampleRows, *overrides: str) -> FitContext:
    return FitContext(
        config=config.load(None, [*SETTINGS, *overrides]),
        folder=str(folder),
        groups=(),
        bands=BANDS,
        size_px=SIZE_PX,
        feature_names=(),
        unlabelled_fraction=1.0,
        prior=0.4,
        s=labels(),
        fold=(np.arange(N) % 3 - 1).astype(np.int8),
        cell=np.arange(N),
        rows=rows,
    )


def outcome(context: FitContext, name: str = "vit.fold0"):
    """The curve and the scores that a fit left."""
    log = storage.read_json(f"{context.folder}/logs/{name}.json")
    curve = [(e["epoch"], e["objective"], e["risk"]) for e in log["epochs"]]
    scores = storage.read_table(f"{context.folder}/scores/{name}.parquet")
    return np.array(curve), np.array(scores["logit"]), scores["object_id"].to_pylist()


class KillOnce:
    """A board that kills the process which first reports an epoch, and is empty otherwise."""

    def __init__(self, epoch: int, mark: Path) -> None:
        self.epoch, self.mark = epoch, str(mark)

    def get_nowait(self):
        raise Empty

    def shutdown(self, force: bool) -> None:
        return None

    def put_nowait(self, item) -> None:
        if item[-1].epoch == self.epoch and not os.path.exists(self.mark):
            Path(self.mark).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)


class Halt:
    """A board on which the fit waits for ever after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def put_nowait(self, item) -> None:
        if item[-1].epoch >= self.epoch:
            threading.Event().wait()

    def get_nowait(self):
        raise Empty

    def shutdown(self, force: bool) -> None:
        return None


def main() -> None:
    """Run the fit without fold 0 on a Ray of its own, until this driver is killed."""
    import ray

    from clusterray.engine import run_fits

    folder, rows_folder, *overrides = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    context = small_context(Path(folder), small_rows(Path(rows_folder)), *overrides)
    run_fits.Queue = lambda **options: Halt(1)
    list(run_fits.run_fits(context, [("vit", 0)]))


if __name__ == "__main__":
    main()
