"""Real tiles and catalogues, found through CLUSTERRAY_REAL_DATA."""

import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from clusterray.config import IngestSettings, SurveySettings
from clusterray.errors import ContractError, InputError
from clusterray.sky import catalogue, cutouts, surveys, tiles
from tests.sky.sky_files import objects_at

SETTINGS = IngestSettings()
LENS = (215.53862, 52.78123)


@pytest.fixture(scope="module")
def real() -> Path:
    folder = os.environ.get("CLUSTERRAY_REAL_DATA")
    if not folder:
        pytest.skip("CLUSTERRAY_REAL_DATA is not set")
    return Path(folder)


def cfhtls(real, settings=SETTINGS):
    survey = surveys.resolve(SurveySettings(name="demo"))
    urls = tiles.find([str(real / "cfhtls")])
    return survey, [p for u in urls for p in tiles.scan(u, survey=survey, settings=settings)]


def test_cfhtls_lens_stands_in_the_middle_of_its_cutout(real):
    survey, planes = cfhtls(real)
    assert sorted(p.band for p in planes) == ["g", "i", "r"]
    np.testing.assert_allclose([p.to_njy for p in planes], 10**0.56)
    result = cutouts.extract(objects_at(LENS), planes, survey=survey, settings=SETTINGS)
    assert result.cutouts_nchw.shape == (1, 3, 128, 128)
    assert (result.coverage == 1).all()
    y, x = np.mgrid[:128, :128] - 63.5
    near = np.hypot(x, y) * 0.5 < 2
    for image in result.cutouts_nchw[0]:
        light = np.where(near, image, 0)
        assert np.hypot((light * x).sum(), (light * y).sum()) / light.sum() < 1


def test_cfhtls_flux_agrees_with_the_tile(real):
    survey, planes = cfhtls(real)
    result = cutouts.extract(objects_at(LENS), planes, survey=survey, settings=SETTINGS)
    for plane in planes:
        data, header = fits.getdata(plane.url, header=True)
        x0, y0 = WCS(header).all_world2pix(*LENS, 0)
        y, x = np.indices(data.shape)
        there = data[np.hypot(x - x0, y - y0) * 0.186 < 5].sum() * 10**0.56
        y, x = np.mgrid[:128, :128] - 63.5
        image = result.cutouts_nchw[0, survey.band_names.index(plane.band)]
        # The rims of the two apertures differ by parts of a pixel.
        assert image[np.hypot(x, y) * 0.5 < 5].sum() == pytest.approx(there, rel=0.02)


def test_cfhtls_forty_positions(real):
    survey, planes = cfhtls(real)
    rng = np.random.default_rng(40)
    offsets = rng.uniform(-0.03, 0.03, (39, 2))
    positions = [LENS, *((LENS[0] + a / 0.6, LENS[1] + d) for a, d in offsets)]
    result = cutouts.extract(objects_at(*positions), planes, survey=survey, settings=SETTINGS)
    assert result.objects.num_rows + result.rejects.num_rows == 40
    assert result.objects.column("object_id")[0].as_py() == "a"
    assert 5 < result.rejects.num_rows < 35
    reasons = set(result.rejects.column("reason").to_pylist())
    assert any(r == "outside all tiles" for r in reasons)
    assert all(r == "outside all tiles" or "below ingest.min_coverage 0.5" in r for r in reasons)
    assert (result.noise_sigma > 0).all()


def test_euclid_bands_zero_points_and_no_psf_or_rms(real):
    url = str(real / "euclid" / "example.fits")
    survey = surveys.resolve(SurveySettings(name="euclid", size_px=128))
    planes = tiles.scan(url, survey=survey, settings=SETTINGS)
    assert [(p.band, p.hdu, p.rms_hdu) for p in planes] == [
        ("VIS", 1, 3), ("Y", 4, 6), ("J", 7, 9), ("H", 10, 12),
    ]  # fmt: skip
    zero_points = [31.4 - 2.5 * np.log10(p.to_njy) for p in planes]
    np.testing.assert_allclose(zero_points, [24.6, 29.8, 30.0, 29.9], atol=1e-6)
    result = cutouts.extract(
        objects_at((63.58724, -49.68418)), planes, survey=survey, settings=SETTINGS
    )
    assert result.bands == ("VIS", "Y", "J", "H")
    assert result.cutouts_nchw.shape == (1, 4, 128, 128)
    assert (result.coverage == 1).all()
    rms = [fits.getdata(url, p.rms_hdu) for p in planes]
    per_pixel = np.array([np.median(r) * p.to_njy for r, p in zip(rms, planes, strict=True)])
    # Output pixels hold 4 of the tile's; the RMS describes pixels before Euclid's own resampling.
    ratio = result.noise_sigma[0] / per_pixel
    assert ((ratio > 0.5) & (ratio < 2.2)).all()


