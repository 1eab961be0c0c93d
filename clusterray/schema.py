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
    "IMAGE_ENCODING",
    "LABELS",
    "REJECTS",
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
    "truth": 1,
    "features": 2,
    "scores": 1,
    "ranking": 1,
    "rejects": 1,
    "candidates": 1,
    "contributions": 1,
    "segments": 1,
}
BLANK: Final = -32768
"""The int16 value of a pixel without data."""
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
        _field("theta_e_arcsec", pa.float64(), nullable=True),
        _field("z_source", pa.float64(), nullable=True),
        _field("m200_msun", pa.float64(), nullable=True),
        _field("n_multiply_imaged", pa.int32(), nullable=True),
    ],
)
"""Simulation truth: y = 1 lens, 0 not, −1 marginal (kept out of metrics). Only metrics read it."""

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
