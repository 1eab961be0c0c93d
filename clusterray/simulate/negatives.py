"""What looks like a cluster–cluster lens and is none: one function per named class.

Each takes a system, of a cluster alone unless said otherwise, and gives it what imitates a lens.
Where it fails, it gives None, and another cluster is drawn.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clusterray.simulate.artefacts import Artefact
from clusterray.simulate.frame import Frame
from clusterray.simulate.galaxies import Galaxies, characteristic_mag_i, with_clumps
from clusterray.simulate.halo import isothermal_radius_arcsec
from clusterray.simulate.lensing import image_positions
from clusterray.simulate.peculiar import Peculiar
from clusterray.simulate.recipe import Recipe
from clusterray.simulate.spectra import Photometry
from clusterray.simulate.system import System, draw_background

__all__ = ["DECORATED", "galaxy_galaxy", "lens_off", "projected_double"]

Floats = NDArray[np.float64]
_Decorate = Callable[[System, Frame, Photometry, np.random.Generator], System]


def lens_off(system: System) -> System:
    """Make the twin of a system: same clusters, same places, but the light goes straight."""
    assert system.background is not None
    straight = replace(system.background, lensed=False)
    return replace(system, kind="lens_off", background=straight)


def projected_double(
    system: System, recipe: Recipe, photometry: Photometry, rng: np.random.Generator
) -> System:
    """Put a second cluster close behind the first: D_ls/D_s of a few per cent, taken as none."""
    background = draw_background(
        system.foreground.z_lens + float(rng.uniform(0.03, 0.10)),
        offset_arcsec=float(rng.uniform(5, 25)),
        law=recipe.source_cluster,
        photometry=photometry,
        lensed=False,
        rng=rng,
    )
    return replace(system, kind="projected_double", background=background)


def galaxy_galaxy(
    system: System,
    member: int,
    recipe: Recipe,
    frame: Frame,
    photometry: Photometry,
    rng: np.random.Generator,
) -> System | None:
    """Put one galaxy behind one member, so that the member alone multiplies it.

    None where the member stands too near the centre or the edge, or makes no images of its own.

    Parameters
    ----------
    member : of a foreground that was drawn with that member's dispersion raised.
    """
    lens = system.foreground
    if member >= len(lens.members):
        return None
    x, y = float(lens.members.x_arcsec[member]), float(lens.members.y_arcsec[member])
    if not 5.0 < np.hypot(x, y) < 0.8 * frame.half_field_arcsec:
        return None
    z = recipe.source_cluster.z.draw(rng)
    plane = lens.plane(frame)
    # At its own centre a member does not bend: what is left is all the others' doing.
    alpha = lens.deflector.deflection(x, y) * plane.scale(z)
    reach = 0.4 * isothermal_radius_arcsec(280.0, 0.5)
    offset = rng.uniform(0.1, 1.0) * reach * np.array([np.cos(a := rng.uniform(0, 7)), np.sin(a)])
    young = np.array([float(rng.uniform(0.6, 1.0))])
    source = Galaxies(
        x_arcsec=np.array([x - alpha[0] + offset[0]]),
        y_arcsec=np.array([y - alpha[1] + offset[1]]),
        r_eff_arcsec=rng.uniform(0.2, 0.45, 1),
        n_sersic=np.ones(1),
        axis_ratio=rng.uniform(0.4, 1.0, 1),
        angle_rad=rng.uniform(0, np.pi, 1),
        z=np.array([z]),
        young_share=young,
        mag=photometry.magnitudes(rng.uniform(22.0, 24.0, 1), z=z, young_share=young),
    )
    (at,) = image_positions(plane, z, source.x_arcsec, source.y_arcsec)
    if (np.hypot(at[:, 0] - x, at[:, 1] - y) < 4.0).sum() < 2:
        return None
    share = recipe.source_cluster.clump_share.draws(1, rng=rng)
    clumpy = with_clumps(source, share=share, photometry=photometry, rng=rng)
    return replace(system, kind="galaxy_galaxy", source=clumpy)


def _around(frame: Frame, rng: np.random.Generator, *, nearest: float) -> tuple[float, float]:
    """Radius (arcsec) inside the field and position angle of something beside the centre."""
    return float(rng.uniform(nearest, 0.85 * frame.half_field_arcsec)), float(
        rng.uniform(0, 2 * np.pi)
    )


def _edge_on(
    system: System, frame: Frame, photometry: Photometry, rng: np.random.Generator
) -> System:
    """Two to four edge-on discs of field galaxies, tangential to the centre within 10°."""
    n = int(rng.integers(2, 5))
    at = np.array([_around(frame, rng, nearest=5.0) for _ in range(n)])
    z, young = rng.uniform(0.2, 0.9, n), rng.uniform(0.2, 1.0, n)
    discs = Galaxies(
        x_arcsec=at[:, 0] * np.cos(at[:, 1]),
        y_arcsec=at[:, 0] * np.sin(at[:, 1]),
        r_eff_arcsec=rng.uniform(0.6, 1.6, n),
        n_sersic=rng.uniform(0.7, 1.2, n),
        axis_ratio=rng.uniform(0.08, 0.2, n),
        angle_rad=(at[:, 1] + np.pi / 2 + rng.normal(0, 0.17, n)) % np.pi,
        z=z,
        young_share=young,
        mag=photometry.magnitudes(rng.uniform(20.5, 23.0, n), z=z, young_share=young),
    )
    return replace(system, contaminants=discs)


def _nucleus(one: Peculiar, z: float, mag: Floats) -> Galaxies:
    """The round, red middle of a peculiar galaxy."""
    return Galaxies(
        x_arcsec=np.array([one.x_arcsec]),
        y_arcsec=np.array([one.y_arcsec]),
        r_eff_arcsec=np.array([0.22 * one.radius_arcsec]),
        n_sersic=np.array([2.5]),
        axis_ratio=np.array([0.85]),
        angle_rad=np.array([one.angle_rad]),
        z=np.array([z]),
        young_share=np.array([0.1]),
        mag=mag,
    )


def _peculiar(
    shape: str,
    at: tuple[float, float],
    *,
    radius_arcsec: float,
    mag_i: float,
    z: float,
    photometry: Photometry,
    rng: np.random.Generator,
) -> tuple[Peculiar, Galaxies]:
    """A blue component of a shape, and a red nucleus of a third of its light."""
    blue = photometry.magnitudes(mag_i + 0.3, z=z, young_share=float(rng.uniform(0.6, 1.0)))[0]
    red = photometry.magnitudes(mag_i + 1.5, z=z, young_share=0.1)
    one = Peculiar(
        shape,  # type: ignore[arg-type]
        at[0] * float(np.cos(at[1])),
        at[0] * float(np.sin(at[1])),
        radius_arcsec,
        float(rng.uniform(0.5, 1.0)),
        float(rng.uniform(0, np.pi)),
        float(rng.uniform(0, 2 * np.pi)),
        blue,
    )
    return one, _nucleus(one, z, red)


def _ring_galaxy(
    system: System, frame: Frame, photometry: Photometry, rng: np.random.Generator
) -> System:
    """A collisional ring, in half of the cases about the BCG itself."""
    central = rng.random() < 0.5
    at = (float(rng.uniform(0, 0.8)), 0.0) if central else _around(frame, rng, nearest=4.0)
    ring, nucleus = _peculiar(
        "ring",
        at,
        radius_arcsec=float(rng.uniform(3.0, 8.0) if central else rng.uniform(1.2, 3.5)),
        mag_i=float(rng.uniform(19.5, 21.8)),
        z=float(rng.uniform(0.15, 0.5)),
        photometry=photometry,
        rng=rng,
    )
    return replace(system, peculiar=(ring,), contaminants=None if central else nucleus)


def _spiral(
    system: System, frame: Frame, photometry: Photometry, rng: np.random.Generator
) -> System:
    """One to three face-on spirals in front of the cluster."""
    drawn = [
        _peculiar(
            "spiral",
            _around(frame, rng, nearest=3.0),
            radius_arcsec=float(rng.uniform(0.8, 2.2)),
            mag_i=float(rng.uniform(18.5, 21.5)),
            z=float(rng.uniform(0.08, 0.35)),
            photometry=photometry,
            rng=rng,
        )
        for _ in range(int(rng.integers(1, 4)))
    ]
    nuclei = Galaxies.join(*(n for _, n in drawn))
    return replace(system, peculiar=tuple(p for p, _ in drawn), contaminants=nuclei)


def _merger(
    system: System, frame: Frame, photometry: Photometry, rng: np.random.Generator
) -> System:
    """Two galaxies a few arcsec apart, each with a tidal tail."""
    radius, phi = _around(frame, rng, nearest=3.0)
    z = system.foreground.z_lens * float(rng.uniform(0.5, 1.0))
    mag_i = characteristic_mag_i(max(z, 0.1)) + float(rng.uniform(-0.5, 1.0))
    parts = []
    for side in (-1, 1):
        x = radius * np.cos(phi) + side * rng.uniform(0.5, 1.5)
        y = radius * np.sin(phi) + side * rng.uniform(0.5, 1.5)
        parts.append(
            _peculiar(
                "tail",
                (float(np.hypot(x, y)), float(np.arctan2(y, x))),
                radius_arcsec=float(rng.uniform(2.5, 6.0)),
                mag_i=mag_i + float(rng.uniform(0, 1)),
                z=z,
                photometry=photometry,
                rng=rng,
            )
        )
    nuclei = Galaxies.join(*(n for _, n in parts))
    return replace(system, peculiar=tuple(p for p, _ in parts), contaminants=nuclei)


def _star_spikes(
    system: System, frame: Frame, photometry: Photometry, rng: np.random.Generator
) -> System:
    """A star of 11th to 16th magnitude with four or six spikes."""
    radius, phi = _around(frame, rng, nearest=4.0)
    mag = photometry.star_magnitudes(
        rng.uniform(11.0, 16.0, 1), temperature_k=rng.uniform(3400, 8000, 1)
    )[0]
    star = Artefact(
        "star",
        x_arcsec=radius * float(np.cos(phi)),
        y_arcsec=radius * float(np.sin(phi)),
        angle_rad=float(rng.uniform(0, np.pi)),
        n_spikes=int(rng.choice([4, 6])),
        mag=mag,
    )
    return replace(system, artefact=star)


def _fault(fault: str) -> _Decorate:
    """Give one band, drawn at random, a fault of the detector or the pipeline."""

    def decorate(
        system: System, frame: Frame, photometry: Photometry, rng: np.random.Generator
    ) -> System:
        radius, phi = float(rng.uniform(0, 0.7 * frame.half_field_arcsec)), float(rng.uniform(0, 7))
        x, y = radius * float(np.cos(phi)), radius * float(np.sin(phi))
        band = int(rng.integers(len(photometry.bands)))
        if fault == "trail":
            angle = float(rng.uniform(0, np.pi))
            one = Artefact(
                "trail", band, x, y, angle_rad=angle, size=float(np.exp(rng.uniform(0.7, 3.4)))
            )
        elif fault == "cosmic_rays":
            one = Artefact(
                "cosmic_rays",
                band,
                size=float(np.exp(rng.uniform(3.0, 5.5))),
                n_spikes=int(rng.integers(4, 30)),
                seed=int(rng.integers(2**62)),
            )
        elif fault == "gap":
            # The line leaves the centre on the side that has data.
            edge = float(rng.uniform(0.1, 0.7)) * frame.half_field_arcsec
            one = Artefact(
                "gap",
                band,
                x_arcsec=edge * float(np.cos(phi)),
                y_arcsec=edge * float(np.sin(phi)),
                angle_rad=phi,
            )
        elif fault == "shift":
            size = float(rng.uniform(0.4, 1.6))
            one = Artefact(
                "shift",
                band,
                x_arcsec=size * float(np.cos(phi)),
                y_arcsec=size * float(np.sin(phi)),
            )
        else:
            one = Artefact("blur", band, size=float(rng.uniform(1.5, 2.3)))
        return replace(system, artefact=one)

    return decorate


DECORATED: Final[dict[str, _Decorate]] = {
    "cluster": lambda system, frame, photometry, rng: system,
    "edge_on": _edge_on,
    "ring_galaxy": _ring_galaxy,
    "spiral": _spiral,
    "merger": _merger,
    "star_spikes": _star_spikes,
    "satellite_trail": _fault("trail"),
    "cosmic_rays": _fault("cosmic_rays"),
    "missing_band": _fault("gap"),
    "misaligned_band": _fault("shift"),
    "psf_mismatch": _fault("blur"),
}
"""Classes that are a cluster alone with something added."""
