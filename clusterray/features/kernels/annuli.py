"""Sums over annuli, and the planes of what is bluer than the centre and of its edges.

An annulus is symmetric, so an image is first folded: values of the pixels that mirror each other
are added, into a flat quarter (⌈h/2⌉ · ⌈w/2⌉,) whose first row lies at the centre. `layout` is the
annulus of each of its pixels, where each annulus ends in it, and how many pixels each has.
"""

import numpy as np

from clusterray.features.kernels.compilation import RESUMMED, compiled

__all__ = [
    "annulus_sums",
    "fill_alignment",
    "fill_product",
    "fill_residual",
    "fill_smoothed",
    "fold_counts",
    "fold_moments",
    "fold_products",
]

_ZERO, _ONE, _TWO, _HALF = np.float32(0.0), np.float32(1.0), np.float32(2.0), np.float32(0.5)


@compiled(RESUMMED)
def annulus_sums(quarter, layout, out):
    """Sum over each annulus of a folded image, into `out` (annuli,); in double precision."""
    annuli, ends = layout[0], layout[1]
    for annulus in range(len(ends)):
        here, total = np.int32(annulus), 0.0
        for k in range(ends[annulus]):
            value = quarter[k]
            total += np.float64(value if annuli[k] == here else _ZERO)
        out[annulus] = total


