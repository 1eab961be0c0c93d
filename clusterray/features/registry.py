"""Every feature by name: its unit, definition and source, in the order of the columns."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterray.config import FeatureSettings
from clusterray.errors import InputError

__all__ = [
    "N_ANNULI",
    "Feature",
    "FeatureMatrix",
    "band_pairs",
    "catalogue_registry",
    "feature_names",
    "image_registry",
    "registry",
]

N_ANNULI = 5
"""Annuli of equal width that fill the circle inscribed in the cutout."""

_NO_PIXEL = "no usable pixel there"
_LUPTON = "Lupton, Gunn & Szalay 1999, AJ 118, 1406, eq. 3"


@dataclass(frozen=True)
class Feature:
    """One column: what it is, in which unit, after whom, and when it is NaN (empty: never)."""

    name: str
    unit: str
    definition: str
    source: str
    nan_when: str = ""

    @property
    def may_be_nan(self) -> bool:
        """Whether NaN ("unknown") is one of its values."""
        return bool(self.nan_when)


@dataclass(frozen=True)
class FeatureMatrix:
    """Features of some objects: `values` (n, f) float32, one column for each of `names`."""

    values: NDArray[np.float32]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise InputError(
                f"feature matrix: values have shape {self.values.shape}, expected "
                f"(n, {len(self.names)}) for {len(self.names)} names"
            )
        if len(set(self.names)) != len(self.names):
            raise InputError("feature matrix: a name stands twice; give each band its own name")


def band_pairs(bands: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Adjacent bands, bluer first."""
    return tuple(itertools.pairwise(bands))


def image_registry(bands: Sequence[str], *, grid: int = 3) -> tuple[Feature, ...]:
    """Features that come from pixels.

    First patch after patch (row 0 is the first pixel row: south in a north-up cutout), then the
    annuli from the centre outwards.
    """
    patches = [
        feature
        for row in range(grid)
        for column in range(grid)
        for feature in _patch(row, column, bands)
    ]
    annuli = [feature for ring in range(N_ANNULI) for feature in _annulus(ring, bands)]
    return (*patches, *annuli)


def _patch(row: int, column: int, bands: Sequence[str]) -> list[Feature]:
    prefix, where = f"patch_{row}_{column}", f"patch {column} of row {row}"
    per_band = (
        ("covered", "1", "share of the patch's pixels that are usable", "", ""),
        ("mean", "σ", "mean flux per pixel over the noise of a pixel", "", _NO_PIXEL),
        ("std", "σ", "standard deviation of the pixels over the noise", "", _NO_PIXEL),
        (
            "contrast",
            "1",
            "mean minus the mean of the other patches, over the standard deviation of their "
            "pixels, which is never taken below the noise",
            "",
            "no usable pixel there, or none in the other patches",
        ),
        (
            "texture",
            "levels²",
            "grey-level co-occurrence contrast of the asinh-stretched 8-bit image at distance 1: "
            "mean squared level difference of neighbours, averaged over the angles 0° and 90°",
            "Haralick, Shanmugam & Dinstein 1973, f2",
            "no two usable neighbours",
        ),
        (
            "edges",
            "1",
            "share of pixels whose Sobel gradient is above 4 standard deviations of its noise",
            "Sobel & Feldman 1968; threshold from the noise (features.texture)",
            "no usable 3×3 neighbourhood",
        ),
    )
    features = [
        Feature(f"{prefix}_{stat}_{band}", unit, f"{text}; {where}, {band}", source, nan)
        for stat, unit, text, source, nan in per_band
        for band in bands
    ]
    for blue, red in band_pairs(bands):
        features.append(_colour(prefix, where, blue, red))
    for blue, red in band_pairs(bands):
        features.append(
            Feature(
                f"{prefix}_difference_{blue}_{red}",
                "σ",
                f"mean flux in {blue} minus that in {red}, over the noise of one pixel's "
                f"difference; {where}, pixels usable in both",
                "",
                "no pixel usable in both bands",
            )
        )
    return features


def _colour(prefix: str, where: str, blue: str, red: str) -> Feature:
    return Feature(
        f"{prefix}_colour_{blue}_{red}",
        "mag",
        f"asinh magnitude in {blue} minus that in {red}, of the mean flux of the pixels usable in "
        f"both, softened at the noise of the mean; {where}",
        _LUPTON,
        "no pixel usable in both bands",
    )


