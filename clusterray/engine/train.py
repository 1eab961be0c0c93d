"""From labelled shards to a bundle: prior, fold models, refit, stack, calibrate.

Every fit leaves its result in `paths.training`; a run that was cut short takes up what is there.
"""

import json
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from clusterray import storage
from clusterray.config import Config
from clusterray.engine import drift_quantities
from clusterray.engine import sample as samples
from clusterray.engine.diagnostics import diagnose
from clusterray.engine.fits import (
    REFIT,
    FitContext,
    artefact_url,
    lightgbm_options,
    scores_url,
)
from clusterray.engine.ledger import open_run
from clusterray.engine.network_fit import log_url
from clusterray.engine.plan import list_shards
from clusterray.engine.run_fits import run_fits
from clusterray.engine.sample_rows import locate
from clusterray.engine.session import session
from clusterray.engine.telemetry import Progress, RunSummary
from clusterray.ensemble import bundle as bundles
from clusterray.ensemble import duplicates, folds, stacking
from clusterray.ensemble.bootstrap import bootstrap
from clusterray.ensemble.manifest import ANOMALY, model_files
from clusterray.errors import ClusterrayError, ConfigError, did_you_mean
from clusterray.features import feature_names
from clusterray.provenance import data_fingerprint, digest, seed_for
from clusterray.pu.lightgbm_pu import PULightGBM
from clusterray.pu.prior import PriorEstimate, estimate_prior
from clusterray.sky import catalogue
from clusterray.sky.surveys import Survey, resolve
from clusterray.vision import anomaly, vit

__all__ = ["Training", "train"]


def train(config: Config) -> RunSummary:
    """Train on `paths.shards` and `paths.labels`, write `paths.bundle`.

    Raises
    ------
    ConfigError : no model to train, or one twice, or a network that cannot be built.
    InputError : no shards, no known lens with a cutout, too few lenses to fold, labels that
        contradict the prior, pretrained weights that do not fit.
    StorageError : shards, labels or pretrained weights that cannot be read.
    RunError : `paths.training` holds another training run, or a loss that is not finite.
    """
    start = time.monotonic()
    survey = resolve(config.survey)
    models = config.train.models
    if not models or len(set(models)) < len(models):
        raise ConfigError(
            f"train.models is {list(models)}, expected one or more of 'lightgbm', 'vit' and the "
            "names of [networks], each once"
        )
    _check_networks(config, survey)
    shards = list_shards(
        config.paths.shards,
        bands=survey.band_names,
        size_px=survey.size_px,
        pixel_scale_arcsec=survey.pixel_scale_arcsec,
    )
    labels = catalogue.read_labels(config.paths.labels)
    key = {
        "seed": config.seed,
        "features": config.features.model_dump(mode="json"),
        "sample": samples.SAMPLE_VERSION,
        # How many processes share a fit changes rounding alone.
        "vision": config.vision.model_dump(mode="json", exclude={"workers", "max_failures"}),
        "train": config.train.model_dump(mode="json"),
        # The network scores the rows it did not see as it will score the survey.
        "score": config.score.model_dump(mode="json", include={"micro_batch", "dtype", "views"}),
        "shards": data_fingerprint(shard.footer for shard in shards),
        "labels": digest(labels.to_pylist()),
    }
    further = [name for name in config.train.networks if name in config.networks]
    if further:
        key["networks"] = {
            name: config.network(name).model_dump(mode="json", exclude={"workers", "max_failures"})
            for name in further
        }
    folder = config.paths.training
    key_digest = open_run(folder, key, config=config, verb="train")
    url = storage.join(folder, "sample")
    with session(config.cluster):
        choice = samples.choose(shards, labels, config=config)
        samples.gather(choice, url, config=config)
        work = Training(config, survey, folder=folder, sample_url=url, choice=choice, labels=labels)
        done, skipped, seconds = work.fit_all()
    bundle, notes = work.assemble(key_digest)
    summary = RunSummary(
        verb="train",
        unit="fits",
        done=done,
        skipped=skipped,
        rows=len(work.sample),
        rejected=len(choice.ids) - len(work.sample),
        seconds=time.monotonic() - start,
        outputs={"bundle": config.paths.bundle, "training": folder},
        stage_seconds=seconds,
        notes=(*choice.notes, *notes, f"bundle {bundle.digest[:12]}"),
    )
    summary.write(storage.join(folder, "summary.json"))
    return summary


