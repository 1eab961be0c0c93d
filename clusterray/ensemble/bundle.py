"""The bundle: a folder that holds everything a score follows from, and proves that it is whole.

`manifest.json` is written last: a folder without it is no bundle. It names every file with its
SHA-256, and one digest over all that changes an output (not over dates, commits or notes), which
run keys are made of. Nothing in a bundle is pickled.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from clusterray import schema, storage
from clusterray.ensemble.duplicates import is_injected
from clusterray.ensemble.manifest import (
    ANOMALY,
    DIAGNOSTICS,
    DRIFT,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    NOTES,
    OOF,
    STATES,
    TRAIN_AGAIN,
    check_models,
    check_oof,
    content_digest,
    model_files,
    read_manifest,
    read_oof,
    schema_versions,
)
from clusterray.errors import BundleError
from clusterray.provenance import digest, provenance

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

    from clusterray.ensemble.calibration import Calibrator
    from clusterray.ensemble.posterior import PosteriorEnsemble
    from clusterray.ensemble.stacking import Stacker
    from clusterray.pu.lightgbm_pu import PULightGBM
    from clusterray.vision.anomaly import AnomalyModel
    from clusterray.vision.vit import LensViT

__all__ = ["Bundle", "load", "save"]

_SAME_ARCSEC = 2.0


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. Models are built when asked for; states are plain JSON values."""

    url: str
    manifest: Mapping[str, Any] = field(repr=False)
    oof: pa.Table = field(repr=False)
    """Out-of-fold scores, sorted by object_id; see `manifest.oof_schema`."""
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 over all that changes an output."""
        return str(self.manifest["digest"])

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the cutouts, blue to red."""
        return tuple(self.manifest["bands"])

    @property
    def size_px(self) -> int:
        """Side of the cutouts."""
        return int(self.manifest["size_px"])

    @property
    def pixel_scale_arcsec(self) -> float:
        """Pixel scale of the cutouts."""
        return float(self.manifest["pixel_scale_arcsec"])

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns of the feature table, in the order LightGBM was trained on."""
        return tuple(self.manifest["feature_names"])

    @property
    def models(self) -> tuple[str, ...]:
        """Base models, in the order of the stacker's inputs."""
        return tuple(self.manifest["models"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that change a score, as they were in training."""
        return dict(self.manifest["settings"])

    @property
    def notes(self) -> tuple[str, ...]:
        """Stated degradations, such as fewer folds for want of positives."""
        return tuple(json.loads(self.files[NOTES]))

    @property
    def diagnostics(self) -> Mapping[str, Any]:
        """What training measured of itself, for the report; changes no score."""
        return dict(json.loads(self.files[DIAGNOSTICS]))

    @property
    def networks(self) -> tuple[str, ...]:
        """Base models that are networks, in the stacker's order."""
        return tuple(m for m in self.models if m != "lightgbm")

    def vit(self) -> "LensViT":
        """Build the network "vit", see `network`."""
        return self.network("vit")

    def network(self, name: str) -> "LensViT":
        """Build a network in eval mode, on the CPU; a new one each time.

        Raises
        ------
        BundleError : the bundle has no such network.
        """
        from clusterray.vision.vit import LensViT

        weights, architecture = (self._file(n) for n in model_files(name))
        return LensViT.load(weights, json.loads(architecture))

    def anomaly(self) -> "AnomalyModel | None":
        """Read the anomaly model of embeddings, or of features where there is no network."""
        from clusterray.vision.anomaly import AnomalyModel

        return AnomalyModel.load(self.files[ANOMALY]) if ANOMALY in self.files else None

    @cached_property
    def drift_reference(self) -> pa.Table | None:
        """Distributions of the training rows, a `schema.DRIFT_REFERENCE` table; None without."""
        if DRIFT not in self.files:
            return None
        table = pq.ParquetFile(io.BytesIO(self.files[DRIFT])).read()
        return schema.check(table, schema.DRIFT_REFERENCE, where=f"bundle '{self.url}': {DRIFT}")

    @property
    def lightgbm_text(self) -> str:
        """LightGBM's own text form.

        Raises
        ------
        BundleError : the bundle has no LightGBM.
        """
        return self._file(model_files("lightgbm")[0]).decode()

    @cached_property
    def lightgbm(self) -> "PULightGBM":
        """The LightGBM-PU model."""
        from clusterray.pu.lightgbm_pu import PULightGBM

        return PULightGBM.from_text(self.lightgbm_text)

    @property
    def stacker_state(self) -> dict[str, Any]:
        """State of the stacker."""
        return self._state("stacker")

    @property
    def calibrator_state(self) -> dict[str, Any]:
        """State of the calibrator."""
        return self._state("calibrator")

    @property
    def posterior_state(self) -> dict[str, Any]:
        """State of the bootstrap ensemble."""
        return self._state("posterior")

    @property
    def prior_state(self) -> dict[str, Any]:
        """The class prior used, and why."""
        return self._state("prior")

    @cached_property
    def stacker(self) -> "Stacker":
        """From base logits to the stack's logit."""
        from clusterray.ensemble.stacking import Stacker

        return Stacker.from_json(self.stacker_state)

    @cached_property
    def calibrator(self) -> "Calibrator":
        """From the stack's logit to a probability."""
        from clusterray.ensemble.calibration import Calibrator

        return Calibrator.from_json(self.calibrator_state)

    @cached_property
    def posterior(self) -> "PosteriorEnsemble":
        """From base logits to a probability with its interval."""
        from clusterray.ensemble.posterior import PosteriorEnsemble

        return PosteriorEnsemble.from_json(self.posterior_state)

    def training_rows(
        self, object_id: Sequence[str], *, ra_deg: ArrayLike, dec_deg: ArrayLike
    ) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Row of each object in `oof`; −1 where training never saw it.

        An id alone is not an identity, for every catalogue counts from 1. An object is a training
        row if it has its id and lies in its cutout (centres get revised), or lies within 2″ of it
        whatever it is called. An injected lens or twin is known by its id alone: where it stands,
        its source stands too, and that is another object.

        Parameters
        ----------
        object_id, ra_deg, dec_deg : (n,) ids and ICRS positions.
        """
        ids = pa.array(list(object_id), pa.string())
        if not (len(ids) and len(self.oof)):
            return np.full(len(ids), -1, np.int64)
        places = _unit_vectors(ra_deg, dec_deg)
        standing, tree = self._standing
        chord, nearest = tree.query(places, distance_upper_bound=np.radians(_SAME_ARCSEC / 3600))
        rows = np.where(np.isfinite(chord), np.append(standing, -1)[nearest], -1)
        rows[[is_injected(name) for name in object_id]] = -1
        found = pc.index_in(ids, value_set=self.oof.column("object_id").combine_chunks())
        named = found.fill_null(-1).to_numpy(zero_copy_only=False)
        apart = np.linalg.norm(places - self._places[named], axis=1)
        half_width = np.radians(self.size_px * self.pixel_scale_arcsec / 2 / 3600)
        rows = np.where((named >= 0) & (apart <= half_width), named, rows)
        return rows.astype(np.int64)

    @cached_property
    def _places(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return _unit_vectors(self.oof.column("ra_deg"), self.oof.column("dec_deg"))

    @cached_property
    def _standing(self) -> tuple[np.ndarray[Any, np.dtype[np.int64]], "cKDTree"]:
        """Training rows that are the survey's own, and a tree of their places."""
        # Here, for every scoring actor imports this module, and one in three needs the tree.
        from scipy.spatial import cKDTree

        own = [not is_injected(name) for name in self.oof.column("object_id").to_pylist()]
        rows = np.flatnonzero(own).astype(np.int64)
        return rows, cKDTree(self._places[rows])

    def folds_of(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Int8Array:
        """Folds of `training_rows`: ≥ 0 trained on, −1 calibrated on, null never seen."""
        return self.oof.column("fold").combine_chunks().take(pa.array(rows, mask=rows < 0))

    def _file(self, name: str) -> bytes:
        if name not in self.files:
            raise BundleError(
                f"bundle '{self.url}' has no '{name}': its models are {', '.join(self.models)}; "
                "choose another bundle or train with that model"
            )
        return self.files[name]

    def _state(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.files[STATES[name]]))

    @classmethod
    def _checked(cls, url: str, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        bundle = cls(url, manifest, read_oof(url, manifest, files[OOF]), files)
        found = content_digest(manifest, files, bundle.oof)
        if found != manifest["digest"]:
            raise BundleError(
                f"bundle '{url}': {MANIFEST} was altered: digest {found[:12]}…, expected "
                f"{bundle.digest[:12]}…; {TRAIN_AGAIN}"
            )
        return bundle


def save(
    url: str,
    *,
    bands: Sequence[str],
    pixel_scale_arcsec: float,
    size_px: int,
    feature_names: Sequence[str],
    models: Sequence[str],
    settings: Mapping[str, Any],
    oof: pa.Table,
    stacker: Mapping[str, Any],
    calibrator: Mapping[str, Any],
    posterior: Mapping[str, Any],
    prior: Mapping[str, Any],
    lightgbm_text: str | None = None,
    vit: "LensViT | None" = None,
    networks: Mapping[str, "LensViT"] | None = None,
    anomaly: "AnomalyModel | None" = None,
    drift_reference: pa.Table | None = None,
    notes: Sequence[str] = (),
    diagnostics: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle, its manifest last, and return it as `load` would.

    Parameters
    ----------
    url : folder; files of a bundle that stands there are replaced.
    bands, pixel_scale_arcsec, size_px : of the cutouts.
    feature_names : in LightGBM's order; empty without it.
    models : base models in the stacker's order; each must be given below.
    vit, networks : the network of that name, and further ones by theirs.
    settings : plain values that change a score.
    oof : see `manifest.oof_schema`; any row order.
    stacker, calibrator, posterior, prior : what their `to_json` returned.
    drift_reference : a `schema.DRIFT_REFERENCE` table of the training rows; changes no score.
    notes : stated degradations, for people.
    diagnostics : what training measured of itself, plain values.

    Raises
    ------
    BundleError : a model named but not given (or the reverse), a network of another number of
        bands, or out-of-fold scores that break their schema, repeat an id or are not finite.
    """
    where = storage.redact(url)
    built = {name: n for name, n in {"vit": vit, **(networks or {})}.items() if n is not None}
    check_models(where, models, {"lightgbm": lightgbm_text, **built})
    states = {"stacker": stacker, "calibrator": calibrator, "posterior": posterior, "prior": prior}
    files = {STATES[n]: _json(v) for n, v in states.items()} | {NOTES: _json(list(notes))}
    files[DIAGNOSTICS] = _json(dict(diagnostics or {}))
    if lightgbm_text is not None:
        files["lightgbm.txt"] = lightgbm_text.encode()
    for name, network in built.items():
        if network.settings.n_bands != len(bands):
            raise BundleError(
                f"bundle '{where}': the network has {network.settings.n_bands} bands, the cutouts "
                f"{len(bands)} ({', '.join(bands)}); train it on these cutouts"
            )
        weights, architecture = model_files(name)
        files[weights], files[architecture] = network.save(), _json(network.architecture())
    if anomaly is not None:
        files[ANOMALY] = anomaly.save()
    if drift_reference is not None:
        files[DRIFT] = storage.parquet_bytes(drift_reference).to_pybytes()
    table = check_oof(where, oof, models)
    files[OOF] = storage.parquet_bytes(table).to_pybytes()
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "digest": "",
        "models": list(models),
        "bands": list(bands),
        "pixel_scale_arcsec": float(pixel_scale_arcsec),
        "size_px": int(size_px),
        "feature_names": list(feature_names),
        "schema_versions": schema_versions(),
        "settings": dict(settings),
        "files": {n: digest(data) for n, data in sorted(files.items())},
        "created": {"date": datetime.now(UTC).isoformat(timespec="seconds"), **provenance()},
    }
    manifest["digest"] = content_digest(manifest, files, table)
    for name, data in sorted(files.items()):
        storage.write_bytes(storage.join(url, name), data)
    storage.write_json(storage.join(url, MANIFEST), manifest)
    return Bundle._checked(where, json.loads(_json(manifest)), files)


def load(url: str) -> Bundle:
    """Read a bundle and check that it is whole, unaltered and of this version.

    Raises
    ------
    BundleError : no manifest, another format or schema version, a file missing or altered.
    StorageError : the location cannot be reached.
    """
    where = storage.redact(url)
    if not storage.exists(storage.join(url, MANIFEST)):
        raise BundleError(
            f"'{where}' holds no {MANIFEST}: it is no bundle, or its writing was cut short; "
            "check paths.bundle, or run 'clusterray train'"
        )
    manifest = read_manifest(url, where)
    files = {}
    for name, expected in manifest["files"].items():
        target = storage.join(url, name)
        if not storage.exists(target):
            raise BundleError(f"bundle '{where}': '{name}' is missing; {TRAIN_AGAIN}")
        files[name] = storage.read_bytes(target)
        found = digest(files[name])
        if found != expected:
            raise BundleError(
                f"bundle '{where}': '{name}' was altered or is of another bundle: SHA-256 "
                f"{found[:12]}…, expected {str(expected)[:12]}…; {TRAIN_AGAIN}"
            )
    return Bundle._checked(where, manifest, files)


def _unit_vectors(ra_deg: ArrayLike, dec_deg: ArrayLike) -> np.ndarray[Any, np.dtype[np.float64]]:
    lon, lat = np.radians(np.asarray(ra_deg)), np.radians(np.asarray(dec_deg))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
