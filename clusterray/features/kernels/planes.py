"""From stored pixels to planes in units of the noise."""

import numpy as np

from clusterray.features.kernels.compilation import RESUMMED, compiled
from clusterray.schema import BLANK

__all__ = ["fill_plane"]

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@compiled(RESUMMED)
def fill_plane(pixels, step, per_noise, k, scaled, usable, wide):
    """Fill a plane with sums of k × k pixels times `per_noise`; usable where all k² pixels are.

    Where every pixel is usable, which is nearly always so, `usable` is left as it is.

    Parameters
    ----------
    pixels : (H, W) counts of `step`, or flux densities where `step` is 0; h = H // k, w = W // k,
        and what is left over lies at the edges.
    wide : (4, W) scratch.

    Returns
    -------
    Whether every pixel is usable.
    """
    height, width = scaled.shape[0] - 2, scaled.shape[1] - 2
    fast = step > _ZERO and k <= 2
    if fast and _least(pixels.reshape(-1)) > BLANK:
        for y in range(height):
            out = scaled[y + 1, 1 : width + 1]
            if k == 1:
                _scale(pixels[y], step, per_noise, out)
            else:
                _scale_pairs(pixels[2 * y], pixels[2 * y + 1], step, per_noise, out)
        return True
    top, left = (pixels.shape[0] - k * height) // 2, (pixels.shape[1] - k * width) // 2
    number = 0
    for y in range(height):
        rows = pixels[top + y * k : top + y * k + k]
        out, mask = scaled[y + 1, 1 : width + 1], usable[y + 1, 1 : width + 1]
        if fast and _least(rows.reshape(-1)) > BLANK:
            if k == 1:
                _scale(rows[0], step, per_noise, out)
            else:
                _scale_pairs(rows[0], rows[1], step, per_noise, out)
            mask[:] = _ONE
            number += width
        else:
            number += _row(rows, left, step, per_noise, out, mask, wide)
    return number == height * width


@compiled()
def _least(counts):
    least = np.int16(0)
    for x in range(len(counts)):
        least = min(least, np.int16(counts[x]))
    return least


@compiled()
def _scale(counts, step, per_noise, out):
    for x in range(len(out)):
        out[x] = np.float32(counts[x]) * step * per_noise


@compiled()
def _scale_pairs(one, two, step, per_noise, out):
    """Sums of 2 × 2 counts, each rounded as a flux density is, and added in the order of `_row`."""
    for x in range(len(out)):
        first = np.float32(one[2 * x]) * step + np.float32(two[2 * x]) * step
        second = np.float32(one[2 * x + 1]) * step + np.float32(two[2 * x + 1]) * step
        out[x] = (first + second) * per_noise


@compiled(RESUMMED)
def _row(pixels, left, step, per_noise, out, mask, wide):
    """Fill a row and its mask; how many usable pixels it has."""
    k = len(pixels)
    if k == 1:
        _decode(pixels[0], step, per_noise, out, mask)
    else:
        _sum_rows(pixels, step, wide)
        _sum_columns(wide[2, left:], k, per_noise, out)
        _mask_columns(wide[3, left:], k, out, mask)
    number = _ZERO
    for x in range(len(mask)):
        number += mask[x]
    return np.int64(number)


@compiled()
def _decode(pixels, step, per_noise, flux, good):
    """One image row times `per_noise`, zero where unusable, and its mask."""
    for x in range(len(flux)):
        value = np.float32(pixels[x])
        known = value != np.float32(BLANK) if step > _ZERO else value - value == _ZERO
        good[x] = _ONE if known else _ZERO
        flux[x] = (value * step if step > _ZERO else value) * per_noise if known else _ZERO


@compiled()
def _sum_rows(pixels, step, wide):
    flux, good, sums, whole = wide[0], wide[1], wide[2], wide[3]
    sums[:] = _ZERO
    whole[:] = _ONE
    for y in range(len(pixels)):
        _decode(pixels[y], step, _ONE, flux, good)
        for x in range(len(sums)):
            sums[x] += flux[x]
            whole[x] *= good[x]


@compiled()
def _sum_columns(sums, k, per_noise, out):
    """Sums over blocks of k columns, times `per_noise`."""
    if k == 2:
        for x in range(len(out)):
            out[x] = (sums[2 * x] + sums[2 * x + 1]) * per_noise
    else:
        for x in range(len(out)):
            total = _ZERO
            for dx in range(k):
                total += sums[k * x + dx]
            out[x] = total * per_noise


@compiled()
def _mask_columns(whole, k, out, mask):
    """Blocks of k columns are usable where all are; the others are set to zero."""
    for x in range(len(out)):
        if k == 2:
            good = whole[2 * x] * whole[2 * x + 1]
        else:
            good = _ONE
            for dx in range(k):
                good *= whole[k * x + dx]
        out[x] *= good
        mask[x] = good
