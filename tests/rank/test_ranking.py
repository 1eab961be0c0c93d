"""The ranking: order, flags, files that are the same to the byte, and what it refuses."""

import numpy as np
import pyarrow as pa
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray import schema, storage
from clusterray.errors import ContractError, InputError, StorageError
from clusterray.rank import ranking, read, write
from clusterray.rank.votable import votable_bytes

MODELS = ("lightgbm", "vit")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), min_size=1, max_size=25))
def test_order_is_p_then_logit_then_id(made_scores, ranked, rows):
    p = np.array([r[0] / 4 for r in rows])
    scores = made_scores(len(rows), logit_stack=[float(r[1]) for r in rows])
    table = ranked(scores, p_lens=p, p_low=p, p_high=p)
    ids = scores["object_id"].to_pylist()
    order = sorted(range(len(rows)), key=lambda i: (-p[i], -rows[i][1], ids[i]))
    assert table["object_id"].to_pylist() == [ids[i] for i in order]
    assert table["rank"].to_pylist() == list(range(1, len(rows) + 1))
    running = 0.0
    for k, i in enumerate(order):
        running += p[i]
        assert table["expected_finds"][k].as_py() == pytest.approx(running)
        assert table["expected_purity"][k].as_py() == pytest.approx(running / (k + 1))


def test_everything_of_a_row_moves_with_it(made_scores, ranked):
    scores = made_scores(30, anomaly_score=np.arange(30.0))
    table = ranked(scores)
    before = {row["object_id"]: row for row in scores.to_pylist()}
    for row in table.to_pylist():
        for name in ("ra_deg", "dec_deg", "logit_vit", "logit_stack", "anomaly_score", "shard"):
            assert row[name] == before[row["object_id"]][name]
        assert row["p_lens"] == pytest.approx(1 / (1 + np.exp(-row["logit_stack"])))


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_neither_the_order_nor_the_chunks_of_the_scores_matter(made_scores, ranked, order, cut):
    scores = made_scores(12, logit_stack=np.repeat([1.0, -1.0], 6))
    shuffled = scores.take(pa.array(order))
    pieces = pa.concat_tables([shuffled.slice(0, cut), shuffled.slice(cut)])
    first, second = ranked(scores), ranked(pieces)
    assert first.equals(second)
    assert storage.parquet_bytes(first.combine_chunks()).equals(
        storage.parquet_bytes(second.combine_chunks())
    )


def test_flags_say_what_to_know_of_a_row(made_scores, ranked):
    scores = made_scores(
        6,
        logit_stack=np.arange(6.0)[::-1],
        fold=[None, 0, -1, 3, None, None],
        coverage=[1.0, 1.0, 1.0, 0.7, 0.99995, 0.9],
        clipped_fraction=[0.0, 0.0, 0.0, 0.01, 0.0, 0.0],
    )
    assert ranked(scores)["flags"].to_pylist() == [
        "", "trained", "calibration", "trained;partial;clipped", "", "partial",
    ]  # fmt: skip


def test_embeddings_are_left_behind(made_scores, ranked):
    scores = made_scores(3)
    wide = schema.scores(MODELS, embedding_dim=2)
    column = pa.array(np.zeros((3, 2), np.float16).tolist(), wide.field("embedding").type)
    table = ranked(scores.append_column("embedding", column).cast(wide))
    assert table.equals(ranked(scores))


def test_files_hold_the_same_and_equal_bytes_every_time(tmp_path, made_scores, ranked):
    scores = made_scores(50, fold=[0] * 10 + [None] * 40, object_id=[f"σ{i}" for i in range(50)])
    table = ranked(scores)
    for name in ("one", "two"):
        write(str(tmp_path / name), table)
    for file in ranking.FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    back = read(str(tmp_path / "one"))
    assert back.equals(table)
    assert back.schema.metadata == schema.ranking(MODELS).metadata
    for file, reader in (("ranking.csv", "ascii.csv"), ("ranking.vot", "votable")):
        other = Table.read(tmp_path / "one" / file, format=reader)
        assert other.colnames == table.column_names
        for name in table.column_names:
            want = table[name].to_pylist()
            got = [None if v is np.ma.masked else v for v in other[name]]
            if name in ("object_id", "flags", "shard"):
                assert [v or "" for v in got] == want
            else:
                kind = table[name].type.to_pandas_dtype()
                kind = np.float32 if kind is np.float32 else np.float64
                np.testing.assert_array_equal(
                    np.array(got, kind), np.array(want, kind), err_msg=name
                )


