"""Named, interpretable features of a cutout and its cluster, for LightGBM and for reviewers."""

from clusterray.features.matrix import catalogue_features, cutout_features, image_features
from clusterray.features.registry import Feature, FeatureMatrix, feature_names, registry

__all__ = [
    "Feature",
    "FeatureMatrix",
    "catalogue_features",
    "cutout_features",
    "feature_names",
    "image_features",
    "registry",
]
