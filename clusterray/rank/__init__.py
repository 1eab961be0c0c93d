"""The ranked list, how good it is, and how people read it."""

from clusterray.rank.metrics import PurityCompleteness, purity_completeness, rare_event_metrics
from clusterray.rank.ranking import build, read, write
from clusterray.rank.report import render
from clusterray.sky.thumbnails import Thumbnail, rgb

__all__ = [
    "PurityCompleteness",
    "Thumbnail",
    "build",
    "purity_completeness",
    "rare_event_metrics",
    "read",
    "render",
    "rgb",
    "write",
]
