"""From base models to one calibrated probability: folds, stacking, calibration and the bundle."""

__all__ = ["bundle", "calibration", "folds", "manifest", "stacking"]
