import numpy as np
import pyarrow as pa
import pytest

from clusterray.errors import InputError
from clusterray.rank.discovery import discovery_curve, shortlist, unlike_known


def test_curve_is_arithmetic():
    p = np.array([0.9, 0.5, 0.5, 0.1])
    curve = discovery_curve(
        np.cumsum(p), years=2.0, minutes_per_candidate=30.0, cost_per_hour=40.0,
        cost_per_year=100.0, budgets=(1, 4),
    )  # fmt: skip
    np.testing.assert_allclose(curve.finds, [0.45, 1.0])
    np.testing.assert_allclose(curve.hours, [0.25, 1.0])
    np.testing.assert_allclose(curve.cost, [110.0, 140.0])
    np.testing.assert_allclose(curve.cost_per_find, [110 / 0.45, 140.0])
    np.testing.assert_allclose(curve.cost_of_next, [20 / 0.9, 20 / 0.1])
    whole = discovery_curve(np.cumsum(p), years=1, minutes_per_candidate=1, cost_per_hour=0)
    np.testing.assert_array_equal(whole.budget, [1, 2, 3, 4])
    none = discovery_curve(np.zeros(3), years=1, minutes_per_candidate=1, cost_per_hour=1)
    assert np.all(np.isinf(none.cost_per_find))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"expected_finds": [1.0, 0.5]}, "never fall"),
        ({"expected_finds": []}, "n ≥ 1"),
        ({"expected_finds": [np.nan]}, "finite"),
        ({"years": 0.0}, "years is 0.0"),
        ({"minutes_per_candidate": -1.0}, "minutes_per_candidate is -1.0"),
        ({"cost_per_hour": -1.0}, "costs are -1.0"),
        ({"budgets": (3,)}, "ranks 1 to 2"),
    ],
)
def test_bad_curves_are_refused(change, match):
    arguments = {
        "expected_finds": [0.5, 0.9], "years": 1.0, "minutes_per_candidate": 2.0,
        "cost_per_hour": 60.0, **change,
    }  # fmt: skip
    with pytest.raises(InputError, match=match):
        discovery_curve(arguments.pop("expected_finds"), **arguments)


@pytest.fixture(scope="module")
def ranking(made_scores, ranked):
    anomaly = [None, 3.0, 9.0, 9.0, float("nan"), *np.linspace(1, 2, 35)]
    return ranked(made_scores(40, anomaly_score=anomaly))


def test_three_ways_to_end_a_list(ranking):
    p = ranking["p_lens"].to_numpy()
    assert len(shortlist(ranking, by="budget", at=7)) == 7
    assert len(shortlist(ranking, by="budget", at=1000)) == 40
    assert len(shortlist(ranking, by="probability", at=0.2)) == np.sum(p >= 0.2)
    for at in (0.0, 0.3, 0.6, 1.0):
        n = len(shortlist(ranking, by="fdr", at=at))
        rates = 1 - np.cumsum(p) / np.arange(1, 41)
        assert n == np.sum(rates <= at + 1e-12)
        assert n == 40 or rates[n] > at
    for by, at, match in (
        ("budget", 0, "budget of 0"), ("budget", 1.5, "whole number"),
        ("fdr", 2.0, "expected 0 to 1"),
        ("fdrs", 0.1, "did you mean 'fdr'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            shortlist(ranking, by=by, at=at)


def test_the_second_list_is_by_anomaly_alone(ranking):
    found = unlike_known(ranking, 3)
    assert found["anomaly_score"].to_pylist() == [9.0, 9.0, 3.0]
    assert found["object_id"].to_pylist() == ["CL002", "CL003", "CL001"]
    assert len(unlike_known(ranking, 1000)) == 38
    empty = ranking.set_column(
        ranking.schema.get_field_index("anomaly_score"),
        ranking.schema.field("anomaly_score"),
        pa.nulls(40, pa.float32()),
    )
    assert len(unlike_known(empty, 5)) == 0
