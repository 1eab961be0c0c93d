"""One simulated line of sight: a lens cluster, what lies behind it and what stands around it."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from clusterray.simulate import halo
from clusterray.simulate.artefacts import Artefact
from clusterray.simulate.frame import Frame
from clusterray.simulate.galaxies import (
    Galaxies,
    central,
    cluster_members,
    intracluster_light,
    with_clumps,
)
from clusterray.simulate.lensing import (
    LensPlane,
    critical_curves,
    effective_radius_arcsec,
    grid_axis,
    lens_plane,
)
from clusterray.simulate.peculiar import Peculiar
from clusterray.simulate.recipe import KINDS, LensCluster, Recipe, SourceCluster
from clusterray.simulate.spectra import Photometry

__all__ = ["Background", "Foreground", "System", "draw_background", "draw_foreground"]

Floats = NDArray[np.float64]
_N_MASSIVE: Final = 30
_WIDE_STEP_ARCSEC: Final = 0.75
_WIDE_N: Final = 121


@dataclass(frozen=True, eq=False)
class Foreground:
    """A lens cluster: its mass, its light and what a catalogue says of it.

    The first of `members` is the BCG, at the centre. `sigma_v_km_s` and `l_x_erg_s` are NaN where
    the catalogue has none. `deflector` belongs to sources at the recipe's reference redshift.
    """

    z_lens: float
    m200_msun: float
    concentration: float
    axis_ratio: float
    angle_rad: float
    richness: float
    z_lambda: float
    sigma_v_km_s: float
    l_x_erg_s: float
    members: Galaxies
    icl: Galaxies
    luminosity: Floats
    deflector: halo.Deflector
    _planes: dict[tuple[int, float], LensPlane] = dataclasses.field(
        default_factory=dict, repr=False
    )

    _curves: dict[float, list[Floats]] = dataclasses.field(default_factory=dict, repr=False)

    def plane(self, frame: Frame) -> LensPlane:
        """Deflection on the samples of a frame, kept: it serves criterion, truth and painting."""
        key = (frame.n_samples, frame.step_arcsec)
        if key not in self._planes:
            self._planes[key] = lens_plane(self.deflector, frame.axis_arcsec)
        return self._planes[key]

    @cached_property
    def wide(self) -> LensPlane:
        """Deflection every 0.75″ over ±45″, for Einstein radii."""
        return lens_plane(self.deflector, grid_axis(_WIDE_N, _WIDE_STEP_ARCSEC))

    def critical_curves(self, z_source: float) -> list[Floats]:
        """Tangential critical curves for sources at a redshift, the largest first; kept."""
        if z_source not in self._curves:
            self._curves[z_source] = critical_curves(self.wide.source_plane(z_source))
        return self._curves[z_source]

    def theta_e_arcsec(self, z_source: float) -> float:
        """Effective Einstein radius for sources at a redshift."""
        return effective_radius_arcsec(self.critical_curves(z_source))


@dataclass(frozen=True, eq=False)
class Background:
    """A second cluster: `members` as drawn, `light` the same with star-forming ones in clumps.

    Offsets are in its own, unlensed plane. `lensed` says whether its light is deflected.
    """

    z: float
    members: Galaxies
    light: Galaxies
    lensed: bool


@dataclass(frozen=True, eq=False)
class System:
    """A drawn line of sight.

    `background` is a cluster behind `foreground`; `source` a single galaxy behind it with its
    clumps; `contaminants` are galaxies in front, `peculiar` those of no Sérsic shape. `field` is
    all around: what of it lies behind the cluster is lensed. `stars` have (n,) x, y and (n, bands)
    magnitudes.
    """

    object_id: str
    kind: str
    foreground: Foreground
    background: Background | None = None
    source: Galaxies | None = None
    contaminants: Galaxies | None = None
    peculiar: tuple[Peculiar, ...] = ()
    field: Galaxies | None = None
    stars: tuple[Floats, Floats, Floats] | None = None
    artefact: Artefact | None = None
    tries: int = 1
    cuts: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def y(self) -> int:
        """Truth: 1 lens, −1 marginal, 0 not."""
        return KINDS[self.kind]

    @property
    def z_source(self) -> float | None:
        """Redshift of what is lensed, or could be; None where nothing lies clearly behind."""
        if self.background is not None:
            return self.background.z
        return None if self.source is None else float(self.source.z[0])


def draw_foreground(
    m200_msun: float,
    *,
    recipe: Recipe,
    photometry: Photometry,
    rng: np.random.Generator,
    z: float | None = None,
    boosted: tuple[int, float] | None = None,
) -> Foreground:
    """Draw a cluster of a given mass.

    Concentration 5 (M/5e14)^−0.08, after Duffy et al. (2008), log-normal; richness
    about `halo.richness`, log-normal; velocity dispersion and X-ray luminosity, where known, with
    10 % and 40 % of scatter.

    Parameters
    ----------
    z : redshift, where it is known; drawn where None.
    boosted : index of a member and the velocity dispersion (km/s) it is given.
    """
    law = recipe.lens_cluster
    z = law.z.draw(rng) if z is None else z
    concentration = _concentration(m200_msun, law, rng)
    richness = halo.richness(m200_msun) * rng.lognormal(0, law.richness_sigma_ln)
    axis_ratio, angle = law.axis_ratio.draw(rng), float(rng.uniform(0, np.pi))
    bcg_luminosity = float(5.0 * (m200_msun / 5e14) ** 0.3 * rng.lognormal(0, 0.2))
    bcg = central(
        z,
        photometry=photometry,
        luminosity=bcg_luminosity,
        axis_ratio=min(axis_ratio + 0.1, 0.95),
        angle_rad=angle,
        rng=rng,
    )
    others = cluster_members(
        int(np.clip(0.6 * richness, *law.members_limits)),
        z,
        photometry=photometry,
        red_fraction=law.red_fraction.draw(rng),
        core_kpc=80.0,
        outer_kpc=400.0,
        elongation=(axis_ratio, angle),
        limits=(0.05, 3.0),
        rng=rng,
    )
    # Luminosities in L*, from the magnitudes themselves.
    reference = bcg.mag.mean() + 2.5 * np.log10(bcg_luminosity)
    members = Galaxies.join(bcg, others)
    luminosity = 10 ** (-0.4 * (members.mag.mean(axis=1) - reference))
    icl = intracluster_light(
        bcg, others, share=law.icl_share.draw(rng), axis_ratio=axis_ratio, rng=rng
    )
    known = rng.random(2) < (recipe.catalogue.sigma_v_share, recipe.catalogue.l_x_share)
    scatter = rng.lognormal(0, (0.1, 0.4))
    measured = (halo.dispersion_km_s(m200_msun, z), halo.luminosity_erg_s(m200_msun, z))
    sigma_v, l_x = np.where(known, np.array(measured) * scatter, np.nan)
    return Foreground(
        z_lens=z,
        m200_msun=float(m200_msun),
        concentration=concentration,
        axis_ratio=axis_ratio,
        angle_rad=angle,
        richness=float(richness),
        z_lambda=float(z + rng.normal(0, 0.006) * (1 + z)),
        sigma_v_km_s=float(sigma_v),
        l_x_erg_s=float(l_x),
        members=members,
        icl=icl,
        luminosity=luminosity,
        deflector=_mass(
            (z, recipe.reference_z_source),
            (m200_msun, concentration, axis_ratio, angle),
            members,
            luminosity,
            n_subhaloes=int(rng.poisson(law.subhaloes)),
            boosted=boosted,
            rng=rng,
        ),
    )


def _concentration(m200_msun: float, law: LensCluster, rng: np.random.Generator) -> float:
    median, sigma = 5.0 * (m200_msun / 5e14) ** -0.08, law.concentration_sigma_ln
    low, high = (np.log(v / median) / sigma for v in law.concentration_limits)
    return float(median * np.exp(sigma * stats.truncnorm.ppf(rng.random(), low, high)))


def _mass(
    redshifts: tuple[float, float],
    shape: tuple[float, float, float, float],
    members: Galaxies,
    luminosity: Floats,
    *,
    n_subhaloes: int,
    boosted: tuple[int, float] | None,
    rng: np.random.Generator,
) -> halo.Deflector:
    """Halo, BCG, the brightest members, and dark subhaloes of 150 to 500 km/s.

    Members: σ_v = 180 km/s (L/L*)^0.25 (Faber & Jackson 1976), r_cut = 30 kpc (L/L*)^0.5.
    """
    m200, concentration, axis_ratio, angle = shape
    oriented = {"axis_ratio": axis_ratio, "angle_rad": angle}
    bright = np.argsort(-luminosity[1:], kind="stable")[: _N_MASSIVE - 1] + 1
    sigma = 180.0 * luminosity[bright] ** 0.25
    if boosted is not None:
        sigma[bright == boosted[0]] = boosted[1]
    place = rng.uniform(100.0, 500.0, n_subhaloes) / halo.kpc_per_arcsec(redshifts[0])
    phi = rng.uniform(0, 2 * np.pi, n_subhaloes)
    return halo.cluster(
        halo.nfw(*redshifts, m200_msun=m200, concentration=concentration, **oriented),
        halo.bcg(
            *redshifts,
            sigma_v_km_s=float(300.0 * (luminosity[0] / 5.0) ** 0.25 * rng.lognormal(0, 0.05)),
            **oriented,
        ),
        halo.members(
            *redshifts,
            x_arcsec=np.concatenate([members.x_arcsec[bright], place * np.cos(phi)]),
            y_arcsec=np.concatenate([members.y_arcsec[bright], place * np.sin(phi)]),
            sigma_v_km_s=np.concatenate(
                [sigma, np.exp(rng.uniform(np.log(150.0), np.log(500.0), n_subhaloes))]
            ),
            r_cut_kpc=np.concatenate(
                [30.0 * luminosity[bright] ** 0.5, np.full(n_subhaloes, 80.0)]
            ),
        ),
    )


def draw_background(
    z: float,
    *,
    offset_arcsec: float,
    law: SourceCluster,
    photometry: Photometry,
    lensed: bool,
    rng: np.random.Generator,
) -> Background:
    """Draw a second cluster, its centre that far from the line of sight."""
    low, high = law.members_limits
    members = cluster_members(
        int(rng.integers(low, high + 1)),
        z,
        photometry=photometry,
        red_fraction=law.red_fraction.draw(rng),
        core_kpc=60.0,
        outer_kpc=250.0,
        elongation=(float(rng.uniform(0.6, 1.0)), float(rng.uniform(0, np.pi))),
        limits=law.luminosity_limits,
        rng=rng,
    )
    angle = rng.uniform(0, 2 * np.pi)
    members = members.moved(
        offset_arcsec * float(np.cos(angle)), offset_arcsec * float(np.sin(angle))
    )
    share = law.clump_share.draws(len(members), rng=rng)
    return Background(
        z, members, with_clumps(members, share=share, photometry=photometry, rng=rng), lensed
    )
