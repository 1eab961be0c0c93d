"""Pixels as noise-scaled integers in byte planes: what the `image` column of a shard holds.

Flux densities become int16 counts of a `step` that is a fraction of the noise (after Pence,
Seaman & White 2009, PASP 121, 414). Zig-zag then folds the sign into the lowest bit, so that a
sky pixel's upper byte is zero, and all lower bytes of a cutout go before all upper bytes: zstd
then reaches the entropy of the noise without knowing about pixels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from clusterray.compilation import njit
from clusterray.errors import InputError
from clusterray.schema import BLANK

__all__ = ["dequantise", "encode", "from_planes", "to_planes"]

_LARGEST = 32767
_COARSEST_STEPS_PER_SIGMA = 2
# Outside this range a step, or 32767 steps, is not a normal float32.
_SIGMA_RANGE_NJY = (1e-30, 1e30)


def encode(
    cutouts_nchw: npt.NDArray[Any], noise_sigma: npt.ArrayLike, *, steps_per_sigma: int = 8
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Quantise flux densities to int16 counts of a step per cutout and band.

    step = noise_sigma / steps_per_sigma, enlarged just as far as the brightest pixel needs but
    not beyond noise_sigma / 2. Pixels that are brighter still become ±32767 and are counted. No
    dither: with 8 steps per σ plain rounding (half to even) has a bias of 2e-5 step.

    Parameters
    ----------
    cutouts_nchw : (n, bands, h, w) flux density, nJy; NaN where there is no data.
    noise_sigma : (n, bands) noise of one pixel, nJy.
    steps_per_sigma : quantisation steps in one σ, 2 or more.

    Returns
    -------
    pixels : (n, bands, h, w) counts, −32768 where there is no data.
    step : (n, bands) nJy per count.
    clipped_fraction : (n, bands) share of all pixels that are brighter than can be held.

    Raises
    ------
    InputError : shapes that do not fit, a noise that is not finite and positive, infinite pixels.
    """
    cutouts = np.asarray(cutouts_nchw)
    if cutouts.ndim != 4 or cutouts.dtype.kind not in "fiu" or 0 in cutouts.shape[1:]:
        raise InputError(
            f"cutouts_nchw is {cutouts.dtype}{list(cutouts.shape)}, expected real numbers "
            "[objects, bands, height, width] in nJy"
        )
    sigma = _noise(noise_sigma, cutouts.shape[:2])
    if steps_per_sigma < _COARSEST_STEPS_PER_SIGMA:
        raise InputError(
            f"steps_per_sigma is {steps_per_sigma}, expected {_COARSEST_STEPS_PER_SIGMA} or more: "
            "coarser steps lose what the noise leaves of faint sources"
        )
    pixels = np.empty(cutouts.shape, np.int16)
    step = np.empty(sigma.shape, np.float32)
    clipped = np.empty(sigma.shape, np.float32)
    for i, image in enumerate(cutouts):
        peak = np.fmax.reduce(np.abs(image), axis=(1, 2), initial=0)
        if not np.isfinite(peak).all():
            band = int(np.flatnonzero(~np.isfinite(peak))[0])
            raise InputError(
                f"cutouts_nchw[{i}] has infinite pixels in band {band}; "
                "pixels without a value are NaN"
            )
        step[i] = np.clip(
            peak / _LARGEST, sigma[i] / steps_per_sigma, sigma[i] / _COARSEST_STEPS_PER_SIGMA
        )
        # float64, because a float32 quotient near 32767 is only good to 0.002 of a step.
        counts = np.rint(image / step[i].astype(np.float64)[:, None, None])
        clipped[i] = np.mean(np.abs(counts) > _LARGEST, axis=(1, 2))
        np.clip(counts, -_LARGEST, _LARGEST, out=counts)
        counts[np.isnan(counts)] = BLANK
        pixels[i] = counts
    return pixels, step, clipped


