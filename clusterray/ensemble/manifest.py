"""What a bundle's manifest promises, and the checks that hold it to that."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clusterray import schema, storage
from clusterray.errors import BundleError, ContractError, StorageError
from clusterray.provenance import digest

__all__ = [
    "ANOMALY",
    "DIAGNOSTICS",
    "DRIFT",
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST",
    "NOTES",
    "OOF",
    "STATES",
    "TRAIN_AGAIN",
    "check_models",
    "check_oof",
    "content_digest",
    "model_files",
    "oof_schema",
    "read_manifest",
    "read_oof",
    "schema_versions",
]

FORMAT: Final = "clusterray-bundle"
FORMAT_VERSION: Final = 2
MANIFEST: Final = "manifest.json"
OOF: Final = "oof.parquet"
NOTES: Final = "notes.json"
DIAGNOSTICS: Final = "diagnostics.json"
ANOMALY: Final = "anomaly.safetensors"
DRIFT: Final = "drift.parquet"
STATES: Final = {
    "stacker": "stacker.json",
    "calibrator": "calibrator.json",
    "posterior": "posterior.json",
    "prior": "prior.json",
}
TRAIN_AGAIN: Final = "train again, or copy the whole folder again"

_TABLES = ("cutouts", "features", "scores")
_CONTENT_KEYS = (
    "format_version", "bands", "pixel_scale_arcsec", "size_px", "feature_names", "models",
    "schema_versions", "settings",
)  # fmt: skip


def schema_versions() -> dict[str, int]:
    """Versions of the tables that the models of a bundle read and write."""
    return {table: schema.VERSIONS[table] for table in _TABLES}


def oof_schema(models: Sequence[str]) -> pa.Schema:
    """Out-of-fold scores of the rows that training used.

    `fold` is ≥ 0 for rows of the base models and the stacker, −1 for rows of the calibrator.
    """
    return pa.schema(
        [
            pa.field("object_id", pa.string(), nullable=False),
            pa.field("ra_deg", pa.float64(), nullable=False),
            pa.field("dec_deg", pa.float64(), nullable=False),
            pa.field("fold", pa.int8(), nullable=False),
            *(pa.field(f"logit_{m}", pa.float32(), nullable=False) for m in models),
            pa.field("logit_stack", pa.float64(), nullable=False),
        ]
    )


def read_manifest(url: str, where: str) -> dict[str, Any]:
    """Read the manifest of a bundle of this format, version and set of tables.

    Raises
    ------
    BundleError : saying which of them differs, or what is missing.
    """
    try:
        manifest = storage.read_json(storage.join(url, MANIFEST))
    except StorageError as error:
        raise BundleError(f"bundle '{where}': {error}; {TRAIN_AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(
            f"'{where}/{MANIFEST}' is not the manifest of a bundle; check paths.bundle"
        )
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"bundle '{where}' has format version {version}, this release reads {FORMAT_VERSION}; "
            "train again with this release, or score with the one that made it"
        )
    lacking = [k for k in (*_CONTENT_KEYS, "digest", "files") if k not in manifest]
    if lacking:
        raise BundleError(f"bundle '{where}': {MANIFEST} has no '{lacking[0]}'; {TRAIN_AGAIN}")
    _check_files_named(where, manifest)
    versions = manifest["schema_versions"]
    for table in sorted({*_TABLES, *versions}):
        got, expected = versions.get(table), schema.VERSIONS.get(table)
        if got != expected:
            raise BundleError(
                f"bundle '{where}' was made for {table} tables of version {got}, this release has "
                f"{expected}; make the shards again and train again with this release"
            )
    return manifest


def _check_files_named(where: str, manifest: Mapping[str, Any]) -> None:
    needed = [OOF, NOTES, DIAGNOSTICS, *STATES.values()]
    needed += [n for m in manifest["models"] for n in model_files(m)]
    absent = [n for n in needed if n not in manifest["files"]]
    if absent:
        raise BundleError(
            f"bundle '{where}': {MANIFEST} does not list '{absent[0]}'; {TRAIN_AGAIN}"
        )
    allowed = {*needed, ANOMALY, DRIFT}
    foreign = [n for n in manifest["files"] if n not in allowed]
    if foreign:
        raise BundleError(f"bundle '{where}': {MANIFEST} lists '{foreign[0]}', no file of a bundle")


def content_digest(manifest: Mapping[str, Any], files: Mapping[str, bytes], oof: pa.Table) -> str:
    """Digest of what changes an output: the Parquet file counts by its values, not its bytes."""
    beside = (OOF, NOTES, DIAGNOSTICS, DRIFT)
    content = {n: digest(d) for n, d in files.items() if n not in beside}
    values = hashlib.sha256()
    for name in oof.column_names:
        values.update(name.encode() + b"\0")
        column = oof.column(name).combine_chunks()
        if name == "object_id":
            values.update(json.dumps(column.to_pylist()).encode())
        else:
            values.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    about = {k: manifest[k] for k in _CONTENT_KEYS}
    return digest({"about": about, "files": content, "oof": values.hexdigest()})


def model_files(model: str) -> tuple[str, ...]:
    """Files that a base model is made of: weights, and for a network its architecture."""
    if model == "lightgbm":
        return ("lightgbm.txt",)
    # A prefix, so that no name of a network can be that of another file.
    stem = model if model == "vit" else f"network_{model}"
    return (f"{stem}.safetensors", f"{stem}.json")


def check_models(where: str, models: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse models that are named but not given (None), or the reverse.

    Raises
    ------
    BundleError : naming both sets.
    """
    have = {name for name, model in given.items() if model is not None}
    if not models or set(models) != have or len(set(models)) != len(models):
        raise BundleError(
            f"bundle '{where}': models are ({', '.join(models)}), but given were "
            f"({', '.join(sorted(have))}); name each model once and hand it over"
        )


def check_oof(where: str, oof: pa.Table, models: Sequence[str]) -> pa.Table:
    """Sort out-of-fold scores by object_id, if they keep `oof_schema`.

    Raises
    ------
    BundleError : other columns or types, nulls, an id twice, scores that are not finite.
    """
    want = oof_schema(models)
    if set(oof.column_names) != set(want.names) or any(
        oof.schema.field(f.name).type != f.type or oof.column(f.name).null_count for f in want
    ):
        raise BundleError(
            f"bundle '{where}': out-of-fold scores have "
            f"{', '.join(f'{f.name} {f.type}' for f in oof.schema)}; expected, without nulls, "
            f"{', '.join(f'{f.name} {f.type}' for f in want)}"
        )
    try:
        schema.require_unique(oof, where="out-of-fold scores")
    except ContractError as error:
        raise BundleError(f"bundle '{where}': {error}") from error
    for name in want.names[2:]:
        bad = len(oof) - (pc.sum(pc.is_finite(oof.column(name))).as_py() or 0)
        if bad:
            raise BundleError(
                f"bundle '{where}': {bad} out-of-fold scores in '{name}' are not finite; "
                "look at the training log of that model"
            )
    return oof.select(want.names).sort_by("object_id").replace_schema_metadata(None).cast(want)


def read_oof(url: str, manifest: Mapping[str, Any], data: bytes) -> pa.Table:
    """Parse and check the out-of-fold file.

    Raises
    ------
    BundleError : see `check_oof`; or it is no Parquet file.
    """
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
    except (OSError, pa.ArrowException) as error:
        raise BundleError(
            f"bundle '{url}': '{OOF}' is not readable: {error}; {TRAIN_AGAIN}"
        ) from error
    return check_oof(url, table, manifest["models"])
