"""Everything that is measured on the pixels of a batch, one cutout after the other."""

import numpy as np

from clusterray.features.kernels.annuli import (
    annulus_sums,
    fill_alignment,
    fill_product,
    fill_residual,
    fill_smoothed,
    fold_counts,
    fold_moments,
    fold_products,
)
from clusterray.features.kernels.compilation import RESUMMED, compiled
from clusterray.features.kernels.levels import fill_levels
from clusterray.features.kernels.median import KEY_PADDING, patch_median
from clusterray.features.kernels.patches import (
    pair_means,
    patch_edge_share,
    patch_moments,
    patch_texture,
)
from clusterray.features.kernels.planes import fill_plane

__all__ = ["measure"]

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@compiled(entry=True)
def measure(pixels, step, noise, k, layout, limits, patch, pair, ring, ring_pair, residual, annuli):
    """Fill the statistics of each cutout of a batch.

    Parameters
    ----------
    pixels : (n, bands, H, W) int16 counts of `step` or float32 flux densities.
    step, noise : (n, bands) float32; step 0 where pixels are flux densities. noise of a pixel.
    k : pixels are summed over k × k blocks.
    layout : rows, columns of patches; those of the annuli; cosine and sine of twice the position
        angle of each pixel; see the loops that take them.
    limits : squared Sobel gradient of an edge, σ above which a pixel is bright, σ of the residual,
        S/N of the red light of the innermost circle that a residual needs.
    patch : (n, bands, 7, patches) number, mean, sum of squared deviations, median, contrast,
        homogeneity, edge share.
    pair : (n, bands − 1, 3, patches) number, mean of the bluer, mean of the redder band.
    ring : (n, bands, 4, annuli) number, sum, sum of squares, number of bright pixels.
    ring_pair : (n, bands − 1, 3, annuli) number, sum of the bluer, sum of the redder band.
    residual : (n, 6, annuli) number, bright pixels of the blue residual, squared gradient of its
        edges, radial less tangential part of that, pixels above and below the limit after
        smoothing; NaN where the centre's colour is not known.
    annuli : whether to fill the last three at all.
    """
    bands, height, width = pixels.shape[1], layout[3].shape[0], layout[3].shape[1]
    scaled = np.zeros((bands, height + 2, width + 2), np.float32)
    # The last one is that of all bands whose pixels can all be used.
    usable = np.zeros((bands + 1, height + 2, width + 2), np.float32)
    usable[bands, 1:-1, 1:-1] = _ONE
    which = np.empty(bands, np.int64)
    # One for each use: what a loop does not write, such as borders, must stay zero.
    spare = np.zeros((6, height + 2, width + 2), np.float32)
    quarters = np.empty((3, len(layout[2][0])), np.float32)
    wide = np.empty((4, pixels.shape[3]), np.float32)
    n_keys = height * width + KEY_PADDING
    keys = (np.empty(n_keys, np.int16), np.empty(n_keys, np.int32), np.empty(n_keys, np.float32))
    for i in range(len(pixels)):
        n_whole = 0
        for b in range(bands):
            per_noise = _ONE / (np.float32(k) * noise[i, b])
            whole = fill_plane(pixels[i, b], step[i, b], per_noise, k, scaled[b], usable[b], wide)
            which[b] = bands if whole else b
            stored, mask = (pixels[i, b], step[i, b], per_noise, k), usable[which[b]]
            _patches(stored, scaled[b], mask, whole, layout, limits, spare[5], keys, patch[i, b])
            if annuli:
                _annuli(scaled[b], mask, whole, layout[2], limits, quarters, ring[i, b])
            n_whole += np.int64(whole)
        complete = n_whole == bands
        for b in range(bands - 1):
            one, two = usable[which[b]], usable[which[b + 1]]
            sums = (patch[i], ring[i], pair[i], ring_pair[i])
            _pairs(scaled, one, two, b, complete, layout, quarters[0], sums)
        if annuli and bands > 1:
            one, two = usable[which[0]], usable[which[bands - 1]]
            planes = (scaled[0], scaled[bands - 1], one, two)
            moments = (ring[i, 0], ring[i, bands - 1])
            _residual(planes, complete, layout, limits, moments, spare, quarters, residual[i])


