import gzip
import pickle
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray.config import IngestSettings, SurveySettings
from clusterray.errors import ConfigError, InputError, StorageError
from clusterray.sky import astrometry, surveys, tiles
from tests.sky.sky_files import noise_image, tan_wcs, write_tile

SURVEY = surveys.resolve(SurveySettings(name="demo"))
SETTINGS = IngestSettings()


def scan(url, *, survey=SURVEY, settings=SETTINGS, **options):
    return tiles.scan(str(url), survey=survey, settings=settings, **options)


def extension(name: str, data: np.ndarray, *, wcs: bool = True, **cards) -> fits.ImageHDU:
    header = tan_wcs(data.shape[-1]).to_header() if wcs else fits.Header()
    for key, value in cards.items():
        header[key] = value
    return fits.ImageHDU(data, header, name=name)


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz", ".fits.fz", ".fit"])
def test_one_file_per_band(tmp_path, suffix):
    data = noise_image(40)
    data[3, 4] = np.nan
    url = write_tile(tmp_path / f"t{suffix}", data, FILTER="HSC-R", MAGZERO=30.0, PSF_FWHM=0.8)
    (plane,) = scan(url)
    assert (plane.band, plane.index, plane.shape, plane.rms_hdu) == ("r", None, (40, 40), None)
    assert plane.to_njy == pytest.approx(10**0.56)
    assert plane.psf_fwhm_arcsec == 0.8
    assert plane.depth_mag is None
    flux, sigma = plane.load()
    assert sigma is None
    assert flux.dtype == np.float32
    assert np.isnan(flux[3, 4])
    tolerance = 0.02 if suffix.endswith(".fz") else 1e-5
    np.testing.assert_allclose(flux, data * 10**0.56, atol=tolerance)


def test_a_plane_travels_small_and_whole(tmp_path):
    (plane,) = scan(write_tile(tmp_path / "t.fits", noise_image(40), FILTER="g"))
    packed = pickle.dumps(plane)
    assert len(packed) < 4096
    assert pickle.loads(packed) == plane
    wcs = astrometry.celestial(plane.wcs_header, where="test")
    np.testing.assert_allclose(wcs.pixel_scale_matrix, tan_wcs(40).wcs.cd, rtol=1e-12)


@pytest.mark.parametrize("squeeze", [False, True])
def test_cube(tmp_path, squeeze):
    cube = np.stack([noise_image(30, seed=k) for k in range(4)])
    cards = {"BANDS": "u g r i"} if squeeze else {f"BAND{k + 1}": b for k, b in enumerate("ugri")}
    url = write_tile(tmp_path / "c.fits", cube[None] if squeeze else cube, **cards)
    planes = scan(url)
    assert [(p.band, p.index) for p in planes] == [("g", 1), ("r", 2), ("i", 3)]
    for plane in planes:
        np.testing.assert_allclose(plane.load()[0], cube[plane.index], rtol=1e-6)


def test_cube_with_bands_from_config(tmp_path):
    url = write_tile(tmp_path / "field7_cube.fits", np.zeros((3, 30, 30), np.float32))
    settings_ = IngestSettings(tile_bands={"*_cube.fits": "i, r,g"})
    assert [p.band for p in scan(url, settings=settings_)] == ["i", "r", "g"]
    with pytest.raises(InputError, match=r"3 planes of shape .* band names \['i', 'r'\]"):
        scan(url, settings=IngestSettings(tile_bands={"*_cube.fits": "i,r"}))
    with pytest.raises(InputError, match=r"tile_bands.\"field7_cube.fits\" = \"g,r,i\""):
        scan(url)


def euclid_like(path: Path) -> str:
    rng = np.random.default_rng(5)
    hdus = [fits.PrimaryHDU()]
    for k, name in enumerate(("VIS", "NIR_Y", "NIR_J", "NIR_H")):
        rms = np.full((50, 50), 2.0, np.float32)
        rms[10, 11], rms[12, 13], rms[14, 15] = 1e16, np.nan, 0.0
        hdus += [
            extension(f"{name}_FLUX", rng.normal(size=(50, 50)), FILTER=name, MAGZERO=24.0 + k),
            extension(f"{name}_PSF", np.ones((21, 21)), FILTER=name, MAGZERO=24.0 + k),
            extension(f"{name}_RMS", rms, wcs=False),
        ]
    fits.HDUList(hdus).writeto(path)
    return str(path)