def _noise(noise_sigma: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    try:
        sigma = np.asarray(noise_sigma, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"noise_sigma is not numeric: {error}") from error
    if sigma.shape != shape:
        raise InputError(
            f"noise_sigma is {list(sigma.shape)}, expected {list(shape)}: "
            "one value per cutout and band, in nJy"
        )
    low, high = _SIGMA_RANGE_NJY
    bad = np.argwhere(~((sigma >= low) & (sigma <= high)))
    if len(bad):
        i, band = bad[0].tolist()
        raise InputError(
            f"noise_sigma[{i}, {band}] is {sigma[i, band]}, expected a finite number above 0 "
            f"({low:g} to {high:g} nJy); reject cutouts whose noise is not known"
        )
    return sigma.astype(np.float32)


def to_planes(pixels: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """Zig-zag counts and sort their bytes: per cutout all lower bytes, then all upper bytes.

    Parameters
    ----------
    pixels : (n, bands, h, w) counts.

    Returns
    -------
    (n, 2 · bands · h · w) bytes.
    """
    _require(pixels, np.int16, 4, "pixels")
    zigzag = ((pixels << 1) ^ (pixels >> 15)).astype("<u2", copy=False)
    width = _width(pixels.shape)
    pairs = zigzag.view(np.uint8).reshape(len(pixels), width // 2, 2)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1)).reshape(len(pixels), width)


def from_planes(
    planes: npt.NDArray[np.uint8],
    shape: tuple[int, int, int],
    *,
    out: npt.NDArray[np.int16] | None = None,
) -> npt.NDArray[np.int16]:
    """Restore counts from byte planes, the inverse of `to_planes`.

    Parameters
    ----------
    planes : (n, 2 · bands · h · w) bytes.
    shape : bands, h, w.
    out : (n, bands, h, w) C-contiguous array to fill; without it a new one.

    Returns
    -------
    (n, bands, h, w) counts.
    """
    _require(planes, np.uint8, 2, "planes")
    full = (len(planes), *shape)
    if planes.shape[1] != _width(full):
        raise InputError(
            f"planes hold {planes.shape[1]} bytes a cutout, expected {_width(full)} for "
            f"int16{list(shape)}"
        )
    pixels = _target(out, full, np.int16)
    _unshuffle(planes, pixels.reshape(len(planes), _width(full) // 2))
    return pixels


def dequantise(
    pixels: npt.NDArray[np.int16],
    step: npt.NDArray[np.float32],
    *,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Flux densities from counts: pixels × step, NaN where there is no data.

    Parameters
    ----------
    pixels : (n, bands, h, w) counts.
    step : (n, bands) nJy per count.
    out : (n, bands, h, w) C-contiguous array to fill; without it a new one.

    Returns
    -------
    (n, bands, h, w) flux density, nJy.
    """
    _require(pixels, np.int16, 4, "pixels")
    _require(step, np.float32, 2, "step")
    if step.shape != pixels.shape[:2]:
        raise InputError(f"step is {list(step.shape)}, expected {list(pixels.shape[:2])}")
    flux = _target(out, pixels.shape, np.float32)
    flat = (*step.shape, int(np.prod(pixels.shape[2:])))
    _scale(np.ascontiguousarray(pixels).reshape(flat), step, flux.reshape(flat))
    return flux


@njit(nogil=True)
def _unshuffle(planes, pixels):  # type: ignore[no-untyped-def]
    half = pixels.shape[1]
    for i in range(len(planes)):
        low = planes[i, :half]
        high = planes[i, half:]
        row = pixels[i]
        for k in range(half):
            z = np.uint16(low[k]) | (np.uint16(high[k]) << np.uint16(8))
            row[k] = np.int16(z >> np.uint16(1)) ^ np.int16(-np.int16(z & np.uint16(1)))


@njit(nogil=True)
def _scale(pixels, step, flux):  # type: ignore[no-untyped-def]
    blank = np.int16(BLANK)
    nothing = np.float32(np.nan)
    for i in range(pixels.shape[0]):
        for band in range(pixels.shape[1]):
            unit = step[i, band]
            counts = pixels[i, band]
            row = flux[i, band]
            for k in range(len(counts)):
                row[k] = nothing if counts[k] == blank else np.float32(counts[k]) * unit


def _width(shape: tuple[int, ...]) -> int:
    return 2 * shape[1] * shape[2] * shape[3]


def _require(array: npt.NDArray[Any], kind: type[np.generic], ndim: int, name: str) -> None:
    if array.dtype != kind or array.ndim != ndim:
        raise InputError(
            f"{name} is {array.dtype}{list(array.shape)}, expected {np.dtype(kind)} with "
            f"{ndim} axes"
        )


def _target(
    out: npt.NDArray[Any] | None, shape: tuple[int, ...], kind: type[np.generic]
) -> npt.NDArray[Any]:
    if out is None:
        return np.empty(shape, kind)
    if out.shape != shape or out.dtype != kind or not out.flags.c_contiguous:
        raise InputError(
            f"out is {out.dtype}{list(out.shape)}, expected C-contiguous "
            f"{np.dtype(kind)}{list(shape)}"
        )
    return out
