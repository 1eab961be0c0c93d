"""The shape of one segment: how long, how thin, how curved."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArcShape", "arc_shape", "fit_circle"]

Floats = NDArray[np.float64]

_THIN = 0.25
"""Scatter of the pixels about a circle, over its radius, up to which it describes them."""
_CLOSED_PX = 3.0


@dataclass(frozen=True)
class ArcShape:
    """Length and width in pixels, curvature in 1/pixel: 0 where no circle describes the pixels."""

    length_px: float
    width_px: float
    curvature_per_px: float

    @property
    def length_over_width(self) -> float:
        """How elongated, along its curve."""
        return self.length_px / self.width_px


def fit_circle(x: Floats, y: Floats) -> tuple[float, float, float, float]:
    """Circle through points: centre x, y, radius, and rms of their distances from it.

    Taubin's algebraic fit (1991, IEEE Trans. Pattern Anal. Mach. Intell. 13, 1115; in the form of
    Chernov 2010, "Circular and Linear Regression", sect. 5.10), which, unlike plain least squares
    of x² + y², keeps the radius of short and thick arcs. NaN where the points lie on a line.
    """
    mean_x, mean_y = float(x.mean()), float(y.mean())
    u, v = x - mean_x, y - mean_y
    square = u * u + v * v
    size = float(square.mean())
    if not size > 0:
        return math.nan, math.nan, math.nan, math.nan
    columns = np.stack([(square - size) / (2 * math.sqrt(size)), u, v])
    a, b, c = np.linalg.eigh(columns @ columns.T)[1][:, 0].tolist()
    a /= 2 * math.sqrt(size)
    if not abs(a) > 1e-9 * math.hypot(b, c) / math.sqrt(size):
        return math.nan, math.nan, math.nan, math.nan
    radius = math.sqrt(b * b + c * c + 4 * a * a * size) / (2 * abs(a))
    centre_u, centre_v = -b / (2 * a), -c / (2 * a)
    off = np.hypot(u - centre_u, v - centre_v) - radius
    return mean_x + centre_u, mean_y + centre_v, radius, math.sqrt(float(off @ off) / len(x))


def arc_shape(x: Floats, y: Floats) -> ArcShape:
    """Length, width and curvature of a segment.

    Where a circle describes the pixels (their scatter about it is below a quarter of its radius),
    the length is the radius times the angle they span, as in Bartelmann & Weiss (1994, A&A 287,
    1); otherwise that of the bar with their largest second moment λ, √(12 λ). The width is the
    area over the length.

    Parameters
    ----------
    x, y : (m,) pixels of the segment.
    """
    u, v = x - x.mean(), y - y.mean()
    uu, uv, vv = (float(m) / len(x) for m in (u @ u, u @ v, v @ v))
    largest = (uu + vv) / 2 + math.hypot((uu - vv) / 2, uv)
    # A pixel is itself a square of variance 1/12.
    length = math.sqrt(12 * largest + 1)
    curvature = 0.0
    centre_x, centre_y, radius, scatter = fit_circle(x, y)
    if scatter < _THIN * radius:
        along = radius * _angle(x - centre_x, y - centre_y, radius)
        if along >= length:
            length, curvature = along, 1 / radius
    return ArcShape(length, len(x) / length, curvature)


def _angle(x: Floats, y: Floats, radius: float) -> float:
    """Angle that points span about the origin: the circle without its largest gap."""
    angles = np.sort(np.arctan2(y, x))
    gap = max(float(np.diff(angles).max()), float(angles[0] - angles[-1]) + 2 * math.pi)
    return 2 * math.pi if gap * radius < _CLOSED_PX else 2 * math.pi - gap
