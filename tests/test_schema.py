import pyarrow as pa
import pytest

from clusterray import schema, storage
from clusterray.errors import ContractError

BANDS = ("g", "r")
MODELS = ("lightgbm", "vit")
SCHEMAS = {
    "catalogue": schema.CATALOGUE,
    "labels": schema.LABELS,
    "truth": schema.TRUTH,
    "rejects": schema.REJECTS,
    "selection": schema.SELECTION,
    "selection_half": schema.SELECTION_HALF,
    "selection_kinds": schema.SELECTION_KINDS,
    "drift_reference": schema.DRIFT_REFERENCE,
    "drift": schema.DRIFT,
    "cutouts": schema.cutouts(BANDS, 16),
    "features": schema.features(("a", "b")),
    "scores": schema.scores(MODELS, embedding_dim=4, attention_dim=9),
    "ranking": schema.ranking(MODELS),
    "candidates": schema.candidates(("a", "b")),
    "contributions": schema.contributions(("a", "b")),
    "segments": schema.segments((("g", "r"),)),
}


def value(kind: pa.DataType) -> object:
    if pa.types.is_string(kind):
        return "x"
    if pa.types.is_boolean(kind):
        return True
    if pa.types.is_fixed_size_binary(kind):
        return bytes(kind.byte_width)
    if pa.types.is_binary(kind):
        return b"x"
    if pa.types.is_fixed_size_list(kind):
        return [value(kind.value_type)] * kind.list_size
    if pa.types.is_list(kind):
        return [value(kind.value_type)] * 3
    return 1.0 if pa.types.is_floating(kind) else 1


def right(table: str, rows: int = 2) -> pa.Table:
    want = SCHEMAS[table]
    columns = [pa.array([value(f.type)] * rows, f.type) for f in want]
    return pa.table(columns, schema=want)


def test_every_table_has_a_version_and_a_schema_that_says_so() -> None:
    assert set(SCHEMAS) == set(schema.VERSIONS)
    for name, want in SCHEMAS.items():
        assert want.metadata[b"clusterray.table"] == name.encode()
        assert want.metadata[b"clusterray.version"] == str(schema.VERSIONS[name]).encode()


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_right_table_passes(name: str) -> None:
    checked = schema.check(right(name), SCHEMAS[name], where="here")
    assert checked.schema.equals(SCHEMAS[name], check_metadata=True)
    assert checked.num_rows == 2


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_empty_table_passes(name: str) -> None:
    assert schema.check(right(name, rows=0), SCHEMAS[name], where="here").num_rows == 0


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_table_passes_after_parquet(name: str, tmp_path) -> None:
    url = str(tmp_path / "t.parquet")
    storage.write_table(url, right(name))
    checked = schema.check(storage.read_table(url), SCHEMAS[name], where=url)
    assert checked.equals(right(name))


@pytest.mark.parametrize("name", SCHEMAS)
def test_columns_are_put_in_order_and_metadata_is_not_needed(name: str) -> None:
    table = right(name).replace_schema_metadata(None)
    shuffled = table.select(table.column_names[::-1])
    checked = schema.check(shuffled, SCHEMAS[name], where="here")
    assert checked.schema.equals(SCHEMAS[name], check_metadata=True)


def test_nulls_pass_where_the_schema_allows_them() -> None:
    table = right("catalogue")
    index = table.schema.get_field_index("z_lens")
    table = table.set_column(index, "z_lens", pa.nulls(2, pa.float64()))
    assert schema.check(table, schema.CATALOGUE, where="here")["z_lens"].null_count == 2


def replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def relabelled(table: pa.Table, **metadata: str) -> pa.Table:
    labels = {f"clusterray.{k}".encode(): v for k, v in metadata.items()}
    return table.replace_schema_metadata({**table.schema.metadata, **labels})


