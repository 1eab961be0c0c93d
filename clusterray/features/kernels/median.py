"""Medians by counting: a few passes over integers, on whole vectors, and no sort."""

import numpy as np

from clusterray.features.kernels.compilation import RESUMMED, compiled

__all__ = ["KEY_PADDING", "patch_median"]

KEY_PADDING = 64
"""Keys are filled up to a multiple of this: whole vectors, four at a time."""

_HALF, _EIGHTH, _NARROW = np.float32(0.5), np.float32(0.125), np.float32(0.12)
_ROUNDING, _LARGEST = np.float32(1e-6), np.int32(2**31 - 1)


@compiled(RESUMMED)
def patch_median(scaled, usable, top, bottom, columns, count, mean, square, keys, out):
    """Median of the usable pixels of each patch of a row, NaN where there is none.

    Parameters
    ----------
    top, bottom, count, mean, square : as in `patch_moments`. keys : (h × w + 64,) int32 scratch.
    """
    bits = scaled.view(np.int32)
    guess = 0.0
    for j in range(len(columns) - 1):
        n, width = 0, columns[j + 1] - columns[j]
        whole = count[j] == (bottom - top) * width
        for y in range(top + 1, bottom + 1):
            row, mask = bits[y, columns[j] + 1 :], usable[y, columns[j] + 1 :]
            into = keys[n:]
            if whole:
                for x in range(width):
                    into[x] = _ordered(row[x])
                n += width
            else:
                for x in range(width):
                    keys[n] = _ordered(row[x])
                    n += np.int64(mask[x])
        spread = np.sqrt(square[j] / max(n, 1))
        out[j] = _median(keys, n, mean[j], spread, guess) if n else np.nan
        guess = out[j] if n else guess


@compiled()
def _ordered(bits):
    """Bits of a float32 to an integer of the same order, and back: its own inverse."""
    return bits ^ ((bits >> np.int32(31)) & _LARGEST)


@compiled()
def _median(keys, n, mean, spread, guess):
    """Median of the floats that the first n keys stand for, by counting how many lie below a pivot.

    It lies within one standard deviation of the mean, and in sky near the guess, from where steps
    of an eighth of the noise, then of twice as much, lead to it. Where the bracket is narrow, it
    shrinks to values that occur: in noise of eight steps to one of them.
    """
    keys = keys[: -(-n // KEY_PADDING) * KEY_PADDING]
    keys[n:] = _LARGEST
    slack = 1e-3 * spread + 1e-6 * abs(mean)
    low, high = np.float32(mean - spread - slack), np.float32(mean + spread + slack)
    rank, step = (n - 1) // 2, _EIGHTH
    pivot = np.float32(guess)
    # The second condition ends it where floats are further apart than that.
    while high - low > max(_NARROW, _ROUNDING * (abs(high) + abs(low))):
        pivot = min(max(pivot, low), high)
        if rank < _count(keys, _key(pivot)):
            high = pivot
            pivot = max(low + (high - low) * _HALF, high - step)
        else:
            low = pivot
            pivot = min(low + (high - low) * _HALF, low + step)
        step *= 2
    return _select(keys, _key(low), _key(high), rank, n % 2 == 0)


@compiled()
def _select(keys, low, high, rank, even):
    """The float of this rank, known to lie in a bracket; if even, the mean of it and the next."""
    n_at_high = 0
    if low < high:
        number, below, above = _around(keys, low)
        if rank < number:
            high, n_at_high = below, number
        else:
            # In eighths of the noise there is room for one value in the bracket.
            low, number = above, _count(keys, above)
            if rank < number:
                high, n_at_high = above, number
    while low < high:
        pivot = min(max(_key(_float(low) + (_float(high) - _float(low)) * _HALF), low), high - 1)
        number, below, above = _around(keys, pivot)
        if rank < number:
            high, n_at_high = below, number
        else:
            low = above
    if even and n_at_high <= rank + 1:
        number, _, above = _around(keys, low)
        if number <= rank + 1:
            return (_float(low) + _float(above)) * _HALF
    return _float(low)


@compiled()
def _count(keys, pivot):
    number = np.int32(0)
    for k in range(len(keys)):
        number += np.int32(1) if keys[k] <= pivot else np.int32(0)
    return number


@compiled()
def _key(value):
    return _ordered(np.float32(value).view(np.int32))


@compiled()
def _float(key):
    return np.int32(_ordered(key)).view(np.float32)


@compiled()
def _around(keys, pivot):
    """How many keys are at most the pivot, the largest of those, and the smallest of the rest."""
    number, below, above = np.int32(0), -_LARGEST, _LARGEST
    for k in range(len(keys)):
        key = keys[k]
        inside = key <= pivot
        number += np.int32(1) if inside else np.int32(0)
        below = max(below, key if inside else -_LARGEST)
        above = min(above, _LARGEST if inside else key)
    return number, below, above
