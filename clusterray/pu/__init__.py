"""Learning from positives and unlabelled rows: class prior, nnPU risk, Elkan–Noto, LightGBM.

Names are fetched when first used, so that a worker that only runs LightGBM never loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusterray.pu.elkan_noto import ElkanNotoClassifier
    from clusterray.pu.labelling import (
        LabelError,
        Labelling,
        LabelModel,
        Scenario,
        unlabelled_prior,
    )
    from clusterray.pu.lightgbm_pu import PULightGBM
    from clusterray.pu.mixture import mixture_prior
    from clusterray.pu.nnpu import NnpuRisk, nnpu_risk, odds_correction, two_stream_batches
    from clusterray.pu.prior import PriorEstimate, estimate_prior
    from clusterray.pu.prior_estimators import (
        Estimate,
        bbe_prior,
        dedpul_prior,
        elkan_noto_prior,
    )

__all__ = [
    "ElkanNotoClassifier",
    "Estimate",
    "LabelError",
    "LabelModel",
    "Labelling",
    "NnpuRisk",
    "PULightGBM",
    "PriorEstimate",
    "Scenario",
    "bbe_prior",
    "dedpul_prior",
    "elkan_noto_prior",
    "estimate_prior",
    "mixture_prior",
    "nnpu_risk",
    "odds_correction",
    "two_stream_batches",
    "unlabelled_prior",
]

_HOME = {
    "ElkanNotoClassifier": "elkan_noto",
    "LabelError": "labelling",
    "LabelModel": "labelling",
    "Labelling": "labelling",
    "Scenario": "labelling",
    "unlabelled_prior": "labelling",
    "PULightGBM": "lightgbm_pu",
    "NnpuRisk": "nnpu",
    "nnpu_risk": "nnpu",
    "odds_correction": "nnpu",
    "two_stream_batches": "nnpu",
    "mixture_prior": "mixture",
    "PriorEstimate": "prior",
    "estimate_prior": "prior",
    "Estimate": "prior_estimators",
    "bbe_prior": "prior_estimators",
    "dedpul_prior": "prior_estimators",
    "elkan_noto_prior": "prior_estimators",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
