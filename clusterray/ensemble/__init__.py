"""From base models to one calibrated probability: folds, stacking, calibration and the bundle."""

__all__ = [
    "bootstrap",
    "bundle",
    "calibration",
    "calibration_curves",
    "duplicates",
    "folds",
    "manifest",
    "posterior",
    "reliability",
    "scar",
    "stacking",
    "venn_abers",
]
