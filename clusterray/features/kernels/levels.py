"""Grey levels of an asinh stretch in units of the noise, on vectors of pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterray.features.kernels.compilation import FINITE, compiled

__all__ = ["N_LEVELS", "fill_levels", "level_of", "quantise"]

N_LEVELS = 256
_FAINTEST_SIGMA, _BRIGHTEST_SIGMA, _SOFTENING_SIGMA = -3.0, 1000.0, 3.0
_LOW, _HIGH = np.arcsinh(np.array([_FAINTEST_SIGMA, _BRIGHTEST_SIGMA]) / _SOFTENING_SIGMA)
_LEVELS_PER_UNIT = (N_LEVELS - 1) / (_HIGH - _LOW)


def _log2_polynomial(degree: int) -> list[np.float32]:
    """Coefficients of log2 on [1, 2): Chebyshev's, within 2e-6 for degree 6."""
    nodes = 1.5 + 0.5 * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    fit = np.polynomial.Chebyshev.fit(nodes, np.log2(nodes), degree, domain=[1, 2])
    return [np.float32(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef]


_FAINT, _BRIGHT = np.float32(_FAINTEST_SIGMA), np.float32(_BRIGHTEST_SIGMA)
_PER_SOFTENING, _ONE = np.float32(1 / _SOFTENING_SIGMA), np.float32(1.0)
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = _log2_polynomial(6)
_FRACTION, _EXPONENT_OF_ONE = np.int32(0x7FFFFF), np.int32(0x3F800000)
_SLOPE = np.float32(_LEVELS_PER_UNIT * np.log(2.0))
_START = np.float32(0.5 - _LEVELS_PER_UNIT * _LOW)


def level_of(flux_sigma: NDArray[Any]) -> NDArray[np.float64]:
    """Place on the stretch before it is rounded.

    255 (asinh(f/3) − asinh(−1)) / (asinh(1000/3) − asinh(−1)) for a flux f in units of the noise.

    Parameters
    ----------
    flux_sigma : any shape, flux over noise; clipped to −3…1000.
    """
    clipped = np.clip(np.asarray(flux_sigma, np.float64), _FAINTEST_SIGMA, _BRIGHTEST_SIGMA)
    return np.asarray((np.arcsinh(clipped / _SOFTENING_SIGMA) - _LOW) * _LEVELS_PER_UNIT)


def quantise(planes_sigma: NDArray[Any]) -> NDArray[np.int32]:
    """Grey levels 0…255: `level_of` rounded, as the texture features see it.

    Parameters
    ----------
    planes_sigma : (c, h, w) flux over noise, finite.
    """
    levels = np.empty(planes_sigma.shape, np.float32)
    for plane, out in zip(np.asarray(planes_sigma, np.float32), levels, strict=True):
        fill_levels(np.ascontiguousarray(plane), out, 0, len(plane), 0)
    return levels.astype(np.int32)


@compiled(FINITE, entry=True)
def fill_levels(scaled, levels, top, bottom, border):
    """Grey levels of the rows `top` to `bottom` of a finite plane, without its border columns.

    asinh x = ln 2 · log2(x + √(x² + 1)), whose exponent is read from the bits of the float and
    whose fraction goes through a polynomial: within 1e-4 of a level before it is rounded.
    """
    for y in range(top, bottom):
        row, out = scaled[y, border:], levels[y, border:]
        for x in range(len(row) - border):
            v = min(max(row[x], _FAINT), _BRIGHT) * _PER_SOFTENING
            bits = np.float32(v + np.sqrt(v * v + _ONE)).view(np.int32)
            exponent = np.float32((bits >> np.int32(23)) - np.int32(127))
            m = np.int32((bits & _FRACTION) | _EXPONENT_OF_ONE).view(np.float32)
            log2 = _C0 + m * (_C1 + m * (_C2 + m * (_C3 + m * (_C4 + m * (_C5 + m * _C6)))))
            out[x] = np.floor((exponent + log2) * _SLOPE + _START)
