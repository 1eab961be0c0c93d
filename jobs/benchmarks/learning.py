"""What models learn from a few known lenses, beside the same models taught the truth.

Two surveys are simulated by the standing recipe with different seeds. On the first, models train
from labels alone (`clusterray train`), and once more on true labels; on the second, which neither
saw, truth measures both. Everything is kept under `--root`: a run cut short is taken up.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from clusterray import config, storage
from clusterray.engine import fits
from clusterray.engine import sample as samples
from clusterray.engine.plan import list_shards
from clusterray.engine.run_fits import run_fits
from clusterray.engine.score import score
from clusterray.engine.session import session
from clusterray.engine.simulate import simulate
from clusterray.engine.train import Training, train
from clusterray.ensemble import bundle
from clusterray.ensemble.folds import HELD_OUT
from clusterray.ensemble.manifest import model_files
from clusterray.features import cutout_features
from clusterray.pu.lightgbm_pu import PULightGBM
from clusterray.rank.metrics import rare_event_metrics
from clusterray.simulate import recipe
from clusterray.sky import catalogue, shards
from clusterray.sky.surveys import resolve
from clusterray.vision import vit
from clusterray.vision.prediction import predict
from jobs.benchmarks.learning_page import write_page
from jobs.benchmarks.result import Result

__all__ = ["add_arguments", "measure"]

Floats = npt.NDArray[np.float64]
Rows = dict[str, npt.NDArray[Any]]

_SNR_EDGES: Final = (5.0, 10.0, 20.0, 40.0, np.inf)
_ALMOST_ALL: Final = 1 + 1e-6
"""π over the labelled share: single-sample labelling wants a share of the lenses, not all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how large the two surveys are, and how the models are set."""
    parser.add_argument("--root", default="runs/bench-learning", help="where everything is kept")
    parser.add_argument("--train", type=int, default=20_000, help="cutouts to train on")
    parser.add_argument("--test", type=int, default=30_000, help="cutouts to test on")
    parser.add_argument("--known", type=int, default=200, help="lenses that are labelled")
    parser.add_argument("--lens-fraction", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=20260401)
    parser.add_argument("--skip-true-labels", action="store_true", help="train from labels alone")
    parser.add_argument("--page", default="", help="HTML page of the worst false positives")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="setting, as of every verb"
    )


def measure(options: argparse.Namespace) -> Result:
    """Simulate, train, score, and print tables; the value is the stack's TPR at FPR 1e-2.

    The baseline is the best true-label model's (the best PU model's where those are skipped).
    """
    learn, test = _settings(options, "train"), _settings(options, "test")
    for settings in (learn, test):
        simulate(settings)
    train(learn)
    taught = "" if options.skip_true_labels else _teach(learn)
    score(test)
    truth = {r["object_id"]: r for r in storage.read_table(test.paths.truth).to_pylist()}
    scores = _read_scores(test)
    if taught:
        scores |= _predicted(test, scores["object_id"], taught)
    rows = [truth[i] for i in scores["object_id"]]
    y = np.array([row["y"] for row in rows])
    use = y >= 0
    models = [name for name in scores if name != "object_id"]
    kinds = np.array([row["kind"] for row in rows])[use]
    snr = np.array([row["arc_snr"] or np.nan for row in rows], float)[use]
    table = {m: _judge(y[use] == 1, scores[m][use], kinds=kinds, snr=snr) for m in models}
    _print(table)
    if options.page:
        worst = {m: _worst(scores, m, y) for m in models}
        write_page(options.page, worst=worst, table=table, truth=truth, settings=test)
    key = "tpr_at_fpr_1e-2"
    others = [m for m in models if m.startswith("true ")] or [m for m in models if m != "stack"]
    return Result(
        table["stack"][key],
        max(table[m][key] for m in others),
        "TPR at FPR 1e-2",
        {
            "models": table,
            "lenses": int(np.sum(y == 1)),
            "non_lenses": int(np.sum(y == 0)),
            "prior": storage.read_json(storage.join(learn.paths.training, "prior.json")),
            "notes": bundle.load(learn.paths.bundle).notes,
            "recipe": recipe.load(learn.simulate.recipe).digest(),
        },
    )


def _settings(options: argparse.Namespace, which: str) -> config.Config:
    """The settings of one of the two surveys; the test survey is scored with the other's bundle."""
    root = storage.join(options.root, which)
    base = storage.join(options.root, "train")
    number = {"train": options.train, "test": options.test}[which]
    given = [
        f"seed={options.seed + (which == 'test')}",
        f"paths.root='{root}'",
        f"paths.bundle='{storage.join(base, 'bundle')}'",
        f"paths.truth='{storage.join(root, 'truth', 'truth.parquet')}'",
        "simulate.output='shards'",
        f"simulate.n_clusters={number}",
        f"simulate.n_known={options.known if which == 'train' else 0}",
        f"simulate.lens_fraction={options.lens_fraction}",
        f"train.max_unlabelled={options.train}",
        *options.set,
    ]
    return config.load(None, given)


