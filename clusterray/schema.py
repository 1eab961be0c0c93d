"""Every table that passes between stages: one Arrow schema each, one check for every boundary.

A schema carries its table's name and version in its metadata; `check` refuses a table of another
name, version, column set or type, and says which.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from clusterray.errors import ContractError, did_you_mean

__all__ = [
    "BLANK",
    "CATALOGUE",
    "DRIFT",
    "DRIFT_REFERENCE",
    "IMAGE_ENCODING",
    "INJECTED_LENS",
    "INJECTED_TWIN",
    "LABELS",
    "REJECTS",
    "SELECTION",
    "SELECTION_HALF",
    "SELECTION_KINDS",
    "TRUTH",
    "VERSIONS",
    "candidates",
    "check",
    "contributions",
    "cutouts",
    "features",
    "image_layout",
    "ranking",
    "require_unique",
    "scores",
    "segments",
]

VERSIONS: Final = {
    "catalogue": 1,
    "cutouts": 1,
    "labels": 1,
    "truth": 2,
    "features": 2,
    "scores": 1,
    "ranking": 1,
    "rejects": 1,
    "candidates": 1,
    "contributions": 1,
    "segments": 1,
    "selection": 1,
    "selection_half": 1,
    "selection_kinds": 1,
    "drift_reference": 1,
    "drift": 1,
}
BLANK: Final = -32768
"""The int16 value of a pixel without data."""
INJECTED_LENS: Final = "+lens"
INJECTED_TWIN: Final = "+off"
"""How the object_id of a lens injected into a survey row, and of its lens-off twin, ends."""
IMAGE_ENCODING: Final = "zigzag-int16-byte-planes"


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


def _schema(table: str, fields: Sequence[pa.Field], **extra: Any) -> pa.Schema:
    metadata = {"clusterray.table": table, "clusterray.version": str(VERSIONS[table])}
    metadata |= {f"clusterray.{k}": json.dumps(v) for k, v in extra.items()}
    return pa.schema(fields, metadata=metadata)


_POSITION = (
    _field("object_id", pa.string()),
    _field("ra_deg", pa.float64()),
    _field("dec_deg", pa.float64()),
)
_PROXIES = (
    _field("z_lens", pa.float64(), nullable=True),
    _field("richness", pa.float64(), nullable=True),
    _field("sigma_v_km_s", pa.float64(), nullable=True),
    _field("l_x_erg_s", pa.float64(), nullable=True),
    _field("ebv", pa.float64(), nullable=True),
)

CATALOGUE: Final = _schema("catalogue", [*_POSITION, *_PROXIES, _field("survey", pa.string())])
"""Clusters to look at. Positions ICRS; proxies null where unknown."""

LABELS: Final = _schema(
    "labels",
    [
        _field("object_id", pa.string()),
        _field("source", pa.string()),
        _field("date", pa.string()),
        _field("s", pa.int8()),
        _field("grade", pa.string(), nullable=True),
    ],
)
"""What people know: s = 1 known lens, 0 unlabelled, −1 known non-lens. `date` is ISO 8601."""

TRUTH: Final = _schema(
    "truth",
    [
        _field("object_id", pa.string()),
        _field("y", pa.int8()),
        _field("kind", pa.string()),
        _field("twin_of", pa.string(), nullable=True),
        *(
            _field(name, pa.float64(), nullable=True)
            for name in (
                "z_lens",
                "z_source",
                "m200_msun",
                "richness",
                "theta_e_arcsec",
                "theta_e_reference_arcsec",
                "theta_e_over_fwhm",
                "arc_snr",
                "source_mag",
                "magnification",
                "share_outside",
            )
        ),
        _field("n_multiply_imaged", pa.int32(), nullable=True),
        _field("n_field_multiply_imaged", pa.int32(), nullable=True),
        _field("tries", pa.int32(), nullable=True),
        _field("image_galaxy", pa.list_(pa.int32()), nullable=True),
        *(
            _field(name, pa.list_(pa.float32()), nullable=True)
            for name in (
                "image_x_arcsec",
                "image_y_arcsec",
                "image_magnification",
                "image_mag",
                "image_snr",
                "critical_x_arcsec",
                "critical_y_arcsec",
            )
        ),
        _field("arc_mask", pa.binary(), nullable=True),
    ],
)
"""Simulation truth, which only metrics and pages read: y = 1 lens, 0 not, −1 marginal (kept out of
metrics). `twin_of` names the object that shares this one's light but for the background cluster's.

