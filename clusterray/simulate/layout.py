"""Where the tiles of a made survey point, and where the clusters stand on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from astropy_healpix import HEALPix
from numpy.typing import NDArray

from clusterray.config import SimulateSettings
from clusterray.errors import ConfigError
from clusterray.provenance import seed_for, uniform_for
from clusterray.simulate import population
from clusterray.simulate.galaxies import BANDS
from clusterray.simulate.observe import Exposure
from clusterray.simulate.system import Recipe

__all__ = ["TileSpec", "plan"]

_PITCH_ARCSEC: Final = 78.0
_JITTER_ARCSEC: Final = 2.5
_BORDER_ARCSEC: Final = 12.0
_MAX_DEC_DEG: Final = 50.0


@dataclass(frozen=True)
class TileSpec:
    """One tile to make: where it points, under which conditions, which systems at which places.

    `x_arcsec`, `y_arcsec` (one per system) run along columns and rows from the tile's corner.
    """

    name: str
    ra_deg: float
    dec_deg: float
    rotation_deg: float
    shape_px: tuple[int, int]
    exposures: tuple[Exposure, ...]
    index: tuple[int, ...]
    kind: tuple[str, ...]
    x_arcsec: tuple[float, ...]
    y_arcsec: tuple[float, ...]


def plan(settings: SimulateSettings, *, seed: int, recipe: Recipe | None = None) -> list[TileSpec]:
    """Lay out the survey: a pure function of its arguments.

    Tiles point at the middle of HEALPix nside-64 cells, no two in one cell and all more than 1.5°
    apart. On a tile clusters stand on a jittered grid, 73″ apart or more.

    Raises
    ------
    ConfigError : pixels too coarse or too fine for the PSF, tiles larger than a sky cell, or more
        tiles than the sky holds.
    """
    recipe = recipe or Recipe()
    _check(settings, recipe)
    per_tile = settings.clusters_per_tile
    n_tiles = -(-settings.n_clusters // per_tile)
    ra, dec = _pointings(n_tiles, seed=seed)
    kinds = population.kinds(settings.n_clusters, settings.n_lenses, seed=seed, recipe=recipe)
    return [
        _tile_spec(
            f"T{t:03d}",
            (float(ra[t]), float(dec[t])),
            range(t * per_tile, min((t + 1) * per_tile, settings.n_clusters)),
            kinds,
            settings=settings,
            seed=seed,
            recipe=recipe,
        )
        for t in range(n_tiles)
    ]


def _check(settings: SimulateSettings, recipe: Recipe) -> None:
    pixel, per_tile = settings.pixel_scale_arcsec, settings.clusters_per_tile
    if not 0.05 <= pixel <= min(recipe.psf_fwhm_arcsec):
        raise ConfigError(
            f"simulate.pixel_scale_arcsec is {pixel}, expected 0.05 to "
            f"{min(recipe.psf_fwhm_arcsec)} (the sharpest PSF's FWHM)"
        )
    if per_tile > 400:
        raise ConfigError(
            f"simulate.clusters_per_tile is {per_tile}, expected at most 400, so that a tile fits "
            "in one sky cell"
        )
    rest = settings.n_clusters - settings.n_lenses
    if rest and settings.n_lenses and rest < settings.n_lenses:
        raise ConfigError(
            f"simulate.n_lenses {settings.n_lenses} of n_clusters {settings.n_clusters} leaves "
            "fewer non-lenses than lenses; lenses are rare: raise n_clusters"
        )


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
            "raise simulate.clusters_per_tile"
        )
    rank = uniform_for(seed, [str(c) for c in usable], purpose="pointing")
    chosen = usable[np.argsort(rank, kind="stable")[:n]]
    return lon.deg[chosen], lat.deg[chosen]


def _tile_spec(
    name: str,
    pointing: tuple[float, float],
    index: range,
    kinds: Sequence[str],
    *,
    settings: SimulateSettings,
    seed: int,
    recipe: Recipe,
) -> TileSpec:
    columns = int(np.ceil(np.sqrt(settings.clusters_per_tile)))
    rows = -(-settings.clusters_per_tile // columns)
    rng = np.random.default_rng(seed_for(seed, tile=name, part="layout"))
    slot = np.arange(len(index))
    jitter = rng.uniform(-_JITTER_ARCSEC, _JITTER_ARCSEC, (2, len(index)))
    centre = np.stack([slot % columns, slot // columns]) + 0.5
    x, y = _BORDER_ARCSEC + centre * _PITCH_ARCSEC + jitter
    side = [
        int(np.ceil((n * _PITCH_ARCSEC + 2 * _BORDER_ARCSEC) / settings.pixel_scale_arcsec))
        for n in (rows, columns)
    ]
    seeing = rng.uniform(0.93, 1.10)
    exposures = tuple(
        Exposure(
            band=band,
            zero_point=recipe.zero_point[b],
            depth_mag=recipe.depth_mag[b] + float(rng.normal(0, 0.05)),
            psf_fwhm_arcsec=float(recipe.psf_fwhm_arcsec[b] * seeing * rng.lognormal(0, 0.03)),
            sky_mag=recipe.sky_mag[b],
        )
        for b, band in enumerate(BANDS)
    )
    return TileSpec(
        name=name,
        ra_deg=pointing[0],
        dec_deg=pointing[1],
        rotation_deg=float(rng.uniform(-5, 5)),
        shape_px=(side[0], side[1]),
        exposures=exposures,
        index=tuple(index),
        kind=tuple(kinds[i] for i in index),
        x_arcsec=tuple(float(v) for v in x),
        y_arcsec=tuple(float(v) for v in y),
    )
