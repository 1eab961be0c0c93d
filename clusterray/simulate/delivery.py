"""A made survey as FITS tiles, the way a survey delivers them.

A tile depends on nothing but its specification, so tiles can be made anywhere, in any order. Each
system has a square of its own on it; field galaxies and stars fill what is between.
"""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from clusterray import storage
from clusterray.provenance import seed_for
from clusterray.simulate import artefacts, gallery, population, scene
from clusterray.simulate.cutouts import CutoutMaker
from clusterray.simulate.frame import Frame
from clusterray.simulate.galaxies import Galaxies
from clusterray.simulate.layout import TileSpec
from clusterray.simulate.lensing import grid_axis
from clusterray.simulate.observe import ZERO_POINT, Exposure, blur, conditions, detect, flux_njy
from clusterray.simulate.sersic import add_galaxies
from clusterray.simulate.surroundings import draw_field, draw_stars
from clusterray.simulate.system import System
from clusterray.simulate.truth import arc_mask
from clusterray.sky.photometry import NJY_ZERO_POINT

__all__ = ["MadeTile", "render_tile"]

Image = NDArray[np.float32]
_TURNED: Final = (("image_x_arcsec", "image_y_arcsec"), ("critical_x_arcsec", "critical_y_arcsec"))


@dataclass(frozen=True, eq=False)
class MadeTile:
    """What stands on a tile: systems, their positions (n, 2) RA, Dec in degrees, and truth rows.

    `cards` are those of the gallery for the systems it shows.
    """

    name: str
    files: tuple[str, ...]
    systems: list[System] = field(repr=False)
    sky_deg: NDArray[np.float64]
    truth: list[dict[str, Any]] = field(repr=False)
    cards: list[dict[str, Any]] = field(repr=False)


def render_tile(
    spec: TileSpec, maker: CutoutMaker, *, out_url: str, shown: Collection[str] = ()
) -> MadeTile:
    """Draw a tile's systems, paint them, and write one FITS file per band under `out_url`.

    The bytes depend on (spec, maker) alone. `shown` are objects to make gallery cards of.

    Raises
    ------
    RunError : a system of its class could not be drawn.
    StorageError : a file could not be written.
    """
    survey, law = maker.survey, maker.recipe.observation
    exposures = conditions(survey, law, seed=maker.seed, name=spec.name)
    frame = Frame.around(
        spec.box_px,
        spec.pixel_arcsec,
        sharpest_fwhm_arcsec=min(b.psf_fwhm_arcsec or np.inf for b in survey.bands),
        field_arcsec=survey.size_px * survey.pixel_scale_arcsec,
    )
    made = _draw_all(spec, maker, frame, exposures)
    image = _between(spec, maker, exposures, [d.system for d in made])
    for place, drawn in enumerate(made):
        canvas, alone = scene.paint_parts(drawn.system, frame, n_bands=len(exposures))
        image[_box(spec, place)] += scene.image_of(canvas, drawn.system, frame, exposures, law)
        drawn.truth["arc_mask"] = _arc_mask(alone, drawn.system, frame, exposures, spec, maker)
    rng = np.random.default_rng(seed_for(maker.seed, noise=spec.name))
    detect(image, exposures, law, pixel_arcsec=spec.pixel_arcsec, rng=rng)
    for place, drawn in enumerate(made):
        artefacts.add_after_noise(
            image[_box(spec, place)],
            drawn.system.artefact,
            exposures,
            pixel_arcsec=spec.pixel_arcsec,
        )
    files = tuple(
        _write_band(image[b], exposure, spec, maker, out_url)
        for b, exposure in enumerate(exposures)
    )
    cards = [
        _card(image[_box(spec, place)], drawn, exposures, frame, maker)
        for place, drawn in enumerate(made)
        if drawn.system.object_id in shown
    ]
    middle = np.array([spec.column, spec.row], float) + (spec.box_px - 1) / 2
    sky = spec.wcs().pixel_to_world(*middle)
    return MadeTile(
        spec.name,
        files,
        [d.system for d in made],
        np.column_stack([sky.ra.deg, sky.dec.deg]),
        [_north_up(d.truth, spec) for d in made],
        cards,
    )


def _card(
    square: Image,
    drawn: population.Drawn,
    exposures: Sequence[Exposure],
    frame: Frame,
    maker: CutoutMaker,
) -> dict[str, Any]:
    """The gallery's card of a system, on the tile's own axes."""
    edge = max(0, int((frame.size_px - frame.field_arcsec / frame.pixel_arcsec) / 2))
    middle = slice(edge, frame.size_px - edge)
    sigma = np.array([e.sigma_njy(frame.pixel_arcsec) for e in exposures])
    return gallery.card(
        square[:, middle, middle],
        sigma,
        maker.survey.band_names,
        drawn.truth,
        pixel_arcsec=frame.pixel_arcsec,
    )


def _draw_all(
    spec: TileSpec, maker: CutoutMaker, frame: Frame, exposures: Sequence[Exposure]
) -> list[population.Drawn]:
    return [
        population.draw(
            population.object_id_of(i),
            kind=population.kind_of(i, seed=maker.seed, recipe=maker.recipe),
            seed=maker.seed,
            recipe=maker.recipe,
            photometry=maker.photometry,
            frame=frame,
            exposures=exposures,
        )
        for i in spec.index
    ]


def _box(spec: TileSpec, place: int) -> tuple[slice, slice, slice]:
    row, column = spec.row[place], spec.column[place]
    return (
        slice(None),
        slice(row, row + spec.box_px),
        slice(column, column + spec.box_px),
    )


