import json
import shutil
from pathlib import Path

import pytest

from clusterray import cli
from clusterray.config import Config
from clusterray.engine.costs import read_costs
from clusterray.engine.doctor import DoctorReport, doctor
from clusterray.engine.score import score
from clusterray.ensemble import bundle
from tests.engine.tiny_survey import TINY, tiny_config

pytestmark = pytest.mark.usefixtures("ray_session")

PRICES = ("prices.cpu_hour=0.1", "prices.gpu_hour=2")


def elsewhere(tiny: Config, root: Path, *overrides: str) -> Config:
    """The tiny survey's shards and bundle, nothing scored yet."""
    kept = (f"paths.{k}='{getattr(tiny.paths, k)}'" for k in ("shards", "bundle", "labels"))
    return tiny_config(root, *kept, *PRICES, *overrides)


def states(report: DoctorReport) -> dict[str, str]:
    return {check.name: check.state for check in report.checks}


def test_a_sound_setup_is_probed_and_predicted_and_the_run_says_what_it_came_to(tiny, tmp_path):
    config = elsewhere(tiny, tmp_path)
    report = doctor(config)
    assert report.exit_code == 0
    assert set(states(report).values()) == {"ok"}
    told = report.outlook
    assert told is not None
    # Row groups of 6 were probed; the first of three warmed up.
    assert told.source == "costs of a probe of 12 cutouts"
    assert told.predicted.seconds > 0
    assert told.predicted.price == pytest.approx(0.1 * 2 * told.predicted.seconds / 3600, rel=0.01)
    shards = list(Path(tiny.paths.shards).glob("*.parquet"))
    assert told.predicted.bytes_read == pytest.approx(sum(s.stat().st_size for s in shards), abs=9)
    assert json.loads((tmp_path / "doctor.json").read_text())["exit_code"] == 0
    # Nothing is left but what was measured.
    assert [p.name for p in Path(config.paths.scores).iterdir()] == ["costs.json"]
    summary = score(config)
    assert summary.forecast["source"] == told.source
    assert summary.forecast["predicted"]["bytes_read"] == told.predicted.bytes_read
    assert summary.forecast["actual"]["seconds"] == pytest.approx(summary.seconds, abs=0.01)
    assert "note: predicted " in str(summary) and "note: actual " in str(summary)
    digest = bundle.load(tiny.paths.bundle).digest
    run = read_costs(config.paths.scores, bundle=digest, device="cpu")
    assert run is not None
    assert (run.source, run.rows) == ("a run", 72)
    again = doctor(config)
    assert again.outlook is not None
    assert (again.outlook.predicted.seconds, again.outlook.source) == (0, "costs of a run")
    assert next(c.text for c in again.checks if c.name == "scores").startswith("12 row groups done")


def test_what_is_missing_is_named_and_the_rest_skipped(tmp_path):
    report = doctor(tiny_config(tmp_path))
    found = states(report)
    assert found["bundle"] == "failed"
    assert (found["shards"], found["forecast"]) == ("skipped", "skipped")
    assert found["labels"] == "warning"
    assert report.exit_code == 2
    assert "run 'clusterray train'" in next(c.text for c in report.checks if c.name == "bundle")


def test_a_truncated_shard_is_named(tiny, tmp_path):
    copied = tmp_path / "shards"
    shutil.copytree(tiny.paths.shards, copied)
    first = sorted(copied.glob("*.parquet"))[0]
    first.write_bytes(first.read_bytes()[:-100])
    report = doctor(elsewhere(tiny, tmp_path, f"paths.shards='{copied}'"))
    (check,) = [c for c in report.checks if c.state == "failed"]
    assert (check.name, check.exit_code) == ("shards", 1)
    assert str(first) in check.text


def test_scores_of_another_run_are_told_before_the_run_is_refused(tiny, tmp_path):
    config = elsewhere(tiny, tmp_path, f"paths.scores='{tiny.paths.scores}'", "score.micro_batch=3")
    (check,) = [c for c in doctor(config).checks if c.state == "failed"]
    assert "holds another score run" in check.text


def test_a_place_that_cannot_be_written_fails_the_command(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    overrides = [*TINY, *PRICES, f"paths.root='{tmp_path}'", f"paths.scores='{tmp_path}/file/s'"]
    code = cli.main(["doctor", *(word for o in overrides for word in ("--set", o))])
    assert code == 1
    assert "XX  paths.scores: cannot write" in capsys.readouterr().out


def test_a_cluster_of_no_cpus_needs_to_be_told_what_may_come(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("clusterray.engine.doctor.cluster_shape", lambda: (0.0, 0.0))
    monkeypatch.setattr("clusterray.engine.session.cluster_shape", lambda: (0.0, 0.0))
    report = doctor(elsewhere(tiny, tmp_path))
    (check,) = [c for c in report.checks if c.state == "failed"]
    assert "set cluster.expected_cpus" in check.text
    grown = doctor(elsewhere(tiny, tmp_path, "cluster.expected_cpus=64"))
    assert "planned for 64 CPUs" in next(c.text for c in grown.checks if c.name == "cluster")
    assert grown.outlook is not None
    assert grown.outlook.predicted.cpu_hours == pytest.approx(
        64 * grown.outlook.predicted.seconds / 3600, rel=0.01
    )