def test_vics82_band_by_config_and_missing_pixels(real):
    survey = surveys.resolve(
        SurveySettings(
            name="vics82",
            bands=("i", "J", "Ks"),
            pixel_scale_arcsec=0.2016,
            size_px=374,
            zero_point={"i": 30.0, "J": 30.0, "Ks": 30.0},
        )
    )
    urls = tiles.find([str(real / "vics82" / "*.fits")])
    with pytest.raises(InputError, match=r"band is not known.*ingest\.tile_bands"):
        tiles.scan(urls[0], survey=survey, settings=SETTINGS)
    by_name = IngestSettings(tile_bands={"*_i.fits": "i", "*_J.fits": "J", "*_Ks.fits": "Ks"})
    planes = [p for u in urls for p in tiles.scan(u, survey=survey, settings=by_name)]
    assert sorted(p.band for p in planes) == ["J", "Ks", "i"]
    result = cutouts.extract(
        objects_at((355.941527, 0.270982)), planes, survey=survey, settings=SETTINGS
    )
    # The grid is the tile's own, so its NaN pixels can be told one by one.
    for plane in planes:
        tile = fits.getdata(plane.url)
        image = result.cutouts_nchw[0, result.bands.index(plane.band)]
        np.testing.assert_array_equal(np.isnan(image), np.isnan(tile))
        assert np.isnan(tile).any() == (plane.band != "i")
        np.testing.assert_allclose(image, tile * plane.to_njy, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(
        result.coverage[0], 1 - np.isnan(result.cutouts_nchw[0]).mean(axis=(1, 2)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "rows"), [("test_zlamcal_cat", 412), ("redmagic_test_catalog", 6)]
)
def test_redmapper_catalogues(real, name, rows):
    url = str(real / "redmapper" / f"{name}.fit")
    table = catalogue.read(url, survey_name="sdss")
    data = fits.getdata(url)
    richness = "LAMBDA" if "LAMBDA" in data.names else "LAMBDA_CHISQ"
    assert table.num_rows == rows
    assert table.column("object_id").to_pylist() == [str(i) for i in data["MEM_MATCH_ID"]]
    np.testing.assert_array_equal(table.column("ra_deg"), data["RA"])
    np.testing.assert_array_equal(table.column("richness"), data[richness].astype(float))
    np.testing.assert_array_equal(table.column("z_lens"), data["Z_LAMBDA"].astype(float))


def test_redmapper_members_are_no_cluster_catalogue(real):
    url = str(real / "redmapper" / "test_cluster_members.fit")
    with pytest.raises(ContractError, match=r"stand more than once \(17551\)"):
        catalogue.read(url, survey_name="sdss")


def test_lenscat_says_how_to_read_it(real, tmp_path):
    url = str(real / "lenscat" / "catalog.csv")
    with pytest.raises(
        InputError, match=r"'zlens' is '-' in row 1.*catalogue_columns\.z_lens = \"\""
    ):
        catalogue.read(url, survey_name="lenscat")
    with pytest.raises(ContractError, match=r"catalogue_columns\.object_id = \"\""):
        catalogue.read(url, survey_name="lenscat", aliases={"z_lens": ""})
    clusters = tmp_path / "clusters.csv"
    head, *lines = (real / "lenscat" / "catalog.csv").read_text().splitlines()
    kept = {tuple(x.split(",")[1:3]): x for x in lines if ",cluster," in x}
    clusters.write_text("\n".join([head, *kept.values()]) + "\n")
    table = catalogue.read(
        str(clusters), survey_name="lenscat", aliases={"z_lens": "", "object_id": ""}
    )
    assert table.num_rows == len(kept) > 900
    assert table.column("z_lens").null_count == table.num_rows
