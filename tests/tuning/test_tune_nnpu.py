"""The network's sweep on small made shards: rungs, resuming, refit, page."""

import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clusterray import storage
from clusterray.config import Config, load
from clusterray.engine import tune_page
from clusterray.engine.search_space import SearchSpace
from clusterray.engine.sweep import Trial
from clusterray.engine.tune import tune
from clusterray.ensemble import bundle
from clusterray.errors import ConfigError, InputError

ROOT = Path(__file__).parents[2]
EPOCHS, FOLDS = 2, 2
SPACE = """
model = "nnpu"
objective = "auroc"
n_trials = 5
[asha]
reduction = 2
[parameters]
learning_rate = { low = 1e-6, high = 1e-2, log = true }
positives_per_batch = { low = 2, high = 6 }
target_prior = { low = 0.2, high = 0.8 }
augment = { choices = [true, false] }
"""
SETTINGS = f"""
seed = 4
[survey]
bands = ["g", "r", "i"]
size_px = 32
[vision]
model = "vit_tiny_patch16_224"
model_options = {{ depth = 1, embed_dim = 24, num_heads = 2, patch_size = 8 }}
image_size_px = 32
epochs = {EPOCHS}
batch_size = 16
positives_per_batch = 4
learning_rate = 2e-3
[train]
models = ["vit"]
n_folds = {FOLDS}
prior_fallback = 0.25
nside = 512
n_bootstrap = 20
lightgbm = {{ num_iterations = 15, min_data_in_leaf = 4 }}
[score]
micro_batch = 16
[tune]
model = "nnpu"
max_concurrent = 1
"""


def settings(root: Path, *overrides: str, space: str = SPACE) -> Config:
    (root / "nnpu.toml").write_text(space)
    (root / "run.toml").write_text(SETTINGS)
    places = (f"paths.root='{root}'", f"tune.space='{root}/nnpu.toml'")
    return load(str(root / "run.toml"), [*places, *overrides])


def trials_of(root: Path) -> list[dict[str, object]]:
    return pq.read_table(root / "tune" / "nnpu" / "trials.parquet").to_pylist()


def files_of(root: Path) -> dict[str, int]:
    trials = root / "tune" / "nnpu" / "trials"
    found = trials.rglob("*.json")
    return {str(f.relative_to(trials)): f.stat().st_mtime_ns for f in found}


@pytest.mark.usefixtures("cluster")
def test_a_sweep_with_rungs_is_taken_up_refitted_and_shown(survey: Path) -> None:
    config = settings(survey)
    summary = tune(config)
    assert (summary.done, summary.skipped, summary.rows) == (5, 0, 120)
    trials = trials_of(survey)
    assert [t["trial"] for t in trials] == [1, 2, 3, 4, 5]
    first = trials[0]
    assert (first["learning_rate"], first["positives_per_batch"]) == (2e-3, 4)
    assert (first["target_prior"], first["augment"], first["complete"]) == (0.5, True, True)
    # A trial that was given up has fitted its first fold, and no other.
    files = files_of(survey)
    given_up = [t for t in trials if not t["complete"]]
    assert given_up
    assert any("given up early" in note for note in summary.notes)
    assert len(files) == FOLDS * (len(trials) - len(given_up)) + len(given_up)
    n_known = len(first["placements"])
    assert all(len(t["placements"]) < n_known for t in given_up)
    for t in trials:
        q = np.array(t["placements"])
        assert 0 <= q.min() <= q.max() <= 1
    best = max((t for t in trials if t["complete"]), key=lambda t: t["objective"])
    snippet = tomllib.loads((survey / "tune" / "nnpu" / "best.toml").read_text())
    assert snippet["vision"]["learning_rate"] == best["learning_rate"]
    assert snippet["train"] == {"target_prior": best["target_prior"]}
    page = (survey / "tune" / "nnpu" / "tune.html").read_text()
    assert page.count("<svg") >= 2
    assert "given up" in page
    assert "<script" not in page
    # Taken up at its end; and with Tune's state lost: no fold is fitted again.
    again = tune(config)
    assert (again.done, again.skipped) == (0, 5)
    assert trials_of(survey) == trials
    storage.remove_folder(str(survey / "tune" / "nnpu" / "ray"))
    tune(config)
    assert trials_of(survey) == trials
    assert files_of(survey) == files
    # The best settings, trained into the bundle.
    refitted = tune(settings(survey, "tune.refit=true"))
    assert refitted.outputs["bundle"] == config.paths.bundle
    made = bundle.load(config.paths.bundle)
    assert made.models == ("vit",)
    run = storage.read_json(str(survey / "tune" / "nnpu" / "training" / "run.json"))
    assert run["key"]["vision"]["learning_rate"] == best["learning_rate"]
    assert run["key"]["train"]["target_prior"] == best["target_prior"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("overrides", "space", "error", "match"),
    [
        (["tune.model='lightgbm'"], SPACE, ConfigError, "a search of 'nnpu', not of 'lightgbm'"),
        (
            ["vision.learning_rate=0.05"],
            SPACE,
            ConfigError,
            "vision.learning_rate is 0.05, outside",
        ),
        (["train.target_prior=0.9"], SPACE, ConfigError, "train.target_prior is 0.9, outside"),
        ([], SPACE.replace("auroc", "tpr_at_fpr_1e-3"), InputError, "unlabelled rows in a fold"),
    ],
)
def test_what_cannot_be_searched_is_said(
    survey: Path,
    tmp_path: Path,
    overrides: Sequence[str],
    space: str,
    error: type[Exception],
    match: str,
) -> None:
    places = (f"paths.shards='{survey}/shards'", f"paths.labels='{survey}/survey/labels.csv'")
    with pytest.raises(error, match=match):
        tune(settings(tmp_path, *places, *overrides, space=space))