def test_many_extensions_take_no_psf_or_rms_for_an_image(tmp_path):
    planes = scan(euclid_like(tmp_path / "e.fits"), survey=surveys.PRESETS["euclid"])
    assert [(p.band, p.hdu, p.rms_hdu) for p in planes] == [
        ("VIS", 1, 3), ("Y", 4, 6), ("J", 7, 9), ("H", 10, 12),
    ]  # fmt: skip
    np.testing.assert_allclose(
        [p.to_njy for p in planes], [10 ** ((7.4 - k) / 2.5) for k in range(4)]
    )
    flux, sigma = planes[1].load()
    bad = {(10, 11), (12, 13), (14, 15)}
    assert {tuple(p) for p in np.argwhere(np.isnan(flux)).tolist()} == bad
    assert {tuple(p) for p in np.argwhere(np.isnan(sigma)).tolist()} == bad
    assert np.nanmax(sigma) == pytest.approx(2 * planes[1].to_njy)


@pytest.mark.parametrize("name", ["MASK", "VARIANCE", "g_WEIGHT", "g.psf", "ERR", "DQ"])
def test_other_planes_are_not_images(tmp_path, name):
    hdus = [
        fits.PrimaryHDU(),
        extension("SCI", np.ones((20, 20))),
        extension(name, np.ones((20, 20))),
    ]
    hdus[0].header["FILTER"] = "g"
    hdus[0].header["MAGZERO"] = 30.0
    fits.HDUList(hdus).writeto(tmp_path / "m.fits")
    assert [(p.hdu, p.band) for p in scan(tmp_path / "m.fits")] == [(1, "g")]


@pytest.mark.parametrize("name", ["t_g.weight.fits", "psf_g.fits", "t_g_rms.fits"])
def test_other_files_are_not_images(tmp_path, name):
    assert scan(write_tile(tmp_path / name, noise_image(20), FILTER="g")) == []


def test_band_order_of_authority(tmp_path):
    url = write_tile(tmp_path / "t_i.fits", noise_image(20), FILTER="g")
    assert scan(url)[0].band == "g"
    assert scan(url, settings=IngestSettings(tile_bands={"*_i.fits": "i"}))[0].band == "i"
    named = fits.HDUList([fits.PrimaryHDU(), extension("r", noise_image(20), MAGZERO=30.0)])
    named[0].header["FILTER"] = "g"
    named.writeto(tmp_path / "named.fits")
    assert scan(tmp_path / "named.fits")[0].band == "r"


def test_other_filters_are_passed_over(tmp_path):
    assert scan(write_tile(tmp_path / "t.fits", noise_image(20), FILTER="z.MP9801")) == []


@pytest.mark.parametrize(
    ("cards", "zero_points", "factor"),
    [
        ({"BUNIT": "nJy"}, {}, 1.0),
        ({"BUNIT": "uJy"}, {}, 1e3),
        ({"BUNIT": "mJy"}, {}, 1e6),
        ({"BUNIT": "Jy"}, {}, 1e9),
        ({"BUNIT": "10*nJy"}, {}, 10.0),
        ({"BUNIT": "nanomaggy"}, {}, 3631.0),
        ({"BUNIT": "nanomaggies", "MAGZERO": 22.5}, {}, 3631.0),
        ({"BUNIT": "MJy/sr"}, {}, 1e15 * (0.336 / 206264.806) ** 2),
        ({"BUNIT": "adu", "MAGZERO": 28.9}, {}, 10.0),
        ({"BUNIT": "electron/s", "MAGZPT": 26.4}, {}, 100.0),
        ({"BUNIT": "counts", "PHOT_ZP": 31.4}, {}, 1.0),
        ({"ZP": 28.9}, {"g": 26.4}, 10.0),
        ({"ABMAGZP": "28.9"}, {}, 10.0),
        ({}, {"g": 26.4}, 100.0),
    ],
)
def test_units_and_zero_points(tmp_path, cards, zero_points, factor):
    url = write_tile(tmp_path / "t.fits", noise_image(20), FILTER="g", **{"MAGZERO": None, **cards})
    (plane,) = scan(url, zero_points=zero_points)
    assert plane.to_njy == pytest.approx(factor, rel=1e-4)


def test_zero_point_of_the_survey_is_the_last_resort(tmp_path):
    url = write_tile(tmp_path / "t.fits", noise_image(20), FILTER="g", MAGZERO=None)
    with pytest.raises(InputError, match=r"unknown units.*set survey\.zero_point\.g"):
        scan(url)
    survey = surveys.resolve(SurveySettings(name="demo", zero_point={"g": 28.9}))
    assert scan(url, survey=survey)[0].to_njy == pytest.approx(10.0)
    assert scan(url, survey=survey, zero_points={"g": 31.4})[0].to_njy == pytest.approx(1.0)


