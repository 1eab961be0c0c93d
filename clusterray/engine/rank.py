"""From score files to the ranking and its report; the one place where truth may be read."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from clusterray import schema, storage
from clusterray.config import Config, FeatureSettings
from clusterray.engine.ledger import Receipt, Shard, read_key
from clusterray.engine.telemetry import RunSummary
from clusterray.ensemble import bundle as bundles
from clusterray.ensemble.posterior import PosteriorEnsemble
from clusterray.errors import InputError, RunError
from clusterray.features import registry
from clusterray.provenance import data_fingerprint, provenance
from clusterray.rank import ranking, selection, selection_page
from clusterray.rank import report as report_page
from clusterray.rank.discovery import shortlist, unlike_known
from clusterray.sky import catalogue
from clusterray.sky import shards as sky_shards
from clusterray.sky.thumbnails import Thumbnail

__all__ = ["rank", "report"]

_SELECTION_PAGE = "selection.html"


def rank(config: Config, *, shards: Sequence[Shard] | None = None) -> RunSummary:
    """Rank `paths.scores` with `paths.bundle`; write the tables and report to `paths.ranking`.

    Only ids, positions and scores are read, but for the pixels of the candidates shown.

    Parameters
    ----------
    shards : those to rank, as they stood when they were listed; None takes all that stand now.

    Raises
    ------
    InputError : a shard is not scored to its end, or `paths.truth` names no file, or one of
        other objects.
    RunError : the scores were made with another bundle.
    """
    start = time.monotonic()
    bundle = bundles.load(config.paths.bundle)
    key = _run_key(config, bundle)
    truth = _truth(config)
    receipts, notes = _current(Receipt.read_all(config.paths.scores), config, shards)
    scores = _read_scores(receipts, config, bundle.models)
    logits = _logits(scores, bundle.models)
    posterior = _posterior(config, bundle)
    p, low, high = posterior.interval(logits, logit_stack=scores.column("logit_stack").to_numpy())
    table = ranking.build(scores, models=bundle.models, p_lens=p, p_low=low, p_high=high)
    # Measured before anything is written: a truth table of another survey is refused here.
    measured = selection.measure(table, truth, config.rank) if truth is not None else None
    folder = config.paths.ranking
    outputs = {
        "ranking": storage.join(folder, "ranking.parquet"),
        "shortlist": storage.join(folder, "shortlist.csv"),
        "report": storage.join(folder, "report.html"),
    }
    about = {
        "run_key": key,
        "data": data_fingerprint(r.footer for r in receipts),
        "prior": bundle.prior_state,
        "survey_prior": config.rank.survey_prior or bundle.prior_state["value"],
        "bundle_notes": list(bundle.notes),
        "config": config.dump(),
        **provenance(),
    }
    storage.write_json(storage.join(folder, "run.json"), about)
    ranking.write(folder, table)
    _write_lists(table, config)
    if measured is not None:
        outputs["selection"] = _write_selection(folder, measured)
    _write_report(table, about, config, bundle, truth, finds=_finds(table, posterior, config))
    summary = RunSummary(
        verb="rank",
        unit="shards",
        done=len(receipts),
        skipped=0,
        rows=len(table),
        rejected=sum(r.rejected for r in receipts),
        seconds=time.monotonic() - start,
        outputs=outputs,
        notes=notes,
    )
    summary.write(storage.join(folder, "summary.json"))
    return summary


def report(config: Config) -> None:
    """Write the report of the ranking that stands in `paths.ranking` once more.

    Raises
    ------
    StorageError, ContractError : there is none, or it is of another version.
    InputError : `paths.truth` names no file.
    """
    bundle = bundles.load(config.paths.bundle)
    about = storage.read_json(storage.join(config.paths.ranking, "run.json"))
    table = ranking.read(config.paths.ranking)
    finds = _finds(table, _posterior(config, bundle), config)
    _write_report(table, about, config, bundle, _truth(config), finds=finds)


def _posterior(config: Config, bundle: bundles.Bundle) -> PosteriorEnsemble:
    """What turns logits into probabilities, for the survey that is ranked."""
    if config.rank.survey_prior is None:
        return bundle.posterior
    return bundle.posterior.at_prior(config.rank.survey_prior)


def _contributions(config: Config, bundle: bundles.Bundle, table: pa.Table) -> pa.Table | None:
    """What `clusterray candidates` found of this bundle's best objects; None where it did not run.

    A ranking that has changed since keeps the contributions of the objects that it still holds.
    """
    url = storage.join(config.paths.candidates, "contributions.parquet")
    key = read_key(config.paths.candidates)
    unlike = key is None or key.get("bundle") != bundle.digest or "lightgbm" not in bundle.models
    if unlike or not storage.exists(url):
        return None
    found = schema.check(
        storage.read_table(url),
        schema.contributions(bundle.feature_names),
        where=storage.redact(url),
    )
    return found.filter(pc.is_in(found["object_id"], table["object_id"].combine_chunks()))


def _run_key(config: Config, bundle: bundles.Bundle) -> dict[str, Any]:
    key = read_key(config.paths.scores)
    if key is None:
        raise InputError(
            f"'{storage.redact(config.paths.scores)}' holds no scores; run 'clusterray score' first"
        )
    if key.get("bundle") != bundle.digest:
        raise RunError(
            f"the scores were made with bundle {str(key.get('bundle'))[:12]}, paths.bundle is "
            f"{bundle.digest[:12]}; rank with the bundle that scored, or score again"
        )
    return key


def _truth(config: Config) -> pa.Table | None:
    url = config.paths.truth
    if not url:
        return None
    where = storage.redact(url)
    if not storage.exists(url):
        raise InputError(
            f"paths.truth: there is no '{where}'; leave paths.truth empty where no truth is known"
        )
    return schema.check(storage.read_table(url), schema.TRUTH, where=where)


def _current(
    receipts: Sequence[Receipt], config: Config, shards: Sequence[Shard] | None
) -> tuple[list[Receipt], tuple[str, ...]]:
    """Receipts of the shards that stand now, and a note on those of shards that are gone.

    Raises
    ------
    InputError : a shard is not scored to its end.
    """
    folder = config.paths.shards
    if shards is None:
        entries = storage.list_files(folder, suffix=".parquet", recursive=False)
        there = {(storage.name_of(e.url).removesuffix(".parquet"), e.size) for e in entries}
    else:
        there = {(s.name, s.size) for s in shards}
    kept = [r for r in receipts if (r.shard, r.size) in there]
    unscored = sorted(name for name, _ in there - {(r.shard, r.size) for r in kept})
    if unscored or not kept:
        raise InputError(
            f"{len(unscored)} of {len(there)} shards in '{storage.redact(folder)}' are not scored "
            f"to their end{f', such as {unscored[0]}' if unscored else ''}; "
            "run 'clusterray score' until it finishes"
        )
    gone = len(receipts) - len(kept)
    return kept, (f"{gone} scored shards are no longer in paths.shards",) if gone else ()


def _read_scores(receipts: Sequence[Receipt], config: Config, models: Sequence[str]) -> pa.Table:
    # Not what lies there but what the receipts name: a rewritten shard leaves old rows behind.
    want = schema.scores(models)
    parts = []
    for receipt in receipts:
        receipt.reconcile()
        for name in receipt.outputs:
            url = storage.join(config.paths.scores, "rows", name)
            table = storage.read_table(url, columns=want.names)
            parts.append(schema.check(table, want, where=storage.redact(url)))
    return pa.concat_tables(parts)


def _logits(scores: pa.Table, models: Sequence[str]) -> Any:
    return np.column_stack([scores.column(f"logit_{m}").to_numpy() for m in models])


def _write_selection(folder: str, measured: selection.Selection) -> str:
    selection.write(folder, measured)
    url = storage.join(folder, _SELECTION_PAGE)
    storage.write_bytes(url, selection_page.render(measured).encode())
    return url


def _finds(
    table: pa.Table, posterior: PosteriorEnsemble, config: Config
) -> dict[int, tuple[float, float]]:
    """Interval of the lenses among the first rows, at the configured budgets."""
    budgets = sorted({min(b, len(table)) for b in config.rank.budgets})
    _, low, high = posterior.expected_finds(
        _logits(table, posterior.stacker.models),
        budgets,
        logit_stack=table.column("logit_stack").to_numpy(),
        seed=config.seed,
    )
    return {b: (float(a), float(z)) for b, a, z in zip(budgets, low, high, strict=True)}


def _write_lists(table: pa.Table, config: Config) -> None:
    """The two lists for people: the most probable, and what is unlike anything known."""
    settings = config.rank
    lists = {
        "shortlist.csv": shortlist(table, by=settings.shortlist_by, at=settings.shortlist_at),
        "unlike.csv": unlike_known(table, settings.unlike_top),
    }
    for name, rows in lists.items():
        sink = pa.BufferOutputStream()
        csv.write_csv(rows.combine_chunks(), sink)
        storage.write_bytes(storage.join(config.paths.ranking, name), sink.getvalue())


def _write_report(
    table: pa.Table,
    about: dict[str, Any],
    config: Config,
    bundle: bundles.Bundle,
    truth: pa.Table | None,
    *,
    finds: Mapping[int, tuple[float, float]],
) -> None:
    labels = None
    if storage.exists(config.paths.labels):
        labels = catalogue.read_labels(config.paths.labels)
    settings = FeatureSettings.model_validate(bundle.settings["features"])
    html = report_page.render(
        table,
        thumbnails=_thumbnails(
            pa.concat_tables(
                [
                    table.slice(0, config.rank.report_top),
                    unlike_known(table, config.rank.unlike_top),
                ]
            ),
            config,
        ),
        bands=bundle.bands,
        provenance=about,
        settings=config.rank,
        truth=truth,
        labels=labels,
        beside=[(_SELECTION_PAGE, "Selection function")] if truth is not None else [],
        contributions=_contributions(config, bundle, table),
        feature_groups={f.name: f.group for f in registry(bundle.bands, settings)},
        diagnostics=bundle.diagnostics,
        finds=finds,
    )
    storage.write_bytes(storage.join(config.paths.ranking, "report.html"), html.encode())


def _thumbnails(top: pa.Table, config: Config) -> dict[str, Thumbnail]:
    """Cutouts of the best candidates, from the few row groups that hold them."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for shard, object_id in zip(
        top["shard"].to_pylist(), top["object_id"].to_pylist(), strict=True
    ):
        wanted[shard].add(object_id)
    found: dict[str, Thumbnail] = {}
    for shard, ids in wanted.items():
        url = storage.join(config.paths.shards, f"{shard}.parquet")
        for index in range(len(sky_shards.describe(url)["row_groups"])):
            table = sky_shards.read_row_group(url, index, raw=True)
            table = table.filter(pc.is_in(table["object_id"], pa.array(sorted(ids))))
            if not table.num_rows:
                continue
            batch = sky_shards.batch(table)
            for i, object_id in enumerate(batch.object_id):
                found[str(object_id)] = Thumbnail(batch.cutouts_nchw[i], batch.noise_sigma[i])
    return found
