"""From arrays to the rows of a cutout shard: every value checked before it gets a place.

The inverse, with the files themselves, is in `clusterray.sky.shards`, where users find both.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clusterray import schema
from clusterray.errors import InputError, did_you_mean
from clusterray.sky.byte_planes import encode, to_planes
from clusterray.sky.photometry import NJY_ZERO_POINT

__all__ = ["to_table"]

_COMPUTED = ("step", "clipped_fraction", "image")
_ARGUMENTS = ("object_id", "ra_deg", "dec_deg", "noise_sigma")


def to_table(
    *,
    object_id: Sequence[str] | npt.NDArray[Any],
    ra_deg: npt.ArrayLike,
    dec_deg: npt.ArrayLike,
    cutouts_nchw: npt.NDArray[Any],
    noise_sigma: npt.ArrayLike,
    bands: Sequence[str],
    steps_per_sigma: int = 8,
    pixel_scale_arcsec: float | None = None,
    **columns: Any,
) -> pa.Table:
    """Cutouts and their metadata as a table of `schema.cutouts`.

    Parameters
    ----------
    object_id : (n,) unique, not empty.
    ra_deg, dec_deg : (n,) position of the cutout's centre, ICRS; 0 to 360 and −90 to 90.
    cutouts_nchw : (n, bands, size, size) flux density, nJy; NaN where there is no data.
    noise_sigma : (n, bands) noise of one pixel, nJy; finite and above 0.
    bands : names in the order of the band axis, blue to red.
    steps_per_sigma : see `encode`.
    pixel_scale_arcsec : of the TAN grid, north up; None where the pixels are not on the sky.
    columns : nullable columns of the schema, NaN or None where unknown. (n,): survey (or one str
        for all), z_lens, richness, sigma_v_km_s, l_x_erg_s, ebv. (n, bands), (bands,) or one
        number: psf_fwhm_arcsec, depth_mag, noise_correlation, zero_point (31.4), coverage (the
        share of pixels that are not NaN).

    Raises
    ------
    InputError : shapes or values that do not fit, an unknown column, repeated ids.
    """
    names = _band_names(bands)
    images = np.asarray(cutouts_nchw)
    n_objects = len(object_id)
    expected = f"[{n_objects} objects, {len(names)} bands ({' '.join(names)}), size, size]"
    if images.ndim != 4 or images.shape[:2] != (n_objects, len(names)):
        raise InputError(f"cutouts_nchw is {list(images.shape)}, expected {expected}")
    if images.shape[2] != images.shape[3]:
        raise InputError(f"cutouts_nchw is {list(images.shape)}, expected square cutouts")
    want = schema.cutouts(
        names,
        images.shape[2],
        steps_per_sigma=steps_per_sigma,
        pixel_scale_arcsec=_pixel_scale(pixel_scale_arcsec),
    )
    optional = [n for n in want.names if n not in (*_ARGUMENTS, *_COMPUTED)]
    for name in columns:
        if name not in optional:
            hint = "it is computed" if name in _COMPUTED else did_you_mean(name, optional)
            raise InputError(f"shards have no column '{name}' to give: {hint}")
    counts, step, clipped = encode(images, noise_sigma, steps_per_sigma=steps_per_sigma)
    given = {
        "zero_point": NJY_ZERO_POINT,
        "coverage": np.mean(counts != schema.BLANK, axis=(2, 3)),
        **{name: values for name, values in columns.items() if values is not None},
        "object_id": _ids(object_id),
        "ra_deg": _within(ra_deg, "ra_deg", 0, 360),
        "dec_deg": _within(dec_deg, "dec_deg", -90, 90),
        "noise_sigma": noise_sigma,
        "step": step,
        "clipped_fraction": clipped,
        "image": to_planes(counts),
    }
    arrays = [_column(f, given.get(f.name), n_objects) for f in want]
    table = schema.check(pa.Table.from_arrays(arrays, schema=want), want, where="cutouts")
    schema.require_unique(table, where="cutouts")
    return table


def _band_names(bands: Sequence[str]) -> tuple[str, ...]:
    names = tuple(bands)
    if isinstance(bands, str) or not names or not all(isinstance(b, str) and b for b in names):
        raise InputError(f"bands is {bands!r}, expected names such as ('g', 'r', 'i')")
    if len(set(names)) < len(names):
        raise InputError(f"bands {' '.join(names)}: a band stands twice")
    return names


def _pixel_scale(pixel_scale_arcsec: float | None) -> float | None:
    if pixel_scale_arcsec is None:
        return None
    if not 0 < pixel_scale_arcsec < 3600:
        raise InputError(
            f"pixel_scale_arcsec is {pixel_scale_arcsec}, expected arcseconds, or None where the "
            "pixels have no place on the sky"
        )
    return float(pixel_scale_arcsec)


def _ids(object_id: Sequence[str] | npt.NDArray[Any]) -> list[str]:
    for i, value in enumerate(object_id):
        if not isinstance(value, str) or not value:
            raise InputError(
                f"object_id[{i}] is {value!r} ({type(value).__name__}), expected a name; "
                "make strings of numbers with str()"
            )
    return [str(value) for value in object_id]


def _floats(values: Any, name: str) -> npt.NDArray[np.float64]:
    try:
        return np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(f"column '{name}' is not numeric: {error}") from error


def _within(values: npt.ArrayLike, name: str, low: float, high: float) -> npt.NDArray[np.float64]:
    numbers = _floats(values, name)
    bad = np.flatnonzero(~((numbers >= low) & (numbers <= high)))
    if len(bad):
        raise InputError(
            f"{name}[{bad[0]}] is {numbers.ravel()[bad[0]]}, expected {low} to {high} degrees"
        )
    return numbers


def _column(field: pa.Field, values: Any, n_objects: int) -> pa.Array:
    name, kind = field.name, field.type
    if values is None and pa.types.is_fixed_size_list(kind):
        # A list of unknowns, not an unknown list: pyarrow 25 cannot read those back from Parquet.
        values = np.nan
    if values is None:
        return pa.nulls(n_objects, kind)
    if name == "image":
        return pa.FixedSizeBinaryArray.from_buffers(kind, n_objects, [None, pa.py_buffer(values)])
    if pa.types.is_string(kind):
        return _strings(values, name, n_objects)
    shape: tuple[int, ...] = (n_objects,)
    numbers = _floats(values, name)
    if pa.types.is_fixed_size_list(kind):
        shape = (n_objects, kind.list_size)
        if numbers.ndim < 2 and numbers.shape in ((), (kind.list_size,)):
            numbers = np.broadcast_to(numbers, shape)
    if numbers.shape != shape:
        raise InputError(f"column '{name}' is {list(numbers.shape)}, expected {list(shape)}")
    if np.isinf(numbers).any():
        raise InputError(f"column '{name}' holds an infinite value; NaN means unknown")
    if name == "coverage" and not np.all((numbers >= 0) & (numbers <= 1)):
        raise InputError("column 'coverage' is a share of the cutout: expected 0 to 1")
    if len(shape) == 1:
        return pa.array(numbers, kind, from_pandas=True)
    flat = pa.array(numbers.astype(np.float32).ravel(), kind.value_type, from_pandas=True)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _strings(values: Any, name: str, n_objects: int) -> pa.Array:
    words = [values] * n_objects if isinstance(values, str) else list(values)
    if len(words) != n_objects:
        raise InputError(f"column '{name}' has {len(words)} values, expected {n_objects}")
    try:
        return pa.array([w if w is None else str(w) for w in words], pa.string())
    except pa.ArrowException as error:
        raise InputError(f"column '{name}' is not text: {error}") from error