@compiled(RESUMMED)
def _patches(stored, scaled, usable, whole, layout, limits, levels, keys, out):
    rows, columns = layout[0], layout[1]
    grid = len(columns) - 1
    scratch = np.empty((4, scaled.shape[1] - 2), np.float32)
    for i in range(len(rows) - 1):
        top, bottom = rows[i], rows[i + 1]
        o = out[:, i * grid : (i + 1) * grid]
        here = patch_moments(scaled, usable, whole, top, bottom, columns, scratch, o)
        patch_median(stored, scaled, usable, top, bottom, columns, keys, o)
        fill_levels(scaled, levels, top + 1, bottom + 1, 1)
        patch_texture(levels, usable, here, top, bottom, columns, scratch, o[4], o[5])
        patch_edge_share(scaled, usable, whole, limits[0], top, bottom, columns, scratch, o[6])


@compiled(RESUMMED)
def _annuli(scaled, usable, whole, layout, limits, quarters, out):
    _count(usable, usable, whole, layout, quarters[0], out[0])
    fold_moments(scaled, limits[1], quarters)
    for k in range(3):
        annulus_sums(quarters[k], layout, out[1 + k])


@compiled(RESUMMED)
def _count(usable, other, complete, layout, quarter, out):
    if complete:
        for annulus in range(len(out)):
            out[annulus] = layout[2][annulus]
    else:
        _products(usable, other, layout, quarter, out)


@compiled(RESUMMED)
def _products(one, other, layout, quarter, out):
    fold_products(one, other, quarter)
    annulus_sums(quarter, layout, out)


@compiled(RESUMMED)
def _pairs(scaled, p, q, b, complete, layout, quarter, sums):
    """Means over the pixels usable in both bands: those of the bands where all pixels are."""
    rows, columns, annuli = layout[0], layout[1], layout[2]
    patch, ring, pair, ring_pair = sums
    if complete:
        for of_band, of_pair in ((patch, pair), (ring, ring_pair)):
            # One by one: Numba takes seconds to compile what assigns an array to another.
            for j in range(of_pair.shape[2]):
                of_pair[b, 0, j] = of_band[b, 0, j]
                of_pair[b, 1, j] = of_band[b, 1, j]
                of_pair[b, 2, j] = of_band[b + 1, 1, j]
        return
    scratch = np.empty((3, scaled.shape[2] - 2), np.float32)
    one, other = scaled[b], scaled[b + 1]
    grid = len(columns) - 1
    for i in range(len(rows) - 1):
        here = pair[b, :, i * grid : (i + 1) * grid]
        pair_means(one, other, p, q, rows[i], rows[i + 1], columns, scratch, here)
    _products(p, q, annuli, quarter, ring_pair[b, 0])
    _products(one, q, annuli, quarter, ring_pair[b, 1])
    _products(p, other, annuli, quarter, ring_pair[b, 2])


@compiled(RESUMMED)
def _residual(planes, complete, layout, limits, moments, spare, quarters, out):
    """Bright pixels and aligned edges of what is bluer than the centre."""
    blue, red, p, q = planes
    annuli, mask = layout[2], p
    _count(p, q, complete, annuli, quarters[0], out[0])
    blue_sum, red_sum = moments[0][1, 0], moments[1][1, 0]
    if not complete:
        # The next two rows of `out` are free until they get their own.
        _products(blue, q, annuli, quarters[0], out[1])
        _products(p, red, annuli, quarters[0], out[2])
        blue_sum, red_sum = out[1, 0], out[2, 0]
        mask = spare[1]
        fill_product(p, q, mask)
    if not red_sum > limits[3] * np.sqrt(out[0, 0]):
        out[1:] = np.nan
        return
    # Planes are in units of each band's noise, and so is α.
    alpha = np.float32(max(blue_sum / red_sum, 0.0))
    plane, strength, radial, smoothed = spare[0], spare[2], spare[3], spare[4]
    fill_residual(blue, red, alpha, _ONE / np.sqrt(_ONE + alpha * alpha), mask, plane)
    fold_counts(plane, limits[2], quarters)
    annulus_sums(quarters[0], annuli, out[1])
    fill_alignment(plane, mask, complete, limits[0], layout[3], layout[4], strength, radial)
    _products(strength, mask, annuli, quarters[0], out[2])
    _products(radial, mask, annuli, quarters[0], out[3])
    fill_smoothed(plane, mask, smoothed)
    fold_counts(smoothed, limits[2], quarters)
    annulus_sums(quarters[0], annuli, out[4])
    annulus_sums(quarters[1], annuli, out[5])