class Training:
    """One training run over one sample; every step finds or leaves its result in `folder`."""

    def __init__(
        self,
        config: Config,
        survey: Survey,
        *,
        folder: str,
        sample_url: str,
        choice: samples.Choice,
        labels: pa.Table,
    ) -> None:
        self.config, self.survey, self.folder, self.choice = config, survey, folder, choice
        self.sample = samples.load(choice.groups, sample_url)
        s = dict(zip(labels["object_id"].to_pylist(), labels["s"].to_pylist(), strict=True))
        self.s = np.array([s.get(i, 0) for i in self.sample.object_id], np.int8)
        settings = config.train
        self.rows = locate(
            self.sample,
            [storage.join(sample_url, "rows", g.output) for g in choice.groups],
            shape=(len(survey.band_names), survey.size_px, survey.size_px),
        )
        self.names = feature_names(survey.band_names, config.features)
        self.context_columns = _columns(settings.context, self.names)
        self.cell = folds.sky_groups(
            self.sample.ra_deg,
            self.sample.dec_deg,
            nside=settings.nside,
            same=np.concatenate(
                [
                    duplicates.image_pairs(self.sample.image_hashes),
                    duplicates.origin_pairs(duplicates.origins(self.sample.object_id.tolist())),
                ]
            ),
        )
        self.folds = folds.assign(
            self.sample.object_id,
            self.cell,
            self.s,
            n_folds=settings.n_folds,
            holdout_fraction=settings.holdout_fraction,
            seed=seed_for(config.seed, purpose="folds"),
        )

    def fit_all(self) -> tuple[int, int, dict[str, float]]:
        """Estimate the prior, then fit every model for every fold; (done, skipped, seconds)."""
        models, leave_outs = self.config.train.models, (*range(self.folds.n_folds), REFIT)
        every = [(m, k) for m in models for k in leave_outs]
        missing = [f for f in every if not storage.exists(scores_url(self.folder, *f))]
        seconds: dict[str, float] = dict.fromkeys(models, 0.0)
        progress = Progress("train", len(every), unit="fits")
        progress.advance(len(every) - len(missing))
        for model, spent in run_fits(self.context(), missing):
            seconds[model] += spent
            progress.advance()
        return len(missing), len(every) - len(missing), {k: round(v, 2) for k, v in seconds.items()}

    def context(self) -> FitContext:
        """What the fits of this run share."""
        return FitContext(
            config=self.config,
            folder=self.folder,
            groups=self.choice.groups,
            bands=self.survey.band_names,
            size_px=self.survey.size_px,
            feature_names=self.names,
            unlabelled_fraction=self.choice.unlabelled_fraction,
            prior=self.prior.value,
            s=self.s,
            fold=self.folds.fold,
            cell=self.cell,
            rows=self.rows,
        )

    @cached_property
    def prior(self) -> PriorEstimate:
        """π of the survey; estimated once and kept in `folder`."""
        url = storage.join(self.folder, "prior.json")
        if storage.exists(url):
            return PriorEstimate.from_json(storage.read_json(url))
        settings = self.config.train
        rows = self.folds.fold >= 0
        s = self.s[rows]
        scores = PULightGBM(
            self.names,
            scenario=settings.scenario,
            prior=settings.prior_fallback,
            params=settings.lightgbm,
            seed=seed_for(self.config.seed, purpose="prior"),
            unlabelled_fraction=self.choice.unlabelled_fraction,
            **lightgbm_options(settings, self.names),
        ).label_scores(self.sample.features[rows], s, names=self.names, groups=self.cell[rows])
        prior = estimate_prior(
            scores[s == 1],
            scores[s == 0],
            scenario=settings.scenario,
            seed=seed_for(self.config.seed, purpose="prior"),
            n_bootstrap=settings.n_bootstrap,
            fallback=settings.prior_fallback,
            unlabelled_fraction=self.choice.unlabelled_fraction,
        )
        storage.write_json(url, prior.to_json())
        return prior

    def assemble(self, key_digest: str) -> tuple[bundles.Bundle, tuple[str, ...]]:
        """Stack, calibrate and write the bundle from what the fits left."""
        settings = self.config.train
        logits = np.column_stack([self._logits(m) for m in settings.models])
        beside = self.sample.features[:, self.context_columns]
        posterior = bootstrap(
            logits,
            self.s,
            fold=self.folds.fold,
            cell=self.cell,
            models=settings.models,
            scenario=settings.scenario,
            prior=self.prior,
            n_bootstrap=settings.n_bootstrap,
            seed=seed_for(self.config.seed, purpose="bootstrap"),
            unlabelled_fraction=self.choice.unlabelled_fraction,
            calibrator=settings.calibrator,
            context=beside,
            context_names=settings.context,
        )
        stack = posterior.stacker.decision_function(logits, beside)
        trained = self.folds.fold >= 0
        stack[trained] = stacking.cross_fitted(
            logits[trained],
            self.s[trained],
            fold=self.folds.fold[trained],
            models=settings.models,
            labelling=posterior.calibrator.labelling_,
            context=beside[trained],
            context_names=settings.context,
        )
        weights = ", ".join(
            f"{m} {w:.2f}" for m, w in zip(settings.models, posterior.stacker.coef_, strict=True)
        )
        prior = self.prior
        notes = (
            *self.folds.notes,
            f"prior π = {prior.value:.3g} ({prior.interval[0]:.2g} to {prior.interval[1]:.2g}, "
            f"{prior.source})",
            *prior.notes,
            *self._lightgbm_notes(),
            *self._network_notes(),
            f"stack weights: {weights}",
            posterior.choice.note or f"calibrator: {posterior.choice.kind}",
        )
        has_lightgbm = "lightgbm" in settings.models
        bundle = bundles.save(
            self.config.paths.bundle,
            bands=self.survey.band_names,
            pixel_scale_arcsec=self.survey.pixel_scale_arcsec,
            size_px=self.survey.size_px,
            feature_names=self.names,
            models=settings.models,
            settings={
                "features": self.config.features.model_dump(mode="json"),
                "training_key": key_digest,
            },
            oof=self._oof_table(logits, stack),
            stacker=posterior.stacker.to_json(),
            calibrator=posterior.calibrator.to_json(),
            posterior=posterior.to_json(),
            prior=prior.to_json(),
            lightgbm_text=self._artefact("lightgbm.txt").decode() if has_lightgbm else None,
            networks={name: self._network(name) for name in settings.networks},
            anomaly=self._anomaly(),
            drift_reference=drift_quantities.of_training(self, logits, stack),
            notes=notes,
            diagnostics=diagnose(
                self.context(), posterior, stack=stack, features=self.sample.features
            ),
        )
        return bundle, notes

    def _logits(self, model: str) -> np.ndarray:
        found: dict[str, float] = {}
        for k in (*range(self.folds.n_folds), REFIT):
            table = storage.read_table(scores_url(self.folder, model, k))
            ids, logits = table["object_id"].to_pylist(), table["logit"].to_pylist()
            found |= dict(zip(ids, logits, strict=True))
        logits = np.array([found[i] for i in self.sample.object_id])
        return stacking.align_folds(logits, fold=self.folds.fold)

    def _oof_table(self, logits: np.ndarray, stack: np.ndarray) -> pa.Table:
        columns: dict[str, Any] = {
            "object_id": pa.array(self.sample.object_id, pa.string()),
            "ra_deg": pa.array(self.sample.ra_deg, pa.float64()),
            "dec_deg": pa.array(self.sample.dec_deg, pa.float64()),
            "fold": pa.array(self.folds.fold, pa.int8()),
        }
        for k, model in enumerate(self.config.train.models):
            columns[f"logit_{model}"] = pa.array(logits[:, k], pa.float32())
        return pa.table({**columns, "logit_stack": pa.array(stack, pa.float64())})

    def _artefact(self, name: str) -> bytes:
        return storage.read_bytes(artefact_url(self.folder, name))

    def _lightgbm_notes(self) -> tuple[str, ...]:
        if "lightgbm" not in self.config.train.models:
            return ()
        return tuple(f"lightgbm: {n}" for n in json.loads(self._artefact("lightgbm.notes.json")))

    def _network_notes(self) -> tuple[str, ...]:
        """What each fit has to say, once where a network's fits say the same."""
        said: dict[tuple[str, str], list[str]] = {}
        for name in self.config.train.networks:
            for k in (*range(self.folds.n_folds), REFIT):
                for note in storage.read_json(log_url(self.folder, name, k))["notes"]:
                    where = said.setdefault((name, note), [])
                    where.append("refit" if k == REFIT else f"fold {k}")
        return tuple(f"{name} ({', '.join(w)}): {note}" for (name, note), w in said.items())

    def _network(self, name: str) -> vit.LensViT:
        weights, architecture = (self._artefact(file) for file in model_files(name))
        return vit.LensViT.load(weights, json.loads(architecture))

    def _anomaly(self) -> anomaly.AnomalyModel:
        return anomaly.AnomalyModel.load(self._artefact(ANOMALY))


def _check_networks(config: Config, survey: Survey) -> None:
    """Build each network once, so that wrong names or weights are told before anything long."""
    for name in config.train.networks:
        try:
            vit.build(
                config.network(name),
                n_bands=len(survey.band_names),
                size_px=survey.size_px,
                bands=survey.band_names,
            )
        except ClusterrayError as error:
            if name not in config.networks:
                raise
            raise type(error)(f"networks.{name}: {error}") from error


def _columns(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ConfigError(
            f"train.context: no feature '{unknown[0]}', {did_you_mean(unknown[0], names)}"
        )
    return [names.index(name) for name in wanted]