@pytest.mark.parametrize("value", [-99.0, 0.0])
def test_a_placeholder_for_seeing_or_depth_is_the_surveys_value(tmp_path, value):
    url = write_tile(tmp_path / "t.fits", noise_image(20), FILTER="g", SEEING=value, DEPTH=value)
    assert scan(url)[0].psf_fwhm_arcsec is None
    preset = surveys.PRESETS["hsc"]
    (plane,) = scan(url, survey=preset)
    assert plane.psf_fwhm_arcsec == preset.band("g").psf_fwhm_arcsec
    assert plane.depth_mag == preset.band("g").depth_mag


def bad_wcs(**changes) -> WCS:
    wcs = tan_wcs(20)
    for key, value in changes.items():
        setattr(wcs.wcs, key, value)
    return wcs


@pytest.mark.parametrize(
    ("wcs", "cards", "message"),
    [
        (WCS(naxis=2), {"FILTER": "g"}, "no celestial WCS in the header"),
        (bad_wcs(cd=np.eye(2)), {"FILTER": "g"}, "3600″ per pixel, expected less than 60″"),
        (None, {"FILTER": "g", "CTYPE1": "RA---XYZ"}, "the WCS cannot be read"),
        (None, {}, r"the band is not known.*ingest\.tile_bands\.\"t\.fits\""),
        (None, {"FILTER": "clear"}, r"filter 'clear' is none of.*ingest\.tile_bands"),
        (None, {"FILTER": "g", "MAGZERO": "n/a"}, "'n/a' of one of MAGZERO.* is not a number"),
        (None, {"FILTER": "g", "MAGZERO": -99.0}, r"of band g is -99, expected 5 to 50 AB mag"),
        (None, {"FILTER": "g", "MAGZERO": 0.0}, r"of band g is 0, .*survey\.zero_point\.g"),
        (None, {"FILTER": "g", "MAGZERO": 99.0}, r"of band g is 99, expected"),
    ],
)
def test_bad_headers(tmp_path, wcs, cards, message):
    url = write_tile(tmp_path / "t.fits", noise_image(20), wcs, **cards)
    with pytest.raises(InputError, match=message) as caught:
        scan(url)
    assert "t.fits" in str(caught.value)


def test_ctype_without_a_scale_is_not_3600_arcsec(tmp_path):
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "FILTER": "g", "MAGZERO": 30})
    fits.PrimaryHDU(noise_image(20), header).writeto(tmp_path / "t.fits")
    with pytest.raises(InputError, match="3600″ per pixel"):
        scan(tmp_path / "t.fits")


def test_cd_holds_where_pc_stands_beside_it(tmp_path):
    url = write_tile(
        tmp_path / "t.fits", noise_image(20), FILTER="g",
        PC1_1=-1.0, PC2_2=1.0, CDELT1=0.5, CDELT2=0.5,
        CD1_1=-1e-4, CD1_2=0.0, CD2_1=0.0, CD2_2=1e-4,
    )  # fmt: skip
    (plane,) = scan(url)
    wcs = astrometry.celestial(plane.wcs_header, where="test")
    np.testing.assert_allclose(wcs.pixel_scale_matrix, [[-1e-4, 0], [0, 1e-4]], atol=1e-12)


def test_noise_map_of_another_shape(tmp_path):
    hdus = [fits.PrimaryHDU(), extension("g_FLUX", np.ones((20, 20)), MAGZERO=30.0),
            extension("g_RMS", np.ones((9, 20)))]  # fmt: skip
    fits.HDUList(hdus).writeto(tmp_path / "t.fits")
    with pytest.raises(
        InputError, match=r"noise map G_RMS is \(9, 20\), its image G_FLUX \(20, 20\)"
    ):
        scan(tmp_path / "t.fits")


def test_no_image_in_the_file(tmp_path):
    hdus = [fits.PrimaryHDU(), extension("MASK", np.ones((20, 20)))]
    fits.HDUList(hdus).writeto(tmp_path / "t.fits")
    with pytest.raises(InputError, match=r"t\.fits: no image plane in it; it has PRIMARY"):
        scan(tmp_path / "t.fits")


def test_tile_bands_must_be_bands_of_the_survey(tmp_path):
    url = write_tile(tmp_path / "t.fits", noise_image(20), FILTER="g")
    with pytest.raises(ConfigError, match="has no band 'q'"):
        scan(url, settings=IngestSettings(tile_bands={"t.fits": "q"}))


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz", ".fits.fz"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files(tmp_path, suffix, kept):
    whole = Path(write_tile(tmp_path / f"whole{suffix}", noise_image(200), FILTER="g")).read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InputError, match=r"cut\.fits.*(truncated|not a whole)"):
        scan(cut)


