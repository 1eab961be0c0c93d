"""Statistics of one row of patches: moments, texture, edges, and means of two bands.

`top` and `bottom` are its first pixel row and the one after its last. One row of patches at a
time, because its pixels then stay in the nearest cache.
"""

import numpy as np

from clusterray.features.kernels.compilation import RESUMMED, compiled

__all__ = ["pair_means", "patch_edge_share", "patch_moments", "patch_texture"]

_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)


@compiled(RESUMMED)
def _per_patch(per_column, columns, out):
    """Add up the columns of each patch, in double precision."""
    for j in range(len(columns) - 1):
        total = 0.0
        for x in range(columns[j], columns[j + 1]):
            total += per_column[x]
        out[j] = total


@compiled(RESUMMED)
def patch_moments(scaled, usable, complete, top, bottom, columns, scratch, sums):
    """Number, mean and sum of squared deviations of the usable pixels of each patch, into `sums`.

    Two passes: one pass of sums and squares loses the noise under a bright sky. The mean is 0
    where there is no pixel. `complete` says that every pixel is usable.

    Returns
    -------
    Whether every pixel of these patches is usable.
    """
    count, mean, square = sums[0], sums[1], sums[2]
    number, total, centre = scratch[0], scratch[1], scratch[2]
    _column_sums(scaled, top, bottom, total)
    if complete:
        number[:] = np.float32(bottom - top)
    else:
        _column_sums(usable, top, bottom, number)
    _per_patch(number, columns, count)
    _per_patch(total, columns, mean)
    known = 0.0
    for j in range(len(columns) - 1):
        known += count[j]
        mean[j] /= max(count[j], 1.0)
        centre[columns[j] : columns[j + 1]] = np.float32(mean[j])
    whole = known == (bottom - top) * columns[-1]
    _column_scatter(scaled, usable, whole, top, bottom, centre, total)
    _per_patch(total, columns, square)
    return whole


@compiled(RESUMMED)
def _column_sums(plane, top, bottom, total):
    """Sum of each column, four rows at a time: to fetch the sums costs more than to add."""
    total[:] = _ZERO
    fours = top + (bottom - top) // 4 * 4
    for y in range(top + 1, fours + 1, 4):
        a, b, c, d = plane[y, 1:], plane[y + 1, 1:], plane[y + 2, 1:], plane[y + 3, 1:]
        for x in range(len(total)):
            total[x] += (a[x] + b[x]) + (c[x] + d[x])
    for y in range(fours + 1, bottom + 1):
        row = plane[y, 1:]
        for x in range(len(total)):
            total[x] += row[x]


@compiled(RESUMMED)
def _column_scatter(plane, usable, complete, top, bottom, centre, total):
    """Sum over each column of the squared deviation from `centre`."""
    total[:] = _ZERO
    fours = top + (bottom - top) // 4 * 4 if complete else top
    for y in range(top + 1, fours + 1, 4):
        a, b, c, d = plane[y, 1:], plane[y + 1, 1:], plane[y + 2, 1:], plane[y + 3, 1:]
        for x in range(len(total)):
            e, f, g, h = a[x] - centre[x], b[x] - centre[x], c[x] - centre[x], d[x] - centre[x]
            total[x] += (e * e + f * f) + (g * g + h * h)
    for y in range(fours + 1, bottom + 1):
        row, mask = plane[y, 1:], usable[y, 1:]
        for x in range(len(total)):
            off = row[x] - centre[x]
            total[x] += off * off * (_ONE if complete else mask[x])


@compiled(RESUMMED)
def patch_texture(levels, usable, complete, top, bottom, columns, scratch, contrast, homogeneity):
    """Co-occurrence contrast and homogeneity of all neighbours inside each patch, 0° and 90°.

    NaN where no two neighbours are usable.
    """
    inner = scratch[3]
    inner[:] = _ONE
    for j in range(1, len(columns)):
        inner[columns[j] - 1] = _ZERO
    for x in range(len(inner)):
        pairs = inner[x] * np.float32(bottom - top) + np.float32(bottom - top - 1)
        scratch[0, x] = pairs if complete else _ZERO
    scratch[1:3] = _ZERO
    # Below the last row lies another patch, or what an earlier image left there.
    paired = top + (bottom - top - 1) // 2 * 2 if complete else top
    for y in range(top + 1, paired + 1, 2):
        _two_rows_of_neighbours(levels[y : y + 3], inner, scratch)
    for y in range(paired + 1, bottom + 1):
        below, down = (y + 1, _ONE) if y < bottom else (y, _ZERO)
        _neighbours(
            levels[y], levels[below], usable[y], usable[below], complete, down, inner, scratch
        )
    sums = np.empty((3, len(columns) - 1))
    for k in range(3):
        _per_patch(scratch[k], columns, sums[k])
    for j in range(len(columns) - 1):
        contrast[j] = sums[1, j] / sums[0, j] if sums[0, j] else np.nan
        homogeneity[j] = sums[2, j] / sums[0, j] if sums[0, j] else np.nan


@compiled(RESUMMED)
def _two_rows_of_neighbours(levels, inner, sums):
    """As `_neighbours`, of two rows of usable pixels above a third, with one division."""
    p, q, r, squared, alike = levels[0, 1:], levels[1, 1:], levels[2, 1:], sums[1], sums[2]
    for x in range(len(inner)):
        a, b, c, d = p[x] - p[x + 1], p[x] - q[x], q[x] - q[x + 1], q[x] - r[x]
        a, b, c, d = a * a, b * b, c * c, d * d
        squared[x] += inner[x] * (a + c) + (b + d)
        a, b, c, d = _ONE + a, _ONE + b, _ONE + c, _ONE + d
        ab, cd = a * b, c * d
        # inner/a + 1/b + inner/c + 1/d
        alike[x] += ((inner[x] * b + a) * cd + (inner[x] * d + c) * ab) / (ab * cd)


