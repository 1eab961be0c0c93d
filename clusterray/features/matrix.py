"""From a batch of cutouts and catalogue columns to the feature matrix.

Each cutout is worked on by itself, so its features are the same to the last bit whatever batch it
comes in, and its pixels are read as they are stored: no copy of a batch is made.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterray.config import FeatureSettings
from clusterray.errors import InputError
from clusterray.features import proxies
from clusterray.features.annuli import annulus_values
from clusterray.features.measurement import measure
from clusterray.features.patches import patch_positions, patch_values
from clusterray.features.registry import (
    FeatureMatrix,
    catalogue_registry,
    image_registry,
    patch_registry,
)

__all__ = ["catalogue_features", "cutout_features", "image_features", "patch_table"]

Floats = NDArray[np.float64]


def image_features(
    cutouts_nchw: NDArray[Any],
    *,
    noise_sigma: ArrayLike,
    bands: Sequence[str],
    step: ArrayLike | None = None,
    mask: NDArray[np.bool_] | None = None,
    grid: int = 3,
    max_size_px: int = 128,
) -> FeatureMatrix:
    """Patch statistics, colours, texture, edges and radial profile of each cutout.

    `image_registry` names and defines the columns. Counts with their step, as they lie in a shard,
    and the flux densities that they stand for give the same values.

    Parameters
    ----------
    cutouts_nchw : (n, bands, h, w) flux density per pixel in nJy, or int16 counts of `step`;
        pixels that are not finite, or −32768, are left out of every statistic.
    noise_sigma : (n, bands) noise of a pixel, nJy; may be NaN where a band has no usable pixel.
    bands : names, blue to red.
    step : (n, bands) nJy per count.
    mask : (n, h, w) or (n, bands, h, w), true where a pixel may be used.
    grid : patches along each axis.
    max_size_px : larger cutouts are summed over blocks of k × k pixels, with the smallest k that
        makes them fit, and k times the noise (that of white noise); a block with an unusable pixel
        is unusable.

    Returns
    -------
    Float32 matrix; NaN only where the registry says so.

    Raises
    ------
    InputError : shapes that do not fit, counts without a step, a cutout smaller than the grid, or
        noise that is not positive where a band has pixels (the first such row is named).
    """
    found = measure(
        cutouts_nchw, noise_sigma=noise_sigma, bands=bands, step=step, mask=mask, grid=grid,
        max_size_px=max_size_px,
    )  # fmt: skip
    patches = patch_values(found, grid=grid)
    by_patch = patches.reshape(len(patches), patches.shape[1] * patches.shape[2])
    values = np.concatenate([by_patch, annulus_values(found)], axis=1)
    return FeatureMatrix(values.astype(np.float32), _image_names(tuple(bands), grid))


@lru_cache(maxsize=16)
def _image_names(bands: tuple[str, ...], grid: int) -> tuple[str, ...]:
    return tuple(feature.name for feature in image_registry(bands, grid=grid))


def patch_table(
    cutouts_nchw: NDArray[Any],
    *,
    noise_sigma: ArrayLike,
    bands: Sequence[str],
    step: ArrayLike | None = None,
    mask: NDArray[np.bool_] | None = None,
    grid: int = 3,
    max_size_px: int = 128,
) -> FeatureMatrix:
    """The same patch statistics with a row for each patch, and where the patch lies.

    For a model of patches whose scores `patches.aggregate` puts together. Rows are the patches of
    the first cutout in row order, then those of the second, and so on; `patch_registry` names the
    columns. Parameters and errors are those of `image_features`.

    Returns
    -------
    (n · grid², features) float32.
    """
    found = measure(
        cutouts_nchw, noise_sigma=noise_sigma, bands=bands, step=step, mask=mask, grid=grid,
        max_size_px=max_size_px, annuli=False,
    )  # fmt: skip
    patches = patch_values(found, grid=grid)
    where = np.broadcast_to(patch_positions(grid), (*patches.shape[:2], 3))
    rows = np.concatenate([patches, where], axis=2).reshape(-1, patches.shape[2] + 3)
    names = tuple(feature.name for feature in patch_registry(tuple(bands)))
    return FeatureMatrix(rows.astype(np.float32), names)


def catalogue_features(
    columns: Mapping[str, Any], *, source_redshift: float, bands: Sequence[str] = ()
) -> FeatureMatrix:
    """θ_E proxies, redshift, richness and, for each of `bands`, seeing and depth; the survey.

    `catalogue_registry` names and defines the columns.

    Parameters
    ----------
    columns : by the names of the cutout table: z_lens, richness, sigma_v_km_s, l_x_erg_s, each
        (n,), survey (n,) names, and psf_fwhm_arcsec, depth_mag, each (n, bands). What is absent,
        empty, masked, not finite or not positive is unknown. Other columns are passed over.
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
    survey = proxies.survey_code(_texts(columns, "survey", n_rows))
    values = np.column_stack(
        [z_lens, richness, by_richness, by_dispersion, by_xray, best, source, *context, survey]
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


def _texts(columns: Mapping[str, Any], name: str, n_rows: int) -> Sequence[str | None]:
    column = columns.get(name)
    texts = [None] * n_rows if column is None else list(column)
    if len(texts) != n_rows:
        raise InputError(f"column '{name}' has {len(texts)} values, expected {n_rows}")
    return texts


def cutout_features(
    cutouts_nchw: NDArray[Any],
    *,
    noise_sigma: ArrayLike,
    bands: Sequence[str],
    columns: Mapping[str, Any],
    settings: FeatureSettings,
    step: ArrayLike | None = None,
) -> FeatureMatrix:
    """`image_features` and `catalogue_features` side by side: what LightGBM sees.

    The columns are `feature_names(bands, settings)`, whatever the catalogue holds.

    Raises
    ------
    InputError : as those two.
    """
    image = image_features(
        cutouts_nchw,
        noise_sigma=noise_sigma,
        bands=bands,
        step=step,
        grid=settings.grid,
        max_size_px=settings.max_size_px,
    )
    catalogue = _catalogue(columns, len(image.values), tuple(bands), settings.source_redshift)
    return FeatureMatrix(np.hstack([image.values, catalogue.values]), image.names + catalogue.names)