`theta_e_arcsec` is √(area/π) inside the tangential critical curve for sources at `z_source`;
`theta_e_reference_arcsec` the same at the recipe's reference redshift; `theta_e_over_fwhm` the
former over the PSF FWHM of the sharpest band. Of the multiply imaged background members,
`arc_snr` is the highest isophotal S/N of an image, `source_mag` and `magnification` belong to the
galaxy of that image (unlensed AB magnitude in the band that shows it best; sum over its images),
and `share_outside` is the share of their images that lie outside the cutout.
`n_field_multiply_imaged` counts field galaxies. The `image_…` lists have one entry for each image
of a multiply imaged member: which member, offsets along columns and rows from the cutout's centre,
magnification, lensed magnitude in the band that shows it best, isophotal S/N (NaN where it is not
seen). The critical curve is given likewise, a NaN between its closed parts. `arc_mask` is
`np.packbits` of the (size, size) pixels in which the background cluster's light stands out.
"""

REJECTS: Final = _schema(
    "rejects",
    [
        _field("object_id", pa.string()),
        _field("stage", pa.string()),
        _field("reason", pa.string()),
        _field("retryable", pa.bool_()),
    ],
)
"""Objects that a stage could not handle, and why."""

_CUT = (
    _field("cut", pa.string()),
    _field("cut_value", pa.float64()),
    _field("list_length", pa.int64()),
)


def _with_interval(*names: str) -> list[pa.Field]:
    ends = ("", "_low", "_high")
    return [_field(name + end, pa.float64(), nullable=True) for name in names for end in ends]


def _bin(suffix: str = "") -> list[pa.Field]:
    return [
        _field(f"quantity{suffix}", pa.string(), nullable=bool(suffix)),
        _field(f"bin{suffix}", pa.string(), nullable=bool(suffix)),
        _field(f"low{suffix}", pa.float64(), nullable=True),
        _field(f"high{suffix}", pa.float64(), nullable=True),
    ]


SELECTION: Final = _schema(
    "selection",
    [
        *_CUT,
        *_bin(),
        *_bin("_2"),
        *(_field(name, pa.int64()) for name in ("n_lenses", "n_ranked", "n_found")),
        *_with_interval("completeness"),
    ],
)
"""Completeness of a list in bins of truth, with Wilson 95 % intervals (null without a lens).