@compiled(RESUMMED)
def _neighbours(row, below, usable, usable_below, complete, down, inner, sums):
    """Pairs of each pixel of a row with the next one and, if `down` is 1, with the one below."""
    row, below, p, q = row[1:], below[1:], usable[1:], usable_below[1:]
    number, squared, alike = sums[0], sums[1], sums[2]
    for x in range(len(inner)):
        here = inner[x] if complete else inner[x] * p[x] * p[x + 1]
        there = down if complete else down * p[x] * q[x]
        a, b = row[x] - row[x + 1], row[x] - below[x]
        a, b = a * a, b * b
        squared[x] += here * a + there * b
        # here/(1 + a) + there/(1 + b), with one division
        alike[x] += (here * (_ONE + b) + there * (_ONE + a)) / ((_ONE + a) * (_ONE + b))
    if not complete:
        for x in range(len(inner)):
            number[x] += inner[x] * p[x] * p[x + 1] + down * p[x] * q[x]


@compiled(RESUMMED)
def patch_edge_share(scaled, usable, complete, threshold, top, bottom, columns, scratch, share):
    """Share of pixels whose squared Sobel gradient exceeds the threshold, of those that have one.

    NaN where no pixel has a whole 3×3 neighbourhood.
    """
    height, width = scaled.shape[0] - 2, scaled.shape[1] - 2
    first, last = max(top, 1), min(bottom, height - 1)
    number, edges, whole = scratch[0], scratch[1], scratch[2]
    number[:] = np.float32(max(last - first, 0)) if complete else _ZERO
    edges[:] = _ZERO
    whole[:] = _ONE
    paired = first + max(last - first, 0) // 2 * 2 if complete else first
    for y in range(first, paired, 2):
        _two_rows_of_edges(scaled[y : y + 4], threshold, edges)
    for y in range(paired, last):
        if not complete:
            _whole(usable[y : y + 3], whole, number)
        _edges(scaled[y : y + 3], threshold, whole, edges)
    for x in (0, width - 1):
        number[x] = edges[x] = _ZERO
    sums = np.empty((2, len(columns) - 1))
    _per_patch(number, columns, sums[0])
    _per_patch(edges, columns, sums[1])
    for j in range(len(columns) - 1):
        share[j] = sums[1, j] / sums[0, j] if sums[0, j] else np.nan


@compiled(RESUMMED)
def _two_rows_of_edges(scaled, threshold, edges):
    """As `_edges`, of the two rows between four: half of what they fetch is the same."""
    a, b, c, d = scaled[0], scaled[1], scaled[2], scaled[3]
    for x in range(len(edges)):
        upper, lower = b[x + 2] - b[x], c[x + 2] - c[x]
        across = (a[x + 2] - a[x]) + lower + _TWO * upper
        along = (c[x] - a[x]) + (c[x + 2] - a[x + 2]) + _TWO * (c[x + 1] - a[x + 1])
        edge = _ONE if across * across + along * along > threshold else _ZERO
        across = upper + (d[x + 2] - d[x]) + _TWO * lower
        along = (d[x] - b[x]) + (d[x + 2] - b[x + 2]) + _TWO * (d[x + 1] - b[x + 1])
        edges[x] += edge + (_ONE if across * across + along * along > threshold else _ZERO)


@compiled(RESUMMED)
def _edges(scaled, threshold, whole, edges):
    """Add `whole` where the middle one of three rows has an edge."""
    a, b, c = scaled[0], scaled[1], scaled[2]
    for x in range(len(edges)):
        across = (a[x + 2] - a[x]) + (c[x + 2] - c[x]) + _TWO * (b[x + 2] - b[x])
        along = (c[x] - a[x]) + (c[x + 2] - a[x + 2]) + _TWO * (c[x + 1] - a[x + 1])
        edges[x] += whole[x] if across * across + along * along > threshold else _ZERO


@compiled(RESUMMED)
def _whole(usable, whole, number):
    """Where the nine pixels about the middle one of three rows are usable, and how often."""
    p, q, r = usable[0], usable[1], usable[2]
    for x in range(len(whole)):
        three = p[x] * p[x + 1] * p[x + 2] * q[x] * q[x + 1]
        whole[x] = three * q[x + 2] * r[x] * r[x + 1] * r[x + 2]
        number[x] += whole[x]


@compiled(RESUMMED)
def pair_means(one, other, usable, other_usable, top, bottom, columns, scratch, out):
    """Number, mean of one and mean of the other plane over the pixels of a patch usable in both.

    `out` is (3, grid); means are 0 where there is no pixel.
    """
    number, first, second = scratch[0], scratch[1], scratch[2]
    scratch[:3] = _ZERO
    for y in range(top + 1, bottom + 1):
        f, s, p, q = one[y, 1:], other[y, 1:], usable[y, 1:], other_usable[y, 1:]
        for x in range(len(number)):
            number[x] += p[x] * q[x]
            first[x] += f[x] * q[x]
            second[x] += s[x] * p[x]
    for k in range(3):
        _per_patch(scratch[k], columns, out[k])
    for j in range(len(columns) - 1):
        out[1, j] /= max(out[0, j], 1.0)
        out[2, j] /= max(out[0, j], 1.0)
