"""The second pass over the top of the ranking."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clusterray import schema, storage
from clusterray.config import Config
from clusterray.engine.candidates import candidates
from clusterray.engine.rank import rank
from clusterray.engine.telemetry import RunSummary
from clusterray.ensemble import bundle
from clusterray.errors import InputError, RunError
from clusterray.features.segment_registry import segment_registry
from tests.engine.tiny_survey import tiny_config

pytestmark = pytest.mark.usefixtures("ray_session")


@dataclass(frozen=True)
class Looked:
    """A second pass over the tiny survey, and the ranking and report that it found."""

    settings: Config
    summary: RunSummary
    ranking: bytes
    report: str


@pytest.fixture(scope="module")
def looked(ray_session, tiny, tmp_path_factory) -> Looked:
    """The same ranking, with candidates and a report in another folder."""
    kept = ("shards", "bundle", "labels", "truth", "scores")
    settings = tiny_config(
        tmp_path_factory.mktemp("candidates"),
        *(f"paths.{k}='{getattr(tiny.paths, k)}'" for k in kept),
        "candidates.top_fraction=0.2",
    )
    rank(settings)
    ranking = Path(settings.paths.ranking, "ranking.parquet").read_bytes()
    report = Path(settings.paths.ranking, "report.html").read_text()
    return Looked(settings, candidates(settings), ranking, report)


def test_candidates_are_the_top_of_the_ranking_with_reasons_and_segments(looked):
    settings, summary = looked.settings, looked.summary
    assert "What moves the scores" not in looked.report
    folder = settings.paths.candidates
    found = storage.read_table(f"{folder}/candidates.parquet")
    names = [f.name for f in segment_registry(("g", "r", "i"))]
    found = schema.check(found, schema.candidates(names), where="candidates")
    ranked = pq.read_table(f"{settings.paths.ranking}/ranking.parquet").slice(0, 15)
    assert found["object_id"].to_pylist() == ranked["object_id"].to_pylist()
    assert found["rank"].to_pylist() == list(range(1, 16))
    assert (summary.rows, summary.rejected) == (15, 0)
    assert np.isfinite(found["seg_number"].to_numpy()).all()
    # The ranking stands; the report now says what moved it.
    assert Path(settings.paths.ranking, "ranking.parquet").read_bytes() == looked.ranking
    assert "What moves the scores" in Path(settings.paths.ranking, "report.html").read_text()
    segments = storage.read_table(f"{folder}/segments.parquet")
    assert set(segments["object_id"].to_pylist()) <= set(ranked["object_id"].to_pylist())
    assert Path(folder, "candidates.csv").read_text().count("\n") == 16


def test_contributions_are_joined_by_id_and_sum_to_the_score(looked):
    settings = looked.settings
    loaded = bundle.load(settings.paths.bundle)
    found = storage.read_table(f"{settings.paths.candidates}/contributions.parquet")
    found = schema.check(found, schema.contributions(loaded.feature_names), where="contributions")
    total = found["base"].to_numpy() + sum(found[n].to_numpy() for n in loaded.feature_names)
    ranked = pq.read_table(f"{settings.paths.ranking}/ranking.parquet").to_pylist()
    rows = {r["object_id"]: r for r in ranked}
    assert found["object_id"].to_pylist() == [r["object_id"] for r in ranked[:15]]
    for object_id, logit in zip(found["object_id"].to_pylist(), total, strict=True):
        # Rows that were trained on are ranked by another fit.
        if rows[object_id]["fold"] in (None, -1):
            assert logit == pytest.approx(rows[object_id]["logit_lightgbm"], abs=1e-3)
    reasons = storage.read_table(f"{settings.paths.candidates}/candidates.parquet")["reasons"]
    assert all(text.count(";") == 2 for text in reasons.to_pylist())


def test_a_second_run_does_nothing_and_a_cut_short_one_does_what_is_missing(looked):
    settings, first = looked.settings, looked.summary
    table = Path(settings.paths.candidates, "candidates.parquet").read_bytes()
    assert first.done > 1
    assert candidates(settings).done == 0
    next(Path(settings.paths.candidates, "rows").iterdir()).unlink()
    again = candidates(settings)
    assert (again.done, again.skipped) == (1, first.done - 1)
    assert Path(settings.paths.candidates, "candidates.parquet").read_bytes() == table


def test_other_candidates_are_not_mixed_in(looked):
    other = looked.settings.candidates.model_copy(update={"top_fraction": 0.5})
    with pytest.raises(RunError, match=r"holds another candidates run .*top_fraction"):
        candidates(looked.settings.model_copy(update={"candidates": other}))


def test_what_is_missing_is_named(tiny, tmp_path):
    settings = tiny_config(tmp_path, f"paths.bundle='{tiny.paths.bundle}'")
    with pytest.raises(InputError, match="holds no ranking; run 'clusterray rank' first"):
        candidates(settings)
