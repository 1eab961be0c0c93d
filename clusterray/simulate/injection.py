"""Lensed background clusters put behind foregrounds that exist, real or simulated.

The mass is that of the catalogue, the light is deflected, seen through the cutout's own PSF and
added with its own photon noise. Every lens brings its lens-off twin: the same background cluster,
straight through. Member galaxies of the foreground bend nothing here but through the halo they
are part of: which of the sources in a cutout they are is not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clusterray.provenance import seed_for
from clusterray.schema import INJECTED_LENS, INJECTED_TWIN
from clusterray.simulate import halo, negatives, scene
from clusterray.simulate.cutouts import CutoutMaker
from clusterray.simulate.observe import SKY_MAG, Exposure, blur, noise_equivalent_px
from clusterray.simulate.system import Foreground, System, draw_background, draw_foreground
from clusterray.simulate.truth import arc_mask, find_images, truth_row
from clusterray.sky.cutout_table import to_table
from clusterray.sky.photometry import NJY_ZERO_POINT
from clusterray.sky.shards import CutoutBatch

__all__ = ["Injected", "inject", "pairs_table"]

_MASS_SIGMA_LN: Final = 0.25
_MAX_TRIES: Final = 25
_SHARED_TRUTH: Final = (
    *("z_lens", "z_source", "m200_msun", "richness", "tries"),
    *("theta_e_arcsec", "theta_e_reference_arcsec", "theta_e_over_fwhm"),
)


@dataclass(frozen=True, eq=False)
class Injected:
    """A row of a batch with a lens behind it, and its twin: (bands, size, size) nJy each."""

    row: int
    lens_id: str
    twin_id: str
    lens: NDArray[np.float32]
    twin: NDArray[np.float32]
    truth: tuple[dict[str, Any], dict[str, Any]]


def inject(batch: CutoutBatch, row: int, maker: CutoutMaker) -> Injected | str:
    """Put a lensed background cluster behind one cutout; a function of (cutout, maker).

    Parameters
    ----------
    batch : cutouts of the maker's survey, in nJy.

    Returns
    -------
    The pair, or the reason why there is none.
    """
    object_id = str(batch.object_id[row])
    known = _Known.of(batch, row)
    reason = known.unusable(maker)
    if reason:
        return reason
    exposures = known.exposures(maker)
    for attempt in range(_MAX_TRIES):
        rng = np.random.default_rng(seed_for(maker.seed, inject=object_id, attempt=attempt))
        made = _attempt(object_id, known, maker, exposures, rng)
        if made is not None:
            return _add(batch.cutouts_nchw[row], row, made, maker, exposures, attempt + 1)
    return (
        f"none of {_MAX_TRIES} background clusters is multiply imaged behind M200 "
        f"{known.m200_msun:.1e} at z {known.z_lens:.2f}"
    )


@dataclass(frozen=True)
class _Known:
    """What is known of one cutout; NaN where it is not."""

    z_lens: float
    richness: float
    sigma_v_km_s: float
    l_x_erg_s: float
    psf_fwhm_arcsec: tuple[float, ...]
    noise_sigma: tuple[float, ...]

    @classmethod
    def of(cls, batch: CutoutBatch, row: int) -> "_Known":
        one = {
            name: float(batch.columns[name][row])
            for name in ("z_lens", "richness", "sigma_v_km_s", "l_x_erg_s")
        }
        psf = tuple(float(v) for v in batch.columns["psf_fwhm_arcsec"][row])
        return cls(
            **one, psf_fwhm_arcsec=psf, noise_sigma=tuple(float(v) for v in batch.noise_sigma[row])
        )

    @cached_property
    def m200_msun(self) -> float | None:
        """Mass by the most direct observable."""
        return halo.mass_from_catalogue(
            z=self.z_lens,
            richness=self.richness,
            sigma_v_km_s=self.sigma_v_km_s,
            l_x_erg_s=self.l_x_erg_s,
        )

    def unusable(self, maker: CutoutMaker) -> str | None:
        """Why no lens can be put behind it, or None."""
        nearest = maker.recipe.source_cluster.z.support[0]
        if not 0.02 < self.z_lens < nearest - 0.05:
            return f"z_lens is {self.z_lens:.3f}, expected 0.02 to {nearest - 0.05:.2f}"
        if self.m200_msun is None:
            return "no mass: richness, sigma_v_km_s and l_x_erg_s are all unknown"
        if not 3e13 <= self.m200_msun <= 5e15:
            return f"mass {self.m200_msun:.1e} is that of no cluster, expected 3e13 to 5e15"
        for band, fwhm in zip(maker.survey.bands, self.psf_fwhm_arcsec, strict=True):
            if not (fwhm > 0 or band.psf_fwhm_arcsec):
                return f"PSF of band {band.name} is unknown; set survey.psf_fwhm_arcsec.{band.name}"
        return None

    def exposures(self, maker: CutoutMaker) -> tuple[Exposure, ...]:
        """Conditions that give the cutout's own PSF and noise."""
        pixel = maker.frame.pixel_arcsec
        sky = SKY_MAG.get(maker.survey.name, {})
        law = maker.recipe.observation
        beta = law.moffat_beta if law.psf == "moffat" else None
        out = []
        for band, fwhm, sigma in zip(
            maker.survey.bands, self.psf_fwhm_arcsec, self.noise_sigma, strict=True
        ):
            width = fwhm if fwhm > 0 else float(band.psf_fwhm_arcsec or 0)
            area = noise_equivalent_px(width, pixel_arcsec=pixel, moffat_beta=beta)
            depth = NJY_ZERO_POINT - 2.5 * np.log10(5 * sigma * np.sqrt(area))
            out.append(Exposure(band.name, float(depth), width, sky[band.name], beta))
        return tuple(out)