@compiled(RESUMMED)
def fold_moments(scaled, limit, quarters):
    """Fold values, their squares, and ones where they exceed a limit above 0, into three quarters.

    `scaled` is a plane as elsewhere.
    """
    height, width = scaled.shape[0] - 2, scaled.shape[1] - 2
    columns = (width + 1) // 2
    for y in range((height + 1) // 2):
        a, b = _mirrored(scaled, y)
        first = y * columns
        total, square, bright = quarters[0, first:], quarters[1, first:], quarters[2, first:]
        for x in range(columns):
            # Unsigned: the compiled loop then need not ask for negative indices.
            m = np.uint64(width - 1 - x)
            p, q, r, s = a[x], a[m], b[x], b[m]
            total[x] = (p + q) + (r + s)
            square[x] = (p * p + q * q) + (r * r + s * s)
            upper = (_ONE if p > limit else _ZERO) + (_ONE if q > limit else _ZERO)
            lower = (_ONE if r > limit else _ZERO) + (_ONE if s > limit else _ZERO)
            bright[x] = upper + lower
        if width % 2:
            for k in range(3):
                quarters[k, first + columns - 1] *= _HALF


@compiled(RESUMMED)
def fold_counts(scaled, limit, quarters):
    """Fold ones where values exceed a limit above 0, and where they are below its negative."""
    height, width = scaled.shape[0] - 2, scaled.shape[1] - 2
    columns = (width + 1) // 2
    for y in range((height + 1) // 2):
        a, b = _mirrored(scaled, y)
        above, below = quarters[0, y * columns :], quarters[1, y * columns :]
        for x in range(columns):
            m = np.uint64(width - 1 - x)
            p, q, r, s = a[x], a[m], b[x], b[m]
            upper = (_ONE if p > limit else _ZERO) + (_ONE if q > limit else _ZERO)
            lower = (_ONE if r > limit else _ZERO) + (_ONE if s > limit else _ZERO)
            above[x] = upper + lower
            upper = (_ONE if p < -limit else _ZERO) + (_ONE if q < -limit else _ZERO)
            lower = (_ONE if r < -limit else _ZERO) + (_ONE if s < -limit else _ZERO)
            below[x] = upper + lower
        if width % 2:
            above[columns - 1] *= _HALF
            below[columns - 1] *= _HALF


@compiled(RESUMMED)
def fold_products(one, other, quarter):
    """Fold the product of two planes."""
    height, width = one.shape[0] - 2, one.shape[1] - 2
    columns = (width + 1) // 2
    for y in range((height + 1) // 2):
        a, b = _mirrored(one, y)
        c, d = _mirrored(other, y)
        out = quarter[y * columns :]
        for x in range(columns):
            m = np.uint64(width - 1 - x)
            out[x] = (a[x] * c[x] + a[m] * c[m]) + (b[x] * d[x] + b[m] * d[m])
        if width % 2:
            out[columns - 1] *= _HALF


@compiled()
def _mirrored(plane, y):
    """The two rows at a distance from the middle; the second is the border if they are the same."""
    height = plane.shape[0] - 2
    upper = (height + 1) // 2 - y
    lower = height + 1 - upper
    return plane[upper, 1:], plane[lower if lower > upper else 0, 1:]


@compiled(RESUMMED)
def fill_product(one, other, out):
    """The product of two planes."""
    for y in range(1, one.shape[0] - 1):
        f, g, to = one[y], other[y], out[y]
        for x in range(1, len(to) - 1):
            to[x] = f[x] * g[x]


@compiled(RESUMMED)
def fill_residual(blue, red, alpha, per_noise, mask, out):
    """(blue − alpha · red) · per_noise where the mask is 1, else 0; planes as elsewhere."""
    width = blue.shape[1] - 2
    for y in range(1, blue.shape[0] - 1):
        f, g, good, to = blue[y, 1:], red[y, 1:], mask[y, 1:], out[y, 1:]
        for x in range(width):
            to[x] = (f[x] - alpha * g[x]) * (per_noise * good[x])


@compiled(RESUMMED)
def fill_smoothed(scaled, usable, out):
    """Plane smoothed with [1 2 1] both ways, in units of the noise that white noise then has."""
    width = scaled.shape[1] - 2
    per_noise = _ONE / np.float32(6.0)
    for y in range(1, scaled.shape[0] - 1):
        a, b, c, mask, to = scaled[y - 1], scaled[y], scaled[y + 1], usable[y, 1:], out[y, 1:]
        for x in range(width):
            corners = (a[x] + a[x + 2]) + (c[x] + c[x + 2])
            sides = (a[x + 1] + c[x + 1]) + (b[x] + b[x + 2])
            total = corners + _TWO * sides + _TWO * _TWO * b[x + 1]
            to[x] = total * (per_noise * mask[x])


@compiled(RESUMMED)
def fill_alignment(scaled, usable, complete, threshold, cosine, sine, strength, radial):
    """Excess of the squared Sobel gradient over a threshold; its radial less its tangential part.

    Parameters
    ----------
    cosine, sine : (h, w) of twice the position angle about the centre.
    strength, radial : planes to fill; 0 below the threshold and beside unusable pixels, and
        without a jump at the threshold, so that no rounding error decides.
    """
    height, width = cosine.shape
    for y in range(1, height - 1):
        a, b, c = scaled[y], scaled[y + 1], scaled[y + 2]
        for x in range(width):
            across = (a[x + 2] - a[x]) + (c[x + 2] - c[x]) + _TWO * (b[x + 2] - b[x])
            along = (c[x] - a[x]) + (c[x + 2] - a[x + 2]) + _TWO * (c[x + 1] - a[x + 1])
            strength[y + 1, x + 1] = across * across + along * along
            radial[y + 1, x + 1] = (across * across - along * along) * cosine[y, x] + (
                _TWO * across * along
            ) * sine[y, x]
        strong, radially = strength[y + 1, 1:], radial[y + 1, 1:]
        _clear(usable[y : y + 3], complete, threshold, strong, radially, width)


@compiled(RESUMMED)
def _clear(usable, complete, threshold, strength, radial, width):
    """Weigh down to zero what is faint, at the edge, or beside an unusable pixel."""
    p, q, r = usable[0], usable[1], usable[2]
    for x in range(width):
        # 0/0 counts as faint: every comparison with NaN is false.
        excess = _ONE - threshold / strength[x]
        keep = excess if excess > _ZERO else _ZERO
        strength[x] *= keep
        radial[x] *= keep
    if not complete:
        for x in range(width):
            whole = p[x] * p[x + 1] * p[x + 2] * q[x] * q[x + 1]
            whole *= q[x + 2] * r[x] * r[x + 1] * r[x + 2]
            strength[x] *= whole
            radial[x] *= whole
    for x in (0, width - 1):
        strength[x] = radial[x] = _ZERO
