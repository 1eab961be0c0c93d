"""The sweep on a small local Ray cluster, and `clusterray tune` on small made shards."""

import dataclasses
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clusterray import storage
from clusterray.config import Config, resolve
from clusterray.engine import search
from clusterray.engine.search import TrialData
from clusterray.engine.search_space import SearchSpace
from clusterray.engine.sweep import Slots, Trial, plan_gpu_slots, plan_slots, sweep
from clusterray.engine.train import train
from clusterray.engine.tune import tune
from clusterray.errors import ConfigError, RunError

SPACE = {
    "model": "lightgbm",
    "objective": "auroc",
    "n_trials": 6,
    "parameters": {
        "num_leaves": {"low": 2, "high": 12},
        "learning_rate": {"low": 0.001, "high": 0.3, "log": True},
        "feature_fraction": {"low": 0.2, "high": 1.0},
    },
}


pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def data() -> TrialData:
    rng = np.random.default_rng(8)
    n = 300
    features = rng.normal(size=(n, 6)).astype(np.float32)
    features[:45, :2] += 1.2
    return TrialData(
        features=features,
        s=(np.arange(n) < 24).astype(np.int8),
        fold=(np.arange(n) % 3).astype(np.int8),
        cell=np.arange(n),
        feature_names=tuple("abcdef"),
        scenario="single-sample",
        prior=0.15,
        unlabelled_prior=0.076,
        unlabelled_fraction=1.0,
        seed=4,
    )


def _config(root: Path, **train_settings: object) -> Config:
    return resolve(
        {
            "seed": 4,
            "survey": {"bands": ["g", "r", "i"], "size_px": 32},
            "paths": {"root": str(root)},
            "train": {
                "models": ["lightgbm"],
                "n_folds": 2,
                "prior_fallback": 0.25,
                "nside": 512,
                "n_bootstrap": 20,
                "lightgbm": {"num_iterations": 15, "min_data_in_leaf": 4},
                **train_settings,
            },
            "tune": {"max_concurrent": 1},
        }
    )


def _sweep(data: TrialData, folder: Path, *, n_trials: int = 4) -> list[Trial]:
    space = SearchSpace.model_validate(SPACE)
    trials, failures = sweep(
        data, space, config=_config(folder), folder=str(folder), n_trials=n_trials, name="sweep"
    )
    assert failures == ()
    return trials


def _judged(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in (folder / "trials").iterdir()}


def test_a_sweep_begins_at_the_current_settings_and_can_be_taken_up(
    data: TrialData, tmp_path: Path
) -> None:
    trials = _sweep(data, tmp_path)
    assert [t.number for t in trials] == [1, 2, 3, 4]
    current = {"num_iterations": 15, "min_data_in_leaf": 4}
    start = SearchSpace.model_validate(SPACE).starting_point(current)
    assert trials[0].parameters == {**current, **start}
    q = search.placements(search.out_of_fold(data, trials[0].parameters), data.s, fold=data.fold)
    assert trials[0].placements == tuple(q)
    assert max(t.objective for t in trials) >= trials[0].objective
    assert len({t.objective for t in trials}) > 1
    judged = _judged(tmp_path)
    assert len(judged) == 4
    # Taken up at its end: the same trials, none judged again.
    assert _sweep(data, tmp_path) == trials
    # Tune's state lost, or older than the last trials: the same suggestions, none judged again.
    shutil.rmtree(tmp_path / "ray")
    assert _sweep(data, tmp_path) == trials
    assert _judged(tmp_path) == judged
    # Killed before Tune saved any state.
    for state in (tmp_path / "ray" / "sweep").glob("*state*"):
        state.unlink()
    assert _sweep(data, tmp_path) == trials
    assert _judged(tmp_path) == judged
    # One judgement lost: that one is made again, from the seed.
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "trials", again / "trials")
    lost = sorted(judged)[0]
    (again / "trials" / lost).unlink()
    repeated = _sweep(data, again)
    assert set(_judged(again)) == set(judged)
    assert [(t.parameters, t.objective, t.placements) for t in repeated] == [
        (t.parameters, t.objective, t.placements) for t in trials
    ]


def test_a_sweep_whose_trials_all_fail_says_why(data: TrialData, tmp_path: Path) -> None:
    broken = dataclasses.replace(data, features=np.full_like(data.features, np.inf))
    with pytest.raises(RunError, match=r"no trial of the sweep ended: .*infinite"):
        sweep(
            broken,
            SearchSpace.model_validate(SPACE),
            config=_config(tmp_path),
            folder=str(tmp_path),
            n_trials=1,
            name="sweep",
        )


