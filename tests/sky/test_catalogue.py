import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, Table
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clusterray import schema
from clusterray.errors import ConfigError, ContractError, InputError, StorageError
from clusterray.sky import catalogue


def redmapper_like() -> Table:
    return Table(
        {
            "MEM_MATCH_ID": np.array([3, 1, 2], np.int32),
            "RA": [10.5, 359.999, 0.0],
            "DEC": [-5.25, 0.0, 89.9],
            "LAMBDA": np.array([20.5, -1.0, np.nan], np.float32),
            "Z": [0.9, 0.9, 0.9],
            "Z_LAMBDA": np.array([0.31, -1.0, 0.0], np.float64),
            "MAGS": np.ones((3, 5)),
        }
    )


def write(table: Table, path) -> str:
    suffix = path.suffix
    if suffix == ".parquet":
        columns = {n: np.asarray(table[n]) for n in table.colnames if table[n].ndim == 1}
        pq.write_table(pa.table(columns), path)
    else:
        kind = {".fits": "fits", ".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".vot": "votable"}
        flat = table[[n for n in table.colnames if table[n].ndim == 1 or suffix != ".csv"]]
        flat.write(path, format=kind[suffix])
    return str(path)


@pytest.mark.parametrize("suffix", [".fits", ".csv", ".ecsv", ".parquet", ".vot"])
def test_every_format_reads_the_same(tmp_path, suffix):
    table = catalogue.read(write(redmapper_like(), tmp_path / f"c{suffix}"), survey_name="sdss")
    assert table.schema.equals(schema.CATALOGUE, check_metadata=True)
    assert table.column("object_id").to_pylist() == ["3", "1", "2"]
    assert table.column("ra_deg").to_pylist() == [10.5, 359.999, 0.0]
    assert table.column("dec_deg").to_pylist() == [-5.25, 0.0, 89.9]
    assert table.column("richness").to_pylist() == [20.5, None, None]
    # Z_LAMBDA goes before Z, and −1 and 0 are no redshifts.
    assert table.column("z_lens").to_pylist() == [0.31, None, None]
    assert table.column("l_x_erg_s").null_count == 3
    assert table.column("survey").to_pylist() == ["sdss"] * 3


def test_gzipped_fits(tmp_path):
    redmapper_like().write(tmp_path / "c.fits.gz", format="fits")
    assert catalogue.read(str(tmp_path / "c.fits.gz"), survey_name="x").num_rows == 3


@pytest.mark.parametrize(
    ("ra", "dec", "richness", "z"),
    [
        ("RAJ2000", "DEJ2000", "richness", "redshift"),
        ("ra_deg", "dec_deg", "lambda", "zlens"),
        ("ALPHA_J2000", "DELTA_J2000", "LAMBDA_CHISQ", "z"),
        ("RA [deg]", "DEC [deg]", "N200", "Z_CL"),
    ],
)
def test_usual_names(tmp_path, ra, dec, richness, z):
    Table({"name": ["A"], ra: [1.0], dec: [2.0], richness: [30.0], z: [0.4]}).write(
        tmp_path / "c.csv", format="ascii.csv"
    )
    row = catalogue.read(str(tmp_path / "c.csv"), survey_name="x").to_pylist()[0]
    assert (row["object_id"], row["ra_deg"], row["dec_deg"]) == ("A", 1.0, 2.0)
    assert (row["richness"], row["z_lens"]) == (30.0, 0.4)


@pytest.mark.parametrize("suffix", [".fits", ".ecsv", ".vot"])
def test_units_are_honoured(tmp_path, suffix):
    table = Table(
        {
            "id": ["A"],
            "ra": [2.5] * u.hourangle,
            "dec": [-0.5] * u.rad,
            "sigma_v": [9.0e5] * u.m / u.s,
            "L_X": [3.0] * u.Unit("1e44 erg/s"),
        }
    )
    if suffix != ".ecsv":
        # FITS and VOTable know no hour angle.
        table["ra"] = table["ra"].quantity.to(u.arcmin)
    row = catalogue.read(write(table, tmp_path / f"c{suffix}"), survey_name="x").to_pylist()[0]
    assert row["ra_deg"] == pytest.approx(37.5)
    assert row["dec_deg"] == pytest.approx(np.degrees(-0.5))
    assert row["sigma_v_km_s"] == pytest.approx(900.0)
    assert row["l_x_erg_s"] == pytest.approx(3e44)


def test_masked_and_sentinel_values_are_unknown(tmp_path):
    Table(
        {
            "id": ["a", "b", "c", "d"],
            "ra": [1.0, 2.0, 3.0, 4.0],
            "dec": [1.0, 2.0, 3.0, 4.0],
            "z": MaskedColumn([0.5, 0.5, np.inf, -99.0], mask=[False, True, False, False]),
            "richness": [0.0, np.nan, -5.0, 4.0],
            "ebv": [0.0, -1.0, np.nan, 0.1],
        }
    ).write(tmp_path / "c.ecsv", format="ascii.ecsv")
    table = catalogue.read(str(tmp_path / "c.ecsv"), survey_name="x")
    assert table.column("z_lens").to_pylist() == [0.5, None, None, None]
    assert table.column("richness").to_pylist() == [None, None, None, 4.0]
    assert table.column("ebv").to_pylist() == [0.0, None, None, 0.1]


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("z", 17.5, r"column 'z' is 17.5 in row 2 \(and 1 .*expected a redshift up to 10"),
        ("Z_LAMBDA", 99.0, "column 'Z_LAMBDA' is 99 in row 2"),
        ("L_X", 2.5, r"column 'L_X' is 2.5 in row 2.*expected 1e\+38 to 1e\+48 erg/s"),
        ("L_X", 44.3, "column 'L_X' is 44.3"),
        ("sigma_v", 9e5, "column 'sigma_v' is 900000 in row 2.*expected 1 to 10000 km/s"),
    ],
)
def test_another_quantity_or_unit_is_not_taken_for_ours(tmp_path, name, value, match):
    """A z magnitude, a placeholder, 10⁴⁴ erg/s without saying so, m/s."""
    path = tmp_path / "c.csv"
    columns = {"id": ["A", "B"], "ra": [1.0, 3.0], "dec": [2.0, 2.0], name: [-1.0, value]}
    Table(columns).write(path, format="ascii.csv")
    with pytest.raises(InputError, match=match) as caught:
        catalogue.read(str(path), survey_name="x")
    way_out = str(caught.value).partition("leave the column out with ")[2]
    ours = way_out.removeprefix("ingest.catalogue_columns.").partition(" =")[0]
    assert catalogue.read(str(path), survey_name="x", aliases={ours: ""}).num_rows == 2


