"""One fit of one base model without one fold, and the scores of the rows it did not see.

A fit is named by the fold it leaves out: 0 … K−1 score that fold's rows, `REFIT` learns from all
folds, scores the held-out rows, and is the model that goes into the bundle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from clusterray import storage
from clusterray.config import Config, TrainSettings
from clusterray.engine.ledger import RowGroup
from clusterray.engine.sample import Sample, load
from clusterray.ensemble.folds import HELD_OUT
from clusterray.features.registry import CATEGORICAL
from clusterray.provenance import seed_for
from clusterray.pu.labelling import Labelling, unlabelled_prior
from clusterray.pu.lightgbm_pu import PULightGBM
from clusterray.pu.nnpu import NnpuRisk, nnpu_risk, odds_correction, two_stream_batches
from clusterray.vision import anomaly, vit
from clusterray.vision.prediction import predict
from clusterray.vision.training import fit as fit_network

__all__ = ["REFIT", "FitContext", "artefact_url", "fit", "lightgbm_options", "scores_url"]

REFIT: Final = HELD_OUT


@dataclass(frozen=True)
class FitContext:
    """What every fit of a training run shares; arrays are in the sample's order.

    `s`, `fold` and `cell` are (n,): label, fold, and sky cell. `prior` is π of the survey.
    """

    config: Config
    folder: str
    groups: tuple[RowGroup, ...]
    bands: tuple[str, ...]
    size_px: int
    feature_names: tuple[str, ...]
    unlabelled_fraction: float
    prior: float
    s: np.ndarray
    fold: np.ndarray
    cell: np.ndarray

    @property
    def labelling(self) -> Labelling:
        """How the sample came by its labels."""
        labelling = Labelling(
            self.config.train.scenario, self.prior, unlabelled_fraction=self.unlabelled_fraction
        )
        return labelling.counted(self.s)

    @property
    def unlabelled_prior(self) -> float:
        """π_U: what nnPU averages over are the unlabelled rows."""
        known, rest = float(np.sum(self.s == 1)), float(np.sum(self.s == 0))
        return unlabelled_prior(
            self.prior,
            scenario=self.config.train.scenario,
            labelled_fraction=known / (known + rest / self.unlabelled_fraction),
        )


def lightgbm_options(settings: TrainSettings, names: Sequence[str]) -> dict[str, Any]:
    """What `PULightGBM` is told about the features of a run."""
    return {
        "form": settings.lightgbm_form,
        "monotone": settings.monotone,
        "categorical": [name for name in names if name in CATEGORICAL],
    }


def scores_url(folder: str, model: str, leave_out: int) -> str:
    """Where a fit leaves the logits of the rows it did not see."""
    name = "refit" if leave_out == REFIT else f"fold{leave_out}"
    return storage.join(folder, "scores", f"{model}.{name}.parquet")


def artefact_url(folder: str, name: str) -> str:
    """Where the refit leaves its model."""
    return storage.join(folder, "models", name)


def fit(context: FitContext, model: str, leave_out: int) -> None:
    """Fit `model` without fold `leave_out`; write its files and, last, its scores."""
    sample = load(context.groups, storage.join(context.folder, "sample"))
    seen = np.flatnonzero((context.fold >= 0) & (context.fold != leave_out))
    unseen = np.flatnonzero(context.fold == leave_out)
    seed = seed_for(context.config.seed, model=model, fold=leave_out)
    fitter = {"lightgbm": _fit_lightgbm, "vit": _fit_vit}[model]
    logits, files = fitter(context, sample, seen, unseen, seed)
    if leave_out == REFIT:
        for name, data in files.items():
            storage.write_bytes(artefact_url(context.folder, name), data)
    table = pa.table(
        {
            "object_id": pa.array(sample.object_id[unseen], pa.string()),
            "logit": pa.array(logits, pa.float32()),
        }
    )
    storage.write_table(scores_url(context.folder, model, leave_out), table)


Fitted = tuple[np.ndarray, Mapping[str, bytes]]


def _fit_lightgbm(
    context: FitContext, sample: Sample, seen: np.ndarray, unseen: np.ndarray, seed: int
) -> Fitted:
    names = context.feature_names
    model = PULightGBM(
        names,
        scenario=context.config.train.scenario,
        prior=context.prior,
        params=context.config.train.lightgbm,
        seed=seed,
        unlabelled_fraction=context.unlabelled_fraction,
        **lightgbm_options(context.config.train, names),
    )
    model.fit(sample.features[seen], context.s[seen], names=names, groups=context.cell[seen])
    logits = model.decision_function(sample.features[unseen], names)
    files = {
        "lightgbm.txt": model.to_text().encode(),
        "lightgbm.notes.json": json.dumps(model.notes_).encode(),
    }
    if "vit" not in context.config.train.models:
        # Without a network there is no embedding to be unlike.
        features = sample.features[seen[context.s[seen] == 0]]
        files["anomaly.safetensors"] = anomaly.fit_features(features).save()
    return logits, files


def _fit_vit(
    context: FitContext, sample: Sample, seen: np.ndarray, unseen: np.ndarray, seed: int
) -> Fitted:
    settings, target = context.config.vision, context.config.train.target_prior
    s, prior = context.s[seen], context.unlabelled_prior
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = vit.build(
        settings,
        n_bands=len(context.bands),
        size_px=context.size_px,
        seed=seed,
        bands=context.bands,
    )

    def batches(epoch: int) -> list[np.ndarray]:
        drawn = two_stream_batches(
            s,
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
            prior=prior,
            loss="logistic",
            target_prior=target,
            negative_weight=context.unlabelled_fraction,
        )

    log = fit_network(
        network,
        sample.pixels[seen],
        step=sample.step[seen],
        noise_sigma=sample.noise_sigma[seen],
        labels=s,
        batches=batches,
        risk=risk,
        settings=settings,
        seed=seed,
        device=device,
        threads=1 if device == "cpu" else None,
    )
    with torch.no_grad():
        # The bias takes the correction, so that the network itself gives log-odds at π.
        network.head.bias.add_(odds_correction(0.0, prior=context.prior, target_prior=target))

    def scored(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = predict(
            network,
            sample.pixels[rows],
            step=sample.step[rows],
            noise_sigma=sample.noise_sigma[rows],
            micro_batch=context.config.score.micro_batch,
            dtype=context.config.score.dtype,
            views=context.config.score.views,
            device=device,
            threads=1,
        )
        return found.logit, found.embedding

    ordinary = seen[s == 0]
    return scored(unseen)[0], {
        "vit.json": json.dumps(network.architecture()).encode(),
        "vit.safetensors": network.save(),
        "anomaly.safetensors": anomaly.fit(scored(ordinary)[1]).save(),
        "vit.log.json": json.dumps(log.to_json(), indent=2).encode(),
    }
