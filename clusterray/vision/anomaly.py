"""How unlike everything known a cutout is: shrunk Mahalanobis distance of embedding or features."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from clusterray.errors import BundleError, InputError
from clusterray.vision.moments import StreamedMoments

__all__ = ["AnomalyModel", "fit", "fit_features"]

Array = np.ndarray[Any, np.dtype[Any]]

_FLOOR = 1e-6
"""Least variance of a standardised dimension: one that never varied stays usable."""
_BATCH = 8192


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

    def score_features(self, features: Array) -> Array:
        """`score` of features (n, d), of which those not known (NaN) count as the mean."""
        return self.score(np.where(np.isnan(features), self.mean, features))

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


def fit(embeddings: Array | Iterable[Array]) -> AnomalyModel:
    """Fit mean and Ledoit–Wolf covariance (Ledoit & Wolf 2004) to embeddings of ordinary rows.

    Dimensions are standardised first, because the shrinkage target is a multiple of the identity.
    One pass, and memory for one batch and d² numbers.

    Parameters
    ----------
    embeddings : (n, d), n ≥ 2, or batches of such rows.

    Raises
    ------
    InputError : fewer than two rows, or values that are not finite.
    """
    moments = StreamedMoments()
    for batch in _batches(embeddings):
        moments.update(batch)
    mean, scale = moments.mean_and_scale()
    values, vectors = np.linalg.eigh(moments.covariance())
    whitening = (vectors / np.sqrt(np.maximum(values, _FLOOR))).T / scale
    # safetensors writes the memory as it lies, whatever the strides say.
    return AnomalyModel(mean, np.ascontiguousarray(whitening))


def fit_features(features: Array) -> AnomalyModel:
    """`fit` to features (n, d) of ordinary rows; NaN counts as the mean of what is known.

    Raises
    ------
    InputError : fewer than two rows, or values that are infinite.
    """
    known = np.isfinite(features).sum(axis=0)
    mean = np.nansum(features, axis=0, dtype=np.float64) / np.maximum(known, 1)
    return fit(np.where(np.isnan(features), mean, features))


def _batches(embeddings: Array | Iterable[Array]) -> Iterable[Array]:
    if not isinstance(embeddings, np.ndarray):
        return embeddings
    if embeddings.ndim != 2:
        return [embeddings]
    return (embeddings[k : k + _BATCH] for k in range(0, len(embeddings), _BATCH))