@pytest.mark.parametrize(
    ("cpus", "gpus", "share", "n_trials", "max_concurrent", "expected"),
    [
        (16, 1, 0.5, 16, None, Slots(2, 4.0, 4, 0.5)),
        (16, 8, 1.0, 64, None, Slots(8, 1.75, 1, 1.0)),
        (16, 8, 1.0, 16, None, Slots(4, 3.5, 3, 1.0)),
        (16, 1, 0.5, 16, 1, Slots(1, 4.0, 4, 0.5)),
        (16, 1, 0.5, 2, 8, Slots(2, 4.0, 4, 0.5)),
    ],
)
def test_slots_on_gpus(
    cpus: float,
    gpus: float,
    share: float,
    n_trials: int,
    max_concurrent: int | None,
    expected: Slots,
) -> None:
    found = plan_gpu_slots(
        cpus, gpus, gpus_per_trial=share, n_trials=n_trials, max_concurrent=max_concurrent
    )
    assert found == expected
    assert found.concurrent * found.num_gpus <= gpus
    assert found.concurrent * found.num_cpus <= cpus * 7 / 8


@pytest.mark.parametrize(
    ("cpus", "node", "n_trials", "max_concurrent", "expected"),
    [
        (2, 2, 24, None, Slots(2, 0.875, 1)),
        (2, 2, 24, 1, Slots(1, 1.0, 1)),
        (2, 2, 24, 8, Slots(2, 0.875, 1)),
        (8, 8, 24, None, Slots(6, 1.0, 1)),
        (64, 32, 16, None, Slots(4, 14.0, 14)),
        (64, 16, 16, 1, Slots(1, 14.0, 14)),
        (64, 32, 2, None, Slots(1, 28.0, 28)),
        (64, 32, 2, 8, Slots(2, 28.0, 28)),
        # An autoscaling cluster that has no worker yet.
        (0, 0, 16, None, Slots(1, 0.5, 1)),
    ],
)
def test_slots(
    cpus: float, node: float, n_trials: int, max_concurrent: int | None, expected: Slots
) -> None:
    found = plan_slots(cpus, node, n_trials=n_trials, max_concurrent=max_concurrent)
    assert found.concurrent == expected.concurrent
    assert found.num_threads == expected.num_threads
    assert found.num_cpus == pytest.approx(expected.num_cpus)
    assert found.concurrent * found.num_cpus <= max(1.0, cpus * 7 / 8)
    assert found.num_threads <= max(1.0, found.num_cpus)


def _space(root: Path, text: str = "") -> str:
    path = root / "space.toml"
    path.write_text(
        'model = "lightgbm"\nobjective = "auroc"\nn_trials = 3\n[parameters]\n'
        "num_leaves = {low = 2, high = 12}\nfeature_fraction = {low = 0.2, high = 1.0}\n" + text
    )
    return str(path)


def test_tune_works_on_the_rows_and_folds_of_train(survey: Path) -> None:
    config = _config(survey)
    config = config.model_copy(
        update={"tune": config.tune.model_copy(update={"space": _space(survey)})}
    )
    train(config)
    summary = tune(config)
    assert (summary.done, summary.skipped, summary.rows) == (3, 0, 120)
    assert not (survey / "tune" / "lightgbm" / "sample").exists()
    trials = pq.read_table(survey / "tune" / "lightgbm" / "trials.parquet").to_pylist()
    assert [t["trial"] for t in trials] == [1, 2, 3]
    # The trial of the current settings is the training run's own out-of-fold scores.
    logit, known = {}, {f"c{i:03d}" for i in range(0, 60, 5)}
    s, fold, scores = [], [], []
    for k in (0, 1):
        url = survey / "training" / "scores" / f"lightgbm.fold{k}.parquet"
        for row in pq.read_table(url).to_pylist():
            logit[row["object_id"]] = (row["logit"], k)
    for name in sorted(logit):
        scores.append(logit[name][0])
        fold.append(logit[name][1])
        s.append(int(name in known))
    q = search.placements(np.array(scores), np.array(s, np.int8), fold=np.array(fold, np.int8))
    # The files hold float32, in which scores of two rows may have become equal.
    np.testing.assert_allclose(trials[0]["placements"], q, atol=0.02)
    best = max(trials, key=lambda t: t["objective"])
    snippet = tomllib.loads((survey / "tune" / "lightgbm" / "best.toml").read_text())
    settings = resolve(snippet).train.lightgbm
    assert {k: best[k] for k in settings} == settings
    assert settings["num_iterations"] == 15
    assert storage.read_json(str(survey / "tune" / "lightgbm" / "summary.json"))["verb"] == "tune"
    again = tune(config)
    assert (again.done, again.skipped) == (0, 3)
    assert pq.read_table(survey / "tune" / "lightgbm" / "trials.parquet").to_pylist() == trials
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(RunError, match=r"holds another tune run.*seed: 4 there, 5 now"):
        tune(other)


def test_a_bad_search_file_stops_before_anything_is_written(survey: Path, tmp_path: Path) -> None:
    config = _config(tmp_path)
    space = _space(tmp_path, "leaves = {low = 1, high = 2}\n")
    config = config.model_copy(update={"tune": config.tune.model_copy(update={"space": space})})
    with pytest.raises(ConfigError, match="unknown parameter 'leaves', did you mean 'num_leaves'"):
        tune(config)
    assert not (tmp_path / "tune").exists()
