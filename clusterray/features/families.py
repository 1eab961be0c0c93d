"""Whether some segments have one colour, as images of one source must."""

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

__all__ = ["INTRINSIC_MAG", "colour_covariance", "colour_distance", "consistency", "families"]

Floats = NDArray[np.float64]

INTRINSIC_MAG = 0.05
"""Scatter between images of one source beyond their noise: blending, zero points."""

_HUBER = 1.345
"""Tuning constant of 95 % efficiency at the Gaussian (Huber 1964, Ann. Math. Statist. 35, 73)."""

_LINK = 3.0
_ITERATIONS = 20


def colour_covariance(magnitude_error: Floats) -> Floats:
    """Covariance of the colours of adjacent bands, regularised with the intrinsic scatter.

    Neighbouring colours share a band, so they are anticorrelated.

    Parameters
    ----------
    magnitude_error : (m, bands) independent errors, mag.

    Returns
    -------
    (m, bands − 1, bands − 1) mag².
    """
    bands = magnitude_error.shape[1]
    difference = np.eye(bands - 1, bands) - np.eye(bands - 1, bands, 1)
    covariance = np.einsum("kb,mb,lb->mkl", difference, magnitude_error**2, difference)
    return np.asarray(covariance + INTRINSIC_MAG**2 * np.eye(bands - 1))


def colour_distance(one: Floats, other: Floats, covariance: Floats) -> Floats:
    """Mahalanobis distance per root of the number of colours: 1 for a typical error.

    Parameters
    ----------
    one, other : (…, k) colours. covariance : (…, k, k) of their difference.
    """
    off = one - other
    solved = np.linalg.solve(covariance, off[..., None])[..., 0]
    return np.asarray(np.sqrt((off * solved).sum(axis=-1) / off.shape[-1]))


def families(colours: Floats, covariance: Floats) -> NDArray[np.int64]:
    """Group segments so that no two of a group differ by more than 3 times their joint error.

    Complete linkage on `colour_distance`; numbered by size, the largest first.

    Parameters
    ----------
    colours : (m, k). covariance : (m, k, k).

    Returns
    -------
    (m,) family of each segment, from 0.
    """
    if len(colours) < 2:
        return np.zeros(len(colours), np.int64)
    first, second = np.triu_indices(len(colours), 1)
    apart = colour_distance(colours[first], colours[second], covariance[first] + covariance[second])
    tree = linkage(apart, method="complete")
    found = fcluster(tree, _LINK, criterion="distance") - 1
    # Of equal sizes, that of the first segment comes first.
    sizes = np.bincount(found)
    first_member = np.array([np.argmax(found == k) for k in range(len(sizes))])
    order = np.lexsort([first_member, -sizes])
    return np.asarray(np.argsort(order)[found], np.int64)


def consistency(colours: Floats, covariance: Floats) -> float:
    """How well segments agree on one colour: 1 where they scatter as their errors say, towards 0.

    About a Huber centroid, mean of exp(−max(d² − 1, 0)/2) with d the `colour_distance` of a
    segment from it.

    Parameters
    ----------
    colours : (m, k) mag. covariance : (m, k, k) of each, from `colour_covariance`.

    Returns
    -------
    In [0, 1]; NaN ("unknown") for fewer than two segments.
    """
    if len(colours) < 2:
        return float("nan")
    inverse = np.linalg.inv(covariance)
    centre = np.median(colours, axis=0)
    for _ in range(_ITERATIONS):
        distance = colour_distance(colours, centre, covariance)
        weight = np.minimum(1.0, _HUBER / np.maximum(distance, 1e-12))
        weighted = weight[:, None, None] * inverse
        moved = np.linalg.solve(weighted.sum(axis=0), np.einsum("mkl,ml->k", weighted, colours))
        settled = np.abs(moved - centre).max() < 1e-6
        centre = moved
        if settled:
            break
    distance = colour_distance(colours, centre, covariance)
    return float(np.mean(np.exp(-0.5 * np.maximum(distance**2 - 1.0, 0.0))))
