"""Area-preserving resampling of a tile onto the grid of a cutout."""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS
from drizzle.resample import Drizzle
from numpy.polynomial import chebyshev

from clusterray.sky import astrometry

__all__ = ["Footprint", "Patch", "footprint", "resample"]

# Polynomials through so many nodes a side follow SIP and TPV distortions over a cutout to far below
# 0.001 px, at a hundredth of the cost of a WCS call per pixel.
_NODES: Final = 8
_EDGE_POINTS: Final = 5
# Drizzle leaves out tile pixels whose centre lies off its grid, although they reach onto it.
_PAD: Final = 3


@dataclass(frozen=True)
class Footprint:
    """The part of a tile that a cutout needs, and where its pixels fall.

    `rows` and `columns` cut the tile; `pixmap` (h, w, 2) holds the x and y that each pixel centre
    of the part has on the cutout's grid (zero-based); `area` (h, w) is that of each tile pixel, in
    cutout pixels.
    """

    rows: slice
    columns: slice
    pixmap: npt.NDArray[np.float64]
    area: npt.NDArray[np.float32]
    size_px: int


@dataclass(frozen=True)
class Patch:
    """One tile on the grid of a cutout, each (n, n).

    `flux` per cutout pixel where its whole area is as bright as what was observed of it, `covered`
    the observed share of that area, `variance` that of `flux`.
    """

    flux: npt.NDArray[np.float32]
    covered: npt.NDArray[np.float32]
    variance: npt.NDArray[np.float32] | None


def footprint(tile_wcs: WCS, tile_shape: tuple[int, int], grid: WCS) -> Footprint | None:
    """Where a cutout lies on a tile; None where it does not.

    Positions are computed from the tile to the sky to the cutout, the direction in which a
    distorted WCS is exact; the inverse only bounds the part to be cut.

    Parameters
    ----------
    tile_wcs, tile_shape : of the tile, (h, w).
    grid : of the cutout, from `astrometry.cutout_wcs`.
    """
    size_px = grid.array_shape[0]
    t = np.linspace(-0.5, size_px - 0.5, _EDGE_POINTS)
    edge_x, edge_y = (a.ravel() for a in np.meshgrid(t, t))
    x, y = astrometry.to_pixel(tile_wcs, *grid.all_pix2world(edge_x, edge_y, 0))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    (top, bottom), (left, right) = _bounds(y, tile_shape[0]), _bounds(x, tile_shape[1])
    if top >= bottom or left >= right:
        return None
    # The range reaches past the part, so that a part one pixel wide still has an extent.
    rows = _Axis.over(top - 1, bottom, np.arange(top, bottom))
    columns = _Axis.over(left - 1, right, np.arange(left, right))
    node_x, node_y = np.meshgrid(columns.nodes, rows.nodes)
    x, y = grid.all_world2pix(*astrometry.to_icrs(tile_wcs, node_x, node_y), 0)
    pixmap = np.empty((bottom - top, right - left, 2))
    pixmap[..., 0] = _interpolate(rows, columns, x)
    pixmap[..., 1] = _interpolate(rows, columns, y)
    if not ((pixmap > -1) & (pixmap < size_px)).all(axis=-1).any():
        return None
    area = np.abs(
        (x @ columns.derive.T) * (rows.derive @ y) - (rows.derive @ x) * (y @ columns.derive.T)
    )
    return Footprint(
        rows=slice(top, bottom),
        columns=slice(left, right),
        pixmap=pixmap,
        area=_interpolate(rows, columns, area).astype(np.float32),
        size_px=size_px,
    )


@dataclass(frozen=True)
class _Axis:
    """Chebyshev interpolation along one axis, as matrices on the values at the nodes."""

    nodes: npt.NDArray[np.float64]
    evaluate: npt.NDArray[np.float64]
    derive: npt.NDArray[np.float64]

    @classmethod
    def over(cls, low: float, high: float, at: npt.NDArray[np.int64]) -> Self:
        middle, half = (low + high) / 2, (high - low) / 2
        t = chebyshev.chebpts1(_NODES)
        degree = _NODES - 1
        to_coefficients = np.linalg.inv(chebyshev.chebvander(t, degree))
        derive = chebyshev.chebvander(t, degree - 1) @ chebyshev.chebder(to_coefficients)
        return cls(
            nodes=middle + half * t,
            evaluate=chebyshev.chebvander((at - middle) / half, degree) @ to_coefficients,
            derive=np.asarray(derive / half, dtype=np.float64),
        )


def _interpolate(
    rows: _Axis, columns: _Axis, values: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    # A matrix product would wake the threads of BLAS, which cost more here than they bring.
    left, right = rows.evaluate @ values, np.ascontiguousarray(columns.evaluate.T)
    return np.asarray(np.einsum("ik,kj->ij", left, right), dtype=np.float64)


def _bounds(positions: npt.NDArray[np.float64], length: int) -> tuple[int, int]:
    margin = 3
    return (
        max(0, int(np.floor(positions.min())) - margin),
        min(length, int(np.ceil(positions.max())) + margin + 1),
    )


def resample(
    place: Footprint,
    flux: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32] | None = None,
) -> Patch:
    """What one tile shows of a cutout.

    Square-kernel drizzle with whole pixels (Fruchter & Hook 2002, eq. 3–5): each tile pixel is
    spread over the cutout pixels that it overlaps, in proportion to the area of the overlap, so
    flux is kept exactly. Variances go through the squares of the same weights: exact where the
    tile's noise is white.

    Parameters
    ----------
    place : where the tile's pixels fall.
    flux, variance : (h, w) per tile pixel, of the whole tile; NaN where there is no data.
    """
    part = flux[place.rows, place.columns]
    valid = np.isfinite(part)
    width = place.size_px + 2 * _PAD
    drizzle = Drizzle(out_shape=(width, width), fillval=0.0, fillval2=0.0, disable_ctx=True)
    drizzle.add_image(
        np.where(valid, part / place.area, np.float32(0)),
        exptime=1.0,
        pixmap=place.pixmap + _PAD,
        data2=None
        if variance is None
        else np.where(valid, variance[place.rows, place.columns] / place.area**2, np.float32(0)),
        weight_map=valid * place.area,
    )
    inner = (slice(_PAD, -_PAD), slice(_PAD, -_PAD))
    return Patch(
        drizzle.out_img[inner],
        drizzle.out_wht[inner],
        None if variance is None else drizzle.out_img2[0][inner],
    )
