"""The search file, the objective and one trial, against slow or exact oracles."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sklearn.metrics import roc_auc_score

from clusterray.config import Config
from clusterray.engine import search
from clusterray.engine.search import TrialData
from clusterray.engine.search_space import (
    current_settings,
    read_space,
    with_best,
)
from clusterray.errors import ConfigError, InputError
from clusterray.provenance import seed_for
from clusterray.pu.lightgbm_pu import DEFAULTS, PULightGBM

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tuning" / "lightgbm.toml"
NNPU = 'model = "nnpu"\nobjective = "auroc"\nn_trials = 4\n[parameters]\n'
HEAD = 'model = "lightgbm"\nobjective = "auroc"\nn_trials = 4\n[parameters]\n'


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "space.toml").write_text(text)
        return str(tmp_path / "space.toml")

    return write


def test_the_file_of_the_repository_holds_the_present_settings() -> None:
    space = read_space(str(FILE))
    assert space.starting_point({}) == {name: DEFAULTS[name] for name in space.parameters}
    assert set(space.distributions()) == set(space.parameters)


def test_the_networks_file_holds_the_present_settings_too() -> None:
    space = read_space(str(ROOT / "tuning" / "nnpu.toml"))
    config = Config()
    start = space.starting_point(current_settings(config, "nnpu"))
    assert start["learning_rate"] == config.vision.learning_rate
    assert start["target_prior"] == config.train.target_prior
    assert space.asha is not None


def test_bounds_are_those_of_settings_that_exist() -> None:
    from clusterray.pu import lightgbm_bounds
    from clusterray.vision import nnpu_bounds

    numbers = {n for n, v in DEFAULTS.items() if not isinstance(v, bool)}
    assert set(lightgbm_bounds.BOUNDS) == numbers
    for bounds, defaults in (
        (lightgbm_bounds.BOUNDS, DEFAULTS),
        (nnpu_bounds.BOUNDS, nnpu_bounds.DEFAULTS),
    ):
        assert all(low <= defaults[n] <= high for n, (low, high) in bounds.items())


def test_best_settings_go_where_they_belong() -> None:
    config = Config()
    best = with_best(config, "nnpu", {"learning_rate": 1e-3, "target_prior": 0.3})
    assert (best.vision.learning_rate, best.train.target_prior) == (1e-3, 0.3)
    assert best.vision.epochs == config.vision.epochs
    assert with_best(config, "lightgbm", {"num_leaves": 9}).train.lightgbm == {"num_leaves": 9}


def test_kinds_follow_lightgbm(written: Callable[[str], str]) -> None:
    space = read_space(
        written(
            HEAD + "num_leaves = {low = 4, high = 8}\nlambda_l2 = {low = 1, high = 9, log = true}\n"
            "extra_trees = {choices = [true, false]}\nmax_depth = {choices = [-1, 4]}\n"
        )
    )
    assert space.distributions() == {
        "num_leaves": IntDistribution(4, 8),
        "lambda_l2": FloatDistribution(1.0, 9.0, log=True),
        "extra_trees": CategoricalDistribution((True, False)),
        "max_depth": CategoricalDistribution((-1, 4)),
    }


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("model = ", "not a TOML file"),
        (HEAD, "'parameters'"),
        (HEAD + "num_leafs = {low = 4, high = 8}", "num_leafs.*did you mean 'num_leaves'"),
        (HEAD.replace("n_trials", "n_trial"), "n_trial.*did you mean 'n_trials'"),
        (HEAD.replace("auroc", "accuracy"), "'objective'.*auroc"),
        (HEAD.replace("= 4", "= 0"), "'n_trials'.*greater than 0"),
        (HEAD.replace('model = "lightgbm"\n', ""), "'model' is missing"),
        (HEAD + "num_leaves = {low = 8, high = 4}", "num_leaves.*low 8 < high 4"),
        (HEAD + "num_leaves = {low = 4.5, high = 9}", "'num_leaves' takes int values, not 4.5"),
        (HEAD + "num_leaves = {low = 4, hihg = 9}", "num_leaves.hihg.*did you mean 'high'"),
        (HEAD + "num_leaves = {choices = [4]}", "num_leaves.choices"),
        (HEAD + "num_leaves = 4", "num_leaves"),
        (HEAD + "lambda_l2 = {low = 0, high = 9, log = true}", "begins above 0"),
        (HEAD + "extra_trees = {low = 0, high = 1}", r"choices = \[true, false\]"),
        (HEAD + "extra_trees = {choices = [0, 1]}", "takes bool values, not 0"),
        (
            HEAD + "feature_fraction = {low = 0.5, high = 1.5}",
            "searched at 1.5, allowed is 0.01 to",
        ),
        (HEAD + "num_leaves = {choices = [1, 8]}", "searched at 1, allowed is 2 to 4096"),
        ("[asha]\n" + HEAD, "unknown key 'asha.model'"),
        (
            HEAD.replace("[par", "[asha]\n[par") + "num_leaves = {low = 4, high = 8}",
            "asha is for net",
        ),
        (NNPU + "num_leaves = {low = 4, high = 8}", "unknown parameter 'num_leaves'"),
        (NNPU + "epochs = {low = 4, high = 8}", "unknown parameter 'epochs'"),
        (NNPU + "learning_rate = {low = 1e-3, high = 2.0}", "searched at 2.0, allowed is 1e-06 to"),
        (NNPU + "batch_size = {low = 8.5, high = 16}", "takes int values, not 8.5"),
        (NNPU + "augment = {low = 0, high = 1}", r"choices = \[true, false\]"),
    ],
)
def test_a_bad_file_is_refused(text: str, match: str, written: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        read_space(written(text))
    assert "space.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("current", "match"),
    [
        ({"num_leaves": 99}, "train.lightgbm.num_leaves is 99, outside"),
        ({"num_leafs": 9}, "did you mean 'num_leaves'"),
    ],
)
def test_the_sweep_must_hold_the_current_settings(current: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_space(str(FILE)).starting_point(current)


def test_current_settings_are_where_it_begins() -> None:
    start = read_space(str(FILE)).starting_point({"num_leaves": 9, "max_depth": 3})
    assert start["num_leaves"] == 9
    assert "max_depth" not in start


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_placements_count_the_unlabelled_rows_above(data: st.DataObject) -> None:
    n = data.draw(st.integers(4, 30))
    logits = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), float)
    s = np.array(data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=n, max_size=n)), np.int8)
    fold = np.array(data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)), np.int8)
    s[:4], fold[:4] = [0, 1, 0, 1], [0, 0, 1, 1]
    expected = []
    for i in range(n):
        if s[i] == 1 and fold[i] >= 0:
            rest = [logits[j] for j in range(n) if s[j] == 0 and fold[j] == fold[i]]
            above = sum(r > logits[i] for r in rest) + 0.5 * sum(r == logits[i] for r in rest)
            expected.append(above / len(rest))
    np.testing.assert_allclose(search.placements(logits, s, fold=fold), expected, atol=1e-12)


def test_a_fold_without_unlabelled_rows_is_refused() -> None:
    s, fold = np.array([1, 0, 1], np.int8), np.array([0, 0, 1], np.int8)
    with pytest.raises(InputError, match="fold 1 has no unlabelled row"):
        search.placements(np.zeros(3), s, fold=fold)


def test_auroc_is_that_against_true_negatives() -> None:
    """Exact where the lenses among the unlabelled rows score just as the known ones do."""
    rng = np.random.default_rng(1)
    lenses, negatives = rng.normal(1.5, 1.0, 40), rng.normal(0.0, 1.0, 360)
    scores = np.concatenate([lenses, lenses, negatives])
    s = np.repeat(np.array([1, 0], np.int8), [40, 400])
    q = search.placements(scores, s, fold=np.zeros(440, np.int8))
    truth = roc_auc_score([1] * 40 + [0] * 360, np.concatenate([lenses, negatives]))
    found = search.judge(q, "auroc", unlabelled_prior=0.1)
    assert found == pytest.approx(truth, abs=1e-12)
    assert search.judge(q, "auroc", unlabelled_prior=1e-12) < truth


def test_average_precision_is_the_mean_of_the_pu_precisions() -> None:
    q, prior = np.array([0.0, 0.02, 0.02, 0.5]), 0.1
    # TPR 1/4, 3/4, 3/4, 1 at q_u 0, 0.02, 0.02, 0.5; a precision is at most 1.
    expected = np.mean([1.0, 1.0, 1.0, 0.1 / 0.5])
    assert search.judge(q, "average_precision", unlabelled_prior=prior) == pytest.approx(expected)
    q = np.array([0.2, 0.4])
    expected = np.mean([0.1 * 0.5 / 0.2, 0.1 / 0.4])
    assert search.judge(q, "average_precision", unlabelled_prior=prior) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 0.01), min_size=1, max_size=30), st.floats(1e-4, 0.3))
def test_tpr_at_a_corrected_fpr_by_a_slow_loop(q: list[float], prior: float) -> None:
    best = 0.0
    for threshold in q:
        tpr = sum(v <= threshold for v in q) / len(q)
        if (threshold - prior * tpr) / (1 - prior) <= 1e-3:
            best = max(best, tpr)
    found = search.judge(np.array(q), "tpr_at_fpr_1e-3", unlabelled_prior=prior)
    assert found == pytest.approx(best)


def test_gain_is_paired() -> None:
    q = np.random.default_rng(0).uniform(0, 0.5, 12)
    options = {"unlabelled_prior": 0.05, "n_bootstrap": 50, "seed": 1}
    assert search.paired_gain(q, q, "auroc", **options) == (0.0, 0.0)
    gain, error = search.paired_gain(q, q + 0.095, "auroc", **options)
    # The same step for every lens: no scatter, whatever the lenses themselves scatter.
    assert gain == pytest.approx(0.1)
    assert error == pytest.approx(0.0, abs=1e-12)


@pytest.fixture(scope="module")
def data() -> TrialData:
    rng = np.random.default_rng(5)
    n = 240
    y = np.arange(n) < 36
    features = rng.normal(size=(n, 4)).astype(np.float32)
    features[y, 0] += 2.0
    s = np.where(np.arange(n) < 18, 1, 0).astype(np.int8)
    fold = (np.arange(n) % 4 - 1).astype(np.int8)
    return TrialData(
        features=features,
        s=s,
        fold=fold,
        cell=np.arange(n),
        feature_names=("a", "b", "c", "d"),
        scenario="single-sample",
        prior=0.15,
        unlabelled_prior=0.08,
        unlabelled_fraction=1.0,
        seed=3,
    )


QUICK = {"num_iterations": 15}


def test_out_of_fold_fits_never_see_the_fold_or_the_held_out_rows(data: TrialData) -> None:
    logits = search.out_of_fold(data, QUICK)
    assert np.array_equal(np.isnan(logits), data.fold < 0)
    seen, unseen = np.flatnonzero(data.fold > 0), np.flatnonzero(data.fold == 0)
    model = PULightGBM(
        data.feature_names,
        scenario="single-sample",
        prior=data.prior,
        params=QUICK,
        seed=seed_for(3, model="lightgbm", fold=0),
    ).fit(data.features[seen], data.s[seen], names=data.feature_names, groups=data.cell[seen])
    expected = model.decision_function(data.features[unseen], data.feature_names)
    np.testing.assert_array_equal(logits[unseen], expected)


def test_a_trial_learns_and_is_judged_once(data: TrialData, tmp_path: Path) -> None:
    options = {"objective": "auroc", "folder": str(tmp_path), "num_threads": 1}
    first = search.run_trial(data, QUICK, **options)
    assert first["objective"] > 0.75
    assert len(first["placements"]) == np.sum((data.s == 1) & (data.fold >= 0))
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    assert search.run_trial(data, QUICK, **options) == first
    assert file.stat().st_mtime_ns == stamp
    search.run_trial(data, {**QUICK, "num_leaves": 3}, **options)
    assert len(list(tmp_path.iterdir())) == 2
