import lightgbm
import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score

from clusterray.errors import BundleError, ConfigError, InputError
from clusterray.pu import LabelModel, PULightGBM
from clusterray.pu.boosting import Booster

NAMES = tuple(f"feature_{i}" for i in range(8))
QUICK = {"num_iterations": 40, "learning_rate": 0.2}


def world(n=3000, prior=0.1, c=0.5, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    x = rng.normal(size=(n, len(NAMES))).astype(np.float32)
    x[:, :3] += 1.5 * y[:, None]
    return x, (y & (rng.random(n) < c)).astype(np.int8), y


def fitted(x, s, **options):
    settings = {"scenario": "single-sample", "prior": 0.1, "params": QUICK, "seed": 3} | options
    return PULightGBM(NAMES, **settings).fit(x, s, names=NAMES)


def test_finds_hidden_lenses_about_as_well_as_true_labels_would():
    x, s, y = world()
    fresh, _, y_fresh = world(seed=9)
    model = fitted(x, s)
    found = average_precision_score(y_fresh, model.decision_function(fresh, NAMES))
    oracle = average_precision_score(
        y_fresh, fitted(x, y.astype(np.int8), prior=0.2).decision_function(fresh, NAMES)
    )
    assert found > 0.85 * oracle
    assert found > 4 * y_fresh.mean()


@pytest.mark.parametrize("scenario", ["single-sample", "case-control"])
def test_log_odds_are_those_of_the_survey(scenario):
    """One feature, known posterior: the weighting of positives has been undone."""
    rng = np.random.default_rng(1)
    n, prior = 30_000, 0.05
    y = rng.random(n) < prior
    s = y & (rng.random(n) < 0.5) if scenario == "single-sample" else np.zeros(n, bool)
    if scenario == "case-control":
        y, s = np.append(y, np.ones(1000, bool)), np.append(s, np.ones(1000, bool))
    x = (rng.normal(size=len(y)) + 2 * y)[:, None]
    model = PULightGBM(["x"], scenario=scenario, prior=prior, params={"feature_fraction": 1.0}).fit(
        x, s.astype(int), names=["x"]
    )
    grid = np.linspace(0, 3, 13)
    true = logit(prior) + 2 * grid - 2
    found = model.decision_function(grid[:, None], ["x"])
    np.testing.assert_allclose(found, true, atol=0.8)
    assert np.polyfit(true, found, 1)[0] == pytest.approx(1.0, abs=0.1)
    assert expit(model.decision_function(x[:n], ["x"])).mean() == pytest.approx(prior, rel=0.2)


def test_text_holds_everything_that_scores():
    x, s, _ = world()
    model = fitted(x, s, monotone={"feature_0": 1})
    text = model.to_text()
    back = PULightGBM.from_text(text)
    expected = model.decision_function(x, NAMES)
    np.testing.assert_array_equal(back.decision_function(x, NAMES), expected)
    assert back.feature_names == NAMES
    assert (back.prior, back.scenario, back.monotone) == (0.1, "single-sample", {"feature_0": 1})
    assert back.to_text() == text
    # Anyone with LightGBM reads the same log-odds, the odds set back included.
    np.testing.assert_array_equal(
        lightgbm.Booster(model_str=text).predict(x, raw_score=True), expected
    )
    np.testing.assert_allclose(lightgbm.Booster(model_str=text).predict(x), expit(expected))


def test_fit_is_repeatable_and_rows_are_independent():
    x, s, _ = world(n=800)
    first, again = fitted(x, s), fitted(x, s, num_threads=2)
    assert first.to_text() == again.to_text()
    assert fitted(x, s, seed=4).to_text() != first.to_text()
    whole = first.decision_function(x, NAMES)
    pieces = [first.decision_function(x[i : i + 7], NAMES) for i in range(0, len(x), 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert first.decision_function(x[:0], NAMES).shape == (0,)


def test_monotone_constraint_and_missing_values():
    x, s, _ = world()
    x[::5, 1] = np.nan
    model = fitted(x, s, monotone={"feature_0": 1, "feature_7": -1})
    for column, sign in ((0, 1), (7, -1)):
        sweep = np.repeat(x[:20], 30, axis=0)
        sweep[:, column] = np.tile(np.linspace(-4, 6, 30), 20)
        scores = model.decision_function(sweep, NAMES).reshape(20, 30)
        assert np.all(sign * np.diff(scores, axis=1) >= -1e-12)
    unbound = fitted(x, s).decision_function(np.full((1, 8), np.nan, np.float32), NAMES)
    assert np.isfinite(unbound).all()


def test_a_dozen_lenses_are_enough_to_begin():
    x, _, y = world(n=480, prior=0.08)
    s = np.zeros(480, np.int8)
    s[np.flatnonzero(y)[:9]] = 1
    groups = np.arange(480) // 4
    model = PULightGBM(NAMES, scenario="single-sample", prior=0.08).fit(
        x, s, names=NAMES, groups=groups
    )
    hidden = s == 0
    scores = model.decision_function(x, NAMES)
    assert average_precision_score(y[hidden], scores[hidden]) > 2 * y[hidden].mean()
    label_scores = model.label_scores(x, s, names=NAMES, groups=groups)
    assert np.isfinite(label_scores).all()
    other = PULightGBM(NAMES, scenario="single-sample", prior=0.3)
    np.testing.assert_array_equal(
        other.label_scores(x, s, names=NAMES, groups=groups), label_scores
    )


def test_known_non_lenses_push_down():
    x, s, _ = world()
    twins = np.tile(np.float32([3, 3, 3, 0, 0, 0, 0, 0]), (400, 1))
    spot = twins[:1]
    pushed = fitted(np.append(x, twins, axis=0), np.append(s, np.full(400, -1)))
    assert pushed.decision_function(spot, NAMES) < fitted(x, s).decision_function(spot, NAMES) - 1
    scores = pushed.label_scores(
        np.append(x, twins, axis=0), np.append(s, np.full(400, -1)), names=NAMES
    )
    assert np.isnan(scores[-400:]).all() and np.isfinite(scores[:-400]).all()


def test_known_non_lenses_weigh_f_where_unlabelled_rows_were_subsampled():
    """2,000 extra non-lenses beside a tenth of 40,000 rows are 5 % of the survey."""
    x, s, _ = world(n=40_000)
    rng = np.random.default_rng(3)
    kept = (s == 1) | (rng.random(len(s)) < 0.1)
    extra = rng.normal(size=(2000, len(NAMES))).astype(np.float32)
    options = {"unlabelled_fraction": 0.1}
    plain = fitted(x[kept], s[kept], **options)
    pushed = fitted(
        np.append(x[kept], extra, axis=0), np.append(s[kept], np.full(2000, -1)), **options
    )
    fall = plain.decision_function(x, NAMES) - pushed.decision_function(x, NAMES)
    assert -0.1 < np.median(fall) < 0.25


def test_iterations_stop_where_held_out_labels_are_explained_best():
    x, s, _ = world(n=6000)
    slow = {"num_iterations": 120, "learning_rate": 0.5, "num_leaves": 31, "lambda_l2": 0.0}
    model = fitted(x, s, params=slow)
    assert model.num_iterations_ < 60 and model.notes_ == ()
    assert model.booster_.num_trees() == model.num_iterations_
    # The same by hand: held-out cross-entropy of the five label boosters.
    few = np.flatnonzero(s == 1)[:40]
    rows = np.append(few, np.flatnonzero(s == 0))
    kept = fitted(x[rows], s[rows], params=QUICK)
    assert kept.num_iterations_ == QUICK["num_iterations"]
    assert kept.notes_ == ("no early stopping: 40 known lenses, 50 needed",)


def test_an_early_end_is_stretched_to_what_held_out_labels_ask_for():
    """Thirty small steps leave log-odds too flat; with forty lenses nobody could say how much."""
    x, s, _ = world(n=8000)
    fresh, _, y = world(n=20_000, seed=5)
    true = logit(0.1) + 1.5 * fresh[:, :3].sum(axis=1) - 3 * 1.5**2 / 2
    near = np.abs(true) < 4
    early = {"num_iterations": 30, "learning_rate": 0.05, "feature_fraction": 1.0}
    model = fitted(x, s, params=early)
    found = model.decision_function(fresh, NAMES)
    slope = np.polyfit(true[near], found[near], 1)[0]
    assert model.stretch_ > 1.3
    assert slope == pytest.approx(1.0, abs=0.15)
    assert abs(slope / model.stretch_ - 1) > 0.25
    assert expit(found).mean() == pytest.approx(y.mean(), rel=0.1)
    few = np.append(np.flatnonzero(s == 1)[:40], np.flatnonzero(s == 0))
    assert fitted(x[few], s[few], params=early).stretch_ == 1.0


def test_trees_of_labels_are_those_of_lightgbms_own_cross_entropy():
    x, s, _ = world(n=4000, prior=0.4, c=0.8)
    # LightGBM draws other features where the loss is not its own.
    plain = QUICK | {"feature_fraction": 1.0}
    booster = Booster(NAMES, params=plain, monotone={}, categorical=(), seed=3, num_threads=1)
    # Above 1,000 known lenses none is weighted up.
    assert s.sum() > 1000
    own = booster.fit(booster.dataset(x), s, np.ones(len(s)), model=LabelModel(1.0, 1.0))
    parameters = booster.parameters() | {"objective": "cross_entropy"}
    theirs = lightgbm.train(parameters, lightgbm.Dataset(x, label=s))
    np.testing.assert_allclose(
        own.booster.predict(x, raw_score=True) + own.start,
        theirs.predict(x, raw_score=True),
        atol=1e-9,
    )


def test_survey_is_a_native_category():
    """Lenses are three times as common in survey 1, and 4 is a survey that was never seen."""
    rng = np.random.default_rng(0)
    n = 12_000
    survey = rng.integers(0, 3, n)
    y = rng.random(n) < np.array([0.05, 0.3, 0.05])[survey]
    x = np.stack([survey, rng.normal(size=n)], axis=1).astype(np.float64)
    names = ("survey", "x")
    model = PULightGBM(
        names, scenario="single-sample", prior=float(y.mean()) * 1.01, categorical=["survey"],
        params={"feature_fraction": 1.0},
    ).fit(x, y.astype(int), names=names)  # fmt: skip
    codes = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [np.nan, 0.0]])
    found = model.decision_function(codes, names)
    np.testing.assert_allclose(found[:3], logit([0.05, 0.3, 0.05]), atol=0.35)
    assert np.isfinite(found).all()
    assert "cat_threshold" in model.to_text()
    back = PULightGBM.from_text(model.to_text())
    np.testing.assert_array_equal(back.decision_function(codes, names), found)
    for bad in (-1.0, 0.5):
        with pytest.raises(InputError, match=f"'survey' is a category and holds {bad:g} in row 0"):
            model.decision_function([[bad, 0.0]], names)
    with pytest.raises(ConfigError, match="cannot be monotone"):
        PULightGBM(
            names, scenario="single-sample", prior=0.2, categorical=["survey"],
            monotone={"survey": 1},
        ).fit(x, y.astype(int), names=names)  # fmt: skip


def test_weights_count_rows():
    x, s, _ = world()
    with pytest.raises(InputError, match="weight -1 in row 0 is negative"):
        PULightGBM(NAMES, scenario="single-sample", prior=0.1, params=QUICK).fit(
            x, s, names=NAMES, weight=-np.ones(len(s))
        )
    heavy = np.where(x[:, 0] > 0, 3.0, 1.0)
    model = PULightGBM(NAMES, scenario="single-sample", prior=0.1, params=QUICK).fit(
        x, s, names=NAMES, weight=heavy
    )
    assert expit(model.decision_function(x, NAMES)) @ heavy / heavy.sum() == pytest.approx(
        0.1, rel=0.25
    )


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (NAMES[:-1], "8 features and got 7: missing feature_7"),
        ((*NAMES[:-1], "other"), "missing feature_7; unknown other"),
        ((NAMES[1], NAMES[0], *NAMES[2:]), r"another order \(column 0 is 'feature_1'"),
    ],
)
def test_other_features_are_refused(names, match):
    x, s, _ = world(n=400)
    with pytest.raises(InputError, match=match):
        fitted(x, s).decision_function(x[:, : len(names)], names)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"params": {"num_leafs": 3}}, ConfigError, "did you mean 'num_leaves'"),
        ({"monotone": {"feature_x": 1}}, ConfigError, "unknown feature 'feature_x'"),
        ({"monotone": {"feature_1": 2}}, ConfigError, "is 2, expected 1 or −1"),
        ({"prior": 1e-4}, InputError, "of the rows are known lenses"),
        ({"scenario": "x"}, InputError, "unknown scenario 'x'"),
    ],
)
def test_bad_settings_are_refused(options, error, match):
    x, s, _ = world(n=400)
    with pytest.raises(error, match=match):
        fitted(x, s, **options)


def test_bad_values_and_text_are_refused():
    x, s, _ = world(n=400)
    model = fitted(x, s)
    x[3, 2] = np.inf
    with pytest.raises(InputError, match="'feature_2' is infinite in row 3"):
        model.decision_function(x, NAMES)
    with pytest.raises(InputError, match="1 known lenses cannot be spread"):
        fitted(world(n=400)[0], np.eye(1, 400, 5, dtype=np.int8)[0])
    with pytest.raises(InputError, match="not fitted"):
        PULightGBM(NAMES, scenario="single-sample", prior=0.1).decision_function(x, NAMES)
    with pytest.raises(BundleError, match="0 'clusterray:' lines"):
        PULightGBM.from_text("tree\nversion=v4\n")
    with pytest.raises(BundleError, match="cannot be read"):
        PULightGBM.from_text("tree\n" + model.to_text()[-400:])
