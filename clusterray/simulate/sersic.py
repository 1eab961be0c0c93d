"""Sérsic profiles integrated over pixels, unlensed or through a source plane.

lenstronomy's `SERSIC_ELLIPSE` (geometric-mean radius, b_n, normalisation) as compiled loops: they
sample each pixel as finely as the profile bends there, and add every band at once. Tests compare
them with lenstronomy.
"""

from typing import Final

import numpy as np
from lenstronomy.LightModel.Profiles.sersic import SersicElliptic
from numpy.typing import NDArray
from scipy.special import gamma, gammainc

from clusterray.compilation import njit
from clusterray.simulate.galaxies import Galaxies
from clusterray.simulate.lensing import LensPlane

__all__ = ["TRUNCATION", "add_galaxies", "add_lensed", "amplitudes", "reach_arcsec"]

Floats = NDArray[np.float64]
Canvas = NDArray[np.float32]
TRUNCATION: Final = 8.0
"""Profiles end at this many effective radii; all of the flux lies inside."""
_FADES_FROM: Final = 4.0
"""They fade from here, for an edge would show around bright galaxies."""
_FADE_AT, _FADE_WEIGHT = np.polynomial.legendre.leggauss(24)
_LENSTRONOMY: Final = SersicElliptic()
# A part of a sample is this small against its distance from the centre, or against r_eff.
_FINENESS: Final = 0.3
_SMALLEST: Final = 0.01
_LEAST_SIDE: Final = 1 / 64
_STACK: Final = 32
_BLOCK: Final = 8


def reach_arcsec(galaxies: Galaxies) -> Floats:
    """(n,) distance from its centre at which a galaxy ends."""
    return np.asarray(TRUNCATION * galaxies.r_eff_arcsec / np.sqrt(galaxies.axis_ratio))


def amplitudes(galaxies: Galaxies) -> Floats:
    """(n,) surface brightness at r_eff, per square arcsec, of galaxies of unit flux.

    The share of a whole Sérsic profile's flux that is left is the incomplete gamma function where
    it does not fade (Graham & Driver 2005, eq. 2), and Gauss–Legendre beyond.
    """
    n, b_n = galaxies.n_sersic, _b_n(galaxies)
    total = np.array(
        [
            _LENSTRONOMY.total_flux(1.0, float(r), float(v))
            for r, v in zip(galaxies.r_eff_arcsec, n, strict=True)
        ]
    )
    half = (TRUNCATION - _FADES_FROM) / 2
    x = _FADES_FROM + half * (1 + _FADE_AT[:, None])
    faded = (
        np.cos(np.pi / 2 * (x - _FADES_FROM) / (2 * half)) ** 2 * x * np.exp(-b_n * x ** (1 / n))
    )
    whole = n * b_n ** (-2 * n) * gamma(2 * n)
    inside = gammainc(2 * n, b_n * _FADES_FROM ** (1 / n))
    inside += half * (_FADE_WEIGHT[:, None] * faded).sum(axis=0) / whole
    return np.asarray(1 / (total * inside))


def _b_n(galaxies: Galaxies) -> Floats:
    return np.array([_LENSTRONOMY.b_n(float(v)) for v in galaxies.n_sersic])


def _shapes(galaxies: Galaxies) -> Floats:
    """(n, 9): x, y, cos, sin, √q, r_eff, 1/n, b_n, surface brightness at r_eff of unit flux."""
    return np.column_stack(
        [
            galaxies.x_arcsec,
            galaxies.y_arcsec,
            np.cos(galaxies.angle_rad),
            np.sin(galaxies.angle_rad),
            np.sqrt(galaxies.axis_ratio),
            galaxies.r_eff_arcsec,
            1 / galaxies.n_sersic,
            _b_n(galaxies),
            amplitudes(galaxies),
        ]
    )


def add_galaxies(canvas: Canvas, galaxies: Galaxies, flux: Floats, *, step_arcsec: float) -> None:
    """Add unlensed galaxies to a canvas; what falls off its edge is lost.

    Parameters
    ----------
    canvas : (bands, rows, columns) flux per sample; offsets count from its outer corner.
    flux : (n, bands) total flux of each galaxy.
    step_arcsec : side of a sample.
    """
    _add_galaxies(
        canvas, _shapes(galaxies), reach_arcsec(galaxies), flux.astype(np.float32), step_arcsec
    )


