"""A trial of the network: its folds one after the other in one process, reported every epoch.

One trial is one process that calls `vision.training.fit`, never a Ray Train run inside of Tune, so
no trial waits for workers that another one holds.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clusterray import storage
from clusterray.config import Config, VisionSettings
from clusterray.engine.fits import FitContext
from clusterray.engine.network_fit import risk_of
from clusterray.engine.search import Objective, Report, judge, placements
from clusterray.engine.search_space import with_best
from clusterray.engine.stages import list_matrix
from clusterray.provenance import digest, seed_for
from clusterray.pu.nnpu import two_stream_batches
from clusterray.sky import shards
from clusterray.vision import vit
from clusterray.vision.prediction import predict
from clusterray.vision.training import fit

__all__ = ["NnpuTask"]

Floats = NDArray[np.float64]
_PER_BAND: Final = ("step", "noise_sigma")


@dataclass(frozen=True)
class NnpuTask:
    """What every trial of the network learns from: the rows, labels and folds of a training run.

    `sample_url` is where `engine.sample` gathered them.
    """

    context: FitContext
    sample_url: str

    on_gpu = True

    @property
    def folds(self) -> list[int]:
        """Folds in the order they are fitted."""
        fold = self.context.fold
        return [int(k) for k in np.unique(fold[fold >= 0])]

    @property
    def n_reports(self) -> int:
        """Epochs of a whole trial, over all folds."""
        return len(self.folds) * self.context.config.vision.epochs

    @property
    def first_rung(self) -> int:
        """Epochs of one fold."""
        return self.context.config.vision.epochs

    def trial(
        self,
        params: Mapping[str, Any],
        *,
        objective: Objective,
        folder: str,
        num_threads: int,
        report: Report,
    ) -> None:
        """Fit without each fold in turn; after every epoch report how its rows are ranked.

        What is reported covers the folds before and the present one, as its network ranks it after
        this epoch: trials are compared at equal epochs, and the last report is that of all folds.
        Every finished fold leaves a file in `folder`; a trial that is run again reports what is
        there and fits only the rest.
        """
        prior = self.context.unlabelled_prior
        told = _Told(dict(params), objective, prior, self.n_reports, report)
        config = with_best(self.context.config, "nnpu", params)
        cutouts: _Cutouts | None = None
        for k in self.folds:
            url = storage.join(folder, digest(dict(params))[:16], f"fold{k}.json")
            before = told.n
            if not storage.exists(url):
                if cutouts is None:
                    cutouts = _read(self.context, self.sample_url)
                # Written before the fold's last report, for the trial may be given up at it.
                done = _fit_fold(self.context, cutouts, config, k, num_threads, told)
                storage.write_json(url, done)
            done = storage.read_json(url)
            for q in done["placements"][told.n - before :]:
                told.tell(np.array(q), done["seconds"])
            told.close(np.array(done["placements"][-1]), done["seconds"])


class _Cutouts(NamedTuple):
    """Rows in the order of the context's: (n, b, h, w) int16, and (n, b) nJy twice."""

    pixels: NDArray[np.int16]
    step: NDArray[np.float32]
    noise_sigma: NDArray[np.float32]


def _read(context: FitContext, url: str) -> _Cutouts:
    """The gathered cutouts, sorted by object_id."""
    files = (storage.join(url, "rows", group.output) for group in context.groups)
    parts = [part for part in map(storage.read_table, files) if part.num_rows]
    order = np.argsort(np.concatenate([p.column("object_id").to_numpy() for p in parts]))
    return _Cutouts(
        np.concatenate([shards.pixels(p) for p in parts])[order],
        *(np.concatenate([list_matrix(p, n) for p in parts])[order] for n in _PER_BAND),
    )


@dataclass
class _Told:
    """What a trial has come to: so many reports, the placements and seconds of finished folds."""

    parameters: dict[str, Any]
    objective: Objective
    unlabelled_prior: float
    n_reports: int
    report: Report
    n: int = 0
    seconds: float = 0.0
    finished: Floats = field(default_factory=lambda: np.empty(0))

    def tell(self, q: Floats, seconds: float) -> None:
        """Report with the placements of the present fold, and the seconds it has taken."""
        self.n += 1
        everything = np.concatenate([self.finished, q])
        value = judge(everything, self.objective, unlabelled_prior=self.unlabelled_prior)
        self.report(
            {
                "parameters": self.parameters,
                "objective": value,
                "placements": everything.tolist(),
                "seconds": round(self.seconds + seconds, 3),
                "complete": self.n == self.n_reports,
            }
        )

    def close(self, q: Floats, seconds: float) -> None:
        """The present fold is finished with these placements."""
        self.finished = np.concatenate([self.finished, q])
        self.seconds += seconds


def _fit_fold(
    context: FitContext, cutouts: _Cutouts, config: Config, k: int, num_threads: int, told: _Told
) -> dict[str, Any]:
    """Fit without fold `k` and tell of all epochs but the last: placements by epoch, and seconds.

    The last ones are those of the network that the fit ends with.
    """
    settings = config.vision
    seen = np.flatnonzero((context.fold >= 0) & (context.fold != k))
    unseen = np.flatnonzero(context.fold == k)
    # One seed for all trials: they differ by their settings alone.
    seed = seed_for(config.seed, model="vit", fold=k)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = num_threads if device == "cpu" else None
    network = vit.build(
        settings,
        n_bands=len(context.bands),
        size_px=context.size_px,
        seed=seed,
        bands=context.bands,
    )
    curve: list[list[float]] = []
    start = time.monotonic()

    def ranked() -> Floats:
        found = predict(
            network.eval(),
            cutouts.pixels[unseen],
            step=cutouts.step[unseen],
            noise_sigma=cutouts.noise_sigma[unseen],
            micro_batch=config.score.micro_batch,
            dtype=config.score.dtype,
            views=config.score.views,
            device=device,
            threads=threads,
        )
        logits, fold = found.logit.astype(np.float64), np.zeros(len(unseen), np.int8)
        return placements(logits, context.s[unseen], fold=fold)

    def judged(_: object) -> None:
        if len(curve) < settings.epochs - 1:
            curve.append(ranked().tolist())
            told.tell(np.array(curve[-1]), time.monotonic() - start)

    fit(
        network,
        cutouts.pixels[seen],
        step=cutouts.step[seen],
        noise_sigma=cutouts.noise_sigma[seen],
        labels=context.s[seen],
        batches=_batches(context.s[seen], settings, seed),
        risk=risk_of(replace(context, config=config)),
        settings=settings,
        seed=seed,
        device=device,
        threads=threads,
        progress=judged,
    )
    # A fit that stopped early counts all its epochs.
    curve += [ranked().tolist()] * (settings.epochs - len(curve))
    return {"placements": curve, "seconds": round(time.monotonic() - start, 3)}


def _batches(
    s: NDArray[np.int8], settings: VisionSettings, seed: int
) -> Callable[[int], list[NDArray[np.int64]]]:
    def batches(epoch: int) -> list[NDArray[np.int64]]:
        drawn = two_stream_batches(
            s,
            batch_size=settings.batch_size,
            positives_per_batch=settings.positives_per_batch,
            seed=seed,
            epoch=epoch,
        )
        return list(drawn)

    return batches
