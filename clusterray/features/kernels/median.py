"""Medians by counting: a few passes over integers, on whole vectors, and no sort."""

import numpy as np

from clusterray.features.kernels.compilation import compiled

__all__ = ["KEY_PADDING", "patch_median"]

KEY_PADDING = 64
"""Keys are filled up to a multiple of this: whole vectors, four at a time."""

_HALF, _EIGHTH, _NARROW = np.float32(0.5), np.float32(0.125), np.float32(0.12)
_ROUNDING, _LARGEST = np.float32(1e-6), np.int32(2**31 - 1)
_SMALLEST = np.int32(1 - 2**31)
_MOST_COUNTS, _LEAST_COUNTS = np.int16(32767), np.int16(-32768)
_ONE, _ZERO, _ONE_SHORT, _ZERO_SHORT = np.int32(1), np.int32(0), np.int16(1), np.int16(0)
_SHORT_SUM = 16384
_NORMAL_DENSITY, _NEWTON_STEPS = 0.4, 5


@compiled()
def patch_median(stored, scaled, usable, top, bottom, columns, keys, sums):
    """Median of the usable pixels of each patch of a row, NaN where there is none.

    Parameters
    ----------
    stored : the pixels, step, per_noise and k of `fill_plane`, which has filled the planes.
    top, bottom, columns : as in `patch_moments`.
    keys : three arrays (h × w + 64,) of scratch, int16, int32 and float32.
    sums : (4, grid) number, mean and sum of squared deviations; the medians to fill.
    """
    pixels, step, per_noise, k = stored
    guess, guessed_count = 0.0, np.int64(0)
    for j in range(len(columns) - 1):
        first, width = columns[j], columns[j + 1] - columns[j]
        whole = sums[0, j] == (bottom - top) * width
        if k == 1 and step > np.float32(0.0):
            n = _gather(pixels, 0, usable, top, bottom, first, width, whole, keys[0])
            low, high = guessed_count, guessed_count
            if n:
                low, high = _median_counts(keys[0], n, guessed_count, step * per_noise)
            guessed_count = low
            # In this order the product is rounded as in the plane.
            lower = np.float32(low) * step * per_noise
            middle = (lower + np.float32(high) * step * per_noise) * _HALF
        else:
            n = _gather(scaled, 1, usable, top, bottom, first, width, whole, keys[2])
            spread = np.sqrt(sums[2, j] / max(n, 1))
            for x in range(n):
                keys[1][x] = _key(keys[2][x])
            middle = _median_keys(keys[1], n, sums[1, j], spread, guess) if n else np.float32(0.0)
        sums[3, j] = middle if n else np.nan
        guess = sums[3, j] if n else guess


@compiled()
def _gather(image, border, usable, top, bottom, first, width, whole, keys):
    """Put the usable pixels of a patch one after the other into `keys`; how many there are."""
    n = 0
    for y in range(top, bottom):
        row, mask = image[y + border, first + border :], usable[y + 1, first + 1 :]
        into = keys[n:]
        if whole:
            for x in range(width):
                into[x] = row[x]
            n += width
        else:
            m = 0
            for x in range(width):
                into[m] = row[x]
                m += np.int64(mask[x])
            n += m
    return n


