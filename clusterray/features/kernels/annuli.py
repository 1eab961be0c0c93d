"""Sums over annuli, and the planes of what is bluer than the centre and of its edges.

An annulus is a list of runs of pixels: `runs` holds `starts` (annuli + 1,), where each annulus
begins in the list, and the row, first column and end of each run, as indices of planes.
"""

import numpy as np

from clusterray.features.kernels.compilation import RESUMMED, compiled

__all__ = [
    "annulus_counts",
    "annulus_moments",
    "annulus_products",
    "fill_alignment",
    "fill_residual",
    "fill_smoothed",
]

_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)


@compiled(RESUMMED)
def annulus_moments(scaled, limit, runs, out):
    """Sum, sum of squares and number of pixels above a limit, into `out` (3, annuli)."""
    starts, rows, first, end = runs
    for annulus in range(len(starts) - 1):
        total, square, bright = 0.0, 0.0, 0.0
        for k in range(starts[annulus], starts[annulus + 1]):
            row = scaled[rows[k]]
            a, b, c = _ZERO, _ZERO, _ZERO
            for x in range(first[k], end[k]):
                a += row[x]
                b += row[x] * row[x]
                c += _ONE if row[x] > limit else _ZERO
            total += a
            square += b
            bright += c
        out[0, annulus], out[1, annulus], out[2, annulus] = total, square, bright


@compiled(RESUMMED)
def annulus_counts(scaled, limit, runs, above, below):
    """Pixels above a limit and below its negative, into `above` and `below` (annuli,)."""
    starts, rows, first, end = runs
    for annulus in range(len(starts) - 1):
        above[annulus] = below[annulus] = 0.0
        for k in range(starts[annulus], starts[annulus + 1]):
            row = scaled[rows[k]]
            a, b = _ZERO, _ZERO
            for x in range(first[k], end[k]):
                a += _ONE if row[x] > limit else _ZERO
                b += _ONE if row[x] < -limit else _ZERO
            above[annulus] += a
            below[annulus] += b


@compiled(RESUMMED)
def annulus_products(one, other, runs, out):
    """Sum of the product of two planes over each annulus, into `out` (annuli,)."""
    starts, rows, first, end = runs
    for annulus in range(len(starts) - 1):
        out[annulus] = 0.0
        for k in range(starts[annulus], starts[annulus + 1]):
            f, g = one[rows[k]], other[rows[k]]
            total = _ZERO
            for x in range(first[k], end[k]):
                total += f[x] * g[x]
            out[annulus] += total


@compiled(RESUMMED)
def fill_residual(blue, red, both_blue, both_red, alpha, per_noise, out, mask):
    """(blue − alpha · red) · per_noise where both bands are usable, else 0; planes as elsewhere."""
    width = blue.shape[1] - 2
    for y in range(1, blue.shape[0] - 1):
        f, g, p, q = blue[y, 1:], red[y, 1:], both_blue[y, 1:], both_red[y, 1:]
        to, into = out[y, 1:], mask[y, 1:]
        for x in range(width):
            both = p[x] * q[x]
            into[x] = both
            to[x] = (f[x] - alpha * g[x]) * (per_noise * both)


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