def test_configured_columns(tmp_path):
    path = tmp_path / "c.csv"
    Table({"id": ["A"], "ra": [1.0], "dec": [2.0], "zz": [0.4], "z": ["?"]}).write(
        path, format="ascii.csv"
    )
    table = catalogue.read(str(path), survey_name="x", aliases={"z_lens": "zz"})
    assert table.column("z_lens").to_pylist() == [0.4]
    skipped = catalogue.read(str(path), survey_name="x", aliases={"z_lens": "", "object_id": ""})
    assert skipped.column("z_lens").to_pylist() == [None]
    assert skipped.column("object_id").to_pylist() == ["J000400.00+020000.0"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ra=st.floats(0, 359.9999, allow_nan=False),
    dec=st.floats(-89.999, 89.999, allow_nan=False),
)
@example(ra=10.5, dec=-0.0001)
@example(ra=359.99999, dec=59.99999)
def test_position_names_are_truncated_coordinates(tmp_path, ra, dec):
    path = tmp_path / "c.ecsv"
    Table({"ra": [ra], "dec": [dec]}).write(path, format="ascii.ecsv", overwrite=True)
    name = catalogue.read(str(path), survey_name="x").column("object_id").to_pylist()[0]
    assert len(name) == len("J000400.00+020000.0")
    there = SkyCoord(
        f"{name[1:3]}h{name[3:5]}m{name[5:10]}s {name[10:13]}d{name[13:15]}m{name[15:]}s"
    )
    cut_s = (ra - there.ra.deg) * 240
    cut_arcsec = (abs(dec) - abs(there.dec.deg)) * 3600
    assert -1e-5 < cut_s < 0.01 + 1e-5
    assert -1e-5 < cut_arcsec < 0.1 + 1e-5
    assert (name[10] == "-") == (dec < 0)


