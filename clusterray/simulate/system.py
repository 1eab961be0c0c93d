"""One simulated line of sight: a lens cluster and what lies behind it."""

from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clusterray.errors import ConfigError
from clusterray.provenance import digest
from clusterray.simulate import halo
from clusterray.simulate.galaxies import Galaxies, central, cluster_members

__all__ = ["KINDS", "Foreground", "Recipe", "System", "draw_background", "draw_foreground"]

KINDS: Final = ("lens", "marginal", "lens_off", "double", "cluster")
"""Classes of truth: a lens; exactly one member multiply imaged; the lensing switched off; a second
cluster that is not multiply imaged; a cluster alone."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """What is drawn, in which ranges; magnitudes AB, per band in g, r, i.

    `marginal`, `lens_off` and `double` are shares of the non-lenses; the rest are clusters alone,
    `rich` of them from the lenses' own mass range. Depth, PSF and zero point are those of a
    nominal tile: the positive criterion is judged under them, and tiles scatter about them.
    """

    z_lens: Range = (0.2, 0.6)
    z_source: Range = (0.8, 1.5)
    reference_z_source: float = 1.2
    m200_msun: Range = (1e14, 1.5e15)
    lens_m200_msun: Range = (4e14, 1.5e15)
    concentration: Range = (3.0, 7.0)
    marginal: float = 0.02
    lens_off: float = 0.08
    double: float = 0.10
    rich: float = 0.25
    field_arcsec: float = 64.0
    theta_e_arcsec: Range = (5.0, 20.0)
    min_snr: float = 5.0
    min_separation_arcsec: float = 2.0
    max_tries: int = 200
    depth_mag: tuple[float, float, float] = (25.6, 25.3, 24.9)
    psf_fwhm_arcsec: tuple[float, float, float] = (0.90, 0.80, 0.75)
    zero_point: tuple[float, float, float] = (29.9, 30.0, 30.1)
    sky_mag: tuple[float, float, float] = (22.0, 21.2, 20.3)

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises
        ------
        ConfigError : naming the key.
        """
        for key in (
            "z_lens",
            "z_source",
            "m200_msun",
            "lens_m200_msun",
            "concentration",
            "theta_e_arcsec",
        ):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ConfigError(f"recipe: '{key}' is ({low}, {high}), expected 0 < low ≤ high")
        if self.z_lens[1] >= min(self.z_source[0], self.reference_z_source):
            raise ConfigError(
                f"recipe: 'z_lens' reaches {self.z_lens[1]} but 'z_source' begins at "
                f"{min(self.z_source[0], self.reference_z_source)}; sources must lie behind"
            )
        shares = {k: getattr(self, k) for k in ("marginal", "lens_off", "double", "rich")}
        for key, share in shares.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"recipe: '{key}' is {share}, expected a share from 0 to 1")
        if self.marginal + self.lens_off + self.double > 1:
            raise ConfigError(
                "recipe: 'marginal' + 'lens_off' + 'double' is more than all non-lenses"
            )
        if self.max_tries < 1 or self.field_arcsec <= 0:
            raise ConfigError("recipe: 'max_tries' and 'field_arcsec' must be above zero")

    def digest(self) -> str:
        """Give the SHA-256 of every value."""
        return digest(asdict(self))


@dataclass(frozen=True, eq=False)
class Foreground:
    """A lens cluster: its mass and its light. The first member is the BCG, at the centre."""

    z_lens: float
    m200_msun: float
    concentration: float
    axis_ratio: float
    angle_rad: float
    richness: float
    z_lambda: float
    sigma_v_bcg_km_s: float
    members: Galaxies
    luminosity: NDArray[np.float64]

    def deflector(self, z_source: float) -> halo.Deflector:
        """Halo, BCG and the ten brightest other members, for sources at z_source.

        σ_v = 180 km/s (L/L*)^0.25 (Faber & Jackson 1976), r_cut = 30 kpc (L/L*)^0.5.
        """
        shape = {"axis_ratio": self.axis_ratio, "angle_rad": self.angle_rad}
        mass = {"m200_msun": self.m200_msun, "concentration": self.concentration}
        massive = slice(1, 11)
        return halo.cluster(
            halo.nfw(self.z_lens, z_source, **mass, **shape),
            halo.bcg(self.z_lens, z_source, sigma_v_km_s=self.sigma_v_bcg_km_s, **shape),
            halo.members(
                self.z_lens,
                z_source,
                x_arcsec=self.members.x_arcsec[massive],
                y_arcsec=self.members.y_arcsec[massive],
                sigma_v_km_s=180.0 * self.luminosity[massive] ** 0.25,
                r_cut_kpc=30.0 * self.luminosity[massive] ** 0.5,
            ),
        )