The list ends where `cut` ("budget" or "threshold") says: after `cut_value` objects, or at that
p_lens; it holds `list_length` objects. A bin is low ≤ x < high in units of `TRUTH`, open at an end
that is null; in the bin "unknown" the value is null or not finite, and the quantity "all" has one
bin. Rows with `quantity_2` are cells of a plane. Of `n_lenses` lenses in the bin, `n_ranked`
reached the ranking and `n_found` the list.
"""

SELECTION_KINDS: Final = _schema(
    "selection_kinds",
    [
        *_CUT,
        _field("kind", pa.string()),
        _field("y", pa.int8()),
        *(_field(name, pa.int64()) for name in ("n_objects", "n_ranked", "n_listed")),
        *_with_interval("rate", "share"),
    ],
)
"""What but lenses fills a list: of `n_objects` of a kind `n_listed` are in it, a `rate` that is the
kind's false positive rate, and a `share` of all false positives, with Wilson 95 % intervals.
Marginal objects (y = −1) are no false positives and have no share."""

SELECTION_HALF: Final = _schema(
    "selection_half",
    [
        *_CUT,
        _field("quantity", pa.string()),
        _field("scale", pa.string()),
        *(_field(name, pa.int64()) for name in ("n_lenses", "n_found")),
        *_with_interval("half"),
        _field("note", pa.string()),
    ],
)
"""Where a logistic curve in a quantity ("linear" or "log" `scale`) crosses half completeness, with
its 95 % interval; null where that cannot be said, and then `note` says why. An interval's end that
is null lies outside the values of the lenses."""

DRIFT_REFERENCE: Final = _schema(
    "drift_reference",
    [
        _field("group", pa.string()),
        _field("quantity", pa.string()),
        _field("n", pa.int64()),
        _field("n_missing", pa.int64()),
        _field("sorted", pa.list_(pa.float64())),
    ],
)
"""How each quantity is distributed: of `n` values `n_missing` are unknown, and the others stand
`sorted`, all of them or so many quantiles at equal steps of rank."""

DRIFT: Final = _schema(
    "drift",
    [
        _field("group", pa.string()),
        _field("quantity", pa.string()),
        _field("statistic", pa.string()),
        _field("value", pa.float64(), nullable=True),
        _field("noise", pa.float64(), nullable=True),
        _field("limit", pa.float64(), nullable=True),
        _field("exceeded", pa.bool_()),
        _field("n_reference", pa.int64(), nullable=True),
        _field("n_night", pa.int64()),
        _field("median_reference", pa.float64(), nullable=True),
        _field("median_night", pa.float64(), nullable=True),
    ],
)
"""One statistic of one quantity of a night's new objects. `noise` is what chance alone stays below
in 99.9 % of the cases; a limit is `exceeded` by a value beyond both. Null: not measured, or no
limit configured."""


def image_layout(
    bands: Sequence[str],
    size_px: int,
    *,
    steps_per_sigma: int = 8,
    pixel_scale_arcsec: float | None = None,
) -> dict[str, Any]:
    """What the field metadata of the `image` column says about its bytes.

    The grid is TAN, north up and east left, centred on the object; `pixel_scale_arcsec` is null
    where the pixels have no place on the sky.
    """
    return {
        "encoding": IMAGE_ENCODING,
        "version": 1,
        "dtype": "int16",
        "shape": [len(bands), size_px, size_px],
        "bands": list(bands),
        "blank": BLANK,
        "steps_per_sigma": steps_per_sigma,
        "pixel_scale_arcsec": pixel_scale_arcsec,
    }


def cutouts(
    bands: Sequence[str],
    size_px: int,
    *,
    steps_per_sigma: int = 8,
    pixel_scale_arcsec: float | None = None,
) -> pa.Schema:
    """Cutout shards: position, catalogue proxies, per-band metadata (lists in band order), image.

    Pixels are flux densities in nJy (AB zero point 31.4) as int16 × `step`. `noise_sigma` and
    `step` are in nJy; `zero_point` is the AB magnitude of one unit of the stored pixels.
    `noise_correlation` is σ of 2×2 block means over what white noise would give, minus 1.
    """
    per_band = pa.list_(pa.field("band", pa.float32()), len(bands))
    layout = image_layout(
        bands, size_px, steps_per_sigma=steps_per_sigma, pixel_scale_arcsec=pixel_scale_arcsec
    )
    image = pa.field(
        "image",
        pa.binary(len(bands) * size_px * size_px * 2),
        nullable=False,
        metadata={"clusterray.image": json.dumps(layout)},
    )
    return _schema(
        "cutouts",
        [
            *_POSITION,
            _field("survey", pa.string(), nullable=True),
            *_PROXIES,
            *(
                _field(name, per_band, nullable=True)
                for name in ("psf_fwhm_arcsec", "depth_mag", "zero_point", "noise_correlation")
            ),
            _field("noise_sigma", per_band),
            _field("step", per_band),
            _field("coverage", per_band),
            _field("clipped_fraction", per_band),
            image,
        ],
    )


def features(names: Sequence[str]) -> pa.Schema:
    """One float32 column per feature, in the order the model was trained on."""
    return _schema(
        "features",
        [
            _field("object_id", pa.string()),
            *(_field(n, pa.float32(), nullable=True) for n in names),
        ],
    )


def scores(
    models: Sequence[str], *, embedding_dim: int | None = None, attention_dim: int | None = None
) -> pa.Schema:
    """Scores of one row group: logits per base model and of the stack.

    `fold` is null for an unseen row, ≥ 0 for a training row (whose logits are then out-of-fold),
    and −1 for a row the calibrator was fitted on. `coverage` and `clipped_fraction` are the worst
    over the bands. `embedding` and `attention` are there only where they were asked for.
    """
    wide = {"embedding": embedding_dim, "attention": attention_dim}
    return _schema(
        "scores",
        [
            *_POSITION,
            _field("shard", pa.string()),
            _field("fold", pa.int8(), nullable=True),
            *(_field(f"logit_{m}", pa.float32()) for m in models),
            _field("logit_stack", pa.float64()),
            _field("anomaly_score", pa.float32(), nullable=True),
            _field("coverage", pa.float32()),
            _field("clipped_fraction", pa.float32()),
            *(_field(n, pa.list_(pa.float16(), d)) for n, d in wide.items() if d),
        ],
        models=list(models),
    )


def ranking(models: Sequence[str]) -> pa.Schema:
    """The ranked list, best first: calibrated probability with its 90 % interval.

    `expected_finds` is the sum of p_lens down to this rank, `expected_purity` that over the rank.
    """
    return _schema(
        "ranking",
        [
            _field("rank", pa.int64()),
            *_POSITION,
            _field("p_lens", pa.float64()),
            _field("p_lens_low", pa.float64()),
            _field("p_lens_high", pa.float64()),
            *(_field(f"logit_{m}", pa.float32()) for m in models),
            _field("logit_stack", pa.float64()),
            _field("anomaly_score", pa.float32(), nullable=True),
            _field("expected_purity", pa.float64()),
            _field("expected_finds", pa.float64()),
            _field("fold", pa.int8(), nullable=True),
            _field("flags", pa.string()),
            _field("shard", pa.string()),
        ],
        models=list(models),
    )


def candidates(names: Sequence[str]) -> pa.Schema:
    """The top of the ranking, best first, with what its segments say; for triage.

    `reasons` are the features that speak most for and against, with value and contribution, and
    `segment_flags` what could not be done; both are empty where there is nothing to say.
    """
    return _schema(
        "candidates",
        [
            _field("rank", pa.int64()),
            *_POSITION,
            _field("p_lens", pa.float64()),
            _field("flags", pa.string()),
            _field("segment_flags", pa.string()),
            _field("reasons", pa.string()),
            *(_field(n, pa.float32(), nullable=True) for n in names),
        ],
    )


def contributions(names: Sequence[str]) -> pa.Schema:
    """What each feature adds to LightGBM's log-odds of an object; with `base` they sum to it."""
    return _schema(
        "contributions",
        [
            _field("object_id", pa.string()),
            _field("base", pa.float64()),
            *(_field(n, pa.float32()) for n in names),
        ],
    )