@compiled()
def _median_counts(keys, n, guess, unit):
    """The two middle ones of n counts of a `unit` of the noise; one and the same if n is odd.

    Steps that suit the counts of noise lead there from a guess (Newton's method on their rank);
    in another image, halving what is left of the range does.
    """
    keys = keys[: -(-n // KEY_PADDING) * KEY_PADDING]
    keys[n:] = _MOST_COUNTS
    rank, density = (n - 1) // 2, n * _NORMAL_DENSITY * unit
    low, high = np.int64(_LEAST_COUNTS), np.int64(_MOST_COUNTS)
    pivot, steps = guess, 0
    below, upto = _ranks(keys, np.int16(pivot))
    while below > rank or upto <= rank:
        if below > rank:
            high = pivot - 1
        else:
            low = pivot + 1
        steps += 1
        if steps < _NEWTON_STEPS:
            step = (rank + 0.5 - 0.5 * (below + upto)) / density
            pivot = np.int64(min(max(pivot + np.rint(step), low), high))
        else:
            pivot = (low + high) // 2
        below, upto = _ranks(keys, np.int16(pivot))
    if n % 2 == 0 and upto == rank + 1:
        return pivot, np.int64(_least_above(keys, np.int16(pivot)))
    return pivot, pivot


@compiled()
def _ranks(keys, pivot):
    """How many keys lie below a pivot, and how many up to it; in counters as short as the keys."""
    below, upto = 0, 0
    for start in range(0, len(keys), _SHORT_SUM):
        part = keys[start : start + _SHORT_SUM]
        less, most = _ZERO_SHORT, _ZERO_SHORT
        for k in range(len(part)):
            less = np.int16(less + (_ONE_SHORT if part[k] < pivot else _ZERO_SHORT))
            most = np.int16(most + (_ONE_SHORT if part[k] <= pivot else _ZERO_SHORT))
        below += less
        upto += most
    return below, upto


@compiled()
def _least_above(keys, pivot):
    least = _MOST_COUNTS
    for k in range(len(keys)):
        least = min(least, keys[k] if keys[k] > pivot else _MOST_COUNTS)
    return least


@compiled()
def _median_keys(keys, n, mean, spread, guess):
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
        if rank < _count(keys, _key(np.float32(pivot))):
            high = pivot
            pivot = max(low + (high - low) * _HALF, high - step)
        else:
            low = pivot
            pivot = min(low + (high - low) * _HALF, low + step)
        step *= 2
    return _select(keys, _key(np.float32(low)), _key(np.float32(high)), rank, n % 2 == 0)


@compiled()
def _select(keys, low, high, rank, even):
    """The float of this rank, known to lie in a bracket; if even, the mean of it and the next."""
    n_at_high = 0
    if low < high:
        number, below, above = _around(keys, np.int32(low))
        if rank < number:
            high, n_at_high = below, number
        else:
            # In eighths of the noise there is room for one value in the bracket.
            low, number = above, _count(keys, above)
            if rank < number:
                high, n_at_high = above, number
    while low < high:
        pivot = min(max(_key(_float(low) + (_float(high) - _float(low)) * _HALF), low), high - 1)
        number, below, above = _around(keys, np.int32(pivot))
        if rank < number:
            high, n_at_high = below, number
        else:
            low = above
    if even and n_at_high <= rank + 1:
        number, _, above = _around(keys, np.int32(low))
        if number <= rank + 1:
            return (_float(low) + _float(above)) * _HALF
    return _float(low)


@compiled()
def _ordered(bits):
    """Bits of a float32 to an integer of the same order, and back: its own inverse."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & _LARGEST))


@compiled()
def _count(keys, pivot):
    number, pivot = _ZERO, np.int32(pivot)
    for k in range(len(keys)):
        number = np.int32(number + (_ONE if keys[k] <= pivot else _ZERO))
    return number


@compiled()
def _key(value):
    return _ordered(np.int32(np.float32(value).view(np.int32)))


@compiled()
def _float(key):
    return np.int32(_ordered(np.int32(key))).view(np.float32)


@compiled()
def _around(keys, pivot):
    """How many keys are at most the pivot, the largest of those, and the smallest of the rest."""
    number, below, above = _ZERO, _SMALLEST, _LARGEST
    for k in range(len(keys)):
        key = keys[k]
        inside = key <= pivot
        number = np.int32(number + (_ONE if inside else _ZERO))
        below = max(below, key if inside else _SMALLEST)
        above = min(above, _LARGEST if inside else key)
    return number, below, above
