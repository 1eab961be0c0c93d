"""A trial of the network: its folds one after the other in one process, reported every epoch.

One trial is one process that calls `vision.training.fit`, never a Ray Train run inside of Tune, so
no trial waits for workers that another one holds.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clusterray import storage
from clusterray.config import Config
from clusterray.engine.fits import FitContext
from clusterray.engine.search import Objective, Report, judge, placements
from clusterray.engine.search_space import with_best
from clusterray.provenance import digest, seed_for
from clusterray.pu.nnpu import NnpuRisk, nnpu_risk, two_stream_batches
from clusterray.vision import vit
from clusterray.vision.feeding import Take
from clusterray.vision.prediction import predict
from clusterray.vision.training import fit

__all__ = ["NnpuTask"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NnpuTask:
    """What every trial of the network learns from: the rows, labels and folds of a training run."""

    context: FitContext

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
        config = with_best(self.context.config, "nnpu", params)
        trial = storage.join(folder, digest(dict(params))[:16])
        cutouts: Take | None = None
        seconds, before, n = 0.0, np.empty(0), 0

        def tell(q: Floats, spent: float) -> None:
            nonlocal n
            n += 1
            everything = np.concatenate([before, q])
            prior = self.context.unlabelled_prior
            report(
                {
                    "parameters": dict(params),
                    "objective": judge(everything, objective, unlabelled_prior=prior),
                    "placements": everything.tolist(),
                    "seconds": round(seconds + spent, 3),
                    "complete": n == self.n_reports,
                }
            )

        for k in self.folds:
            url, told = storage.join(trial, f"fold{k}.json"), 0
            if not storage.exists(url):
                if cutouts is None:
                    every = np.arange(len(self.context.s))
                    cutouts = next(self.context.sample_rows().open(every).windows([every]))
                done, told = self._fit(cutouts, config, k, num_threads, tell)
                # Before the fold's last report, for the trial may be given up at it.
                storage.write_json(url, done)
            done = storage.read_json(url)
            for q in done["placements"][told:]:
                tell(np.array(q), done["seconds"])
            seconds += done["seconds"]
            before = np.concatenate([before, done["placements"][-1]])

    def _fit(
        self,
        cutouts: Take,
        config: Config,
        k: int,
        num_threads: int,
        tell: Callable[[Floats, float], None],
    ) -> tuple[dict[str, Any], int]:
        """Fit without fold `k`: the placements of its lenses by epoch, and how many were told.

        The last ones are those of the network that a fit ends with.
        """
        context, settings = self.context, config.vision
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

        def batches(epoch: int) -> list[np.ndarray]:
            drawn = two_stream_batches(
                context.s[seen],
                batch_size=settings.batch_size,
                positives_per_batch=settings.positives_per_batch,
                seed=seed,
                epoch=epoch,
            )
            return list(drawn)

        def risk(logits: torch.Tensor, labels: torch.Tensor) -> NnpuRisk:
            return nnpu_risk(
                logits,
                labels,
                prior=context.unlabelled_prior,
                loss="logistic",
                target_prior=config.train.target_prior,
                negative_weight=context.unlabelled_fraction,
            )

        def ranked() -> Floats:
            pixels, step, noise_sigma = cutouts(unseen, np.empty)
            found = predict(
                network.eval(),
                pixels,
                step=step,
                noise_sigma=noise_sigma,
                micro_batch=config.score.micro_batch,
                dtype=config.score.dtype,
                device=device,
                threads=threads,
            )
            return placements(
                found.logit.astype(np.float64),
                context.s[unseen],
                fold=np.zeros(len(unseen), np.int8),
            )

        def judged(_: object) -> None:
            if len(curve) < settings.epochs - 1:
                curve.append(ranked().tolist())
                tell(np.array(curve[-1]), time.monotonic() - start)

        pixels, step, noise_sigma = cutouts(seen, np.empty)
        fit(
            network,
            pixels,
            step=step,
            noise_sigma=noise_sigma,
            labels=context.s[seen],
            batches=batches,
            risk=risk,
            settings=settings,
            seed=seed,
            device=device,
            threads=threads,
            progress=judged,
        )
        told, last = len(curve), ranked().tolist()
        # A fit that stopped early counts all its epochs.
        curve += [last] * (settings.epochs - told)
        return {"placements": curve, "seconds": round(time.monotonic() - start, 3)}, told
