"""The selection function against counting by hand, and what its intervals promise."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from clusterray import schema
from clusterray.config import RankSettings
from clusterray.errors import ContractError, InputError
from clusterray.rank import selection
from clusterray.rank.selection import QUANTITIES, completeness, false_positives, half_completeness

EDGES = {
    "theta_e_over_fwhm": [2.0, 6.0, 12.0],
    "arc_snr": [5.0, 10.0, 20.0, 40.0],
    "source_mag": [22.0, 24.0, 26.0],
    "z_lens": [0.2, 0.4, 0.6],
    "z_source": [0.8, 1.5],
    "richness": [20.0, 50.0],
}


def make_truth(ids, y, *, kind=None, **columns):
    n = len(ids)
    filled = {f.name: pa.nulls(n, f.type) for f in schema.TRUTH}
    filled |= {"object_id": pa.array(ids), "y": pa.array(y, pa.int8())}
    filled["kind"] = pa.array(
        ["lens" if v == 1 else "cluster" for v in y] if kind is None else kind
    )
    for name, values in columns.items():
        filled[name] = pa.array(values, pa.float64(), from_pandas=True)
    return pa.table(filled, schema=schema.TRUTH)


@pytest.fixture(scope="module")
def world(made_scores, ranked):
    """150 objects with lenses, marginals, nulls, kinds, some unranked; three without truth."""
    rng = np.random.default_rng(5)
    n = 150
    ids = [f"CL{i:03d}" for i in range(n)]
    y = rng.choice([1, 0, -1], n, p=[0.4, 0.5, 0.1])
    kind = [
        {1: "lens", -1: "marginal"}.get(v, k)
        for v, k in zip(y, rng.choice(["cluster", "lens_off", "double"], n), strict=True)
    ]
    columns = {
        "theta_e_over_fwhm": rng.lognormal(2, 0.6, n),
        "arc_snr": rng.lognormal(2.7, 0.6, n),
        "source_mag": rng.normal(24.5, 1, n),
        "z_lens": rng.uniform(0.2, 0.6, n),
        "z_source": rng.uniform(0.8, 1.5, n),
        "richness": rng.lognormal(3.8, 0.5, n),
    }
    for values in columns.values():
        values[rng.random(n) < 0.1] = np.nan
    columns["arc_snr"][np.flatnonzero(y == 1)[0]] = np.inf
    truth = make_truth(ids, y, kind=kind, **columns)
    there = [i for i in ids if rng.random() < 0.85] + ["elsewhere0", "elsewhere1", "elsewhere2"]
    logit = rng.normal(0, 2, len(there)) + np.isin(there, np.array(ids)[y == 1])
    return ranked(made_scores(len(there), object_id=there, logit_stack=logit)), truth


CUTS = [{"budget": 1}, {"budget": 40}, {"budget": 10_000}, {"threshold": 0.5}]


def listed_by_hand(ranking, *, budget=None, threshold=None):
    rows = ranking.to_pylist()
    return {
        r["object_id"]
        for r in rows
        if (r["rank"] <= budget if budget is not None else r["p_lens"] >= threshold)
    }


def inside(value, low, high):
    unknown = value is None or not np.isfinite(value)
    if low is None and high is None:
        return unknown
    return not unknown and (low is None or value >= low) and (high is None or value < high)


def check_share(row, part, whole, name):
    if not whole:
        assert row[name] is row[f"{name}_low"] is row[f"{name}_high"] is None
        return
    low, high = binomtest(part, whole).proportion_ci(0.95, method="wilson")
    got = [row[name + end] for end in ("", "_low", "_high")]
    assert got == pytest.approx([part / whole, low, high], abs=1e-12)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("edges", [None, EDGES])
def test_every_bin_is_what_counting_gives(world, cut, edges):
    ranking, truth = world
    table = completeness(ranking, truth, edges=edges, **cut)
    found, ranked = listed_by_hand(ranking, **cut), set(ranking["object_id"].to_pylist())
    lenses = [r for r in truth.to_pylist() if r["y"] == 1]
    assert table.schema.equals(schema.SELECTION, check_metadata=True)
    for row in table.to_pylist():
        members = lenses
        if row["quantity"] != "all":
            members = [r for r in members if inside(r[row["quantity"]], row["low"], row["high"])]
        if row["quantity_2"] is not None:
            members = [
                r for r in members if inside(r[row["quantity_2"]], row["low_2"], row["high_2"])
            ]
        ids = [r["object_id"] for r in members]
        assert row["n_lenses"] == len(ids)
        assert row["n_ranked"] == sum(i in ranked for i in ids)
        assert row["n_found"] == sum(i in found for i in ids)
        check_share(row, row["n_found"], row["n_lenses"], "completeness")
        assert row["list_length"] == len(found)


@pytest.mark.parametrize("edges", [None, EDGES])
def test_no_lens_is_left_out_of_any_quantity_nor_of_the_plane(world, edges):
    ranking, truth = world
    rows = completeness(ranking, truth, budget=40, edges=edges).to_pylist()
    whole, others = rows[0], rows[1:]
    assert whole["quantity"] == "all"
    assert whole["n_lenses"] == truth["y"].to_pylist().count(1)
    assert whole["n_ranked"] < whole["n_lenses"]
    sums = {}
    for row in others:
        key = (row["quantity"], row["quantity_2"])
        sums[key] = np.add(sums.get(key, 0), [row["n_lenses"], row["n_ranked"], row["n_found"]])
    assert set(sums) == {(q, None) for q in QUANTITIES} | {selection.PLANE}
    for total in sums.values():
        assert total.tolist() == [whole["n_lenses"], whole["n_ranked"], whole["n_found"]]


def test_bins_do_not_depend_on_the_ranking_nor_on_its_cut(world, ranked, made_scores):
    ranking, truth = world
    other = ranked(made_scores(9, seed=3, object_id=truth["object_id"].to_pylist()[:9]))
    names = ["quantity", "bin", "low", "high", "quantity_2", "bin_2", "low_2", "high_2", "n_lenses"]
    first = completeness(ranking, truth, budget=10).select(names)
    assert first.equals(completeness(other, truth, threshold=0.2).select(names))


def test_values_beyond_given_edges_have_bins_of_their_own(made_scores, ranked):
    ids = [f"CL{i:03d}" for i in range(5)]
    truth = make_truth(ids, [1] * 5, z_lens=[0.1, 0.3, 0.5, 0.7, np.nan])
    table = completeness(ranked(made_scores(5)), truth, budget=5, edges={"z_lens": [0.3, 0.5]})
    rows = [r for r in table.to_pylist() if r["quantity"] == "z_lens"]
    assert [(r["bin"], r["n_lenses"]) for r in rows] == [
        ("below 0.3", 1), ("0.3 to 0.5", 1), ("0.5 and above", 2), ("unknown", 1)
    ]  # fmt: skip
    assert (rows[0]["low"], rows[2]["high"]) == (None, None)


def test_wilson_intervals_cover_the_truth_as_often_as_they_say(made_scores, ranked):
    """Many experiments in one table: each bin of a quantity is one of 25 lenses."""
    rng = np.random.default_rng(11)
    repeats, size, threshold = 1200, 25, 0.5
    chance = rng.uniform(0.05, 0.95, repeats)
    found = rng.random((repeats, size)) < chance[:, None]
    n = found.size
    ids = [f"L{i:06d}" for i in range(n)]
    scores = made_scores(n, object_id=ids, logit_stack=np.where(found.ravel(), 1.0, -1.0))
    truth = make_truth(ids, np.ones(n, int), z_lens=np.repeat(np.arange(repeats), size))
    table = completeness(
        ranked(scores), truth, threshold=threshold, edges={"z_lens": np.arange(repeats + 1)}
    )
    rows = [r for r in table.to_pylist() if r["quantity"] == "z_lens"]
    assert [r["n_lenses"] for r in rows] == [size] * repeats
    covered = sum(
        r["completeness_low"] <= c <= r["completeness_high"]
        for r, c in zip(rows, chance, strict=True)
    )
    # Wilson's mean coverage at n = 25 is 0.953.
    assert binomtest(covered, repeats, 0.953).pvalue > 0.001


@pytest.mark.parametrize("cut", CUTS)
def test_false_positives_are_counted_by_kind_and_marginals_apart(world, cut):
    ranking, truth = world
    rows = false_positives(ranking, truth, **cut).to_pylist()
    found = listed_by_hand(ranking, **cut)
    ranked = set(ranking["object_id"].to_pylist())
    objects = truth.to_pylist()
    false = sum(r["y"] == 0 and r["object_id"] in found for r in objects)
    assert [(r["kind"], r["y"]) for r in rows] == [
        ("cluster", 0), ("double", 0), ("lens_off", 0), ("marginal", -1)
    ]  # fmt: skip
    for row in rows:
        ids = [r["object_id"] for r in objects if (r["kind"], r["y"]) == (row["kind"], row["y"])]
        part = sum(i in found for i in ids)
        assert row["n_objects"] == len(ids)
        assert row["n_ranked"] == sum(i in ranked for i in ids)
        assert row["n_listed"] == part
        check_share(row, part, len(ids), "rate")
        check_share(row, part, false if row["y"] == 0 else 0, "share")
    assert sum(r["n_listed"] for r in rows if r["y"] == 0) == false


def test_a_kind_that_is_both_marginal_and_not_is_two(made_scores, ranked):
    truth = make_truth(["CL000", "CL001", "CL002"], [0, -1, 1], kind=["ring"] * 3)
    rows = false_positives(ranked(made_scores(3)), truth, budget=3).to_pylist()
    assert [(r["kind"], r["y"], r["n_listed"]) for r in rows] == [("ring", 0, 1), ("ring", -1, 1)]
    assert [r["share"] for r in rows] == [1.0, None]


def test_half_completeness_speaks_of_lenses_whose_value_is_known(world):
    ranking, truth = world
    rows = half_completeness(ranking, truth, budget=40).to_pylist()
    assert [r["quantity"] for r in rows] == list(QUANTITIES)
    found = listed_by_hand(ranking, budget=40)
    for row in rows:
        known = [
            r["object_id"]
            for r in truth.to_pylist()
            if r["y"] == 1 and not inside(r[row["quantity"]], None, None)
        ]
        assert row["n_lenses"] == len(known)
        assert row["n_found"] == sum(i in found for i in known)
        assert (row["half"] is None) == bool(row["note"])


def test_a_list_that_follows_one_quantity_has_its_half_there(made_scores, ranked):
    rng = np.random.default_rng(2)
    n = 400
    ids = [f"CL{i:03d}" for i in range(n)]
    theta = rng.lognormal(2, 0.5, n)
    noisy = 3 * np.log(theta / 9) + rng.logistic(size=n)
    truth = make_truth(ids, [1] * n, theta_e_over_fwhm=theta, z_lens=rng.uniform(0.2, 0.6, n))
    scores = made_scores(n, object_id=ids, logit_stack=noisy)
    rows = half_completeness(ranked(scores), truth, threshold=0.5).to_pylist()
    by_name = {r["quantity"]: r for r in rows}
    theta_row = by_name["theta_e_over_fwhm"]
    assert theta_row["half_low"] < 9 < theta_row["half_high"]
    assert theta_row["half"] == pytest.approx(9, rel=0.1)
    assert by_name["z_lens"]["note"] in ("no trend at 5 %", "below half throughout")
    assert by_name["richness"]["note"] == "fewer than 10 found or missed"


def test_measuring_takes_every_budget_once_and_the_threshold(world):
    ranking, truth = world
    settings = RankSettings(budgets=(40, 10, 1000, 5000), selection_threshold=0.5)
    found = selection.measure(ranking, truth, settings)
    assert [str(c) for c in found.cuts] == [
        "first 10",
        "first 40",
        f"first {len(ranking)}",
        "p ≥ 0.5",
    ]
    parts = [
        completeness(ranking, truth, budget=10),
        completeness(ranking, truth, budget=40),
        completeness(ranking, truth, budget=len(ranking)),
        completeness(ranking, truth, threshold=0.5),
    ]
    assert found.completeness.equals(pa.concat_tables(parts))
    assert found.kinds.slice(0, 4).equals(false_positives(ranking, truth, budget=10))
    assert found.half.slice(0, 6).equals(half_completeness(ranking, truth, budget=10))
    alone = selection.measure(ranking, truth, RankSettings(budgets=(10,)))
    assert [str(c) for c in alone.cuts] == ["first 10"]


def test_files_hold_the_tables_and_equal_ones_are_equal_bytes(world, tmp_path):
    ranking, truth = world
    settings = RankSettings(budgets=(10, 40), selection_threshold=0.5)
    found = selection.measure(ranking, truth, settings)
    for folder in ("a", "b"):
        selection.write(str(tmp_path / folder), found)
    tables = {
        "selection": (found.completeness, schema.SELECTION),
        "selection_kinds": (found.kinds, schema.SELECTION_KINDS),
        "selection_half": (found.half, schema.SELECTION_HALF),
    }
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        f"{name}.{kind}" for name in tables for kind in ("csv", "parquet")
    }
    for name, (table, want) in tables.items():
        for kind in ("csv", "parquet"):
            one, other = (tmp_path / folder / f"{name}.{kind}" for folder in "ab")
            assert one.read_bytes() == other.read_bytes()
        back = schema.check(pq.read_table(tmp_path / "a" / f"{name}.parquet"), want, where=name)
        assert back.equals(table)
        lines = pyarrow.csv.read_csv(tmp_path / "a" / f"{name}.csv").to_pylist()
        numbers = [k for k in table.column_names if pa.types.is_floating(want.field(k).type)]
        for line, row in zip(lines, table.to_pylist(), strict=True):
            assert [line[k] for k in numbers] == [row[k] for k in numbers]


def test_a_survey_without_lenses_or_without_others_is_measured_too(made_scores, ranked):
    ids = [f"CL{i:03d}" for i in range(4)]
    ranking = ranked(made_scores(4))
    rows = completeness(ranking, make_truth(ids, [0, 0, -1, 0]), budget=2).to_pylist()
    assert {r["n_lenses"] for r in rows} == {0}
    assert {r["completeness"] for r in rows} == {None}
    assert false_positives(ranking, make_truth(ids, [1] * 4), budget=2).num_rows == 0


@pytest.mark.parametrize("measure", [completeness, false_positives, half_completeness])
@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({}, "budget is None and threshold is None.*give one"),
        ({"budget": 3, "threshold": 0.1}, "budget is 3 and threshold is 0.1.*give one"),
        ({"budget": 0}, "budget is 0, expected a positive number"),
        ({"threshold": 0.0}, "threshold is 0.0, expected a probability"),
        ({"threshold": float("nan")}, "threshold is nan, expected a probability"),
    ],
)
def test_a_list_ends_at_one_possible_place(world, measure, cut, message):
    with pytest.raises(InputError, match=message):
        measure(*world, **cut)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ({"theta_over_fwhm": [1, 2]}, "'theta_over_fwhm': did you mean 'theta_e_over_fwhm'"),
        ({"z_lens": [0.5]}, r"edges of 'z_lens' are \[0.5\], expected at least two"),
        ({"z_lens": [0.5, 0.5]}, "finite numbers, rising"),
        ({"z_lens": [0.5, float("inf")]}, "finite numbers, rising"),
    ],
)
def test_edges_that_make_no_bins_are_refused(world, edges, message):
    with pytest.raises(InputError, match=message):
        completeness(*world, budget=3, edges=edges)


def test_tables_that_do_not_belong_together_are_refused(world):
    ranking, truth = world
    with pytest.raises(InputError, match="ranking is empty"):
        completeness(ranking.slice(0, 0), truth, budget=3)
    with pytest.raises(ContractError, match=r"truth: .*more than once"):
        completeness(ranking, pa.concat_tables([truth, truth]), budget=3)
    with pytest.raises(ContractError, match="it is not a ranking"):
        completeness(truth, truth, budget=3)
    foreign = make_truth(["X1", "X2"], [1, 0])
    with pytest.raises(InputError, match=r"none of the 2 objects .*'X1'.*another survey"):
        completeness(ranking, foreign, budget=3)
