"""What a made survey is drawn from: a strict recipe in TOML, refused early if impossible."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clusterray import storage
from clusterray.config import explain
from clusterray.errors import ConfigError, StorageError, did_you_mean
from clusterray.provenance import digest
from clusterray.simulate.distributions import Distribution

__all__ = ["KINDS", "Recipe", "load"]

KINDS: Final = {
    "lens": 1,
    "marginal": -1,
    "cluster": 0,
    "lens_off": 0,
    "outside_caustic": 0,
    "projected_double": 0,
    "galaxy_galaxy": 0,
    "edge_on": 0,
    "ring_galaxy": 0,
    "spiral": 0,
    "merger": 0,
    "star_spikes": 0,
    "satellite_trail": 0,
    "cosmic_rays": 0,
    "missing_band": 0,
    "misaligned_band": 0,
    "psf_mismatch": 0,
}
"""Classes of systems and their truth y; ``recipe.toml`` says what each is."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _ordered(limits: tuple[float, float], key: str) -> None:
    if not 0 < limits[0] <= limits[1]:
        raise ValueError(f"{key} is {list(limits)}, expected 0 < low ≤ high")


class LensCluster(_Section):
    """The foreground cluster."""

    z: Distribution
    m200_msun: Distribution
    massive_m200_msun: Distribution
    massive_share: Share
    concentration_sigma_ln: Positive
    concentration_limits: tuple[float, float]
    axis_ratio: Distribution
    richness_sigma_ln: Positive
    subhaloes: NotNegative
    members_limits: tuple[int, int]
    red_fraction: Distribution
    icl_share: Distribution

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _ordered(self.concentration_limits, "concentration_limits")
        _ordered(self.members_limits, "members_limits")
        for key, top in (("z", 10.0), ("m200_msun", 1e17), ("massive_m200_msun", 1e17)):
            _inside(getattr(self, key), key, 0.0, top)
        for key in ("axis_ratio", "red_fraction", "icl_share"):
            _inside(getattr(self, key), key, 0.0 if key != "axis_ratio" else 0.1, 1.0)
        return self


def _inside(distribution: Any, key: str, low: float, high: float) -> None:
    least, most = distribution.support
    if least < low or most > high:
        raise ValueError(f"{key} is drawn from {least:g} to {most:g}, expected {low:g} to {high:g}")


class SourceCluster(_Section):
    """The background cluster."""

    z: Distribution
    members_limits: tuple[int, int]
    red_fraction: Distribution
    luminosity_limits: tuple[float, float]
    clump_share: Distribution
    lens_offset_arcsec: Distribution
    marginal_offset_arcsec: Distribution
    outside_offset_arcsec: Distribution

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _ordered(self.members_limits, "members_limits")
        _ordered(self.luminosity_limits, "luminosity_limits")
        _inside(self.z, "z", 0.0, 3.5)
        for key in ("red_fraction", "clump_share"):
            _inside(getattr(self, key), key, 0.0, 1.0)
        return self


class SurroundingsRecipe(_Section):
    """Field galaxies and stars."""

    galaxies_per_arcmin2: NotNegative
    stars_per_arcmin2: NotNegative


class Criterion(_Section):
    """What counts as multiply imaged, and how long it is tried for."""

    min_snr: Positive
    min_separation_arcsec: NotNegative
    min_theta_e_arcsec: NotNegative
    max_tries: Annotated[int, Field(ge=1)]


class CatalogueRecipe(_Section):
    """What the cluster catalogue knows besides redshift and richness."""

    sigma_v_share: Share
    l_x_share: Share


class Observation(_Section):
    """How conditions scatter about those of the survey, and what detectors do."""

    psf: Literal["moffat", "gaussian"]
    moffat_beta: Annotated[float, Field(gt=1)]
    seeing_sigma_ln: NotNegative
    band_seeing_sigma_ln: NotNegative
    depth_sigma_mag: NotNegative
    correlated_noise_px: Annotated[float, Field(ge=0, le=3)]
    saturation_mag: float


class Recipe(_Section):
    """Everything that is drawn. `digest` names it in every output."""

    reference_z_source: Positive
    classes: dict[str, NotNegative]
    lens_cluster: LensCluster
    source_cluster: SourceCluster
    surroundings: SurroundingsRecipe
    criterion: Criterion
    catalogue: CatalogueRecipe
    observation: Observation

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in self.classes:
            if name not in KINDS:
                raise ValueError(f"classes: no class '{name}', {did_you_mean(name, KINDS)}")
        total = sum(self.classes.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"classes sum to {total:g}, expected 1")
        farthest = self.lens_cluster.z.support[1]
        for key, nearest in (
            ("source_cluster.z", self.source_cluster.z.support[0]),
            ("reference_z_source", self.reference_z_source),
        ):
            if farthest >= nearest:
                raise ValueError(
                    f"lens_cluster.z reaches {farthest:g} but {key} begins at {nearest:g}; "
                    "sources must lie behind"
                )
        return self

    def digest(self) -> str:
        """Give the SHA-256 of every value."""
        return digest(self.model_dump(mode="json"))

    def with_lens_fraction(self, fraction: float | None) -> Self:
        """Give the recipe with another share of lenses, the other classes scaled alike.

        Raises
        ------
        ConfigError : nothing but lenses is in the recipe, and not all are to be lenses.
        """
        if fraction is None:
            return self
        rest = {k: v for k, v in self.classes.items() if k != "lens"}
        total = sum(rest.values())
        if total <= 0 and fraction < 1:
            raise ConfigError(
                "simulate.lens_fraction: the recipe has no other classes; give [classes] some"
            )
        scaled = {k: v * (1 - fraction) / total for k, v in rest.items()} if total else {}
        return self.model_copy(update={"classes": {"lens": fraction, **scaled}})


def load(url: str = "") -> Recipe:
    """Read the built-in recipe, with the changes of a TOML file laid over it.

    Raises
    ------
    ConfigError : no such file, not TOML, an unknown key (the nearest known one is named), or a
        recipe that cannot be drawn.
    """
    text = resources.files("clusterray.simulate").joinpath("recipe.toml").read_text()
    values = tomllib.loads(text)
    where = "recipe.toml"
    if url:
        where = f"recipe '{storage.redact(url)}'"
        try:
            changes = tomllib.loads(storage.read_bytes(url).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: not a TOML file: {error}") from error
        except StorageError as error:
            raise ConfigError(f"simulate.recipe: {error}") from error
        values = _laid_over(values, changes)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, Recipe)}") from error


def _laid_over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        whole = key == "classes" or "distribution" in change if isinstance(change, dict) else True
        merged[key] = change if whole or not isinstance(old, dict) else _laid_over(old, change)
    return merged