def test_votable_has_units_and_ucds(tmp_path, made_scores, ranked):
    write(str(tmp_path), ranked(made_scores(3)))
    table = Table.read(tmp_path / "ranking.vot")
    assert str(table["ra_deg"].unit) == "deg"
    assert table["object_id"].meta["ucd"] == "meta.id;meta.main"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.floats(allow_nan=False),
            st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cc"])),
            st.none() | st.integers(-128, 127),
        ),
        max_size=8,
    )
)
def test_votable_bytes_are_what_astropy_reads(tmp_path_factory, rows):
    kinds = {"i": pa.int64(), "f": pa.float64(), "t": pa.string(), "b": pa.int8()}
    columns = [[r[k] for r in rows] for k in range(4)]
    table = pa.table({n: pa.array(c, k) for (n, k), c in zip(kinds.items(), columns, strict=True)})
    path = tmp_path_factory.mktemp("vot") / "t.vot"
    path.write_bytes(votable_bytes(table, units={}, ucds={}))
    back = Table.read(path)
    assert len(back) == len(rows)
    for name, column in zip(kinds, columns, strict=True):
        got = [None if v is np.ma.masked else v for v in back[name]] if rows else []
        if name == "t":
            assert [str(v or "") for v in got] == [v.rstrip("\0") for v in column]
        else:
            assert [v if v is None else float(v) for v in got] == [
                v if v is None else float(v) for v in column
            ]


def test_an_empty_ranking_is_a_ranking(tmp_path, made_scores, ranked):
    write(str(tmp_path), ranked(made_scores(0)))
    assert len(read(str(tmp_path))) == 0
    assert len(Table.read(tmp_path / "ranking.vot")) == 0


@pytest.mark.parametrize(
    ("columns", "change", "error", "message"),
    [
        ({"object_id": ["a", "a", "b"]}, {}, ContractError, r"1 ids .* more than once \(a\)"),
        ({}, {"models": ("vit",)}, ContractError, r"column 'logit_lightgbm' does not belong"),
        ({}, {"models": (*MODELS, "x")}, ContractError, r"needs column 'logit_x'"),
        ({}, {"p_lens": np.zeros(2)}, InputError, r"p_lens has shape \(2,\), expected \(3,\)"),
        ({}, {"p_high": np.full(3, 1.5)}, InputError, r"p_lens_high of object CL000 is 1.5"),
        ({}, {"p_low": np.full(3, -0.1)}, InputError, r"is -0.1, expected 0…1 \(3 such"),
        ({}, {"p_lens": np.full(3, np.nan)}, InputError, r"p_lens of object CL000 is nan"),
        ({}, {"p_low": np.ones(3)}, InputError, r"CL000: p_lens .* outside its interval"),
        ({"logit_vit": [0, np.nan, 0]}, {}, InputError, r"logit_vit of object CL001 is NaN"),
    ],
)
def test_what_cannot_be_ranked_is_refused(made_scores, ranked, columns, change, error, message):
    scores = made_scores(3, **columns)
    with pytest.raises(error, match=message):
        ranked(scores, **change)


def test_reading_what_is_not_a_ranking(tmp_path, made_scores, ranked):
    with pytest.raises(StorageError, match="no such file"):
        read(str(tmp_path))
    where = str(tmp_path / "ranking.parquet")
    storage.write_table(where, pa.table({"a": [1]}))
    with pytest.raises(ContractError, match="does not say which models"):
        read(str(tmp_path))
    storage.write_table(where, made_scores(3))
    with pytest.raises(ContractError, match="table is scores, expected ranking"):
        read(str(tmp_path))
    storage.write_bytes(where, b"PAR1 cut short")
    with pytest.raises(StorageError, match="not a readable Parquet file"):
        read(str(tmp_path))
