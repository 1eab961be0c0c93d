"""Galaxies of no Sérsic shape that imitate arcs and rings: rings, spiral arms, tidal tails."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Peculiar", "add_peculiar"]

Floats = NDArray[np.float64]
_SUB: Final = 3


@dataclass(frozen=True, eq=False)
class Peculiar:
    """One component, `radius_arcsec` in size, seen at `axis_ratio` along `angle_rad`.

    ring: a Gaussian annulus, a fifth of its radius wide, uneven around. spiral: an exponential
    disc of that scale length with two logarithmic arms of 18° pitch. tail: a piece of a circle of
    that radius, about 1 rad long, that fades towards its ends. `phase_rad` turns arms, knots or the
    tail. `mag` (bands,) total AB magnitudes.
    """

    shape: Literal["ring", "spiral", "tail"]
    x_arcsec: float
    y_arcsec: float
    radius_arcsec: float
    axis_ratio: float
    angle_rad: float
    phase_rad: float
    mag: Floats

    def brightness(self, dx: Floats, dy: Floats) -> Floats:
        """Surface brightness, to an arbitrary scale, at offsets from its centre."""
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        u, v = (dx * cos + dy * sin), (dy * cos - dx * sin) / self.axis_ratio
        radius, phi = np.hypot(u, v) / self.radius_arcsec, np.arctan2(v, u) - self.phase_rad
        if self.shape == "ring":
            annulus = np.exp(-0.5 * ((radius - 1) / 0.2) ** 2)
            return np.asarray(annulus * (1 + 0.4 * np.cos(3 * phi) + 0.2 * np.cos(7 * phi)))
        if self.shape == "spiral":
            wound = np.log(np.maximum(radius, 0.05)) / np.tan(np.radians(18.0))
            arms = np.clip(np.cos(2 * (phi - wound)), 0, None) ** 3
            return np.asarray(np.exp(-radius) * (0.25 + 2.0 * arms * np.clip(radius, 0, 1)))
        away = (phi + np.pi) % (2 * np.pi) - np.pi
        return np.asarray(
            np.exp(-0.5 * ((radius - 1) / 0.08) ** 2) * np.exp(-0.5 * (away / 0.5) ** 2)
        )

    @property
    def reach_arcsec(self) -> float:
        """Distance from its centre at which it ends."""
        return self.radius_arcsec * (6.0 if self.shape == "spiral" else 1.8)


def add_peculiar(
    canvas: NDArray[np.float32],
    one: Peculiar,
    flux: Floats,
    *,
    at_arcsec: tuple[float, float],
    step_arcsec: float,
) -> None:
    """Add a component to a canvas (bands, rows, columns).

    Parameters
    ----------
    flux : (bands,) total flux; what falls off the edge is lost.
    at_arcsec : where its offsets count from, from the canvas' corner.
    """
    x, y = one.x_arcsec + at_arcsec[0], one.y_arcsec + at_arcsec[1]
    half = int(np.ceil(one.reach_arcsec / step_arcsec))
    first = [int(np.floor(v / step_arcsec)) - half for v in (x, y)]
    n = 2 * half + 1
    fine = (np.arange(n * _SUB) + 0.5) * (step_arcsec / _SUB)
    dx, dy = np.meshgrid(fine + first[0] * step_arcsec - x, fine + first[1] * step_arcsec - y)
    light = one.brightness(dx, dy).reshape(n, _SUB, n, _SUB).mean(axis=(1, 3))
    light /= light.sum()
    (y0, y1), (x0, x1) = (
        (max(start, 0), min(start + n, size))
        for start, size in zip(first[::-1], canvas.shape[1:], strict=True)
    )
    if y0 < y1 and x0 < x1:
        part = light[y0 - first[1] : y1 - first[1], x0 - first[0] : x1 - first[0]]
        canvas[:, y0:y1, x0:x1] += (flux[:, None, None] * part).astype(np.float32)