def _attempt(
    object_id: str,
    known: _Known,
    maker: CutoutMaker,
    exposures: Sequence[Exposure],
    rng: np.random.Generator,
) -> tuple[System, dict[str, Any]] | None:
    recipe = maker.recipe
    assert known.m200_msun is not None
    foreground = _foreground(known, maker, rng)
    law = recipe.source_cluster
    z = law.z.draw(rng)
    if foreground.theta_e_arcsec(z) < recipe.criterion.min_theta_e_arcsec:
        return None
    background = draw_background(
        z,
        offset_arcsec=law.lens_offset_arcsec.draw(rng),
        law=law,
        photometry=maker.photometry,
        lensed=True,
        rng=rng,
    )
    plane = foreground.plane(maker.frame)
    images = find_images(background.members, plane, maker.frame, exposures, recipe.criterion)
    if len(images.multiple) < 2:
        return None
    system = System(f"{object_id}{INJECTED_LENS}", "lens", foreground, background)
    row = truth_row(
        system,
        images,
        0,
        exposures=exposures,
        frame=maker.frame,
        reference_z_source=recipe.reference_z_source,
    )
    return system, row | {"twin_of": object_id, "richness": known.richness}


def _foreground(known: _Known, maker: CutoutMaker, rng: np.random.Generator) -> Foreground:
    """A cluster of the catalogue's redshift and (with scatter) mass: halo and BCG alone."""
    assert known.m200_msun is not None
    mass = known.m200_msun * float(rng.lognormal(0, _MASS_SIGMA_LN))
    drawn = draw_foreground(
        mass, recipe=maker.recipe, photometry=maker.photometry, rng=rng, z=known.z_lens
    )
    # The halo and the central galaxy stand first.
    deflector = halo.Deflector(
        drawn.deflector.z_lens,
        drawn.deflector.z_source,
        drawn.deflector.profiles[:2],
        drawn.deflector.parameters[:2],
    )
    return replace(drawn, deflector=deflector)


def _add(
    cutout: NDArray[np.float32],
    row: int,
    made: tuple[System, dict[str, Any]],
    maker: CutoutMaker,
    exposures: Sequence[Exposure],
    tries: int,
) -> Injected:
    system, truth = made
    object_id = system.object_id.removesuffix(INJECTED_LENS)
    twin_id = f"{object_id}{INJECTED_TWIN}"
    noise = np.random.default_rng(seed_for(maker.seed, inject=object_id, part="noise"))
    normal = noise.standard_normal(cutout.shape, dtype=np.float32)
    gain = np.array([e.gain(maker.frame.pixel_arcsec) for e in exposures], np.float32)
    images = []
    for one in (system, negatives.lens_off(system)):
        light = _light(one, maker, exposures)
        images.append(cutout + light + normal * np.sqrt(np.maximum(light, 0) / gain[:, None, None]))
    packed = np.packbits(arc_mask(_light(system, maker, exposures), exposures, maker.frame))
    truth = truth | {"tries": tries, "arc_mask": packed.tobytes()}
    off = {k: truth[k] for k in _SHARED_TRUTH}
    off |= {"object_id": twin_id, "y": 0, "kind": "lens_off", "twin_of": system.object_id}
    off |= {"n_multiply_imaged": 0, "n_field_multiply_imaged": 0}
    return Injected(row, system.object_id, twin_id, images[0], images[1], (truth, off))


def _light(
    system: System, maker: CutoutMaker, exposures: Sequence[Exposure]
) -> NDArray[np.float32]:
    frame = maker.frame
    canvas = scene.paint_background(system, frame, n_bands=len(exposures))
    image = blur(
        canvas,
        exposures,
        maker.recipe.observation,
        step_arcsec=frame.step_arcsec,
        supersampling=frame.supersampling,
    )
    return np.ascontiguousarray(image[:, frame.kept(), frame.kept()])


def pairs_table(batch: CutoutBatch, pairs: Sequence[Injected], maker: CutoutMaker) -> pa.Table:
    """Rows of `schema.cutouts`: lens and twin of each pair, where their source stands.

    What the catalogue says of the source, it says of both; the noise is the source's.
    """
    rows = np.repeat([p.row for p in pairs], 2)
    column = batch.columns
    return to_table(
        object_id=[name for p in pairs for name in (p.lens_id, p.twin_id)],
        ra_deg=column["ra_deg"][rows],
        dec_deg=column["dec_deg"][rows],
        cutouts_nchw=np.stack([image for p in pairs for image in (p.lens, p.twin)]),
        noise_sigma=batch.noise_sigma[rows],
        bands=batch.bands,
        pixel_scale_arcsec=batch.pixel_scale_arcsec,
        **{
            name: column[name][rows]
            for name in (
                "survey",
                "z_lens",
                "richness",
                "sigma_v_km_s",
                "l_x_erg_s",
                "ebv",
                "psf_fwhm_arcsec",
                "depth_mag",
                "zero_point",
                "noise_correlation",
                "coverage",
            )
        },
    )
