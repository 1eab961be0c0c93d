"""What a lens does on a grid: source plane, magnification, critical curves, images of a point.

The deflection is found once per system, by lenstronomy where a profile is smooth or single, and
scaled to any source redshift: all bands and all sources share it.
"""

from dataclasses import dataclass
from typing import Any, Final

import contourpy
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

from clusterray.compilation import njit
from clusterray.simulate.halo import Deflector, distance_ratio

__all__ = [
    "LensPlane",
    "SourcePlane",
    "critical_curves",
    "effective_radius_arcsec",
    "grid_axis",
    "image_positions",
    "lens_plane",
]

Floats = NDArray[np.float64]
_SMOOTH: Final = "NFW_ELLIPSE_CSE"
_COMPACT: Final = "PJAFFE"
_SMOOTH_STEP_ARCSEC: Final = 1.0
_CUSP_ARCSEC: Final = 3.0


@dataclass(frozen=True, eq=False)
class SourcePlane:
    """Where each sample of a square grid comes from.

    `beta_arcsec` (2, rows, columns) is θ − α(θ) at the samples' centres, `jacobian` (2, 2, rows,
    columns) ∂β_i/∂θ_j, dimensionless.
    """

    axis_arcsec: Floats
    beta_arcsec: Floats
    jacobian: Floats


@dataclass(frozen=True, eq=False)
class LensPlane:
    """Deflection of one system on a square grid about its centre.

    `alpha_arcsec` (2, n, n) belongs to sources at `z_source`, `gradient` (2, 2, n, n) is ∂α_i/∂θ_j.
    """

    z_lens: float
    z_source: float
    axis_arcsec: Floats
    alpha_arcsec: Floats
    gradient: Floats

    def scale(self, z: float) -> float:
        """Deflection of sources at a redshift over that at `z_source`: α ∝ D_ls/D_s.

        0 for what is not behind the lens.
        """
        if z <= self.z_lens:
            return 0.0
        return distance_ratio(self.z_lens, z) / distance_ratio(self.z_lens, self.z_source)

    def source_plane(self, z: float) -> SourcePlane:
        """Follow the grid to sources at a redshift."""
        x, y = np.meshgrid(self.axis_arcsec, self.axis_arcsec)
        scale = self.scale(z)
        jacobian = -scale * self.gradient
        jacobian[0, 0] += 1.0
        jacobian[1, 1] += 1.0
        return SourcePlane(self.axis_arcsec, np.stack([x, y]) - scale * self.alpha_arcsec, jacobian)

    def magnification(self, z: float, x_arcsec: Floats, y_arcsec: Floats) -> Floats:
        """(n,) signed magnification at the samples nearest to (n,) places, sources at a redshift.

        1/det(∂β/∂θ), held at 1e4 on a critical curve.
        """
        step = self.axis_arcsec[1] - self.axis_arcsec[0]
        i, j = (
            np.clip(np.rint((v - self.axis_arcsec[0]) / step), 0, len(self.axis_arcsec) - 1).astype(
                int
            )
            for v in (x_arcsec, y_arcsec)
        )
        a = np.eye(2)[:, :, None] - self.scale(z) * self.gradient[:, :, j, i]
        det = a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]
        return np.asarray(1.0 / np.where(np.abs(det) < 1e-4, np.copysign(1e-4, det), det))


def grid_axis(n: int, step_arcsec: float) -> Floats:
    """(n,) places a step apart, about zero."""
    return (np.arange(n, dtype=np.float64) - (n - 1) / 2) * step_arcsec