@dataclass(frozen=True, eq=False)
class System:
    """A drawn line of sight and its truth.

    `background` is a second cluster at `z_background`, None for a cluster alone; its offsets are
    in its own, unlensed plane. `lensed` says whether its light is deflected when it is painted.
    `theta_e_arcsec` is that of the foreground's mass for sources at `z_background`, or at the
    recipe's reference redshift where nothing lies clearly behind.
    """

    object_id: str
    kind: str
    foreground: Foreground
    background: Galaxies | None
    z_background: float | None
    lensed: bool
    theta_e_arcsec: float
    n_multiply_imaged: int
    tries: int = 1

    @property
    def y(self) -> int:
        """Truth: 1 lens, −1 marginal, 0 not."""
        return {"lens": 1, "marginal": -1}.get(self.kind, 0)

    def deflector(self) -> halo.Deflector | None:
        """Build what deflects the background's light; None where nothing does."""
        if not self.lensed or self.z_background is None:
            return None
        return self.foreground.deflector(self.z_background)


def draw_foreground(m200_msun: float, *, recipe: Recipe, rng: np.random.Generator) -> Foreground:
    """Draw a cluster of a given mass.

    Concentration 5 (M/5e14)^−0.08 with 20 % scatter, after Duffy et al. (2008); richness
    λ = 40 (M/3.08e14)^(1/1.356) with 20 % scatter, after McClintock et al. (2019, DES Y1).
    """
    z = float(rng.uniform(*recipe.z_lens))
    concentration = 5.0 * (m200_msun / 5e14) ** -0.08 * rng.lognormal(0, 0.2)
    richness = 40.0 * (m200_msun / 3.08e14) ** (1 / 1.356) * rng.lognormal(0, 0.2)
    axis_ratio, angle = float(rng.uniform(0.55, 0.95)), float(rng.uniform(0, np.pi))
    bcg_luminosity = float(5.0 * (m200_msun / 5e14) ** 0.3 * rng.lognormal(0, 0.2))
    bcg = central(
        z,
        luminosity=bcg_luminosity,
        axis_ratio=min(axis_ratio + 0.1, 0.95),
        angle_rad=angle,
        rng=rng,
    )
    n = int(np.clip(0.6 * richness, 20, 60))
    others = cluster_members(
        n,
        z,
        red_fraction=0.8,
        core_kpc=80.0,
        outer_kpc=400.0,
        elongation=(axis_ratio, angle),
        limits=(0.05, 3.0),
        rng=rng,
    )
    members = Galaxies.join(bcg, others)
    reference = members.mag[0, 2] + 2.5 * np.log10(bcg_luminosity)
    return Foreground(
        z_lens=z,
        m200_msun=float(m200_msun),
        concentration=float(np.clip(concentration, *recipe.concentration)),
        axis_ratio=axis_ratio,
        angle_rad=angle,
        richness=float(richness),
        z_lambda=float(z + rng.normal(0, 0.006) * (1 + z)),
        sigma_v_bcg_km_s=float(300.0 * (bcg_luminosity / 5.0) ** 0.25 * rng.lognormal(0, 0.05)),
        members=members,
        luminosity=10 ** (-0.4 * (members.mag[:, 2] - reference)),
    )


def draw_background(
    z: float, *, offset_arcsec: float, red_fraction: float, rng: np.random.Generator
) -> Galaxies:
    """Draw a second cluster of 20–50 galaxies, its centre that far from the line of sight."""
    members = cluster_members(
        int(rng.integers(20, 51)),
        z,
        red_fraction=red_fraction,
        core_kpc=60.0,
        outer_kpc=250.0,
        elongation=(float(rng.uniform(0.6, 1.0)), float(rng.uniform(0, np.pi))),
        limits=(0.25, 5.0),
        rng=rng,
    )
    angle = rng.uniform(0, 2 * np.pi)
    return members.moved(offset_arcsec * float(np.cos(angle)), offset_arcsec * float(np.sin(angle)))