def add_lensed(canvas: Canvas, plane: LensPlane, galaxies: Galaxies, flux: Floats) -> None:
    """Add lensed galaxies: surface brightness is conserved, and one deflection serves all bands.

    Each is deflected as its redshift demands; what is not behind the lens, not at all. Inside a
    sample β is taken as linear.

    Parameters
    ----------
    canvas : (bands, n, n) flux per sample, on the plane's own grid.
    flux : (n, bands) *unlensed* total flux of each galaxy.
    """
    _add_lensed(
        canvas,
        plane.axis_arcsec,
        plane.alpha_arcsec,
        plane.gradient,
        np.array([plane.scale(float(z)) for z in galaxies.z]),
        _shapes(galaxies),
        reach_arcsec(galaxies),
        flux.astype(np.float32),
    )


@njit(fastmath=True, inline="always")
def _brightness(dx, dy, shape) -> float:  # type: ignore[no-untyped-def]
    major = dx * shape[2] + dy * shape[3]
    minor = dy * shape[2] - dx * shape[3]
    u, v = major * shape[4], minor / shape[4]
    radius = np.sqrt(u * u + v * v) / shape[5]
    if radius > TRUNCATION:
        return 0.0
    light = shape[8] * np.exp(-shape[7] * (radius ** shape[6] - 1.0))
    if radius > _FADES_FROM:
        fade = np.cos(0.5 * np.pi * (radius - _FADES_FROM) / (TRUNCATION - _FADES_FROM))
        light *= fade * fade
    return float(light)


