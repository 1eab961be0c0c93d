"""One fit of a lens network: batches, risk, checkpoints, and scores of what it did not see."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from clusterray import storage
from clusterray.config import ScoreSettings, VisionSettings
from clusterray.engine.epoch_plan import EpochPlan, validation_slice
from clusterray.engine.fit_context import REFIT, FitContext
from clusterray.ensemble.manifest import ANOMALY, model_files
from clusterray.provenance import digest
from clusterray.pu.nnpu import NnpuRisk, nnpu_risk, odds_correction
from clusterray.vision import anomaly, vit
from clusterray.vision.checkpoint import Checkpoints, EpochLog
from clusterray.vision.frozen import TokenLearner
from clusterray.vision.learner import CutoutLearner, Learner
from clusterray.vision.prediction import predict
from clusterray.vision.sources import Windowed
from clusterray.vision.training import Data, Ranks, cpu_threads, run

__all__ = ["checkpoints_url", "fit_network", "forget", "log_url", "risk_of", "state_url"]

_SCORED_AT_ONCE = 512


def checkpoints_url(context: FitContext, model: str, leave_out: int) -> str:
    """Folder of a network fit's state; another one for other settings, rows or folds."""
    key = {
        "seed": context.config.seed,
        "vision": context.config.network(model).model_dump(
            mode="json", exclude={"workers", "max_failures"}
        ),
        "target_prior": context.config.train.target_prior,
        "prior": context.prior,
        "fold": digest(np.ascontiguousarray(context.fold).tobytes()),
        "s": digest(np.ascontiguousarray(context.s).tobytes()),
    }
    name = f"{model}.{_name(leave_out)}.{digest(key)[:12]}"
    return storage.join(context.folder, "checkpoints", name)


def state_url(context: FitContext, model: str, leave_out: int) -> str:
    """Where in that folder the state is; beside it Ray Train keeps its own."""
    return storage.join(checkpoints_url(context, model, leave_out), "state")


def log_url(folder: str, model: str, leave_out: int) -> str:
    """Where a network's fit leaves its loss curve and notes."""
    return storage.join(folder, "logs", f"{model}.{_name(leave_out)}.json")


def _name(leave_out: int) -> str:
    return "refit" if leave_out == REFIT else f"fold{leave_out}"


def forget(context: FitContext, model: str, leave_out: int) -> None:
    """Remove the state of a fit that is done."""
    storage.remove_folder(checkpoints_url(context, model, leave_out))


def fit_network(
    context: FitContext,
    model: str,
    leave_out: int,
    *,
    ranks: Ranks | None,
    progress: Callable[[EpochLog], None] | None,
) -> tuple[NDArray[np.float32], Mapping[str, bytes]]:
    """Fit a network without one fold; logits of the unseen rows, and the files of the model.

    Every process of `ranks` gets the same.
    """
    config, ranks = context.config, ranks or Ranks()
    settings, seed = config.network(model), context.seed(model, leave_out)
    seen, sample = context.seen(leave_out), context.sample_rows()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = vit.build(
        settings,
        n_bands=len(context.bands),
        size_px=context.size_px,
        seed=seed,
        bands=context.bands,
    )
    known = seen[context.s[seen] == 1]
    tokens = context.tokens.get(model)
    source = (tokens or sample).open(known)
    data, notes = _data(context, model, leave_out, source)
    learner: Learner = CutoutLearner(network, augmented=settings.augment)
    if tokens is not None:
        learner = TokenLearner(network)
        notes = (*notes, _replaced(learner.n_frozen, settings))
    log = run(
        learner,
        data,
        risk=risk_of(context, ranks.group),
        settings=settings,
        seed=seed,
        ranks=ranks,
        checkpoints=Checkpoints(state_url(context, model, leave_out)),
        device=device,
        progress=progress,
        threads=1 if device == "cpu" else None,
    )
    with torch.no_grad():
        # The bias takes the correction, so that the network itself gives log-odds at π.
        network.head.bias.add_(
            odds_correction(0.0, prior=context.prior, target_prior=config.train.target_prior)
        )
    cutouts = source if tokens is None else sample.open(known[:0])
    scorer = _Scorer(network, cutouts, config.score, device, ranks)
    logits, _ = scorer(context.unseen(leave_out))
    if ranks.rank == 0:
        told = log.to_json()
        told["notes"] = [*notes, *told["notes"]]
        storage.write_json(log_url(context.folder, model, leave_out), told)
    if leave_out != REFIT:
        return logits, {}
    weights, architecture = model_files(model)
    files = {
        architecture: json.dumps(network.architecture()).encode(),
        weights: network.save(),
    }
    if model != config.train.networks[0]:
        # What is unlike anything is told by the first network's embedding alone.
        return logits, files
    ordinary = seen[context.s[seen] == 0]
    if isinstance(learner, TokenLearner):
        embeddings = _pooled(learner, source, ordinary, device)
    else:
        embeddings = scorer(ordinary)[1]
    return logits, {**files, ANOMALY: anomaly.fit(embeddings).save()}