def _teach(settings: config.Config) -> str:
    """Fit every model on all folds with true labels; the folder with their artefacts.

    Folds, features and settings are those of the run on labels. Marginal objects are left out.
    """
    folder = storage.join(settings.paths.root, "taught")
    survey = resolve(settings.survey)
    found = list_shards(
        settings.paths.shards, bands=survey.band_names, size_px=survey.size_px,
        pixel_scale_arcsec=survey.pixel_scale_arcsec,
    )  # fmt: skip
    labels = catalogue.read_labels(settings.paths.labels)
    choice = samples.choose(found, labels, config=settings)
    url = storage.join(settings.paths.training, "sample")
    models = settings.train.models
    missing = [m for m in models if not storage.exists(fits.scores_url(folder, m, fits.REFIT))]
    if missing:
        work = Training(
            settings, survey, folder=settings.paths.training, sample_url=url, choice=choice,
            labels=labels,
        )  # fmt: skip
        truth = storage.read_table(settings.paths.truth, columns=["object_id", "y"]).to_pydict()
        known = dict(zip(truth["object_id"], truth["y"], strict=True))
        y = np.array([known[i] for i in work.sample.object_id], np.int8)
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not (Path(folder) / "sample").exists():
            (Path(folder) / "sample").symlink_to(Path(url).resolve())
        fold = np.where(y < 0, HELD_OUT, work.folds.fold)
        # Whichever rows a share of lenses is counted on, π leaves room for it.
        lenses = max(float(np.mean(y[rows] == 1)) for rows in (fold != HELD_OUT, y >= -1))
        context = replace(
            work.context(), folder=folder, prior=lenses * _ALMOST_ALL, unlabelled_fraction=1.0,
            s=(y == 1).astype(np.int8), fold=fold,
        )  # fmt: skip
        with session(settings.cluster):
            for model, seconds in run_fits(context, [(m, fits.REFIT) for m in missing]):
                print(f"taught: {model}, {seconds:.0f} s", flush=True)
    return folder


def _read_scores(test: config.Config) -> Rows:
    """Logits of every scored cutout of the test survey."""
    entries = storage.list_files(storage.join(test.paths.scores, "rows"), suffix=".parquet")
    parts = [storage.read_table(entry.url) for entry in entries]
    names = {"stack": "logit_stack"} | {f"pu {m}": f"logit_{m}" for m in test.train.models}
    found: Rows = {
        name: np.concatenate([p.column(column).to_numpy() for p in parts])
        for name, column in names.items()
    }
    ids = np.concatenate([p.column("object_id").to_numpy() for p in parts])
    return {"object_id": ids, **found}


