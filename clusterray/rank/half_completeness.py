"""Where completeness passes one half: a logistic curve in one quantity, with what it can say."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.stats import chi2

__all__ = ["HalfPoint", "half_point"]

Floats = NDArray[np.float64]
Scale = Literal["linear", "log"]

_MIN_OF_EACH: Final = 10
"""Found and missed lenses below which no curve is fitted: ten events per parameter."""
_DROP: Final = float(chi2.ppf(0.95, 1))
"""How far the deviance may rise inside a 95 % interval of one parameter."""
_STEEPEST: Final = 50.0
"""Largest slope per standard deviation: a curve this steep is a step."""


@dataclass(frozen=True)
class HalfPoint:
    """Where the curve crosses one half, with the ends of its interval.

    An end is None where it lies beyond the values fitted. Without a value, `note` says why.
    """

    scale: Scale
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


def half_point(values: Floats, found: NDArray[np.bool_], *, scale: Scale = "linear") -> HalfPoint:
    """Fit P(found | x) = 1 / (1 + exp(−b (x − x½))) by maximum likelihood and read x½.

    The interval is that of the profile likelihood (Cox & Snell 1989, Analysis of Binary Data,
    sect. 2.7): the x½ at which the deviance, minimised over b, is within the 95 % quantile of χ²
    with one degree of freedom of the best. No value is given where fewer than ten lenses were
    found or missed, where a constant is as likely (likelihood ratio test at 5 %), or where one
    half lies outside the values.

    Parameters
    ----------
    values : (n,) finite.
    found : (n,) whether each lens is in the list.
    scale : whether x is the value or its logarithm.
    """
    n_found = int(found.sum())
    if min(n_found, len(found) - n_found) < _MIN_OF_EACH:
        return HalfPoint(scale, note=f"fewer than {_MIN_OF_EACH} found or missed")
    if scale == "log" and values.min() <= 0:
        return HalfPoint(scale, note="some values are not positive and have no logarithm")
    x = np.log(values) if scale == "log" else values
    middle, spread = float(x.mean()), float(x.std())
    if spread == 0:
        return HalfPoint(scale, note="all lenses have one value")
    z, sign = (x - middle) / spread, np.where(found, 1.0, -1.0)
    intercept, slope, best = _fit(z, sign)
    if _constant(n_found, len(found)) - best < _DROP:
        return HalfPoint(scale, note="no trend at 5 %")
    crossing = -intercept / slope
    if not z.min() <= crossing <= z.max():
        return HalfPoint(scale, note=f"{'above' if intercept > 0 else 'below'} half throughout")
    low, high = (_end(z, sign, crossing, best, limit) for limit in (z.min(), z.max()))

    def back(at: float | None) -> float | None:
        value = None if at is None else middle + spread * at
        return value if value is None or scale == "linear" else float(np.exp(value))

    return HalfPoint(scale, back(crossing), back(low), back(high))


def _fit(z: Floats, sign: Floats) -> tuple[float, float, float]:
    """Intercept, slope and deviance of the likeliest curve."""

    def objective(parameters: Floats) -> tuple[float, Floats]:
        margin = sign * (parameters[0] + parameters[1] * z)
        pull = -sign / (1 + np.exp(np.clip(margin, -500, 500)))
        gradient = np.array([pull.sum(), (pull * z).sum()])
        return float(np.logaddexp(0, -margin).sum()), gradient

    bounds = [(-10 * _STEEPEST, 10 * _STEEPEST), (-_STEEPEST, _STEEPEST)]
    result = minimize(objective, np.zeros(2), jac=True, bounds=bounds, method="L-BFGS-B")
    return float(result.x[0]), float(result.x[1]), 2 * float(result.fun)


def _end(z: Floats, sign: Floats, crossing: float, best: float, limit: float) -> float | None:
    """The end of the interval towards `limit`, or None if it lies beyond."""

    def excess(at: float) -> float:
        return _profile(z, sign, at) - best - _DROP

    if limit == crossing or excess(limit) <= 0:
        return None
    return float(brentq(excess, crossing, limit, xtol=1e-4))


def _profile(z: Floats, sign: Floats, crossing: float) -> float:
    """The least deviance of a curve that crosses one half there."""
    margin = sign * (z - crossing)
    result = minimize_scalar(
        lambda slope: float(np.logaddexp(0, -slope * margin).sum()),
        bounds=(-_STEEPEST, _STEEPEST),
        method="bounded",
    )
    return 2 * float(result.fun)


def _constant(n_found: int, n: int) -> float:
    """The deviance of a completeness that does not change."""
    share = n_found / n
    return float(-2 * (n_found * np.log(share) + (n - n_found) * np.log(1 - share)))