def test_truncated_inside_a_later_header(tmp_path):
    hdus = fits.HDUList([fits.PrimaryHDU(), *(extension(b, noise_image(20)) for b in "gri")])
    hdus.writeto(tmp_path / "whole.fits")
    start = fits.open(tmp_path / "whole.fits")[3].fileinfo()["hdrLoc"]
    cut = tmp_path / "cut.fits"
    cut.write_bytes((tmp_path / "whole.fits").read_bytes()[: start + 800])
    with pytest.raises(InputError, match=r"header of extension 3 is truncated or damaged"):
        scan(cut)


def test_truncated_after_the_scan(tmp_path):
    url = Path(write_tile(tmp_path / "t.fits", noise_image(200), FILTER="g"))
    (plane,) = scan(url)
    url.write_bytes(url.read_bytes()[:50_000])
    with pytest.raises(InputError, match="truncated"):
        plane.load()


def test_changed_after_the_scan(tmp_path):
    url = write_tile(tmp_path / "t.fits", noise_image(20), FILTER="g")
    (plane,) = scan(url)
    Path(url).unlink()
    with pytest.raises(StorageError, match="no such file"):
        plane.load()
    write_tile(tmp_path / "t.fits", noise_image(30), FILTER="g")
    with pytest.raises(InputError, match=r"is \(30, 30\), expected an image of \(20, 20\)"):
        plane.load()


def test_not_fits(tmp_path):
    (tmp_path / "t.fits").write_bytes(b"<html>not found</html>" * 200)
    with pytest.raises(InputError, match="not a whole FITS file"):
        scan(tmp_path / "t.fits")
    (tmp_path / "t.fits.gz").write_bytes(gzip.compress(b"text"))
    with pytest.raises(InputError, match="not a whole FITS file"):
        scan(tmp_path / "t.fits.gz")


def test_find(tmp_path):
    for name in ("a/t_g.fits", "a/b/t_r.fits.fz", "a/t_i.fit", "a/notes.txt", "a/t_z.fits.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    folder = str(tmp_path / "a")
    everything = [f"{folder}/{n}" for n in ("b/t_r.fits.fz", "t_g.fits", "t_i.fit", "t_z.fits.gz")]
    assert tiles.find([folder]) == everything
    assert tiles.find([folder, f"{folder}/t_g.fits"]) == everything
    assert tiles.find([f"{folder}/t_*"]) == everything[1:]
    assert tiles.find([f"file://{folder}"]) == [f"file://{p}" for p in everything]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a/none", "no FITS file at '.*a/none'"),
        ("a/*.fts", r"no FITS file at '.*a/\*\.fts'"),
        ("a/notes.txt", "not named like a FITS file"),
    ],
)
def test_find_nothing(tmp_path, pattern, message):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.txt").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        tiles.find([str(tmp_path / pattern)])
    with pytest.raises(ConfigError, match=r"paths\.tiles is empty"):
        tiles.find([])


@settings(max_examples=60, deadline=None)
@given(
    dec_deg=st.floats(-89, 89),
    ra_deg=st.floats(0, 359.99),
    x=st.floats(-80, 180),
    y=st.floats(-80, 180),
    rotation_deg=st.floats(0, 90),
)
def test_reaches_never_misses(dec_deg, ra_deg, x, y, rotation_deg):
    wcs = tan_wcs(100, rotation_deg=rotation_deg, ra_deg=ra_deg, dec_deg=dec_deg)
    shape = (100, 100)
    plane = tiles.Plane(
        url="t", hdu=0, index=None, band="g", wcs_header="", shape=shape, to_njy=1.0, rms_hdu=None,
        corners_deg=astrometry.corners(wcs, shape),
    )  # fmt: skip
    position = SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg")
    near = wcs.all_pix2world(np.clip(x, -0.5, 99.5), np.clip(y, -0.5, 99.5), 0)
    distance = position.separation(SkyCoord(*near, unit="deg")).to_value(u.arcsec)
    assert plane.reaches(position.ra.deg, position.dec.deg, radius_arcsec=distance + 1e-3)[0]
    assert not plane.reaches(position.ra.deg, -position.dec.deg - 1.0, radius_arcsec=10.0)[0] or (
        abs(2 * dec_deg + 1.0) < 0.1
    )
