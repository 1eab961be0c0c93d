"""From a batch of cutouts and catalogue columns to the feature matrix.

Each cutout is worked on by itself, so its features are the same to the last bit whatever batch it
comes in, and only one cutout at a time is held in double precision.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.config import FeatureSettings
from clusterray.errors import InputError
from clusterray.features import annuli, colour, patches, proxies, texture
from clusterray.features.registry import (
    N_ANNULI,
    FeatureMatrix,
    catalogue_registry,
    image_registry,
)

__all__ = ["catalogue_features", "cutout_features", "image_features"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_BRIGHT_SIGMA = 3.0


def image_features(
    cutouts_nchw: NDArray[Any],
    *,
    noise_sigma: ArrayLike,
    bands: Sequence[str],
    mask: NDArray[np.bool_] | None = None,
    grid: int = 3,
) -> FeatureMatrix:
    """Patch statistics, colours, texture, edges and radial profile of each cutout.

    `image_registry` names and defines the columns.

    Parameters
    ----------
    cutouts_nchw : (n, bands, h, w) flux density per pixel in nJy; pixels that are not finite are
        left out of every statistic.
    noise_sigma : (n, bands) noise of a pixel, nJy; may be NaN where a band has no usable pixel.
    bands : names, blue to red.
    mask : (n, h, w) or (n, bands, h, w), true where a pixel may be used.
    grid : patches along each axis.

    Returns
    -------
    Float32 matrix; NaN only where the registry says so.

    Raises
    ------
    InputError : shapes that do not fit, a cutout smaller than the grid, or noise that is not
        positive where a band has pixels (the first such row is named).
    """
    bands = tuple(bands)
    usable = _usable(cutouts_nchw, mask, bands=bands, grid=grid)
    noise = _noise(noise_sigma, usable)
    names = tuple(feature.name for feature in image_registry(bands, grid=grid))
    values = np.empty((len(cutouts_nchw), len(names)), np.float32)
    for row, cutout in enumerate(cutouts_nchw):
        values[row] = _cutout(np.where(usable[row], cutout, 0), usable[row], noise[row], grid)
    return FeatureMatrix(values, names)


def _usable(cutouts: NDArray[Any], mask: Bools | None, *, bands: Sequence[str], grid: int) -> Bools:
    if cutouts.ndim != 4 or cutouts.shape[1] != len(bands) or not bands:
        raise InputError(
            f"cutouts_nchw has shape {cutouts.shape}, expected (n, {len(bands)}, h, w) for bands "
            f"{', '.join(bands) or '(none)'}"
        )
    if grid < 1:
        raise InputError(f"grid is {grid}, expected at least 1 patch along each axis")
    height, width = cutouts.shape[2:]
    if min(height, width) < grid:
        raise InputError(
            f"cutouts of {height}×{width} px cannot be cut into {grid}×{grid} patches; "
            "use larger cutouts or a smaller features.grid"
        )
    usable: Bools = np.isfinite(cutouts)
    if mask is None:
        return usable
    wanted = (cutouts.shape, (len(cutouts), height, width))
    if mask.shape not in wanted or mask.dtype != bool:
        raise InputError(
            f"mask has shape {mask.shape} and type {mask.dtype}, expected bool of {wanted[0]} or "
            f"{wanted[1]}, true where a pixel may be used"
        )
    return np.asarray(usable & (mask if mask.ndim == 4 else mask[:, None]))


def _noise(noise_sigma: ArrayLike, usable: Bools) -> Floats:
    noise = np.asarray(noise_sigma, np.float64)
    if noise.shape != usable.shape[:2]:
        raise InputError(
            f"noise_sigma has shape {noise.shape}, expected {usable.shape[:2]}: (n, bands) in nJy"
        )
    good = np.isfinite(noise) & (noise > 0)
    bad = np.argwhere(~good & usable.any(axis=(2, 3)))
    if len(bad):
        row, band = bad[0]
        raise InputError(
            f"noise_sigma[{row}, {band}] is {noise[row, band]}, expected > 0 and finite (nJy) "
            f"where the band has pixels; {len(bad)} such values: reject these rows"
        )
    return np.where(good, noise, 1.0)


def _cutout(flux: NDArray[Any], usable: Bools, noise: Floats, grid: int) -> Floats:
    """Features of one cutout: flux (b, h, w) in nJy, zero where not usable; noise (b,)."""
    scaled = flux.astype(np.float64) / noise[:, None, None]
    both = usable[:-1] & usable[1:]
    pairs = (
        both.astype(np.float64),
        np.where(both, flux[:-1], 0).astype(np.float64),
        np.where(both, flux[1:], 0).astype(np.float64),
    )
    sigmas = {"blue_sigma_njy": noise[:-1, None], "red_sigma_njy": noise[1:, None]}
    profile = [
        *_radial_moments(scaled, usable),
        colour.asinh_colour(*map(annuli.annulus_sums, pairs), **sigmas),
    ]
    excess = profile[-1] - profile[-1][:, :1]
    residual = _blue_residual(flux, usable, noise)
    rings = [
        np.concatenate([*(p[:, ring] for p in profile), excess[:, ring] if ring else [], blue])
        for ring, blue in enumerate(residual.T)
    ]
    return np.concatenate([_patches(scaled, usable, pairs, sigmas, grid).T.ravel(), *rings])


def _patches(
    scaled: Floats, usable: Bools, pairs: Sequence[Floats], sigmas: Mapping[str, Floats], grid: int
) -> Floats:
    """(features of a patch, patches)."""
    count = patches.patch_sums(usable.astype(np.float64), grid)
    total = patches.patch_sums(scaled, grid)
    squares = patches.patch_sums(scaled**2, grid)
    area = patches.patch_sums(np.ones((1, *usable.shape[1:])), grid)
    single = scaled.astype(np.float32)
    pair_sums = [patches.patch_sums(pair, grid) for pair in pairs]
    return np.concatenate(
        [
            count / area,
            *patches.moments(count, total, squares),
            patches.rest_contrast(count, total, squares),
            texture.texture(single, usable, grid),
            texture.edge_density(single, usable, grid),
            colour.asinh_colour(*pair_sums, **sigmas),
            colour.flux_difference(*pair_sums, **sigmas),
        ]
    )


def _radial_moments(scaled: Floats, usable: Bools) -> tuple[Floats, Floats, Floats]:
    count = annuli.annulus_sums(usable.astype(np.float64))
    bright = annuli.annulus_sums((scaled > _BRIGHT_SIGMA).astype(np.float64))
    mean, std = patches.moments(count, annuli.annulus_sums(scaled), annuli.annulus_sums(scaled**2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean, std, bright / count


def _blue_residual(flux: NDArray[Any], usable: Bools, noise: Floats) -> Floats:
    """(1, annuli), or (0, annuli) where there is one band."""
    if len(flux) < 2:
        return np.empty((0, N_ANNULI))
    both = usable[0] & usable[-1]
    shares = annuli.blue_residual(
        np.where(both, flux[0], 0).astype(np.float64),
        np.where(both, flux[-1], 0).astype(np.float64),
        both,
        blue_sigma_njy=float(noise[0]),
        red_sigma_njy=float(noise[-1]),
    )
    return shares[None]


def catalogue_features(
    columns: Mapping[str, Any], *, source_redshift: float, bands: Sequence[str] = ()
) -> FeatureMatrix:
    """θ_E proxies, redshift, richness and, for each of `bands`, seeing and depth.

    `catalogue_registry` names and defines the columns.

    Parameters
    ----------
    columns : by the names of the cutout table: z_lens, richness, sigma_v_km_s, l_x_erg_s, each
        (n,), and psf_fwhm_arcsec, depth_mag, each (n, bands). What is absent, empty, masked, not
        finite or not positive is unknown. Other columns are passed over.
    source_redshift : z_s of the proxies.

    Returns
    -------
    Float32 matrix, NaN where unknown; `theta_e_source` says which proxy `theta_e_arcsec` is.

    Raises
    ------
    InputError : columns of different lengths, not numbers, or none at all.
    """
    n_rows = next((len(column) for column in columns.values() if column is not None), None)
    if n_rows is None:
        raise InputError("catalogue_features: no columns, so the number of rows is unknown")
    return _catalogue(columns, n_rows, tuple(bands), source_redshift)


def _catalogue(
    columns: Mapping[str, Any], n_rows: int, bands: tuple[str, ...], source_redshift: float
) -> FeatureMatrix:
    z_lens, richness, sigma_v, l_x = (
        _positive(columns, name, (n_rows,))
        for name in ("z_lens", "richness", "sigma_v_km_s", "l_x_erg_s")
    )
    by_richness = proxies.theta_e_from_richness(richness, z_lens, source_redshift=source_redshift)
    by_dispersion = proxies.theta_e_from_dispersion(
        sigma_v, z_lens, source_redshift=source_redshift
    )
    by_xray = proxies.theta_e_from_luminosity(l_x, z_lens, source_redshift=source_redshift)
    best, source = proxies.best_proxy(richness=by_richness, xray=by_xray, dispersion=by_dispersion)
    context = [
        _positive(columns, name, (n_rows, len(bands)))
        for name in ("psf_fwhm_arcsec", "depth_mag")
        if bands
    ]
    values = np.column_stack(
        [z_lens, richness, by_richness, by_dispersion, by_xray, best, source, *context]
    )
    names = tuple(feature.name for feature in catalogue_registry(bands))
    return FeatureMatrix(values.astype(np.float32), names)


def _positive(columns: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Floats:
    """Column as float64, NaN where it is unknown or not a positive number."""
    column = columns.get(name)
    if column is None:
        return np.full(shape, np.nan)
    if np.ma.isMaskedArray(column):
        column = np.ma.asarray(column, np.float64).filled(np.nan)
    if len(shape) == 2:
        column = [np.full(shape[1], np.nan) if cell is None else cell for cell in column]
    try:
        values = np.asarray(column, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"column '{name}' is not made of numbers: {error}") from error
    if values.size == 0 and shape[0] == 0:
        return np.empty(shape)
    if values.shape != shape:
        raise InputError(f"column '{name}' has shape {values.shape}, expected {shape}")
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def cutout_features(
    cutouts_nchw: NDArray[Any],
    *,
    noise_sigma: ArrayLike,
    bands: Sequence[str],
    columns: Mapping[str, Any],
    settings: FeatureSettings,
) -> FeatureMatrix:
    """`image_features` and `catalogue_features` side by side: what LightGBM sees.

    The columns are `feature_names(bands, settings)`, whatever the catalogue holds.

    Raises
    ------
    InputError : as those two.
    """
    image = image_features(cutouts_nchw, noise_sigma=noise_sigma, bands=bands, grid=settings.grid)
    catalogue = _catalogue(columns, len(image.values), tuple(bands), settings.source_redshift)
    return FeatureMatrix(np.hstack([image.values, catalogue.values]), image.names + catalogue.names)