def lens_plane(deflector: Deflector, axis_arcsec: Floats) -> LensPlane:
    """Compute the deflection on a square grid.

    The halo, slow but smooth beyond 3″, is evaluated there every arcsec and interpolated by a
    bicubic spline; the many member galaxies have a closed form of their own
    (`_add_truncated_spheres`); the rest is evaluated by lenstronomy at every place. Tests hold all
    of it to lenstronomy's own values, to 0.01″.

    Parameters
    ----------
    axis_arcsec : (n,) evenly spaced, along columns and rows, from the cluster's centre.
    """
    parts = list(zip(deflector.profiles, deflector.parameters, strict=True))
    smooth = _only(deflector, [p for p in parts if p[0] == _SMOOTH])
    other = _only(deflector, [p for p in parts if p[0] not in (_SMOOTH, _COMPACT)])
    n = len(axis_arcsec)
    alpha = np.zeros((2, n, n))
    if smooth.profiles:
        alpha += _interpolated(smooth, axis_arcsec)
    if other.profiles:
        x, y = np.meshgrid(axis_arcsec, axis_arcsec)
        alpha += other.deflection(x, y)
    compact = [p for name, p in parts if name == _COMPACT]
    if compact:
        _add_truncated_spheres(alpha, axis_arcsec, *_truncated_spheres(compact))
    step = float(axis_arcsec[1] - axis_arcsec[0])
    d_dx, d_dy = (np.gradient(alpha, step, axis=k, edge_order=2) for k in (2, 1))
    gradient = np.stack([d_dx, d_dy], axis=1)
    return LensPlane(deflector.z_lens, deflector.z_source, axis_arcsec, alpha, gradient)


def _only(deflector: Deflector, parts: list[Any]) -> Deflector:
    names, parameters = tuple(p[0] for p in parts), tuple(p[1] for p in parts)
    return Deflector(deflector.z_lens, deflector.z_source, names, parameters)


def _interpolated(deflector: Deflector, axis_arcsec: Floats) -> Floats:
    reach = float(np.abs(axis_arcsec).max()) + 2 * _SMOOTH_STEP_ARCSEC
    coarse = grid_axis(2 * int(np.ceil(reach / _SMOOTH_STEP_ARCSEC)) + 1, _SMOOTH_STEP_ARCSEC)
    x, y = np.meshgrid(coarse, coarse)
    alpha = np.stack(
        [
            RectBivariateSpline(coarse, coarse, a)(axis_arcsec, axis_arcsec)
            for a in deflector.deflection(x, y)
        ]
    )
    # A spline rounds off the cusp of the halo.
    first, last = np.searchsorted(axis_arcsec, (-_CUSP_ARCSEC, _CUSP_ARCSEC))
    near = slice(int(first), int(last))
    x, y = np.meshgrid(axis_arcsec[near], axis_arcsec[near])
    alpha[:, near, near] = deflector.deflection(x, y)
    return alpha


def _truncated_spheres(parameters: list[dict[str, float]]) -> tuple[Floats, ...]:
    """Centres, strength, core and cut radii of lenstronomy's PJAFFE profiles, (n,) each."""
    x, y, sigma0, core, cut = (
        np.array([p[key] for p in parameters])
        for key in ("center_x", "center_y", "sigma0", "Ra", "Rs")
    )
    return x, y, 2 * sigma0 * core * cut / (cut - core), core, cut


@njit(fastmath=True)
def _add_truncated_spheres(  # type: ignore[no-untyped-def]
    alpha, axis, x, y, strength, core, cut
) -> None:
    """Add the deflection of dual pseudo-isothermal spheres.

    α(r) = 2σ₀ ac/(c − a) [√(a² + r²) − a − √(c² + r²) + c]/r, with a the core and c the cut
    (Elíasdóttir et al. 2007, eq. A19); √(a² + r²) − a = r²/(√(a² + r²) + a) keeps its digits near
    the centre.
    Single precision (1e-6 arcsec) is twice as fast.
    """
    n = axis.size
    row = np.empty((2, n), np.float32)
    places = axis.astype(np.float32)
    for j in range(n):
        row[:] = 0.0
        for k in range(x.size):
            dy = np.float32(axis[j] - y[k])
            dy2 = dy * dy
            x0, a, c = np.float32(x[k]), np.float32(core[k]), np.float32(cut[k])
            a2, c2, strong = a * a, c * c, np.float32(strength[k])
            for i in range(n):
                dx = places[i] - x0
                r2 = dx * dx + dy2
                near = np.sqrt(a2 + r2) + a
                far = np.sqrt(c2 + r2) + c
                bend = strong * (far - near) / (near * far)
                row[0, i] += bend * dx
                row[1, i] += bend * dy
        for i in range(n):
            alpha[0, j, i] += row[0, i]
            alpha[1, j, i] += row[1, i]


