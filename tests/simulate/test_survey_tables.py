import numpy as np
import pytest
from astropy.table import Table
from pyarrow import csv

from clusterray import schema
from clusterray.errors import ConfigError
from clusterray.simulate.survey_tables import known_lenses, write_catalogue, write_labels


def test_known_lenses_are_drawn_at_random_by_id():
    ids = [str(k) for k in range(1, 201)]
    known = known_lenses(ids, n=20, seed=3)
    assert len(set(known)) == 20
    assert set(known) <= set(ids)
    assert known == sorted(known, key=int)
    assert known == known_lenses(ids[::-1], n=20, seed=3) != known_lenses(ids, n=20, seed=4)
    assert set(known) < set(known_lenses(ids, n=40, seed=3))
    assert known_lenses([], n=0, seed=1) == []


def test_more_known_lenses_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="n_known is 3, but this seed and recipe make 2 lenses"):
        known_lenses(["1", "2"], n=3, seed=1)


def test_the_catalogue_reads_back_under_redmappers_names(tmp_path):
    columns = {
        "z_lens": np.array([0.3, 0.4]),
        "richness": np.array([40.0, 90.0]),
        "sigma_v_km_s": np.array([np.nan, 900.0]),
        "l_x_erg_s": np.array([4e44, np.nan]),
    }
    path = tmp_path / "catalogue.fits"
    sky = np.array([[150.0, 2.0], [151.0, -3.0]])
    write_catalogue(str(path), ["1", "12"], sky, columns)
    table = Table.read(path)
    names = ["MEM_MATCH_ID", "RA", "DEC", "Z_LAMBDA", "LAMBDA", "SIGMA_V", "L_X"]
    assert table.colnames == names
    assert table["MEM_MATCH_ID"].tolist() == [1, 12]
    assert (table["RA"].unit, table["SIGMA_V"].unit) == ("deg", "km / s")
    assert np.ma.filled(table["L_X"], np.nan)[0] == 4e44
    assert np.isnan(np.ma.filled(table["L_X"], np.nan)[1])
    assert np.isnan(np.ma.filled(table["SIGMA_V"], np.nan)[0])
    again = tmp_path / "again.fits"
    write_catalogue(str(again), ["1", "12"], sky, columns)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("rows", [[("3", 1), ("3+off", -1)], []])
def test_labels_read_back(tmp_path, rows):
    path = tmp_path / "labels.csv"
    write_labels(str(path), rows, source="injected")
    options = csv.ConvertOptions(column_types=schema.LABELS, strings_can_be_null=True)
    table = csv.read_csv(path, convert_options=options)
    table = schema.check(table, schema.LABELS, where="labels")
    assert list(zip(*(table[c].to_pylist() for c in ("object_id", "s")), strict=True)) == rows
    assert table["grade"].to_pylist() == [{1: "A"}.get(s) for _, s in rows]
    assert set(table["source"].to_pylist()) <= {"injected"}
