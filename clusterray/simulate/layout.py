"""Where the tiles of a made survey point, and where the clusters stand on them."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from astropy.wcs import WCS
from astropy_healpix import HEALPix
from numpy.typing import NDArray

from clusterray.config import SimulateSettings
from clusterray.errors import ConfigError
from clusterray.provenance import seed_for, uniform_for
from clusterray.sky.surveys import Survey

__all__ = ["TileSpec", "box_px", "plan"]

_BOX: Final = 1.14
_BORDER_ARCSEC: Final = 12.0
_JITTER_ARCSEC: Final = 2.5
_MAX_DEC_DEG: Final = 50.0
_MAX_ROTATION_DEG: Final = 5.0


@dataclass(frozen=True)
class TileSpec:
    """One tile to make: where it points, and which systems stand at which places.

    `index` names the systems; `column`, `row` (one per system) are the first pixels of the square,
    `box_px` wide, that belongs to each, with the system at its middle.
    """

    name: str
    ra_deg: float
    dec_deg: float
    rotation_deg: float
    shape_px: tuple[int, int]
    pixel_arcsec: float
    box_px: int
    index: tuple[int, ...]
    column: tuple[int, ...]
    row: tuple[int, ...]

    def wcs(self) -> WCS:
        """TAN, turned by `rotation_deg`."""
        wcs = WCS(naxis=2)
        rows, columns = self.shape_px
        angle = np.radians(self.rotation_deg)
        cos, sin = np.cos(angle), np.sin(angle)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [self.ra_deg, self.dec_deg]
        wcs.wcs.crpix = [(columns + 1) / 2, (rows + 1) / 2]
        wcs.wcs.cd = self.pixel_arcsec / 3600 * np.array([[-cos, sin], [sin, cos]])
        wcs.wcs.radesys = "ICRS"
        return wcs


def box_px(survey: Survey, pixel_arcsec: float) -> int:
    """Pixels (an even number) of the square that holds a survey's cutout however it is turned."""
    side = survey.size_px * survey.pixel_scale_arcsec * _BOX
    return 2 * int(np.ceil(side / pixel_arcsec / 2))


def plan(settings: SimulateSettings, survey: Survey, *, seed: int) -> list[TileSpec]:
    """Lay out the survey: a pure function of its arguments.

    Tiles point at the middle of HEALPix nside-64 cells, no two in one cell and all more than 1.5°
    apart. On a tile clusters stand on a jittered grid, each on a square of its own.

    Raises
    ------
    ConfigError : tiles larger than a sky cell, or more tiles than the sky holds.
    """
    per_tile, pixel = settings.clusters_per_tile, settings.pixel_scale_arcsec
    columns = int(np.ceil(np.sqrt(per_tile)))
    pitch = box_px(survey, pixel) + 2 * int(np.ceil(_JITTER_ARCSEC / pixel))
    if columns * pitch * pixel > 1800:
        most = int(1800 / (pitch * pixel)) ** 2
        raise ConfigError(
            f"simulate.clusters_per_tile is {per_tile}, expected at most {most}, so that a tile "
            "fits in one sky cell"
        )
    n_tiles = -(-settings.n_clusters // per_tile)
    ra, dec = _pointings(n_tiles, seed=seed)
    return [
        _tile_spec(
            f"T{t:03d}",
            (float(ra[t]), float(dec[t])),
            range(t * per_tile, min((t + 1) * per_tile, settings.n_clusters)),
            (columns, -(-per_tile // columns), pitch),
            settings=settings,
            survey=survey,
            seed=seed,
        )
        for t in range(n_tiles)
    ]


def _pointings(n: int, *, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres of n nside-64 cells, each well inside its own nside-16 cell."""
    coarse = HEALPix(nside=16, order="nested")
    # Child 3 touches the middle of its parent, so neighbours stay degrees apart.
    child = np.arange(coarse.npix) * 16 + 3
    lon, lat = HEALPix(nside=64, order="nested").healpix_to_lonlat(child)
    usable = np.flatnonzero(np.abs(lat.deg) < _MAX_DEC_DEG)
    if n > len(usable):
        raise ConfigError(
            f"simulate: {n} tiles are needed but {len(usable)} fit on the sky; "
            'raise simulate.clusters_per_tile, or write cutouts with simulate.output = "shards"'
        )
    rank = uniform_for(seed, [str(c) for c in usable], purpose="pointing")
    chosen = usable[np.argsort(rank, kind="stable")[:n]]
    return lon.deg[chosen], lat.deg[chosen]


def _tile_spec(
    name: str,
    pointing: tuple[float, float],
    index: range,
    grid: tuple[int, int, int],
    *,
    settings: SimulateSettings,
    survey: Survey,
    seed: int,
) -> TileSpec:
    pixel = settings.pixel_scale_arcsec
    columns, rows, pitch = grid
    rng = np.random.default_rng(seed_for(seed, tile=name, part="layout"))
    border, slack = int(np.ceil(_BORDER_ARCSEC / pixel)), pitch - box_px(survey, pixel)
    slot = np.arange(len(index))
    first = np.stack([slot % columns, slot // columns]) * pitch + border
    first += rng.integers(0, slack + 1, first.shape)
    return TileSpec(
        name=name,
        ra_deg=pointing[0],
        dec_deg=pointing[1],
        rotation_deg=float(rng.uniform(-_MAX_ROTATION_DEG, _MAX_ROTATION_DEG)),
        shape_px=(rows * pitch + 2 * border, columns * pitch + 2 * border),
        pixel_arcsec=pixel,
        box_px=box_px(survey, pixel),
        index=tuple(index),
        column=tuple(int(v) for v in first[0]),
        row=tuple(int(v) for v in first[1]),
    )
