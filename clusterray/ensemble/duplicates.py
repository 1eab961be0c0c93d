"""Pairs of cutouts that show the same thing: near-equal images, or a common origin."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clusterray.errors import InputError
from clusterray.schema import INJECTED_LENS, INJECTED_TWIN

__all__ = ["image_hashes", "image_pairs", "is_injected", "origin_pairs", "origins"]

_SIDE = 16
_WORDS = _SIDE * _SIDE // 32
_MAX_DIFFERENT = _WORDS - 1
_ALL_PAIRS = 200

Pairs = NDArray[np.int64]


def image_hashes(images: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.uint32]:
    """256 bits of each image: whether each of 16×16 blocks is brighter than its left neighbour.

    A difference hash: scale and offset of the fluxes do not matter, and noise of its own in a
    second image of the same object flips the few bits whose blocks are nearly equal.

    Parameters
    ----------
    images : (n, h, w), h and w ≥ 17; pixels that are not finite count as 0.

    Returns
    -------
    (n, 8) uint32.

    Raises
    ------
    InputError : another number of axes, or images too small.
    """
    if images.ndim != 3 or min(images.shape[1:]) <= _SIDE:
        raise InputError(f"images have shape {images.shape}, expected (n, h, w) with h, w ≥ 17")
    filled = np.nan_to_num(images.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    rows = _blocks(filled, _SIDE, axis=1)
    blocks = _blocks(rows, _SIDE + 1, axis=2)
    bits = np.diff(blocks, axis=2) > 0
    packed = np.packbits(bits.reshape(len(images), -1), axis=1)
    return np.ascontiguousarray(packed).view(np.uint32)


def _blocks(values: NDArray[np.float32], n: int, *, axis: int) -> NDArray[np.float32]:
    edges = np.linspace(0, values.shape[axis], n + 1).astype(np.int64)
    size = np.diff(edges).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = n
    total = np.add.reduceat(values, edges[:-1], axis=axis)
    return np.asarray(total / size.reshape(shape), np.float32)


def image_pairs(hashes: NDArray[np.uint32]) -> Pairs:
    """(k, 2) rows whose hashes differ in at most 7 of 256 bits.

    Seven differences leave one of the eight words equal, so only rows with an equal word are
    compared. Images without structure (all bits alike) are no duplicates of each other.
    """
    structured = np.flatnonzero(np.ptp(hashes, axis=1) > 0)
    found = [np.empty((0, 2), np.int64)]
    for word in range(hashes.shape[1]):
        values = hashes[structured, word]
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order])) + 1
        for group in np.split(structured[order], starts):
            found += list(_close(hashes, group))
    return np.unique(np.concatenate(found), axis=0)


def _close(hashes: NDArray[np.uint32], group: NDArray[np.int64]) -> Iterator[Pairs]:
    # Of a crowd all are compared with its first: what is alike is alike to that.
    firsts = group[:-1] if len(group) <= _ALL_PAIRS else group[:1]
    for i, first in enumerate(firsts):
        others = group[i + 1 :]
        different = np.bitwise_count(hashes[others] ^ hashes[first]).sum(axis=1)
        near = others[different <= _MAX_DIFFERENT]
        if len(near):
            pair = np.column_stack([np.full(len(near), first), near])
            yield np.sort(pair, axis=1)


def is_injected(object_id: str) -> bool:
    """Whether a row is a lens injected into a survey row, or its lens-off twin."""
    return object_id.endswith((INJECTED_LENS, INJECTED_TWIN))


def origins(object_id: Sequence[str]) -> list[str]:
    """The survey row (n,) that each row was made from: of a row that was not made, itself."""
    return [name.removesuffix(INJECTED_LENS).removesuffix(INJECTED_TWIN) for name in object_id]


def origin_pairs(origin: Sequence[str | None]) -> Pairs:
    """(k, 2) rows that were made from the same thing: an injection, its twin and its source.

    Parameters
    ----------
    origin : (n,) what each row was made from, e.g. by `origins`; None where nothing.
    """
    first: dict[str, int] = {}
    pairs = [
        (first[name], row)
        for row, name in enumerate(origin)
        if name is not None and first.setdefault(name, row) != row
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