def _annulus(ring: int, bands: Sequence[str]) -> list[Feature]:
    prefix = f"annulus_{ring}"
    where = f"{ring}/{N_ANNULI} to {ring + 1}/{N_ANNULI} of the half width from the centre"
    features = [
        Feature(f"{prefix}_{stat}_{band}", unit, f"{text} {where}, {band}", "", _NO_PIXEL)
        for stat, unit, text in (
            ("mean", "σ", "mean flux per pixel over the noise,"),
            ("std", "σ", "standard deviation of the pixels over the noise,"),
            ("bright", "1", "share of pixels above 3 σ,"),
        )
        for band in bands
    ]
    pairs = band_pairs(bands)
    features += [_colour(prefix, where, blue, red) for blue, red in pairs]
    if ring:
        features += [
            Feature(
                f"{prefix}_colour_excess_{blue}_{red}",
                "mag",
                f"colour {blue} − {red} {where}, minus that of the innermost circle: negative "
                "where a ring is bluer than the cluster's centre",
                _LUPTON,
                "no pixel usable in both bands, in the ring or in the centre",
            )
            for blue, red in pairs
        ]
    if pairs:
        blue, red = bands[0], bands[-1]
        features.append(
            Feature(
                f"{prefix}_blue_residual_{blue}_{red}",
                "1",
                f"share of pixels with {blue} − α {red} above 3 times its noise {where}; α is the "
                "flux ratio of the innermost circle, so light of the centre's colour cancels",
                "after Gavazzi et al. 2014, ApJ 785, 144, sect. 3.1",
                f"no pixel usable in both bands, or less than 5 σ in {red} in the innermost circle",
            )
        )
    return features


def catalogue_registry(bands: Sequence[str]) -> tuple[Feature, ...]:
    """Features that come from the cluster catalogue and the field's conditions."""
    unknown = "not in the catalogue, or not usable"
    proxies = (
        Feature("z_lens", "1", "redshift of the cluster", "catalogue", unknown),
        Feature("richness", "1", "richness λ of the cluster", "catalogue", unknown),
        Feature(
            "theta_e_richness_arcsec",
            "arcsec",
            "10″ (λ/50)^0.4 √((1+z)/1.4)",
            "project rule",
            "richness or redshift unknown, or the cluster lies behind the sources",
        ),
        Feature(
            "theta_e_dispersion_arcsec",
            "arcsec",
            "4π (σ_v/c)² D_ls/D_s at the configured source redshift",
            "Narayan & Bartelmann 1996, eq. 37",
            "dispersion or redshift unknown, or the cluster lies behind the sources",
        ),
        Feature(
            "theta_e_xray_arcsec",
            "arcsec",
            "L_X → M500 → M200 → σ_v → 4π (σ_v/c)² D_ls/D_s",
            "Piffaretti et al. 2011, eq. 2; Evrard et al. 2008, eq. 4 and 6",
            "luminosity or redshift unknown, or the cluster lies behind the sources",
        ),
        Feature(
            "theta_e_arcsec",
            "arcsec",
            "the proxy from dispersion, else from X-ray luminosity, else from richness",
            "",
            "none of them is known",
        ),
        Feature(
            "theta_e_source",
            "code",
            "what theta_e_arcsec comes from: 0 unknown, 1 richness, 2 X-ray, 3 dispersion",
            "",
        ),
    )
    context = [
        Feature(f"{name}_{band}", unit, f"{text}, {band}", "image header or survey", "not recorded")
        for name, unit, text in (
            ("psf_fwhm_arcsec", "arcsec", "seeing"),
            ("depth_mag", "mag", "5 σ depth"),
        )
        for band in bands
    ]
    return (*proxies, *context)


def registry(bands: Sequence[str], settings: FeatureSettings) -> tuple[Feature, ...]:
    """Every feature of a cutout, in the order of the columns."""
    return (*image_registry(bands, grid=settings.grid), *catalogue_registry(bands))


def feature_names(bands: Sequence[str], settings: FeatureSettings) -> tuple[str, ...]:
    """Column names of `cutout_features`, in order."""
    return tuple(feature.name for feature in registry(bands, settings))