def made_trials(n: int = 12) -> tuple[list[Trial], SearchSpace]:
    """Trials whose objective follows one parameter alone."""
    space = SearchSpace.model_validate(tomllib.loads(SPACE))
    rng = np.random.default_rng(3)
    trials = []
    for k in range(n):
        values = {
            "learning_rate": float(10 ** rng.uniform(-6, -2)),
            "positives_per_batch": int(rng.integers(2, 7)),
            "target_prior": float(rng.uniform(0.2, 0.8)),
            "augment": bool(rng.integers(2)),
        }
        objective = 1 - abs(values["target_prior"] - 0.5)
        trials.append(Trial(k + 1, values, objective, (0.1,), 1.0, complete=k % 4 != 3))
    return trials, space


def test_importance_goes_to_what_decides() -> None:
    trials, space = made_trials(40)
    found = tune_page.importances(trials, space)
    assert sum(found.values()) == pytest.approx(1)
    assert max(found, key=lambda n: found[n]) == "target_prior"
    assert found["target_prior"] > 0.6
    assert tune_page.importances(trials[:3], space) == {}


def test_the_page_shows_every_trial() -> None:
    trials, space = made_trials()
    best = max((t for t in trials if t.complete), key=lambda t: t.objective)
    html = tune_page.render(trials, space, best=best, verdict="a <verdict>", facts={"rows": 3})
    assert len(re.findall(r"<svg", html)) == 3
    assert "a &lt;verdict&gt;" in html
    assert html.count("<td>given up</td>") == 3
    assert all(f'<th scope="row">{t.number}</th>' in html for t in trials)


@pytest.mark.slow
def test_a_killed_driver_loses_no_fold(survey: Path, tmp_path: Path) -> None:
    """SIGKILL while folds are being fitted; the same command then ends the sweep."""
    places = (f"paths.shards='{survey}/shards'", f"paths.labels='{survey}/survey/labels.csv'")
    settings(tmp_path)
    command = [sys.executable, "-m", "clusterray.cli", "tune", "nnpu"]
    command += ["--config", str(tmp_path / "run.toml")]
    for text in (*places, f"paths.root='{tmp_path}'", f"tune.space='{tmp_path}/nnpu.toml'"):
        command += ["--set", text]
    command += ["--set", "vision.epochs=12"]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while len(files_of(tmp_path)) < FOLDS + 1:
        with pytest.raises(subprocess.TimeoutExpired):
            driver.wait(timeout=0.2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    left = files_of(tmp_path)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    files = files_of(tmp_path)
    assert {name: files[name] for name in left} == left
    trials = trials_of(tmp_path)
    assert [t["trial"] for t in trials] == [1, 2, 3, 4, 5]
    assert len({str(t["placements"]) + str(t["learning_rate"]) for t in trials}) == 5
