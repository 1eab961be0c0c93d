"""The vision transformer: preprocessing, network, augmentation, training, scores, anomalies.

Import from the modules: `vit` and `training` need torch, and timm when a network is built.
"""

__all__ = [
    "anomaly",
    "augment",
    "checkpoint",
    "feeding",
    "frozen",
    "learner",
    "lensiam",
    "loop",
    "mil",
    "optimisation",
    "prediction",
    "preprocess",
    "sources",
    "torchvision_ops",
    "training",
    "trunk",
    "vit",
    "weights",
]
