"""Painting galaxies: unlensed ones on stamps of their own, lensed ones through the source plane.

A canvas is (bands, rows, columns) of flux per pixel; offsets count from its outer corner, so the
centre of pixel (0, 0) lies at half a pixel.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from lenstronomy.LightModel.Profiles.sersic import SersicElliptic
from numpy.typing import NDArray
from scipy.special import gammainc

from clusterray.simulate.galaxies import Galaxies
from clusterray.simulate.halo import Deflector, ellipticity

__all__ = [
    "TRUNCATION",
    "SourcePlane",
    "paint",
    "paint_lensed",
    "paint_points",
    "trace",
]

Floats = NDArray[np.float64]
TRUNCATION: Final = 6.0
"""Profiles end at this many effective radii; all of the flux lies inside."""
_PROFILE: Final = SersicElliptic()
_CORE_PX: Final = 4
_CORE_SUB: Final = 5


@dataclass(frozen=True, eq=False)
class SourcePlane:
    """Where each pixel of a square grid comes from.

    `beta_arcsec` (2, rows, columns) is θ − α(θ) at pixel centres, `jacobian` (2, 2, rows, columns)
    ∂β_i/∂θ_j by central differences, dimensionless.
    """

    beta_arcsec: Floats
    jacobian: Floats
    pixel_arcsec: float


def trace(deflector: Deflector, x_arcsec: Floats, y_arcsec: Floats) -> SourcePlane:
    """Follow the rays of a regular grid to the source plane.

    Parameters
    ----------
    x_arcsec, y_arcsec : (columns,), (rows,) evenly spaced pixel centres from the cluster centre.
    """
    x, y = np.meshgrid(x_arcsec, y_arcsec)
    beta = np.stack([x, y]) - deflector.deflection(x, y)
    step = float(x_arcsec[1] - x_arcsec[0])
    d_dy, d_dx = np.gradient(beta, step, axis=(1, 2), edge_order=2)
    return SourcePlane(beta, np.stack([d_dx, d_dy], axis=1), step)


def _surface_brightness(galaxies: Galaxies, row: int, x: Floats, y: Floats) -> Floats:
    """Sérsic surface brightness of one galaxy of unit total flux, per square arcsec."""
    n, r_eff = float(galaxies.n_sersic[row]), float(galaxies.r_eff_arcsec[row])
    shape = ellipticity(float(galaxies.axis_ratio[row]), float(galaxies.angle_rad[row]))
    inside = gammainc(2 * n, _PROFILE.b_n(n) * TRUNCATION ** (1 / n))
    total = _PROFILE.total_flux(1.0, r_eff, n) * inside
    light = _PROFILE.function(
        x,
        y,
        1.0,
        r_eff,
        n,
        shape["e1"],
        shape["e2"],
        float(galaxies.x_arcsec[row]),
        float(galaxies.y_arcsec[row]),
        TRUNCATION,
    )
    return np.asarray(light / total, float)


def _reach_arcsec(galaxies: Galaxies, row: int) -> float:
    return TRUNCATION * float(galaxies.r_eff_arcsec[row] / np.sqrt(galaxies.axis_ratio[row]))


def _offsets(n: int, pixel_arcsec: float) -> Floats:
    """(n,) centres of n equal parts of a pixel, from the pixel's centre."""
    return ((np.arange(n) + 0.5) / n - 0.5) * pixel_arcsec


def _stamp(galaxies: Galaxies, row: int, pixel: float) -> tuple[Floats, int, int]:
    """Unit-flux image of one galaxy and the canvas row and column of its first pixel."""
    centre = np.array([galaxies.x_arcsec[row], galaxies.y_arcsec[row]]) / pixel
    half = max(int(np.ceil(_reach_arcsec(galaxies, row) / pixel)), _CORE_PX) + 1
    first = np.floor(centre).astype(int) - half
    side = 2 * half + 1
    x = (first[0] + np.arange(side) + 0.5) * pixel
    y = (first[1] + np.arange(side) + 0.5) * pixel
    light = _surface_brightness(galaxies, row, *np.meshgrid(x, y))
    # One sample stands for a pixel only where the profile is nearly straight across it.
    core = slice(half - _CORE_PX, half + _CORE_PX + 1)
    fine = _offsets(_CORE_SUB, pixel)
    fine_x = (x[core, None] + fine).ravel()
    fine_y = (y[core, None] + fine).ravel()
    n = 2 * _CORE_PX + 1
    sampled = _surface_brightness(galaxies, row, *np.meshgrid(fine_x, fine_y))
    light[core, core] = sampled.reshape(n, _CORE_SUB, n, _CORE_SUB).mean(axis=(1, 3))
    return light / light.sum(), int(first[1]), int(first[0])


