"""One fit of one base model without one fold, and the scores of the rows it did not see.

A fit is named by the fold it leaves out: 0 … K−1 score that fold's rows, `REFIT` learns from all
folds, scores the held-out rows, and is the model that goes into the bundle. `fit` runs in the
process that calls it, which may be one of several that share the fit (see `worker_group`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from clusterray import storage
from clusterray.config import TrainSettings
from clusterray.engine.fit_context import REFIT, FitContext
from clusterray.engine.sample import load
from clusterray.features.registry import CATEGORICAL
from clusterray.pu.lightgbm_pu import PULightGBM
from clusterray.vision import anomaly

if TYPE_CHECKING:
    from clusterray.vision.training import EpochLog, Ranks

__all__ = ["REFIT", "FitContext", "artefact_url", "fit", "lightgbm_options", "scores_url"]


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


def fit(
    context: FitContext,
    model: str,
    leave_out: int,
    *,
    ranks: "Ranks | None" = None,
    progress: "Callable[[EpochLog], None] | None" = None,
) -> None:
    """Fit `model` without fold `leave_out`; write its files and, last, its scores.

    A network is taken up at the last epoch that was finished, if it was begun before.

    Parameters
    ----------
    ranks : which of the processes this is that share a network's fit, the first of which writes;
        None where it is the only one.
    progress : called after each epoch of a network.

    Raises
    ------
    InputError : no known lens outside the fold, or a checkpoint of another network.
    RunError : a loss that is not finite, or memory that ran out twice.
    """
    if model == "lightgbm":
        logits, files = _fit_lightgbm(context, leave_out)
    else:
        # Here, for trees need no torch, which takes longer to import than a small fit takes.
        from clusterray.engine.network_fit import fit_network

        logits, files = fit_network(context, model, leave_out, ranks=ranks, progress=progress)
    if ranks is not None and ranks.rank:
        return
    ids = context.sample_rows().object_id[context.unseen(leave_out)]
    if leave_out == REFIT:
        for name, data in files.items():
            storage.write_bytes(artefact_url(context.folder, name), data)
    table = pa.table(
        {
            "object_id": pa.array(ids, pa.string()),
            "logit": pa.array(logits, pa.float32()),
        }
    )
    storage.write_table(scores_url(context.folder, model, leave_out), table)
    if model != "lightgbm" and (ranks is None or ranks.world == 1):
        from clusterray.engine.network_fit import forget

        forget(context, model, leave_out)


def _fit_lightgbm(context: FitContext, leave_out: int) -> tuple[np.ndarray, Mapping[str, bytes]]:
    sample = load(context.groups, storage.join(context.folder, "sample"))
    seen, unseen = context.seen(leave_out), context.unseen(leave_out)
    seed = context.seed("lightgbm", leave_out)
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
    if not context.config.train.networks:
        # Without a network there is no embedding to be unlike.
        features = sample.features[seen[context.s[seen] == 0]]
        files["anomaly.safetensors"] = anomaly.fit_features(features).save()
    return logits, files