BAD = {
    "no position": ({"id": ["a"], "R.A.": [1.0]}, InputError, r"catalogue_columns\.ra_deg"),
    "no dec": ({"id": ["a"], "ra": [1.0], "decl": [1.0]}, InputError, "did you mean 'decl'"),
    "text in ra": (
        {"id": ["a", "b"], "ra": ["1.0", "12:30:00"], "dec": [1.0, 2.0]},
        InputError,
        "column 'ra' is '12:30:00' in row 2, expected a number",
    ),
    "text in z": (
        {"id": ["a", "b"], "ra": [1.0, 2.0], "dec": [1.0, 2.0], "zlens": ["0.3", "0.2?"]},
        InputError,
        r"column 'zlens' is '0\.2\?' in row 2.*catalogue_columns\.z_lens = \"\"",
    ),
    "ra out of range": ({"id": ["a"], "ra": [361.0], "dec": [0.0]}, InputError, "361° in row 1"),
    "negative ra": ({"id": ["a"], "ra": [-1.0], "dec": [0.0]}, InputError, "-1° in row 1"),
    "dec out of range": ({"id": ["a"], "ra": [1.0], "dec": [-91.0]}, InputError, "'dec' is -91°"),
    "nan": (
        {"id": ["a", "b"], "ra": [1.0, np.nan], "dec": [0.0, 0.0]},
        InputError,
        "'ra' is nan° in row 2",
    ),
    "duplicates": (
        {"id": ["a", "b", "a"], "ra": [1.0, 2.0, 3.0], "dec": [0.0, 0.0, 0.0]},
        ContractError,
        "1 ids in 'object_id' stand more than once .a.*catalogue_columns.object_id",
    ),
    "same position": (
        {"ra": [1.0, 1.0], "dec": [0.0, 0.0]},
        ContractError,
        r"J000400\.00\+000000\.0",
    ),
    "empty id": (
        {"id": ["a", " "], "ra": [1.0, 2.0], "dec": [0.0, 0.0]},
        InputError,
        "id column 'id' is empty in row 2",
    ),
    "vector": (
        {"id": ["a"], "ra": [[1.0, 2.0]], "dec": [0.0]},
        InputError,
        "'ra' holds 2 values per row",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_catalogues(tmp_path, case):
    columns, error, message = BAD[case]
    Table(columns).write(tmp_path / "c.fits", format="fits")
    with pytest.raises(error, match=message) as caught:
        catalogue.read(str(tmp_path / "c.fits"), survey_name="x")
    assert "c.fits" in str(caught.value)


def test_bad_units(tmp_path):
    Table({"id": ["a"], "ra": [1.0] * u.mag, "dec": [0.0]}).write(
        tmp_path / "c.ecsv", format="ascii.ecsv"
    )
    with pytest.raises(InputError, match="'ra' is in 'mag', which is not convertible to deg"):
        catalogue.read(str(tmp_path / "c.ecsv"), survey_name="x")


@pytest.mark.parametrize(
    ("aliases", "error", "message"),
    [
        ({"z_lense": "z"}, ConfigError, "did you mean 'z_lens'"),
        ({"z_lens": "ZED"}, InputError, r"z_lens = 'ZED'.*no such column"),
        ({"survey": "z"}, ConfigError, "unknown column 'survey'"),
    ],
)
def test_bad_aliases(tmp_path, aliases, error, message):
    path = write(redmapper_like(), tmp_path / "c.csv")
    with pytest.raises(error, match=message):
        catalogue.read(path, survey_name="x", aliases=aliases)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.csv", b"ra,dec\n", "no rows"),
        ("c.fits", b"SIMPLE  = nonsense", "not a whole FITS file"),
        ("c.vot", b"<html></html>", "not a readable votable table"),
        ("c.ecsv", b"ra dec\n1 2\n", "not a readable ascii.ecsv table"),
        ("c.pkl", b"", "cannot tell the format"),
    ],
)
def test_unreadable_tables(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        catalogue.read(str(tmp_path / name), survey_name="x")


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        catalogue.read(str(tmp_path / "none.fits"), survey_name="x")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(StorageError, match="not a readable Parquet"):
        catalogue.read(str(tmp_path / "c.parquet"), survey_name="x")


def test_parquet_nulls_are_unknown(tmp_path):
    pq.write_table(
        pa.table({"id": ["a", "b"], "ra": [1.0, 2.0], "dec": [1, 2], "z": [None, 0.2]}),
        tmp_path / "c.parquet",
    )
    table = catalogue.read(str(tmp_path / "c.parquet"), survey_name="x")
    assert table.column("z_lens").to_pylist() == [None, 0.2]


@pytest.mark.parametrize("suffix", [".csv", ".fits", ".parquet"])
def test_labels(tmp_path, suffix):
    table = Table(
        {
            "object_id": ["a", "b", "b"],
            "s": [1, -1, -1],
            "source": ["x", "y", "z"],
            "date": ["2026-04-01", "2026-04-02", ""],
            "grade": ["A", "", "B"],
        }
    )
    labels = catalogue.read_labels(write(table, tmp_path / f"l{suffix}"))
    assert labels.schema.equals(schema.LABELS, check_metadata=True)
    assert labels.column("s").to_pylist() == [1, -1, -1]
    assert labels.column("grade").to_pylist() == ["A", None, "B"]
    assert labels.column("date").to_pylist() == ["2026-04-01", "2026-04-02", ""]


def test_labels_defaults(tmp_path):
    (tmp_path / "l.csv").write_text("object_id,s\n007,1\n8,0\n")
    rows = catalogue.read_labels(str(tmp_path / "l.csv")).to_pylist()
    assert rows[1] == {"object_id": "8", "source": "unknown", "date": "", "s": 0, "grade": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("object_id,grade\na,A\n", "needs column 's'"),
        ("s\n1\n", "needs column 'object_id'"),
        ("object_id,s\na,2\n", "'s' is 2 in row 1"),
        ("object_id,s\na,1\nb,\n", "'s' is nan in row 2"),
        ("object_id,s\na,lens\n", "'s' is 'lens' in row 1"),
        ("object_id,s\na,1\na,-1\n", "'a' is labelled 1 and -1"),
        ("object_id,s,date\na,1,yesterday\n", "'yesterday' in row 1 is not a date"),
        ("object_id,s,date\na,1,20261231\n", "'20261231' in row 1 is not a date"),
        ("object_id,s,date\na,1,2026-W01-1\n", "'2026-W01-1' in row 1 is not a date"),
        ("object_id,s\n", "no rows"),
    ],
)
def test_bad_labels(tmp_path, text, message):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        catalogue.read_labels(str(tmp_path / "l.csv"))