def paint(
    canvas: NDArray[np.float32], galaxies: Galaxies, flux: Floats, *, pixel_arcsec: float
) -> None:
    """Add unlensed galaxies to a canvas; what falls off its edge is lost.

    Parameters
    ----------
    flux : (n, bands) total flux of each galaxy.
    """
    rows, columns = canvas.shape[1:]
    for row in range(len(galaxies)):
        stamp, top, left = _stamp(galaxies, row, pixel_arcsec)
        y0, y1 = max(top, 0), min(top + stamp.shape[0], rows)
        x0, x1 = max(left, 0), min(left + stamp.shape[1], columns)
        if y0 < y1 and x0 < x1:
            part = stamp[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32)
            canvas[:, y0:y1, x0:x1] += flux[row, :, None, None].astype(np.float32) * part


def paint_lensed(
    canvas: NDArray[np.float32], plane: SourcePlane, galaxies: Galaxies, flux: Floats, *, sub: int
) -> None:
    """Add lensed galaxies: each one's surface brightness once, scaled in every band.

    Inside a pixel of the plane β is taken as linear, and sampled sub × sub times.

    Parameters
    ----------
    canvas : (bands, k·rows, k·columns), the plane's grid in pixels k times finer.
    flux : (n, bands) *unlensed* total flux of each galaxy.
    sub : samples per side of a pixel of the plane, a multiple of k.
    """
    k = canvas.shape[1] // plane.beta_arcsec.shape[1]
    fine = _offsets(sub, plane.pixel_arcsec)
    dx, dy = np.tile(fine, sub), np.repeat(fine, sub)
    # The pixel's own image reaches this far from that of its centre.
    margin = np.hypot(*np.abs(plane.jacobian).sum(axis=1)) * plane.pixel_arcsec / 2
    area = (plane.pixel_arcsec / sub) ** 2
    for row in range(len(galaxies)):
        distance = np.hypot(
            plane.beta_arcsec[0] - galaxies.x_arcsec[row],
            plane.beta_arcsec[1] - galaxies.y_arcsec[row],
        )
        j, i = np.nonzero(distance < _reach_arcsec(galaxies, row) + margin)
        if not j.size:
            continue
        beta, a = plane.beta_arcsec[:, j, i], plane.jacobian[:, :, j, i]
        x = beta[0, :, None] + a[0, 0, :, None] * dx + a[0, 1, :, None] * dy
        y = beta[1, :, None] + a[1, 0, :, None] * dx + a[1, 1, :, None] * dy
        light = _surface_brightness(galaxies, row, x, y) * area
        parts = light.reshape(-1, k, sub // k, k, sub // k).sum(axis=(2, 4)).astype(np.float32)
        lines = j[:, None, None] * k + np.arange(k)[:, None]
        cells = i[:, None, None] * k + np.arange(k)
        canvas[:, lines, cells] += flux[row, :, None, None, None].astype(np.float32) * parts


def paint_points(
    canvas: NDArray[np.float32],
    x_arcsec: Floats,
    y_arcsec: Floats,
    flux: Floats,
    *,
    pixel_arcsec: float,
) -> None:
    """Add point sources, each shared by its four nearest pixels so that its centroid is kept.

    Parameters
    ----------
    x_arcsec, y_arcsec : (n,) from the canvas' corner.
    flux : (n, bands).
    """
    u, v = x_arcsec / pixel_arcsec - 0.5, y_arcsec / pixel_arcsec - 0.5
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    rows, columns = canvas.shape[1:]
    for up in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - up - (v - j)) * np.abs(1 - right - (u - i))
            y, x = j + up, i + right
            ok = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            for band in range(canvas.shape[0]):
                np.add.at(canvas[band], (y[ok], x[ok]), (share * flux[:, band])[ok])
