"""A made survey as cutouts: each system alone on its own square of sky, and as rows of a shard."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clusterray import schema
from clusterray.provenance import seed_for
from clusterray.simulate import artefacts, population, scene
from clusterray.simulate.frame import Frame
from clusterray.simulate.observe import Exposure, conditions, correlation_gain, detect
from clusterray.simulate.recipe import Recipe
from clusterray.simulate.spectra import Photometry, photometry
from clusterray.simulate.system import System
from clusterray.simulate.truth import arc_mask
from clusterray.sky.cutout_table import to_table
from clusterray.sky.surveys import Survey

__all__ = ["Cutout", "CutoutMaker", "catalogue_columns", "truth_table"]


@dataclass(frozen=True, eq=False)
class Cutout:
    """One system as a survey shows it: (bands, size, size) nJy, NaN where there is no data."""

    image: NDArray[np.float32]
    exposures: tuple[Exposure, ...]
    drawn: population.Drawn

    @property
    def truth(self) -> dict[str, Any]:
        """Its row of the truth table."""
        return self.drawn.truth


@dataclass(frozen=True)
class CutoutMaker:
    """Makes cutouts of a survey; what it makes depends on (survey, recipe, seed, object_id) alone.

    `survey` has PSF and depth in every band: see `observe.completed`.

    Raises
    ------
    ConfigError : on first use, a survey that cannot be simulated.
    """

    survey: Survey
    recipe: Recipe
    seed: int

    @cached_property
    def photometry(self) -> Photometry:
        """Colours in the survey's bands."""
        return photometry(self.survey.name, self.survey.band_names)

    @cached_property
    def frame(self) -> Frame:
        """The survey's cutout."""
        return Frame.around(
            self.survey.size_px,
            self.survey.pixel_scale_arcsec,
            sharpest_fwhm_arcsec=min(b.psf_fwhm_arcsec or np.inf for b in self.survey.bands),
        )

    def check(self) -> None:
        """Refuse now what could not be simulated later.

        Raises
        ------
        ConfigError : naming the setting.
        """
        self.exposures("check")
        assert self.photometry
        assert self.frame

    def exposures(self, object_id: str) -> tuple[Exposure, ...]:
        """Conditions under which an object is seen."""
        return conditions(self.survey, self.recipe.observation, seed=self.seed, name=object_id)

    def draw(self, object_id: str, kind: str) -> population.Drawn:
        """Draw a system of a class, under its conditions.

        Raises
        ------
        RunError : none could be drawn.
        """
        return population.draw(
            object_id,
            kind=kind,
            seed=self.seed,
            recipe=self.recipe,
            photometry=self.photometry,
            frame=self.frame,
            exposures=self.exposures(object_id),
        )

    def make(self, object_id: str, kind: str) -> Cutout:
        """Draw a system of a class and observe it.

        Raises
        ------
        RunError : none could be drawn.
        """
        return self.observe(self.draw(object_id, kind))

    def observe(self, drawn: population.Drawn) -> Cutout:
        """Paint a system and put it through PSF, noise and faults."""
        system = drawn.system
        exposures = self.exposures(system.object_id)
        law, pixel = self.recipe.observation, self.frame.pixel_arcsec
        canvas, alone = scene.paint_parts(system, self.frame, n_bands=len(exposures))
        image = scene.image_of(canvas, system, self.frame, exposures, law)
        rng = np.random.default_rng(seed_for(self.seed, noise=system.object_id))
        seen = artefacts.mismatched(system.artefact, exposures)
        detect(image, seen, law, pixel_arcsec=pixel, rng=rng)
        artefacts.add_after_noise(image, system.artefact, seen, pixel_arcsec=pixel)
        truth = drawn.truth | {"arc_mask": self._arc_mask(system, exposures, alone)}
        return Cutout(image, seen, population.Drawn(system, truth))

    def _arc_mask(
        self, system: System, exposures: Sequence[Exposure], alone: NDArray[np.float32]
    ) -> bytes | None:
        """The packed arc mask of a background cluster's light, a canvas before any PSF."""
        if system.background is None or not system.background.lensed:
            return None
        image = scene.image_of(alone, system, self.frame, exposures, self.recipe.observation)
        return np.packbits(arc_mask(image, exposures, self.frame)).tobytes()

    def position(self, object_id: str) -> tuple[float, float]:
        """RA and Dec (deg) of an object: uniform on the sky within 50° of the equator."""
        rng = np.random.default_rng(seed_for(self.seed, position=object_id))
        sine = np.sin(np.radians(50.0)) * rng.uniform(-1, 1)
        return float(rng.uniform(0, 360)), float(np.degrees(np.arcsin(sine)))

    def shard_table(self, cutouts: Sequence[Cutout]) -> pa.Table:
        """Rows of `schema.cutouts`."""
        systems = [c.drawn.system for c in cutouts]
        ids = [s.object_id for s in systems]
        sky = np.array([self.position(i) for i in ids])
        pixel = self.frame.pixel_arcsec
        return to_table(
            object_id=ids,
            ra_deg=sky[:, 0],
            dec_deg=sky[:, 1],
            cutouts_nchw=np.stack([c.image for c in cutouts]),
            noise_sigma=np.array([[e.sigma_njy(pixel) for e in c.exposures] for c in cutouts]),
            bands=self.survey.band_names,
            pixel_scale_arcsec=pixel,
            survey=self.survey.name,
            psf_fwhm_arcsec=np.array([[e.psf_fwhm_arcsec for e in c.exposures] for c in cutouts]),
            depth_mag=np.array([[e.depth_mag for e in c.exposures] for c in cutouts]),
            noise_correlation=correlation_gain(self.recipe.observation),
            **catalogue_columns(systems),
        )


def catalogue_columns(systems: Sequence[System]) -> dict[str, Any]:
    """What a cluster catalogue says of the foreground clusters, (n,) each, NaN where unknown."""
    lenses = [s.foreground for s in systems]
    return {
        "z_lens": np.array([f.z_lambda for f in lenses]),
        "richness": np.array([f.richness for f in lenses]),
        "sigma_v_km_s": np.array([f.sigma_v_km_s for f in lenses]),
        "l_x_erg_s": np.array([f.l_x_erg_s for f in lenses]),
    }


def truth_table(rows: Sequence[dict[str, Any]], *, where: str) -> pa.Table:
    """Rows of `truth.truth_row` as a table of `schema.TRUTH`, what they lack null."""
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema.TRUTH]
    return schema.check(pa.table(columns, schema=schema.TRUTH), schema.TRUTH, where=where)