def _predicted(test: config.Config, order: npt.NDArray[Any], folder: str) -> Rows:
    """Logits of the models that were taught the truth, in the order of the object ids."""
    models = test.train.models
    device = "cuda" if torch.cuda.is_available() else "cpu"
    booster, networks = None, {}
    for model in models:
        if model == "lightgbm":
            text = storage.read_bytes(fits.artefact_url(folder, "lightgbm.txt")).decode()
            booster = PULightGBM.from_text(text)
        else:
            weights, architecture = (fits.artefact_url(folder, n) for n in model_files(model))
            network = vit.LensViT.load(storage.read_bytes(weights), storage.read_json(architecture))
            networks[model] = network.to(device)
    at = {object_id: row for row, object_id in enumerate(order)}
    logits = {m: np.full(len(order), np.nan) for m in models}
    for entry in storage.list_files(test.paths.shards, suffix=".parquet", recursive=False):
        batch = shards.read(entry.url, integers=True)
        place = np.array([at.get(i, -1) for i in batch.object_id])
        keep = np.flatnonzero(place >= 0)
        if booster is not None:
            features = cutout_features(
                batch.cutouts_nchw, step=batch.step, noise_sigma=batch.noise_sigma,
                bands=batch.bands, columns=batch.columns, settings=test.features,
            )  # fmt: skip
            values = booster.decision_function(features.values, features.names)
            logits["lightgbm"][place[keep]] = values[keep]
        for model, network in networks.items():
            values = predict(
                network, batch.cutouts_nchw, step=batch.step, noise_sigma=batch.noise_sigma,
                micro_batch=test.score.micro_batch, dtype=test.score.dtype, device=device,
            ).logit  # fmt: skip
            logits[model][place[keep]] = values[keep]
    return {f"true {m}": values for m, values in logits.items()}


def _judge(
    lens: npt.NDArray[np.bool_], score_of: Floats, *, kinds: npt.NDArray[Any], snr: Floats
) -> dict[str, Any]:
    """Rare-event metrics; false positives by kind and TPR by arc S/N at FPR 1e-2."""
    measured = rare_event_metrics(lens, score_of)
    found: dict[str, Any] = {k: v for k, v in measured.items() if np.isfinite(v)}
    above = score_of >= measured["threshold_at_fpr_1e-2"]
    false = Counter(kinds[above & ~lens].tolist())
    of_kind = Counter(kinds[~lens].tolist())
    found["false_positives"] = {
        k: {"of_false_positives": n / max(sum(false.values()), 1), "passing": n / of_kind[k]}
        for k, n in false.most_common()
    }
    bins = np.digitize(snr, _SNR_EDGES)
    found["tpr_by_arc_snr"] = {
        f"{_SNR_EDGES[b - 1]:g} to {_SNR_EDGES[b]:g}": [
            float(np.mean(above[lens & (bins == b)])), int(np.sum(lens & (bins == b)))
        ]
        for b in range(1, len(_SNR_EDGES))
        if np.any(lens & (bins == b))
    }  # fmt: skip
    return found


def _worst(scores: Rows, model: str, y: npt.NDArray[Any], number: int = 24) -> list[str]:
    """The non-lenses with the highest scores, the worst first."""
    wrong = np.flatnonzero(y == 0)
    order = wrong[np.argsort(-scores[model][wrong], kind="stable")][:number]
    return [str(i) for i in scores["object_id"][order]]


def _print(table: Mapping[str, Mapping[str, Any]]) -> None:
    columns = ("tpr_at_fpr_1e-3", "tpr_at_fpr_1e-2", "average_precision", "tpr10", "auroc")
    print(f"\n{'model':16}" + "".join(f"{c.removeprefix('tpr_at_'):>18}" for c in columns))
    for name, row in table.items():
        print(f"{name:16}" + "".join(f"{row.get(c, np.nan):18.4f}" for c in columns))
    said = {
        "false_positives": "false positives at FPR 1e-2: class, share of them, share of the class",
        "tpr_by_arc_snr": "TPR at FPR 1e-2: arc S/N, TPR, lenses",
    }
    for key, title in said.items():
        print(f"\n{title}")
        for name, row in table.items():
            cells = "; ".join(f"{k} {_cell(v)}" for k, v in list(row[key].items())[:6])
            print(f"  {name:14} {cells}")


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['of_false_positives']:.2f}, {value['passing']:.3f}"
    return f"{value[0]:.2f}, {value[1]}"
