"""Everything that is measured on the pixels of a batch, one cutout after the other."""

import numpy as np

from clusterray.features.kernels.annuli import (
    annulus_counts,
    annulus_moments,
    annulus_products,
    fill_alignment,
    fill_residual,
    fill_smoothed,
)
from clusterray.features.kernels.compilation import compiled
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


@compiled()
def measure(pixels, step, noise, k, layout, limits, patch, pair, ring, ring_pair, residual, annuli):
    """Fill the statistics of each cutout of a batch.

    Parameters
    ----------
    pixels : (n, bands, H, W) int16 counts of `step` or float32 flux densities.
    step, noise : (n, bands) float32; step 0 where pixels are flux densities. noise of a pixel.
    k : pixels are summed over k × k blocks.
    layout : rows, columns of patches; runs of annuli; cosine and sine of twice the position
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
    wide = np.empty((4, pixels.shape[3]), np.float32)
    n_keys = height * width + KEY_PADDING
    keys = (np.empty(n_keys, np.int16), np.empty(n_keys, np.int32))
    for i in range(len(pixels)):
        complete = True
        for b in range(bands):
            per_noise = _ONE / (np.float32(k) * noise[i, b])
            whole = fill_plane(pixels[i, b], step[i, b], per_noise, k, scaled[b], usable[b], wide)
            which[b] = bands if whole else b
            stored, mask = (pixels[i, b], step[i, b], per_noise, k), usable[which[b]]
            _patches(stored, scaled[b], mask, whole, layout, limits, spare[5], keys, patch[i, b])
            if annuli:
                _annuli(scaled[b], mask, whole, layout[2], limits, ring[i, b])
            complete = complete and whole
        for b in range(bands - 1):
            one, two = usable[which[b]], usable[which[b + 1]]
            _pairs(scaled, one, two, b, complete, layout, patch[i], ring[i], pair[i], ring_pair[i])
        if annuli and bands > 1:
            one, two = usable[which[0]], usable[which[bands - 1]]
            _residual(scaled, one, two, complete, layout, limits, ring[i], spare, residual[i])


@compiled()
def _patches(stored, scaled, usable, whole, layout, limits, levels, keys, out):
    rows, columns = layout[0], layout[1]
    grid = len(columns) - 1
    scratch = np.empty((4, scaled.shape[1] - 2), np.float32)
    for i in range(len(rows) - 1):
        top, bottom = rows[i], rows[i + 1]
        o = out[:, i * grid : (i + 1) * grid]
        patch_moments(scaled, usable, whole, top, bottom, columns, scratch, o[0], o[1], o[2])
        patch_median(stored, scaled, usable, top, bottom, columns, keys, o)
        fill_levels(scaled, levels, top + 1, bottom + 1)
        patch_texture(levels, usable, whole, top, bottom, columns, scratch, o[4], o[5])
        patch_edge_share(scaled, usable, whole, limits[0], top, bottom, columns, scratch, o[6])


@compiled()
def _annuli(scaled, usable, whole, runs, limits, out):
    _count(usable, usable, whole, runs, out[0])
    annulus_moments(scaled, limits[1], runs, out[1:])


@compiled()
def _count(usable, other, complete, runs, out):
    if complete:
        starts, first, end = runs[0], runs[2], runs[3]
        for annulus in range(len(starts) - 1):
            out[annulus] = 0.0
            for k in range(starts[annulus], starts[annulus + 1]):
                out[annulus] += np.int64(end[k] - first[k])
    else:
        annulus_products(usable, other, runs, out)


@compiled()
def _pairs(scaled, p, q, b, complete, layout, patch, ring, pair, ring_pair):
    """Means over the pixels usable in both bands: those of the bands where all pixels are."""
    rows, columns, runs = layout[0], layout[1], layout[2]
    if complete:
        for one, into in ((patch, pair), (ring, ring_pair)):
            into[b, 0], into[b, 1], into[b, 2] = one[b, 0], one[b, 1], one[b + 1, 1]
        return
    scratch = np.empty((3, scaled.shape[2] - 2), np.float32)
    one, other = scaled[b], scaled[b + 1]
    grid = len(columns) - 1
    for i in range(len(rows) - 1):
        here = pair[b, :, i * grid : (i + 1) * grid]
        pair_means(one, other, p, q, rows[i], rows[i + 1], columns, scratch, here)
    annulus_products(p, q, runs, ring_pair[b, 0])
    annulus_products(one, q, runs, ring_pair[b, 1])
    annulus_products(p, other, runs, ring_pair[b, 2])


@compiled()
def _residual(scaled, p, q, complete, layout, limits, ring, spare, out):
    """Bright pixels and aligned edges of what is bluer than the centre."""
    runs, last = layout[2], len(scaled) - 1
    moments = np.empty((3, out.shape[1]))
    _count(p, q, complete, runs, out[0])
    blue, red = ring[0, 1, 0], ring[last, 1, 0]
    if not complete:
        annulus_products(scaled[0], q, runs, moments[0])
        annulus_products(p, scaled[last], runs, moments[1])
        blue, red = moments[0, 0], moments[1, 0]
    out[1:] = np.nan
    if not red > limits[3] * np.sqrt(out[0, 0]):
        return
    # Planes are in units of each band's noise, and so is α.
    alpha = np.float32(max(blue / red, 0.0))
    plane, mask, strength, radial = spare[0], spare[1], spare[2], spare[3]
    per_noise = _ONE / np.sqrt(_ONE + alpha * alpha)
    fill_residual(scaled[0], scaled[last], p, q, alpha, per_noise, plane, mask)
    annulus_moments(plane, limits[2], runs, moments)
    out[1] = moments[2]
    fill_alignment(plane, mask, complete, limits[0], layout[3], layout[4], strength, radial)
    annulus_products(strength, mask, runs, out[2])
    annulus_products(radial, mask, runs, out[3])
    smoothed = spare[4]
    fill_smoothed(plane, mask, smoothed)
    annulus_counts(smoothed, limits[2], runs, out[4], out[5])