def critical_curves(plane: SourcePlane) -> list[Floats]:
    """Tangential critical curves: where 1 − κ − |γ| = 0.

    Returns
    -------
    One (n, 2) array of x, y in arcsec per curve, the largest first; one that leaves the grid is
    open.
    """
    a = plane.jacobian
    shear = np.hypot((a[0, 0] - a[1, 1]) / 2, (a[0, 1] + a[1, 0]) / 2)
    tangential = (a[0, 0] + a[1, 1]) / 2 - shear
    lines = contourpy.contour_generator(plane.axis_arcsec, plane.axis_arcsec, tangential).lines(0.0)
    return sorted((np.asarray(line) for line in lines), key=_area, reverse=True)


def _area(curve: Floats) -> float:
    x, y = curve.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def effective_radius_arcsec(curves: list[Floats]) -> float:
    """Effective Einstein radius: √(area/π) inside the largest tangential critical curve.

    Returns
    -------
    arcsec; 0 where nothing is critical.
    """
    return float(np.sqrt(_area(curves[0]) / np.pi)) if curves else 0.0


def image_positions(lens: LensPlane, z: float, x_arcsec: Floats, y_arcsec: Floats) -> list[Floats]:
    """Images of point sources: the lens equation solved on a triangulated grid.

    Each grid cell is cut into two triangles; an image lies in every triangle whose map to the
    source plane holds the source (Schneider, Ehlers & Falco 1992, sect. 10.3). Images less than
    about a cell apart can be missed.

    Parameters
    ----------
    z : redshift of all sources.
    x_arcsec, y_arcsec : (n,) places in the source plane.

    Returns
    -------
    For each source (images, 2) offsets x, y in arcsec.
    """
    found = np.empty((max(len(x_arcsec), 1) * 64, 3))
    axis, s = lens.axis_arcsec, lens.scale(z)
    beta = np.stack([axis - s * lens.alpha_arcsec[0], axis[:, None] - s * lens.alpha_arcsec[1]])
    n = _find_images(beta, np.asarray(x_arcsec, float), np.asarray(y_arcsec, float), found)
    which, column, row = found[:n].T
    at = np.stack([column, row], axis=1) * (axis[1] - axis[0]) + axis[0]
    return [at[which == k] for k in range(len(x_arcsec))]


@njit()
def _find_images(beta, x, y, found) -> int:  # type: ignore[no-untyped-def]
    rows, columns = beta.shape[1:]
    n = 0
    for j in range(rows - 1):
        for i in range(columns - 1):
            b0 = beta[0, j : j + 2, i : i + 2]
            b1 = beta[1, j : j + 2, i : i + 2]
            low0 = min(b0[0, 0], b0[0, 1], b0[1, 0], b0[1, 1])
            high0 = max(b0[0, 0], b0[0, 1], b0[1, 0], b0[1, 1])
            low1 = min(b1[0, 0], b1[0, 1], b1[1, 0], b1[1, 1])
            high1 = max(b1[0, 0], b1[0, 1], b1[1, 0], b1[1, 1])
            for k in range(x.size):
                if not (low0 <= x[k] <= high0 and low1 <= y[k] <= high1):
                    continue
                # The corner of each triangle, and the step to its neighbours.
                for corner in range(2):
                    along = 1 - corner
                    p0, p1 = b0[corner, corner] - x[k], b1[corner, corner] - y[k]
                    u0, u1 = b0[corner, along] - x[k] - p0, b1[corner, along] - y[k] - p1
                    v0, v1 = b0[along, corner] - x[k] - p0, b1[along, corner] - y[k] - p1
                    det = u0 * v1 - u1 * v0
                    if det == 0.0:
                        continue
                    s = (-p0 * v1 + p1 * v0) / det
                    t = (-u0 * p1 + u1 * p0) / det
                    # An edge belongs to one of the triangles that it parts.
                    if corner == 0:
                        inside = s >= 0 and t >= 0 and s + t < 1
                    else:
                        inside = s > 0 and t > 0 and s + t <= 1
                    if inside and n < found.shape[0]:
                        sign = along - corner
                        found[n, 0] = k
                        found[n, 1] = i + corner + sign * s
                        found[n, 2] = j + corner + sign * t
                        n += 1
    return n
