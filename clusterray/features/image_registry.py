"""The features that come from pixels alone: patches, and annuli about the centre."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from clusterray.features.feature import Feature
from clusterray.features.geometry import N_ANNULI

__all__ = ["annulus_features", "band_pairs", "image_registry", "patch_features", "patch_registry"]

_NO_PIXEL = "no usable pixel there"
_LUPTON = "Lupton, Gunn & Szalay 1999, AJ 118, 1406, eq. 3"
_HARALICK = "Haralick, Shanmugam & Dinstein 1973"
_RINGFINDER = "after Gavazzi et al. 2014, ApJ 785, 144, sect. 3.1"

_PATCH_PER_BAND = (
    ("covered", "1", "share of the patch's pixels that are usable", "", ""),
    ("mean", "σ", "mean flux per pixel over the noise of a pixel", "", _NO_PIXEL),
    ("std", "σ", "standard deviation of the pixels over the noise", "", _NO_PIXEL),
    ("median", "σ", "median flux of the pixels over the noise", "", _NO_PIXEL),
    (
        "contrast",
        "1",
        "mean minus the mean of the other patches, over the standard deviation of their pixels, "
        "which is never taken below the noise",
        "",
        "no usable pixel there, or none in the other patches",
    ),
    (
        "texture",
        "levels²",
        "grey-level co-occurrence contrast of the asinh-stretched 8-bit image at distance 1: mean "
        "squared level difference of neighbours at 0° and 90°",
        f"{_HARALICK}, f2",
        "no two usable neighbours",
    ),
    (
        "homogeneity",
        "1",
        "grey-level co-occurrence homogeneity (inverse difference moment) of the same pairs: mean "
        "of 1/(1 + squared level difference)",
        f"{_HARALICK}, f5",
        "no two usable neighbours",
    ),
    (
        "edges",
        "1",
        "share of pixels whose Sobel gradient is above 4 standard deviations of its noise",
        "Sobel & Feldman 1968; threshold from the noise (features.measurement)",
        "no usable 3×3 neighbourhood",
    ),
)

_POSITION = (
    ("position_x", "x of the patch's centre from the cutout's, in half sides, east to west"),
    ("position_y", "y of the patch's centre from the cutout's, in half sides, south to north"),
    ("position_radius", "distance of the patch's centre from the cutout's, in half sides"),
)


def band_pairs(bands: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Adjacent bands, bluer first."""
    return tuple(itertools.pairwise(bands))


def patch_features(bands: Sequence[str]) -> tuple[Feature, ...]:
    """What is measured on one patch, wherever it lies."""
    features = [
        Feature(f"{stat}_{band}", unit, f"{text}, {band}", source, nan, group=f"patch {stat}")
        for stat, unit, text, source, nan in _PATCH_PER_BAND
        for band in bands
    ]
    features += [
        _colour("", "in the patch", blue, red, group="patch colour")
        for blue, red in band_pairs(bands)
    ]
    features += [
        Feature(
            f"difference_{blue}_{red}",
            "σ",
            f"mean flux in {blue} minus that in {red}, over the noise of one pixel's difference, "
            "of the pixels usable in both",
            "",
            "no pixel usable in both bands",
            group="patch difference",
        )
        for blue, red in band_pairs(bands)
    ]
    return tuple(features)


def patch_registry(bands: Sequence[str]) -> tuple[Feature, ...]:
    """Columns of the per-patch table: what is measured on a patch, and where it lies."""
    position = (
        Feature(name, "half sides", text, "", group="patch position") for name, text in _POSITION
    )
    return (*patch_features(bands), *position)


def _colour(prefix: str, where: str, blue: str, red: str, *, group: str) -> Feature:
    return Feature(
        f"{prefix}colour_{blue}_{red}",
        "mag",
        f"asinh magnitude in {blue} minus that in {red}, of the mean flux of the pixels usable in "
        f"both, softened at the noise of the mean, {where}",
        _LUPTON,
        "no pixel usable in both bands",
        group=group,
    )


def annulus_features(bands: Sequence[str]) -> tuple[Feature, ...]:
    """What is measured on each annulus, from the centre outwards."""
    return tuple(f for ring in range(N_ANNULI) for f in _annulus(ring, bands))


def _annulus(ring: int, bands: Sequence[str]) -> list[Feature]:
    prefix = f"annulus_{ring}_"
    where = f"{ring}/{N_ANNULI} to {ring + 1}/{N_ANNULI} of the half width from the centre"
    features = [
        Feature(
            f"{prefix}{stat}_{band}", unit, f"{text} {where}, {band}", "", _NO_PIXEL,
            group=f"annulus {stat}",
        )
        for stat, unit, text in (
            ("mean", "σ", "mean flux per pixel over the noise,"),
            ("std", "σ", "standard deviation of the pixels over the noise,"),
            ("bright", "1", "share of pixels above 3 σ,"),
        )
        for band in bands
    ]  # fmt: skip
    pairs = band_pairs(bands)
    features += [_colour(prefix, where, *pair, group="annulus colour") for pair in pairs]
    features += [_excess(prefix, where, *pair) for pair in pairs if ring]
    if pairs:
        features += _residual(prefix, where, bands[0], bands[-1])
    return features


def _excess(prefix: str, where: str, blue: str, red: str) -> Feature:
    return Feature(
        f"{prefix}colour_excess_{blue}_{red}",
        "mag",
        f"colour {blue} − {red} {where}, minus that of the innermost circle: negative where a ring "
        "is bluer than the cluster's centre",
        _LUPTON,
        "no pixel usable in both bands, in the ring or in the centre",
        group="annulus colour excess",
    )


def _residual(prefix: str, where: str, blue: str, red: str) -> list[Feature]:
    unknown = f"no pixel usable in both bands, or less than 5 σ in {red} in the innermost circle"
    return [
        Feature(
            f"{prefix}blue_residual_{blue}_{red}",
            "1",
            f"share of pixels with {blue} − α {red} above 3 times its noise {where}; α is the flux "
            "ratio of the innermost circle, so light of the centre's colour cancels",
            _RINGFINDER,
            unknown,
            group="annulus blue residual",
        ),
        Feature(
            f"{prefix}blue_alignment_{blue}_{red}",
            "1",
            f"how tangential the edges of {blue} − α {red} run {where}: radial less tangential "
            "part of the squared Sobel gradients, each weighed with its excess over 4 times its "
            "noise, over their sum; 1 for an arc about the centre, 0 for round galaxies, −1 for "
            "radial spokes",
            _RINGFINDER,
            f"no such edge, {unknown}",
            group="annulus blue alignment",
        ),
        *(
            Feature(
                f"{prefix}{side}_extended_{blue}_{red}",
                "1",
                f"share of pixels with {blue} − α {red}, smoothed with [1 2 1] both ways, {word} "
                f"than 3 times its noise {where}",
                _RINGFINDER,
                unknown,
                group=f"annulus {side} extended",
            )
            for side, word in (("blue", "bluer"), ("red", "redder"))
        ),
    ]


def image_registry(bands: Sequence[str], *, grid: int = 3) -> tuple[Feature, ...]:
    """Features that come from pixels.

    First patch after patch (row 0 is the first pixel row: south in a north-up cutout), then the
    annuli from the centre outwards.
    """
    patches = [
        replace(
            feature,
            name=f"patch_{row}_{column}_{feature.name}",
            definition=f"{feature.definition}; patch {column} of row {row}",
        )
        for row in range(grid)
        for column in range(grid)
        for feature in patch_features(bands)
    ]
    return (*patches, *annulus_features(bands))
