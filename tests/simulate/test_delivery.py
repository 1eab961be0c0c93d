import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.stats import mad_std
from astropy.table import Table
from astropy.wcs import WCS
from astropy_healpix import HEALPix
from pyarrow import csv

from clusterray import schema
from clusterray.config import SimulateSettings
from clusterray.errors import ConfigError, RunError
from clusterray.simulate import delivery

SEED = 5
SMALL = SimulateSettings(n_clusters=6, n_lenses=2, n_known=1, clusters_per_tile=4)


def bytes_under(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def blank_noise(image, side=24):
    """Noise of the emptier blocks of an image, where hardly a galaxy adds to it."""
    rows, columns = (n // side for n in image.shape)
    blocks = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.quantile(mad_std(blocks, axis=(1, 3)), 0.2)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    specs = delivery.plan(SMALL, seed=SEED)
    outcomes = [
        delivery.render_tile(s, settings=SMALL, seed=SEED, out_url=str(root / "survey" / "tiles"))
        for s in specs
    ]
    summary = delivery.finish(
        outcomes,
        settings=SMALL,
        seed=SEED,
        survey_url=str(root / "survey"),
        truth_url=str(root / "apart" / "truth.parquet"),
    )
    return root, specs, outcomes, summary


def test_tiles_say_what_a_survey_says(survey):
    root, specs, outcomes, _ = survey
    assert [o.files for o in outcomes] == [
        tuple(f"{s.name}_{b}.fits" for b in "gri") for s in specs
    ]
    for spec in specs:
        for exposure in spec.exposures:
            path = root / "survey" / "tiles" / f"{spec.name}_{exposure.band}.fits"
            with fits.open(path) as hdus:
                image, header = hdus[0].data, hdus[0].header
            assert image.shape == spec.shape_px
            assert image.dtype.newbyteorder("=") == np.float32
            assert np.isfinite(image).all()
            assert header["FILTER"] == exposure.band
            assert header["BUNIT"] == "adu"
            assert header["MAGZERO"] == exposure.zero_point != 31.4
            assert 0.6 < header["PSF_FWHM"] < 1.15
            assert "DATE" not in header
            wcs = WCS(header)
            assert list(wcs.wcs.ctype) == ["RA---TAN", "DEC--TAN"]
            scale = np.sqrt(np.abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600
            assert scale == pytest.approx(0.336)
            assert np.linalg.det(wcs.pixel_scale_matrix) < 0, "north up has east on the left"
            assert blank_noise(image) == pytest.approx(exposure.sigma(0.336), rel=0.1)


def test_conditions_differ_between_tiles_and_bands(survey):
    widths = [e.psf_fwhm_arcsec for s in survey[1] for e in s.exposures]
    assert len(set(widths)) == len(widths)
    assert len({s.rotation_deg for s in survey[1]}) == len(survey[1])


def test_the_catalogue_points_at_the_central_galaxies(survey):
    root, specs, outcomes, _ = survey
    table = Table.read(root / "survey" / "catalogue.fits")
    assert table.colnames == ["MEM_MATCH_ID", "RA", "DEC", "LAMBDA", "Z_LAMBDA"]
    assert list(table["MEM_MATCH_ID"]) == [1, 2, 3, 4, 5, 6]
    y, x = np.mgrid[-2:3, -2:3]
    for spec, outcome in zip(specs, outcomes, strict=True):
        path = root / "survey" / "tiles" / f"{spec.name}_i.fits"
        image, wcs = fits.getdata(path), WCS(fits.getheader(path))
        for cluster in outcome.clusters:
            row = table[int(cluster.object_id) - 1]
            assert (row["RA"], row["DEC"]) == (cluster.ra_deg, cluster.dec_deg)
            at = SkyCoord(row["RA"], row["DEC"], unit="deg")
            px, py = (float(v) for v in wcs.world_to_pixel(at))
            box = image[round(py) - 2 : round(py) + 3, round(px) - 2 : round(px) + 3]
            cx, cy = ((box * g).sum() / box.sum() for g in (x, y))
            assert abs(cx - (px - round(px))) < 0.6
            assert abs(cy - (py - round(py))) < 0.6


def test_labels_are_known_lenses_only_and_truth_lies_apart(survey):
    root, _, _, summary = survey
    labels = schema.check(
        csv.read_csv(
            root / "survey" / "labels.csv",
            convert_options=csv.ConvertOptions(column_types=schema.LABELS),
        ),
        schema.LABELS,
        where="labels",
    )
    truth = schema.check(
        pq.read_table(root / "apart" / "truth.parquet"), schema.TRUTH, where="truth"
    )
    rows = {r["object_id"]: r for r in truth.to_pylist()}
    assert sorted(rows) == ["1", "2", "3", "4", "5", "6"]
    assert sum(r["y"] == 1 for r in rows.values()) == 2
    known = labels.column("object_id").to_pylist()
    assert len(known) == 1
    assert labels.column("s").to_pylist() == [1]
    assert all(rows[i]["y"] == 1 and rows[i]["n_multiply_imaged"] >= 2 for i in known)
    files = {p.name for p in (root / "survey").rglob("*") if p.is_file()}
    assert files == {
        "catalogue.fits",
        "labels.csv",
        *(f"T00{t}_{b}.fits" for t in "01" for b in "gri"),
    }
    assert summary["kinds"]["lens"] == 2
    assert sum(summary["draws"].values()) >= 6


def test_the_bytes_do_not_depend_on_order_or_place(survey, tmp_path):
    root, _, outcomes, _ = survey
    again = [
        delivery.render_tile(s, settings=SMALL, seed=SEED, out_url=str(tmp_path / "tiles"))
        for s in reversed(delivery.plan(SMALL, seed=SEED))
    ]
    delivery.finish(
        again,
        settings=SMALL,
        seed=SEED,
        survey_url=str(tmp_path / "tables"),
        truth_url=str(tmp_path / "tables" / "truth.parquet"),
    )
    assert again[::-1] == outcomes
    assert bytes_under(tmp_path / "tiles") == bytes_under(root / "survey" / "tiles")
    tables = bytes_under(tmp_path / "tables")
    assert tables["catalogue.fits"] == (root / "survey" / "catalogue.fits").read_bytes()
    assert tables["labels.csv"] == (root / "survey" / "labels.csv").read_bytes()
    assert tables["truth.parquet"] == (root / "apart" / "truth.parquet").read_bytes()


def test_an_outcome_survives_json(survey):
    for outcome in survey[2]:
        again = delivery.TileOutcome.from_json(json.loads(json.dumps(outcome.to_json())))
        assert again == outcome


def test_pointings_keep_apart_and_in_cells_of_their_own():
    settings = SimulateSettings(n_clusters=3000, n_lenses=100, clusters_per_tile=30)
    specs = delivery.plan(settings, seed=SEED)
    sky = SkyCoord([s.ra_deg for s in specs], [s.dec_deg for s in specs], unit="deg")
    nearest = sky.match_to_catalog_sky(sky, nthneighbor=2)[1]
    assert nearest.deg.min() > 1.5
    assert np.abs(sky.dec.deg).max() <= 50
    healpix = HEALPix(nside=64, order="nested")
    cells = healpix.lonlat_to_healpix(sky.ra, sky.dec)
    assert len(set(cells)) == len(specs) == 100
    for corner in range(4):
        reach = np.hypot(*specs[0].shape_px) * 0.336 / 2 * u.arcsec
        edge = sky.directional_offset_by((45 + 90 * corner) * u.deg, reach)
        assert (healpix.lonlat_to_healpix(edge.ra, edge.dec) == cells).all()
    assert sorted(i for s in specs for i in s.index) == list(range(3000))
    assert sum(s.kind.count("lens") for s in specs) == 100


def test_clusters_keep_apart_and_off_the_edge():
    for spec in delivery.plan(SimulateSettings(), seed=SEED):
        x, y = np.array(spec.x_arcsec), np.array(spec.y_arcsec)
        distance = np.hypot(x[:, None] - x, y[:, None] - y)
        assert distance[~np.eye(len(x), dtype=bool)].min() >= 72
        # A 64″ cutout, north up on a tile turned by 5°.
        margin = 32 * (np.cos(np.radians(5)) + np.sin(np.radians(5)))
        assert min(x.min(), y.min()) > margin
        assert x.max() < spec.shape_px[1] * 0.336 - margin
        assert y.max() < spec.shape_px[0] * 0.336 - margin


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_scale_arcsec": 2.0}, "pixel_scale_arcsec is 2.0, expected 0.05 to 0.75"),
        ({"pixel_scale_arcsec": 0.01}, "pixel_scale_arcsec is 0.01"),
        ({"clusters_per_tile": 500}, "clusters_per_tile is 500, expected at most 400"),
        ({"n_clusters": 50, "n_lenses": 40}, "n_lenses 40 of n_clusters 50"),
        (
            {"n_clusters": 200_000, "clusters_per_tile": 10},
            "20000 tiles are needed but \\d+ fit on the sky",
        ),
    ],
)
def test_impossible_settings_fail_before_any_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        delivery.plan(SimulateSettings(**changes), seed=SEED)


def test_missing_or_repeated_tiles_are_refused(survey, tmp_path):
    outcomes = survey[2]
    places = {"survey_url": str(tmp_path), "truth_url": str(tmp_path / "truth.parquet")}
    for bad in (outcomes[:1], [*outcomes, outcomes[0]]):
        with pytest.raises(RunError, match=f"{4 if len(bad) == 1 else 10} systems on the tiles"):
            delivery.finish(bad, settings=SMALL, seed=SEED, **places)
    assert not list(tmp_path.iterdir())


def test_a_survey_without_lenses_has_no_labels(tmp_path):
    settings = SimulateSettings(n_clusters=1, n_lenses=0, n_known=0, clusters_per_tile=1)
    (spec,) = delivery.plan(settings, seed=SEED)
    tile = delivery.render_tile(spec, settings=settings, seed=SEED, out_url=str(tmp_path))
    places = {"survey_url": str(tmp_path), "truth_url": str(tmp_path / "truth.parquet")}
    summary = delivery.finish([tile], settings=settings, seed=SEED, **places)
    assert summary["known"] == 0
    assert (tmp_path / "labels.csv").read_text().splitlines() == [
        '"object_id","source","date","s","grade"'
    ]