def _between(
    spec: TileSpec, maker: CutoutMaker, exposures: Sequence[Exposure], systems: Sequence[System]
) -> Image:
    """(bands, rows, columns) nJy of what is outside the systems' squares, through the PSF."""
    pixel, (rows, columns) = spec.pixel_arcsec, spec.shape_px
    canvas = np.zeros((len(exposures), rows, columns), np.float32)
    centre = np.array([columns, rows]) * pixel / 2
    rng = np.random.default_rng(seed_for(maker.seed, tile=spec.name, part="field"))
    law, extent = maker.recipe.surroundings, (2 * float(centre[0]), 2 * float(centre[1]))
    galaxies = draw_field(extent, law, photometry=maker.photometry, rng=rng).moved(*centre)
    outside = _outside_boxes(spec, galaxies.x_arcsec, galaxies.y_arcsec)
    galaxies = galaxies.take(outside)
    add_galaxies(canvas, galaxies, flux_njy(galaxies.mag), step_arcsec=pixel)
    x, y, mag = draw_stars(extent, law, photometry=maker.photometry, rng=rng)
    outside = _outside_boxes(spec, x + centre[0], y + centre[1])
    scene.add_points(
        canvas,
        x[outside] + centre[0],
        y[outside] + centre[1],
        flux_njy(mag[outside]),
        step_arcsec=pixel,
    )
    for place, system in enumerate(systems):
        canvas += _beyond_box(spec, place, system, canvas.shape)
    return blur(canvas, exposures, maker.recipe.observation, step_arcsec=pixel, supersampling=1)


def _outside_boxes(
    spec: TileSpec, x_arcsec: NDArray[np.float64], y_arcsec: NDArray[np.float64]
) -> NDArray[np.bool_]:
    inside = np.zeros(len(x_arcsec), bool)
    for column, row in zip(spec.column, spec.row, strict=True):
        at = np.stack([x_arcsec / spec.pixel_arcsec - column, y_arcsec / spec.pixel_arcsec - row])
        inside |= ((at >= 0) & (at < spec.box_px)).all(axis=0)
    return ~inside


def _beyond_box(spec: TileSpec, place: int, system: System, shape: tuple[int, ...]) -> Image:
    """A cluster's widest light, its BCG and what is between the galaxies, beyond its square."""
    canvas = np.zeros(shape, np.float32)
    wide = Galaxies.join(system.foreground.icl, system.foreground.members.take(np.array([0])))
    middle = np.array([spec.column[place], spec.row[place]]) + spec.box_px / 2
    wide = wide.moved(*(middle * spec.pixel_arcsec))
    add_galaxies(canvas, wide, flux_njy(wide.mag), step_arcsec=spec.pixel_arcsec)
    canvas[_box(spec, place)] = 0.0
    return canvas


def _arc_mask(
    canvas: Image,
    system: System,
    frame: Frame,
    exposures: Sequence[Exposure],
    spec: TileSpec,
    maker: CutoutMaker,
) -> bytes | None:
    """The arc mask on the grid of the survey's cutouts, packed; see `schema.TRUTH`."""
    if system.background is None or not system.background.lensed:
        return None
    alone = scene.image_of(canvas, system, frame, exposures, maker.recipe.observation)
    mask = arc_mask(alone, exposures, frame)
    axis = grid_axis(maker.frame.size_px, maker.frame.pixel_arcsec)
    u, v = np.meshgrid(axis, axis)
    x, y = _turn(u, v, -spec.rotation_deg)
    return np.packbits(mask[frame.pixel_of(y), frame.pixel_of(x)]).tobytes()


def _turn(x: Any, y: Any, degrees: float) -> tuple[Any, Any]:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return x * cos - y * sin, x * sin + y * cos


def _north_up(truth: dict[str, Any], spec: TileSpec) -> dict[str, Any]:
    """Give the row with its offsets on the axes of a cutout, north up and east left."""
    turned = dict(truth)
    for x, y in _TURNED:
        if x in truth:
            turned[x], turned[y] = _turn(truth[x], truth[y], spec.rotation_deg)
    return turned


def _write_band(
    image: Image, exposure: Exposure, spec: TileSpec, maker: CutoutMaker, out_url: str
) -> str:
    zero_point = ZERO_POINT[maker.survey.name][exposure.band]
    per_njy = 10 ** (0.4 * (zero_point - NJY_ZERO_POINT))
    header = spec.wcs().to_header()
    header["FILTER"] = exposure.band
    header["BUNIT"] = "adu"
    header["MAGZERO"] = (zero_point, "AB magnitude of one adu")
    header["PSF_FWHM"] = (round(exposure.psf_fwhm_arcsec, 4), "arcsec")
    header["DEPTH"] = (round(exposure.depth_mag, 3), "5 sigma point source, AB mag")
    header["GAIN"] = (round(exposure.gain(spec.pixel_arcsec) / per_njy, 4), "electrons per adu")
    header["OBJECT"] = spec.name
    header["RECIPE"] = (maker.recipe.digest()[:16], "SHA-256 of the recipe, first digits")
    sink = io.BytesIO()
    fits.PrimaryHDU((image * np.float32(per_njy)).astype(np.float32), header=header).writeto(sink)
    name = f"{spec.name}_{exposure.band}.fits"
    storage.write_bytes(storage.join(out_url, name), sink.getvalue())
    return name
