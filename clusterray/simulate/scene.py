"""A system as light on a canvas, and as an image through the PSF."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clusterray.simulate import artefacts
from clusterray.simulate.frame import Frame
from clusterray.simulate.galaxies import Galaxies
from clusterray.simulate.observe import Exposure, blur, flux_njy
from clusterray.simulate.peculiar import add_peculiar
from clusterray.simulate.recipe import Observation
from clusterray.simulate.sersic import add_galaxies, add_lensed
from clusterray.simulate.system import System

__all__ = ["add_points", "image_of", "paint", "paint_background", "paint_parts"]

Floats = NDArray[np.float64]
Canvas = NDArray[np.float32]


def paint(system: System, frame: Frame, *, n_bands: int) -> Canvas:
    """All of a system's light, (bands, n, n) nJy per sample, before any PSF."""
    return paint_parts(system, frame, n_bands=n_bands)[0]


def paint_parts(system: System, frame: Frame, *, n_bands: int) -> tuple[Canvas, Canvas]:
    """All of a system's light, as in `paint`, and that of the background cluster alone."""
    background = paint_background(system, frame, n_bands=n_bands)
    return background + _paint_others(system, frame, n_bands), background


def _paint_others(system: System, frame: Frame, n_bands: int) -> Canvas:
    """Everything but the background cluster."""
    canvas = np.zeros((n_bands, frame.n_samples, frame.n_samples), np.float32)
    centre, step = frame.centre_arcsec, frame.step_arcsec
    front = [system.foreground.icl, system.foreground.members]
    front += [g for g in (system.contaminants,) if g is not None]
    behind = [g for g in (system.source,) if g is not None]
    if system.field is not None:
        hidden = system.field.z > system.foreground.z_lens
        front.append(system.field.take(~hidden))
        behind.append(system.field.take(hidden))
    light = Galaxies.join(*front).moved(centre, centre)
    add_galaxies(canvas, light, flux_njy(light.mag), step_arcsec=step)
    if behind:
        light = Galaxies.join(*behind)
        add_lensed(canvas, system.foreground.plane(frame), light, flux_njy(light.mag))
    for one in system.peculiar:
        add_peculiar(canvas, one, flux_njy(one.mag), at_arcsec=(centre, centre), step_arcsec=step)
    if system.stars is not None:
        x, y, mag = system.stars
        add_points(canvas, x + centre, y + centre, flux_njy(mag), step_arcsec=step)
    return canvas


def paint_background(system: System, frame: Frame, *, n_bands: int) -> Canvas:
    """The background cluster's light alone, deflected or not."""
    canvas = np.zeros((n_bands, frame.n_samples, frame.n_samples), np.float32)
    background = system.background
    if background is None:
        return canvas
    flux = flux_njy(background.light.mag)
    if background.lensed:
        add_lensed(canvas, system.foreground.plane(frame), background.light, flux)
    else:
        centre = frame.centre_arcsec
        moved = background.light.moved(centre, centre)
        add_galaxies(canvas, moved, flux, step_arcsec=frame.step_arcsec)
    return canvas


def image_of(
    canvas: Canvas, system: System, frame: Frame, exposures: Sequence[Exposure], law: Observation
) -> Canvas:
    """(bands, size, size) nJy per pixel as the telescope sees it, without noise.

    With the system's faults of optics and pipeline, but for those that noise comes before.
    """
    seen = artefacts.mismatched(system.artefact, exposures)
    image = blur(
        canvas,
        seen,
        law,
        step_arcsec=frame.step_arcsec,
        supersampling=frame.supersampling,
        shift_arcsec=artefacts.shifts_arcsec(system.artefact, len(seen)),
    )
    image = np.ascontiguousarray(image[:, frame.kept(), frame.kept()])
    artefacts.add_before_noise(image, system.artefact, seen, pixel_arcsec=frame.pixel_arcsec)
    return image


def add_points(
    canvas: Canvas, x_arcsec: Floats, y_arcsec: Floats, flux: Floats, *, step_arcsec: float
) -> None:
    """Add point sources, each shared by its four nearest samples so that its centroid is kept.

    Parameters
    ----------
    x_arcsec, y_arcsec : (n,) from the canvas' corner.
    flux : (n, bands).
    """
    u, v = x_arcsec / step_arcsec - 0.5, y_arcsec / step_arcsec - 0.5
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    rows, columns = canvas.shape[1:]
    for up in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - up - (v - j)) * np.abs(1 - right - (u - i))
            y, x = j + up, i + right
            ok = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            for band in range(canvas.shape[0]):
                np.add.at(canvas[band], (y[ok], x[ok]), (share * flux[:, band])[ok])
