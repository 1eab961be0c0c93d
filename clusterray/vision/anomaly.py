"""How unlike everything known a cutout is: shrunk Mahalanobis distance of its embedding."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from sklearn.covariance import LedoitWolf

from clusterray.errors import BundleError, InputError

__all__ = ["AnomalyModel", "fit"]

Array = np.ndarray[Any, np.dtype[Any]]

_FLOOR = 1e-6
"""Least variance of a standardised dimension: one that never varied stays usable."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class AnomalyModel:
    """Mean (d,) and whitening (d, d): |whitening · (x − mean)| is the Mahalanobis distance."""

    mean: Array
    whitening: Array

    def score(self, embeddings: Array) -> Array:
        """Distance of each row from the training rows' distribution.

        Parameters
        ----------
        embeddings : (n, d).

        Returns
        -------
        (n,) float32; about √d for a row like the training rows; NaN for a row that is not finite.

        Raises
        ------
        InputError : another d than the model was fitted with.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.mean):
            raise InputError(
                f"embeddings have shape {embeddings.shape}, expected (n, {len(self.mean)}): "
                "the anomaly model belongs to another network"
            )
        offset = embeddings.astype(np.float64) - self.mean
        return np.linalg.norm(offset @ self.whitening.T, axis=1).astype(np.float32)  # type: ignore[no-any-return]

    def save(self) -> bytes:
        """Mean and whitening as safetensors, float64."""
        return safetensors.numpy.save({"mean": self.mean, "whitening": self.whitening})

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read the model that `save` wrote.

        Raises
        ------
        BundleError : the bytes are no safetensors, or lack a tensor.
        """
        try:
            tensors = safetensors.numpy.load(data)
            return cls(tensors["mean"], tensors["whitening"])
        except (SafetensorError, KeyError) as error:
            raise BundleError(f"anomaly model is not readable: {error}; train again") from error


def fit(embeddings: Array) -> AnomalyModel:
    """Fit mean and Ledoit–Wolf covariance (Ledoit & Wolf 2004) to embeddings of ordinary rows.

    Dimensions are standardised first, because the shrinkage target is a multiple of the identity.

    Parameters
    ----------
    embeddings : (n, d), n ≥ 2.

    Raises
    ------
    InputError : fewer than two rows, or values that are not finite.
    """
    if embeddings.ndim != 2 or len(embeddings) < 2 or not np.isfinite(embeddings).all():
        raise InputError(
            f"embeddings have shape {embeddings.shape} with "
            f"{int((~np.isfinite(embeddings)).sum())} values not finite; the anomaly model needs "
            "(n ≥ 2, d) finite values: leave rejected rows out"
        )
    x = embeddings.astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale[scale <= _ROUNDING * np.abs(mean)] = 1.0
    covariance = LedoitWolf(assume_centered=True, store_precision=False).fit((x - mean) / scale)
    values, vectors = np.linalg.eigh(covariance.covariance_)
    whitening = (vectors / np.sqrt(np.maximum(values, _FLOOR))).T / scale
    # safetensors writes the memory as it lies, whatever the strides say.
    return AnomalyModel(mean, np.ascontiguousarray(whitening))