@njit(fastmath=True)
def _in_cell(x, y, a, b, c, d, shape, stack) -> float:  # type: ignore[no-untyped-def]
    """Mean surface brightness over a parallelogram about (x, y) with the sides (a, c) and (b, d).

    It is quartered until each part is small against its distance from the galaxy's centre, where
    profiles have a cusp, on the scale of the shorter axis, and then sampled at its middle.
    """
    # An ellipse of axis ratio q is √q narrower across than on the mean of its axes.
    widest = np.sqrt(max(a * a + c * c, b * b + d * d)) / shape[4]
    least = _SMALLEST * shape[5]
    stack[0, 0], stack[0, 1], stack[0, 2] = 0.0, 0.0, 1.0
    n, light = 1, 0.0
    while n > 0:
        n -= 1
        u, v, side = stack[n, 0], stack[n, 1], stack[n, 2]
        dx, dy = x + a * u + b * v, y + c * u + d * v
        major = (dx * shape[2] + dy * shape[3]) * shape[4]
        minor = (dy * shape[2] - dx * shape[3]) / shape[4]
        fine = _FINENESS * np.sqrt(major * major + minor * minor) + least
        if side * widest > fine and side > _LEAST_SIDE:
            for k in range(4):
                stack[n + k, 0] = u + (0.25 if k % 2 else -0.25) * side
                stack[n + k, 1] = v + (0.25 if k // 2 else -0.25) * side
                stack[n + k, 2] = 0.5 * side
            n += 4
        else:
            light += side * side * _brightness(dx, dy, shape)
    return float(light)


@njit(fastmath=True)
def _add_galaxies(canvas, shapes, reach, flux, step) -> None:  # type: ignore[no-untyped-def]
    bands, rows, columns = canvas.shape
    stack = np.empty((_STACK, 3))
    for g in range(shapes.shape[0]):
        shape = shapes[g]
        first_i = int(np.floor((shape[0] - reach[g]) / step))
        last_i = int(np.floor((shape[0] + reach[g]) / step))
        first_j = int(np.floor((shape[1] - reach[g]) / step))
        last_j = int(np.floor((shape[1] + reach[g]) / step))
        # Small galaxies, whose cores no sampling resolves, get exactly their flux.
        whole = shape[5] < 6.0 * step
        if not whole:
            first_i, last_i = max(first_i, 0), min(last_i, columns - 1)
            first_j, last_j = max(first_j, 0), min(last_j, rows - 1)
        if last_i < first_i or last_j < first_j:
            continue
        stamp = np.empty((last_j - first_j + 1, last_i - first_i + 1), np.float64)
        total = 0.0
        for j in range(stamp.shape[0]):
            y = (first_j + j + 0.5) * step - shape[1]
            for i in range(stamp.shape[1]):
                x = (first_i + i + 0.5) * step - shape[0]
                stamp[j, i] = _in_cell(x, y, step, 0.0, 0.0, step, shape, stack)
                total += stamp[j, i]
        scale = 1.0 / total if whole and total > 0 else step * step
        for j in range(max(first_j, 0), min(last_j, rows - 1) + 1):
            for b in range(bands):
                for i in range(max(first_i, 0), min(last_i, columns - 1) + 1):
                    canvas[b, j, i] += flux[g, b] * scale * stamp[j - first_j, i - first_i]


@njit()
def _rays(axis, alpha, s, beta, bounds) -> None:  # type: ignore[no-untyped-def]
    """Where the samples come from, and between which values those of each block of them lie."""
    n = axis.size
    bounds[:, :, 0::2] = np.inf
    bounds[:, :, 1::2] = -np.inf
    for j in range(n):
        for i in range(n):
            beta[0, j, i] = axis[i] - s * alpha[0, j, i]
            beta[1, j, i] = axis[j] - s * alpha[1, j, i]
            block = bounds[j // _BLOCK, i // _BLOCK]
            for k in range(2):
                block[2 * k] = min(block[2 * k], beta[k, j, i])
                block[2 * k + 1] = max(block[2 * k + 1], beta[k, j, i])


@njit()
def _outside(block, x, y, reach) -> bool:  # type: ignore[no-untyped-def]
    return bool(
        block[0] > x + reach or block[1] < x - reach or block[2] > y + reach or block[3] < y - reach
    )


@njit(fastmath=True)
def _add_lensed(  # type: ignore[no-untyped-def]
    canvas, axis, alpha, gradient, scale, shapes, reach, flux
) -> None:
    n = axis.size
    step = axis[1] - axis[0]
    beta = np.empty((2, n, n))
    n_blocks = (n + _BLOCK - 1) // _BLOCK
    bounds = np.empty((n_blocks, n_blocks, 4))
    stack = np.empty((_STACK, 3))
    for g in range(shapes.shape[0]):
        if g == 0 or scale[g] != scale[g - 1]:
            _rays(axis, alpha, scale[g], beta, bounds)
        # No sample of a lens is larger in the source plane than this.
        widest = reach[g] + 8.0 * step
        for block_j in range(n_blocks):
            for block_i in range(n_blocks):
                if _outside(bounds[block_j, block_i], shapes[g, 0], shapes[g, 1], widest):
                    continue
                for j in range(block_j * _BLOCK, min((block_j + 1) * _BLOCK, n)):
                    for i in range(block_i * _BLOCK, min((block_i + 1) * _BLOCK, n)):
                        light = _in_sample(
                            beta[:, j, i],
                            gradient[:, :, j, i],
                            scale[g],
                            step,
                            shapes[g],
                            reach[g],
                            stack,
                        )
                        if light > 0:
                            for band in range(canvas.shape[0]):
                                canvas[band, j, i] += flux[g, band] * light


@njit(fastmath=True, inline="always")
def _in_sample(  # type: ignore[no-untyped-def]
    beta, gradient, s, step, shape, reach, stack
) -> float:
    """Flux in one sample, of side `step`, of a lensed galaxy of unit flux."""
    x, y = beta[0] - shape[0], beta[1] - shape[1]
    a, b = (1.0 - s * gradient[0, 0]) * step, -s * gradient[0, 1] * step
    c, d = -s * gradient[1, 0] * step, (1.0 - s * gradient[1, 1]) * step
    size = np.sqrt(a * a + b * b + c * c + d * d)
    distance = np.sqrt(x * x + y * y)
    if distance > reach + 0.75 * size:
        return 0.0
    return float(_in_cell(x, y, a, b, c, d, shape, stack) * step * step)
