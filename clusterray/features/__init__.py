"""Named, interpretable features of a cutout and its cluster, for LightGBM and for reviewers."""

from clusterray.features.matrix import (
    catalogue_features,
    cutout_features,
    image_features,
    patch_table,
)
from clusterray.features.registry import (
    CATEGORICAL,
    Feature,
    FeatureMatrix,
    feature_names,
    registry,
)

__all__ = [
    "CATEGORICAL",
    "Feature",
    "FeatureMatrix",
    "catalogue_features",
    "cutout_features",
    "feature_names",
    "image_features",
    "patch_table",
    "registry",
]