CATALOGUE = right("catalogue")
BAD = {
    "missing column": (
        CATALOGUE.drop_columns(["dec_deg"]),
        "here: a catalogue table needs column 'dec_deg'; it has: object_id, ra_deg, z_lens",
    ),
    "unknown column": (
        CATALOGUE.append_column("richnes", pa.array([1.0, 2.0])),
        r"here: column 'richnes' does not belong in a catalogue table; did you mean 'richness'\?",
    ),
    "column twice": (
        CATALOGUE.append_column("ra_deg", pa.array([1.0, 2.0])),
        "here: column 'ra_deg' stands more than once in a catalogue table",
    ),
    "text for a number": (
        replaced(CATALOGUE, "ra_deg", pa.array(["1", "2"])),
        "here: column 'ra_deg' is string, expected double",
    ),
    "narrower number": (
        replaced(CATALOGUE, "ra_deg", pa.array([1.0, 2.0], pa.float32())),
        "here: column 'ra_deg' is float, expected double",
    ),
    "null": (
        replaced(CATALOGUE, "ra_deg", pa.array([1.0, None])),
        "here: column 'ra_deg' has 1 empty values, expected none",
    ),
    "other version": (
        relabelled(CATALOGUE, version="0"),
        "here: version is 0, expected 1; it was written by another",
    ),
    "other table": (
        right("labels"),
        "here: table is labels, expected catalogue; it was written by another",
    ),
    "no columns": (pa.table({}), "a catalogue table needs column 'object_id'; it has: $"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(case: str) -> None:
    table, message = BAD[case]
    with pytest.raises(ContractError, match=message):
        schema.check(table, schema.CATALOGUE, where="here")


@pytest.mark.parametrize(
    ("other", "column"),
    [
        (schema.cutouts(("g", "r", "i"), 16), "psf_fwhm_arcsec"),
        (schema.cutouts(BANDS, 32), "image"),
    ],
)
def test_cutouts_of_another_shape_do_not_pass(other: pa.Schema, column: str) -> None:
    with pytest.raises(ContractError, match=f"column '{column}' is fixed_size"):
        schema.check(right("cutouts"), other, where="here")


def test_scores_of_other_models_do_not_pass() -> None:
    with pytest.raises(ContractError, match="needs column 'logit_cnn'"):
        schema.check(right("scores"), schema.scores(("cnn",)), where="here")


def test_wide_columns_are_there_only_where_asked_for() -> None:
    assert {"embedding", "attention"}.isdisjoint(schema.scores(MODELS).names)
    assert schema.scores(MODELS, embedding_dim=3).field("embedding").type.list_size == 3


def test_the_layout_travels_with_the_image_column() -> None:
    spec = schema.image_layout(BANDS, 16, steps_per_sigma=4, pixel_scale_arcsec=0.5)
    field = schema.cutouts(BANDS, 16, steps_per_sigma=4, pixel_scale_arcsec=0.5).field("image")
    assert field.type.byte_width == 2 * 2 * 16 * 16
    assert spec == {
        "encoding": "zigzag-int16-byte-planes",
        "version": 1,
        "dtype": "int16",
        "shape": [2, 16, 16],
        "bands": ["g", "r"],
        "blank": -32768,
        "steps_per_sigma": 4,
        "pixel_scale_arcsec": 0.5,
    }
    assert b'"shape": [2, 16, 16]' in field.metadata[b"clusterray.image"]


def test_ids_that_stand_once_are_unique_across_chunks() -> None:
    schema.require_unique(pa.table({"object_id": pa.chunked_array([["a"], ["b"]])}), where="here")
    twice = pa.table({"object_id": pa.chunked_array([["b", "c"], ["b", "a"], ["a"]])})
    message = r"here: 2 ids in 'object_id' stand more than once \(a, b\); each object needs"
    with pytest.raises(ContractError, match=message):
        schema.require_unique(twice, where="here")


def test_only_a_few_repeated_ids_are_shown() -> None:
    table = pa.table({"name": [f"n{i}" for i in range(9)] * 2})
    with pytest.raises(ContractError, match=r"9 ids in 'name' .*\(n0, n1, n2, n3, n4\)"):
        schema.require_unique(table, where="here", column="name")
