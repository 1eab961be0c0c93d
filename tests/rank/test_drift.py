import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clusterray import schema
from clusterray.ensemble.drift_reference import summarise
from clusterray.errors import ContractError
from clusterray.rank import drift

RNG = np.random.default_rng(5)
KEY = ("psf", "psf_fwhm_arcsec_r")


def compare(old, new, **limits) -> dict[str, drift.Statistic]:
    found = drift.compare(summarise({KEY: old}), {KEY: new}, **limits)
    return {s.statistic: s for s in found}


def test_psi_is_jeffreys_divergence_of_the_smoothed_shares():
    e, o = np.array([50.0, 30, 20]), np.array([10.0, 0, 90])
    p, q = (e + 0.5) / 101.5, (o + 0.5) / 101.5
    want = stats.entropy(p, q) + stats.entropy(q, p)
    assert drift.psi(e, o) == pytest.approx(want)
    assert drift.psi(e, e) == 0
    assert drift.psi(e, [0, 0, 0]) is None


@given(st.integers(2, 2000), st.integers(2, 2000), st.floats(-2, 2))
def test_ks_is_that_of_the_samples_as_far_as_the_summary_tells(n, m, shift):
    rng = np.random.default_rng(n * 3001 + m)
    old, new = rng.normal(0, 1, n), rng.normal(shift, 1, m)
    want = stats.ks_2samp(old, new).statistic
    assert compare(old, new)["ks"].value == pytest.approx(want, abs=0.003 if n > 401 else 1e-12)


@pytest.mark.parametrize("draw", ["normal", "poisson"])
def test_chance_alone_stays_below_the_noise(draw):
    """In 99.9 % of the cases: of 400 draws, 0.4 beyond are expected, 5 are a defect."""
    rng = np.random.default_rng(11)
    args = (0.0, 1.0) if draw == "normal" else (3.0,)
    beyond = {"psi": 0, "ks": 0}
    values = {"psi": [], "ks": []}
    for _ in range(400):
        old, new = (getattr(rng, draw)(*args, size) for size in (2000, 300))
        for name, statistic in compare(old, new).items():
            values[name].append(statistic.value)
            beyond[name] += statistic.value > statistic.noise
    assert max(beyond.values()) < 5
    # Nor is the noise a bound that nothing comes near.
    assert max(values["psi"]) > 0.5 * compare(old, new)["psi"].noise


def test_a_shift_is_seen_and_only_a_limit_makes_it_an_excess():
    old, new = RNG.normal(0.7, 0.05, 3000), RNG.normal(0.85, 0.05, 500)
    free = compare(old, new)
    assert free["psi"].value > 2 and free["ks"].value > 0.8
    assert not (free["psi"].exceeded or free["ks"].exceeded)
    assert free["psi"].median_night == pytest.approx(0.85, abs=0.01)
    bound = compare(old, new, max_psi={"psf": 0.25}, max_ks={"noise": 0.1})
    assert bound["psi"].exceeded and not bound["ks"].exceeded
    (said,) = drift.exceeded(list(bound.values()))
    assert said.startswith("PSI of psf_fwhm_arcsec_r (psf) is ") and "at most 0.25" in said


def test_what_chance_explains_is_no_excess():
    old, new = RNG.normal(0, 1, 3000), RNG.normal(0, 1, 12)
    found = compare(old, new, max_psi={"psf": 1e-3})["psi"]
    assert found.value > found.limit and not found.exceeded


@pytest.mark.parametrize("new", [[2.0] * 200, [0.0] * 200, [np.nan] * 200])
def test_a_constant_that_moves_or_vanishes_is_seen(new):
    assert compare([1.0] * 500, [1.0] * 200)["psi"].value == pytest.approx(0, abs=0.01)
    assert compare([1.0] * 500, new)["psi"].value > 3


def test_missing_values_are_a_bin_of_their_own_and_no_part_of_the_distance():
    old = RNG.normal(0, 1, 4000)
    new = RNG.normal(0, 1, 1000)
    holes = np.where(np.arange(1000) % 2, new, np.nan)
    assert compare(old, new)["psi"].value < 0.05
    assert compare(old, holes)["psi"].value > 2
    assert compare(old, holes)["ks"].value < 0.08


def test_nothing_known_is_not_measured():
    found = compare([np.nan] * 5, [np.nan] * 3)
    assert found["ks"].value is None and found["ks"].median_night is None
    assert compare([1.0, 2.0], [])["psi"].value is None


def test_summary_and_statistics_are_tables_of_the_schema():
    reference = summarise({KEY: RNG.normal(0, 1, 5000), ("score", "x"): [1.0, np.nan, 3.0]})
    assert schema.check(reference, schema.DRIFT_REFERENCE, where="r")["n"].to_pylist() == [5000, 3]
    rows = reference.to_pylist()
    assert len(rows[0]["sorted"]) == 401
    assert (rows[1]["sorted"], rows[1]["n_missing"]) == ([1.0, 3.0], 1)
    found = drift.compare(reference, {KEY: [0.0, 1.0], ("other", "y"): [1.0]})
    assert [s.quantity for s in found] == [KEY[1]] * 2
    table = drift.table([*found, drift.of_run("reject_rate", 0.2, most=0.1, n_night=10)])
    assert schema.check(table, schema.DRIFT, where="d")["exceeded"].to_pylist()[-1] is True
    with pytest.raises(ContractError, match="drift reference"):
        drift.compare(table, {})


@pytest.mark.parametrize(("scale", "beyond"), [(1.0, False), (0.01, True), (0.0, True)])
def test_scores_that_fall_together_are_a_collapse(scale, beyond):
    scores = RNG.normal(-5, 2, 2000)
    reference = summarise({("score", "logit_stack"): scores})
    found = drift.score_spread(reference, -5 + scale * (scores + 5), least=0.1)
    assert found is not None
    assert found.value == pytest.approx(scale, rel=0.02)
    assert found.exceeded is beyond
    assert ("at least 0.1" in str(found)) is True


def test_spread_without_scores_is_not_measured():
    assert drift.score_spread(summarise({KEY: [1.0]}), [1.0], least=0.1) is None