def segments(pairs: Sequence[tuple[str, str]]) -> pa.Schema:
    """The sources in candidates' cutouts; offsets are from the catalogue position.

    Position angles run from north through east. Colours of adjacent bands are NaN where not known.
    """
    measured = (
        *("east_arcsec", "north_arcsec", "area_arcsec2", "ellipticity", "position_angle_deg"),
        *("length_arcsec", "width_arcsec"),
        *(f"{kind}_{blue}_{red}" for blue, red in pairs for kind in ("colour", "colour_error")),
    )
    return _schema(
        "segments",
        [
            _field("object_id", pa.string()),
            _field("segment", pa.int32()),
            _field("is_bcg", pa.bool_()),
            *(_field(name, pa.float32()) for name in measured),
        ],
    )


def check(table: pa.Table, schema: pa.Schema, *, where: str) -> pa.Table:
    """The table with its columns in the schema's order, if it keeps the schema's promise.

    Parameters
    ----------
    table : what crosses the boundary.
    schema : one of this module's.
    where : the file or stage to name in an error.

    Raises
    ------
    ContractError : another table or version, a missing or unknown column, a wrong type, or a null
        in a column that has none.
    """
    want = schema.metadata or {}
    have = table.schema.metadata or {}
    for key in (b"clusterray.table", b"clusterray.version"):
        if key in have and have[key] != want[key]:
            what = key.decode().split(".")[1]
            raise ContractError(
                f"{where}: {what} is {have[key].decode()}, expected {want[key].decode()}; "
                "it was written by another stage or release: make it again with this one"
            )
    name = want[b"clusterray.table"].decode()
    missing = [n for n in schema.names if n not in table.column_names]
    if missing:
        raise ContractError(
            f"{where}: a {name} table needs column '{missing[0]}'; it has: "
            f"{', '.join(table.column_names)}"
        )
    unknown = [n for n in table.column_names if n not in schema.names]
    if unknown:
        raise ContractError(
            f"{where}: column '{unknown[0]}' does not belong in a {name} table; "
            f"{did_you_mean(unknown[0], schema.names)}"
        )
    if len(table.column_names) > len(schema.names):
        twice = next(n for n in table.column_names if table.column_names.count(n) > 1)
        raise ContractError(f"{where}: column '{twice}' stands more than once in a {name} table")
    for field in schema:
        column = table.column(field.name)
        if not column.type.equals(field.type):
            raise ContractError(
                f"{where}: column '{field.name}' is {column.type}, expected {field.type}"
            )
        if not field.nullable and column.null_count:
            raise ContractError(
                f"{where}: column '{field.name}' has {column.null_count} empty values, "
                "expected none"
            )
    return table.select(schema.names).cast(schema)


def require_unique(table: pa.Table, *, where: str, column: str = "object_id") -> None:
    """Refuse a table in which an id stands twice.

    Raises
    ------
    ContractError : naming the first few repeated ids.
    """
    counts = pc.value_counts(table.column(column).combine_chunks())
    repeated = [v["values"] for v in counts.to_pylist() if v["counts"] > 1]
    if repeated:
        shown = ", ".join(str(v) for v in sorted(repeated)[:5])
        raise ContractError(
            f"{where}: {len(repeated)} ids in '{column}' stand more than once ({shown}); "
            "each object needs its own id: drop the duplicates or choose another id column"
        )
