"""Folds that leak nothing: whole sky cells, duplicates together, known lenses spread evenly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy_healpix import HEALPix
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from clusterray.errors import InputError
from clusterray.provenance import uniform_for
from clusterray.pu.labelling import check_finite, check_fraction, check_labels

__all__ = ["HELD_OUT", "Folds", "assign", "sky_groups"]

HELD_OUT = -1
"""The fold of rows kept for the calibrator."""


@dataclass(frozen=True)
class Folds:
    """`fold` (n,) is 0 … n_folds − 1, or `HELD_OUT`; `notes` says what had to be given up."""

    fold: NDArray[np.int8]
    n_folds: int
    notes: tuple[str, ...] = ()


def sky_groups(
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    *,
    nside: int,
    duplicate_arcsec: float = 2.0,
    same: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Group number of each position: its HEALPix cell (nested), duplicates together.

    Objects that are linked by separations below `duplicate_arcsec`, or by `same`, share the lowest
    of their cells, so that a pair astride a border stays whole without joining the two cells.

    Parameters
    ----------
    ra_deg, dec_deg : (n,) ICRS.
    nside : a power of two; 64 makes cells of 55 arcmin.
    same : (k, 2) rows that show one thing, e.g. from `duplicates`.

    Raises
    ------
    InputError : positions that are not finite or not on the sky, an nside that is no power of
        two, or pairs of rows that are not there.
    """
    ra = check_finite(ra_deg, shape=(None,), where="ra_deg")
    dec = check_finite(dec_deg, shape=(len(ra),), where="dec_deg")
    if np.abs(dec).max() > 90.0:
        raise InputError(f"dec_deg reaches {dec[np.abs(dec).argmax()]}, expected −90 to 90")
    if nside < 1 or nside & (nside - 1):
        raise InputError(f"nside is {nside}, expected a power of two such as 64")
    cell = np.asarray(
        HEALPix(nside=nside, order="nested").lonlat_to_healpix(ra * u.deg, dec * u.deg)
    )
    lon, lat = np.radians(ra), np.radians(dec)
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chord = 2.0 * np.sin(np.radians(duplicate_arcsec / 3600.0) / 2.0)
    pairs = cKDTree(xyz).query_pairs(chord, output_type="ndarray")
    if same is not None:
        pairs = np.concatenate([pairs.reshape(-1, 2), _checked_pairs(same, len(ra))])
    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), (len(ra),) * 2)
    n_objects, which = connected_components(links, directed=False)
    lowest: NDArray[np.int64] = np.full(n_objects, np.iinfo(np.int64).max)
    np.minimum.at(lowest, which, cell)
    return np.asarray(lowest[which])


def _checked_pairs(same: ArrayLike, n_rows: int) -> NDArray[np.int64]:
    pairs = np.asarray(same)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise InputError(f"same is {pairs.dtype} of shape {pairs.shape}, expected rows (k, 2)")
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= n_rows):
        raise InputError(f"same names rows {pairs.min()} to {pairs.max()} of {n_rows}")
    return pairs.astype(np.int64)


def assign(
    object_id: Sequence[str] | NDArray[np.str_],
    groups: ArrayLike,
    s: ArrayLike,
    *,
    n_folds: int,
    holdout_fraction: float,
    seed: int,
) -> Folds:
    """Spread whole groups over the held-out set and the folds, alike in every kind of label.

    Groups with known lenses go first, then those with known non-lenses, then the rest, in an
    order drawn from (seed, group); each goes where its kind of row is most wanting. No set
    is left without a known lens: where too few groups hold one, there are fewer folds, which
    `notes` says. The result does not depend on the order of the rows.

    Parameters
    ----------
    object_id : (n,) unique names, for errors.
    groups : (n,) group of each row, e.g. from `sky_groups`.
    s : (n,) labels 1, 0, −1.
    holdout_fraction : share of rows and of known lenses that is held out.

    Raises
    ------
    InputError : shapes that differ, a repeated object_id, labels that are none, fewer than 2 folds,
        or known lenses in fewer than three groups.
    """
    names = np.asarray(object_id, dtype=str)
    unique, counts = np.unique(names, return_counts=True)
    if len(unique) < len(names):
        raise InputError(
            f"object_id '{unique[counts > 1][0]}' stands {counts.max()} times, expected once"
        )
    labels = check_labels(s, n_rows=len(names), where="folds")
    key, member = np.unique(np.asarray(groups), return_inverse=True)
    if member.shape != labels.shape:
        raise InputError(f"groups have shape {member.shape}, expected {labels.shape}")
    check_fraction(holdout_fraction, name="holdout_fraction")
    if not 2 <= n_folds <= 127:
        raise InputError(f"n_folds is {n_folds}, expected 2 to 127")
    # (groups, 3): known lenses, known non-lenses, rows.
    content = np.stack(
        [np.bincount(member, labels == 1), np.bincount(member, labels == -1), np.bincount(member)],
        axis=1,
    ).astype(np.int64)
    k, notes = _possible_folds(n_folds, int(np.sum(content[:, 0] > 0)), int(content[:, 0].sum()))
    share = np.array([holdout_fraction, *([(1.0 - holdout_fraction) / k] * k)])
    bins = np.empty(len(key), np.int8)
    for group, chosen in _spread(content, share, _drawn_order(key, content, seed)):
        bins[group] = chosen
    return Folds(fold=(bins - 1)[member].astype(np.int8), n_folds=k, notes=notes)


def _possible_folds(n_folds: int, n_groups: int, n_positive: int) -> tuple[int, tuple[str, ...]]:
    """Folds that leave each of them and the held-out set at least one group with a known lens."""
    if n_groups < 3:
        raise InputError(
            f"{n_positive} known lenses lie in {n_groups} sky groups; out-of-fold training needs "
            "them in at least 3 (two folds and the held-out set): add known lenses, or make the "
            "cells smaller (raise train.nside)"
        )
    k = min(n_folds, n_groups - 1)
    if k == n_folds:
        return k, ()
    return k, (
        f"{k} folds instead of {n_folds}: {n_positive} known lenses lie in {n_groups} sky groups",
    )


def _drawn_order(key: NDArray[np.generic], content: NDArray[np.int64], seed: int) -> list[int]:
    """Groups in the order they are placed: by kind of label, the fullest first, ties drawn."""
    drawn = uniform_for(seed, [str(k) for k in key.tolist()], purpose="folds")
    size = np.where(content[:, 0] > 0, content[:, 0], content[:, 2])
    kind = np.where(content[:, 0] > 0, 0, np.where(content[:, 1] > 0, 1, 2))
    return [int(i) for i in np.lexsort((np.asarray(drawn), -size, kind))]


def _spread(
    content: NDArray[np.int64], share: NDArray[np.float64], order: list[int]
) -> Iterator[tuple[int, int]]:
    """(group, set) pairs: the set that lacks most of what the group brings, by its share."""
    missing = share[:, None] * content.sum(axis=0)
    empty = np.ones(len(share), bool)
    left = int(np.sum(content[:, 0] > 0))
    for group in order:
        kind = int(np.argmax(content[group] > 0))
        lack = missing[:, kind].copy()
        if kind == 0:
            if left <= empty.sum():
                lack[~empty] = -np.inf
            left -= 1
        chosen = int(np.argmax(lack))
        empty[chosen] &= kind != 0
        missing[chosen] -= content[group]
        yield group, chosen
