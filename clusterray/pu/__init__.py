"""Learning from positives and unlabelled rows: class prior, nnPU risk, Elkan–Noto, LightGBM.

Names are fetched when first used, so that a worker that only runs LightGBM never loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusterray.pu.elkan_noto import ElkanNotoClassifier
    from clusterray.pu.labelling import Labelling, LabelModel, Scenario, unlabelled_prior
    from clusterray.pu.lightgbm_pu import PULightGBM
    from clusterray.pu.nnpu import NnpuRisk, nnpu_risk, odds_correction, two_stream_batches
    from clusterray.pu.prior import (
        Estimate,
        PriorEstimate,
        bbe_prior,
        elkan_noto_prior,
        estimate_prior,
    )

__all__ = [
    "ElkanNotoClassifier",
    "Estimate",
    "LabelModel",
    "Labelling",
    "NnpuRisk",
    "PULightGBM",
    "PriorEstimate",
    "Scenario",
    "bbe_prior",
    "elkan_noto_prior",
    "estimate_prior",
    "nnpu_risk",
    "odds_correction",
    "two_stream_batches",
    "unlabelled_prior",
]

_HOME = {
    "ElkanNotoClassifier": "elkan_noto",
    "LabelModel": "labelling",
    "Labelling": "labelling",
    "Scenario": "labelling",
    "unlabelled_prior": "labelling",
    "PULightGBM": "lightgbm_pu",
    "NnpuRisk": "nnpu",
    "nnpu_risk": "nnpu",
    "odds_correction": "nnpu",
    "two_stream_batches": "nnpu",
    "Estimate": "prior",
    "PriorEstimate": "prior",
    "bbe_prior": "prior",
    "elkan_noto_prior": "prior",
    "estimate_prior": "prior",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