@torch.no_grad()
def _pooled(
    learner: TokenLearner, source: Windowed, rows: NDArray[np.int64], device: str
) -> NDArray[np.float32]:
    """Embeddings of rows whose tokens are kept: the trunk need not run again."""
    parts = [rows[i : i + _SCORED_AT_ONCE] for i in range(0, len(rows), _SCORED_AT_ONCE)]
    found = []
    with cpu_threads(1 if device == "cpu" else None):
        for part, take in zip(parts, source.windows(parts), strict=True):
            arrays = tuple(torch.from_numpy(a).to(device) for a in take(part, np.empty))
            found.append(learner.embedding(learner.prepare(arrays, None)).float().cpu().numpy())
    return np.concatenate(found)


def _data(
    context: FitContext, model: str, leave_out: int, source: Windowed
) -> tuple[Data, tuple[str, ...]]:
    """What the fit learns from and is judged by, and notes."""
    settings, seed = context.config.network(model), context.seed(model, leave_out)
    sample = context.sample_rows()
    learnt, validation, notes = validation_slice(
        context.seen(leave_out), context.s, cell=context.cell, settings=settings, seed=seed
    )
    data = Data(
        source,
        labels=context.s,
        plan=EpochPlan(learnt, context.s, sample.file_of, settings, seed),
        validation=validation if len(validation) else None,
        names=sample.object_id.tolist(),
    )
    return data, tuple(notes)


def _replaced(n_frozen: int, settings: VisionSettings) -> str:
    views = settings.cached_views
    instead = f"{views} kept orientations" if views > 1 else "nothing (vision.cached_views is 1)"
    return f"{n_frozen} frozen blocks were run once; in place of augmentation stand: {instead}"


def risk_of(
    context: FitContext, group: distributed.ProcessGroup | None = None
) -> Callable[[torch.Tensor, torch.Tensor], NnpuRisk]:
    """The nnPU risk that networks are trained on; of the whole batch of a group of processes."""
    prior, target = context.unlabelled_prior, context.config.train.target_prior

    def risk(logits: torch.Tensor, labels: torch.Tensor) -> NnpuRisk:
        return nnpu_risk(
            logits,
            labels,
            prior=prior,
            loss="logistic",
            target_prior=target,
            negative_weight=context.unlabelled_fraction,
            group=group,
        )

    return risk


@dataclass(frozen=True)
class _Scorer:
    """Logits and embeddings of rows, as the survey's will be made, shared by the processes."""

    network: vit.LensViT
    source: Windowed
    settings: ScoreSettings
    device: str
    ranks: Ranks

    def __call__(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        mine = self.ranks.part(np.arange(len(rows)))
        width = self.network.head.in_features
        found = torch.zeros((len(rows), 1 + width), device=self.device)
        for at, values in self._scored(rows, mine):
            found[torch.from_numpy(at)] = torch.from_numpy(values).to(self.device)
        if self.ranks.group is not None:
            # Each row was scored by one process and is 0 in the others.
            distributed.all_reduce(found, group=self.ranks.group)
        values = found.cpu().numpy()
        return values[:, 0], values[:, 1:]

    def _scored(
        self, rows: NDArray[np.int64], mine: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        micro_batch = self.settings.micro_batch
        size = micro_batch * max(1, _SCORED_AT_ONCE // micro_batch)
        parts = [mine[i : i + size] for i in range(0, len(mine), size)]
        windows = self.source.windows([rows[part] for part in parts])
        for part, take in zip(parts, windows, strict=True):
            pixels, step, noise_sigma = take(rows[part], np.empty)
            scores = predict(
                self.network,
                pixels,
                step=step,
                noise_sigma=noise_sigma,
                micro_batch=micro_batch,
                dtype=self.settings.dtype,
                views=self.settings.views,
                device=self.device,
                threads=1,
            )
            yield part, np.concatenate([scores.logit[:, None], scores.embedding], axis=1)
