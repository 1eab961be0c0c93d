"""Every feature by name, in the order of the columns, and how the list is shown."""

import itertools
from collections.abc import Sequence

from clusterray.config import FeatureSettings
from clusterray.features.catalogue_registry import CATEGORICAL, catalogue_registry
from clusterray.features.feature import Feature, FeatureMatrix
from clusterray.features.image_registry import image_registry, patch_registry

__all__ = [
    "CATEGORICAL",
    "Feature",
    "FeatureMatrix",
    "catalogue_registry",
    "describe",
    "feature_names",
    "image_registry",
    "patch_registry",
    "registry",
]


def registry(bands: Sequence[str], settings: FeatureSettings) -> tuple[Feature, ...]:
    """Every feature of a cutout, in the order of the columns."""
    return (*image_registry(bands, grid=settings.grid), *catalogue_registry(bands))


def feature_names(bands: Sequence[str], settings: FeatureSettings) -> tuple[str, ...]:
    """Column names of `cutout_features`, in order."""
    return tuple(feature.name for feature in registry(bands, settings))


def describe(features: Sequence[Feature]) -> str:
    """Text for a terminal: each feature with its unit, definition, source and when it is unknown.

    Features of one group stand together, in the order in which the groups appear.
    """
    order = {name: k for k, name in enumerate(dict.fromkeys(f.group for f in features))}
    lines = []
    for group, members in itertools.groupby(
        sorted(features, key=lambda f: order[f.group]), key=lambda f: f.group
    ):
        lines.append(f"\n{group}")
        for f in members:
            lines.append(f"  {f.name}  [{f.unit}]  {f.definition}")
            notes = [f"source: {f.source}"] if f.source else []
            notes += [f"unknown (NaN): {f.nan_when}"] if f.nan_when else []
            lines += [f"      {note}" for note in notes]
    return "\n".join(lines).lstrip("\n")
