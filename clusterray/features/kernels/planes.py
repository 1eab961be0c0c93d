"""From stored pixels to planes in units of the noise."""

import numpy as np

from clusterray.features.kernels.compilation import RESUMMED, compiled
from clusterray.schema import BLANK

__all__ = ["fill_plane"]

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@compiled(RESUMMED)
def fill_plane(pixels, step, per_noise, k, scaled, usable, wide):
    """Fill a plane with sums of k × k pixels times `per_noise`; usable where all k² pixels are.

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
    top, left = (pixels.shape[0] - k * height) // 2, (pixels.shape[1] - k * width) // 2
    number = 0
    for y in range(height):
        out, mask = scaled[y + 1, 1 : width + 1], usable[y + 1, 1 : width + 1]
        if k == 1:
            _decode(pixels[y], step, per_noise, out, mask)
        else:
            _sum_rows(pixels[top + y * k : top + y * k + k], step, wide)
            _sum_columns(wide[2, left:], wide[3, left:], k, per_noise, out, mask)
        good = _ZERO
        for x in range(width):
            good += mask[x]
        number += np.int64(good)
    return number == height * width


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
def _sum_columns(sums, whole, k, per_noise, out, mask):
    if k == 2:
        for x in range(len(out)):
            both = whole[2 * x] * whole[2 * x + 1]
            out[x] = (sums[2 * x] + sums[2 * x + 1]) * (per_noise * both)
            mask[x] = both
    else:
        for x in range(len(out)):
            total, both = _ZERO, _ONE
            for dx in range(k):
                total += sums[k * x + dx]
                both *= whole[k * x + dx]
            out[x], mask[x] = total * (per_noise * both), both
