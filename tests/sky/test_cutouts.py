from collections import Counter

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, Sip
from hypothesis import given, settings
from hypothesis import strategies as st
from reproject import reproject_exact

from clusterray import schema
from clusterray.config import IngestSettings, SurveySettings
from clusterray.errors import ContractError, InputError
from clusterray.sky import astrometry, cutouts, resample, surveys, tiles
from tests.sky.sky_files import (
    DEC_DEG,
    RA_DEG,
    gaussian,
    noise_image,
    objects_at,
    tan_wcs,
    write_tile,
)

SETTINGS = IngestSettings()
SIZE, SCALE = 64, 0.5


def survey(*bands: str, size_px: int = SIZE, scale_arcsec: float = SCALE):
    return surveys.resolve(
        SurveySettings(
            name="demo", bands=bands or ("g",), size_px=size_px, pixel_scale_arcsec=scale_arcsec
        )
    )


def planes_of(urls, survey_):
    return [p for u in urls for p in tiles.scan(str(u), survey=survey_, settings=SETTINGS)]


def cut(urls, table, *bands, settings_=SETTINGS, **grid):
    survey_ = survey(*bands, **grid)
    return cutouts.extract(table, planes_of(urls, survey_), survey=survey_, settings=settings_)


def centroid(image, *, radius_px=8.0):
    """x and y relative to the middle of the image."""
    n = image.shape[0]
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    w = np.where(np.hypot(x, y) < radius_px, image, 0.0)
    return (w * x).sum() / w.sum(), (w * y).sum() / w.sum()


def tile_with_source(path, wcs, size_px, position, *, fwhm_arcsec=0.9, flux=1e5, **cards):
    """Faint noise and a Gaussian source whose pixel follows from the full WCS."""
    x, y = wcs.all_world2pix(*position, 0)
    scale = np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600
    data = flux * gaussian((size_px, size_px), float(x), float(y), fwhm_arcsec / 2.3548 / scale)
    data += noise_image(size_px, sigma=0.1)
    return write_tile(path, data.astype(np.float32), wcs, FILTER="g", **cards)


@pytest.mark.parametrize("native", [0.1, 0.186, 0.263, 0.336, 0.5, 0.7])
def test_flux_is_kept_at_every_scale(tmp_path, native):
    size = int(48 / native)
    position = (RA_DEG + 0.0007, DEC_DEG - 0.0004)
    url = tile_with_source(
        tmp_path / "t.fits", tan_wcs(size, scale_arcsec=native), size, position, MAGZERO=30.0
    )
    result = cut([url], objects_at(position))
    image = result.cutouts_nchw[0, 0]
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    assert image[np.hypot(x, y) < 12].sum() == pytest.approx(1e5 * 10**0.56, rel=1e-3)
    np.testing.assert_allclose(centroid(image), (0, 0), atol=0.02)


@pytest.mark.parametrize("rotation_deg", [0.0, 33.0, 180.0])
def test_agrees_with_reproject_exact(tmp_path, rotation_deg):
    wcs = tan_wcs(150, rotation_deg=rotation_deg)
    data = noise_image(150, sigma=5.0)
    url = write_tile(tmp_path / "t.fits", data, wcs, FILTER="g")
    position = (RA_DEG + 0.001, DEC_DEG)
    image = cut([url], objects_at(position)).cutouts_nchw[0, 0]
    grid = astrometry.cutout_wcs(*position, pixel_scale_arcsec=SCALE, size_px=SIZE)
    expected, _ = reproject_exact((data, wcs), grid, shape_out=(SIZE, SIZE), parallel=False)
    np.testing.assert_allclose(image, expected * (SCALE / 0.336) ** 2, atol=1e-3 * 5.0)


def test_grid_agrees_with_astropy_offsets():
    grid = astrometry.cutout_wcs(359.9, 70.0, pixel_scale_arcsec=0.336, size_px=224)
    there = SkyCoord(359.9 * u.deg, 70 * u.deg).spherical_offsets_by(-20 * u.arcsec, 30 * u.arcsec)
    x, y = grid.world_to_pixel(there)
    assert (x - 111.5) * 0.336 == pytest.approx(20, abs=1e-3)
    assert (y - 111.5) * 0.336 == pytest.approx(30, abs=1e-3)


def sip_wcs(size):
    wcs = tan_wcs(size)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    a, b = np.zeros((3, 3)), np.zeros((3, 3))
    a[2, 0], a[1, 1], b[0, 2], b[1, 1] = 2e-4, -1e-4, 3e-4, 5e-5
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def tpv_wcs(size):
    header = tan_wcs(size).to_header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    for axis in (1, 2):
        header[f"PV{axis}_1"] = 1.0
        header[f"PV{axis}_4"] = 3.0
    return WCS(header)


@pytest.mark.parametrize("make", [sip_wcs, tpv_wcs])
def test_distortions_are_honoured(tmp_path, make):
    wcs = make(300)
    pixel = (268.0, 41.0)
    position = tuple(float(v) for v in wcs.all_pix2world(*pixel, 0))
    undistorted = (
        wcs.wcs_world2pix(*position, 0)
        if make is sip_wcs
        else tan_wcs(300).wcs_world2pix(*position, 0)
    )
    assert np.hypot(*(np.array(undistorted) - pixel)) > 2
    scale = 0.336
    data = 1e5 * gaussian((300, 300), *pixel, 0.9 / 2.3548 / scale) + noise_image(300, sigma=0.1)
    url = write_tile(tmp_path / "t.fits", data.astype(np.float32), wcs, FILTER="g")
    image = cut(
        [url], objects_at(position), settings_=IngestSettings(min_coverage=0.2)
    ).cutouts_nchw
    np.testing.assert_allclose(centroid(np.nan_to_num(image[0, 0])), (0, 0), atol=0.05)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    flux = image[0, 0][np.hypot(x, y) < 10].sum()
    assert flux == pytest.approx(1e5, rel=5e-3)


@pytest.mark.parametrize("frame", ["fk5", "fk4", "galactic"])
def test_other_frames(tmp_path, frame):
    position = SkyCoord(RA_DEG, DEC_DEG, unit="deg")
    there = position.transform_to(frame).spherical
    names = ("GLON-TAN", "GLAT-TAN") if frame == "galactic" else ("RA---TAN", "DEC--TAN")
    wcs = tan_wcs(200, ra_deg=there.lon.deg, dec_deg=there.lat.deg)
    wcs.wcs.ctype = list(names)
    wcs.wcs.radesys = "" if frame == "galactic" else frame.upper()
    if frame == "fk4":
        wcs.wcs.equinox = 1950.0
    wcs.wcs.set()
    url = tile_with_source(tmp_path / "t.fits", wcs, 200, (there.lon.deg, there.lat.deg))
    image = cut([url], objects_at((RA_DEG, DEC_DEG))).cutouts_nchw[0, 0]
    np.testing.assert_allclose(centroid(image), (0, 0), atol=0.05)


def test_declination_first(tmp_path):
    wcs = tan_wcs(200)
    wcs.wcs.ctype = ["DEC--TAN", "RA---TAN"]
    wcs.wcs.crval = [DEC_DEG, RA_DEG]
    wcs.wcs.cd = wcs.wcs.cd[::-1]
    wcs.wcs.set()
    x, y = wcs.all_world2pix(DEC_DEG, RA_DEG, 0)
    data = 1e5 * gaussian((200, 200), float(x), float(y), 1.2) + noise_image(200, sigma=0.1)
    url = write_tile(tmp_path / "t.fits", data.astype(np.float32), wcs, FILTER="g")
    image = cut([url], objects_at((RA_DEG, DEC_DEG))).cutouts_nchw[0, 0]
    np.testing.assert_allclose(centroid(image), (0, 0), atol=0.05)


def test_north_is_up_and_east_left(tmp_path):
    neighbour = SkyCoord(RA_DEG, DEC_DEG, unit="deg").spherical_offsets_by(
        6 * u.arcsec, 4 * u.arcsec
    )
    wcs = tan_wcs(200, rotation_deg=140.0)
    url = tile_with_source(tmp_path / "t.fits", wcs, 200, (neighbour.ra.deg, neighbour.dec.deg))
    image = cut([url], objects_at((RA_DEG, DEC_DEG))).cutouts_nchw[0, 0]
    x, y = centroid(image, radius_px=30)
    np.testing.assert_allclose((x, y), (-6 / SCALE, 4 / SCALE), atol=0.05)


def test_positions_near_the_pole_and_across_zero(tmp_path):
    for k, (ra, dec) in enumerate([(0.001, 10.0), (200.0, 89.99)]):
        wcs = tan_wcs(600, ra_deg=359.999 if k == 0 else 20.0, dec_deg=dec)
        url = tile_with_source(tmp_path / f"t{k}.fits", wcs, 600, (ra, dec))
        result = cut([url], objects_at((ra, dec)))
        np.testing.assert_allclose(centroid(result.cutouts_nchw[0, 0]), (0, 0), atol=0.05)


def test_two_half_tiles_make_one(tmp_path):
    wcs = tan_wcs(200)
    data = noise_image(200, sigma=3.0)
    whole = write_tile(tmp_path / "whole.fits", data, wcs, FILTER="g")
    right = wcs.deepcopy()
    right.wcs.crpix = [wcs.wcs.crpix[0] - 90, wcs.wcs.crpix[1]]
    halves = [
        write_tile(tmp_path / "left.fits", data[:, :110], wcs, FILTER="g"),
        write_tile(tmp_path / "right.fits", data[:, 90:], right, FILTER="g"),
    ]
    table = objects_at((RA_DEG, DEC_DEG))
    one, two = cut([whole], table), cut(halves, table)
    # Only the pixels that the two seams cross may differ: they are means of partial views.
    differs = np.abs(two.cutouts_nchw - one.cutouts_nchw)[0, 0] > 1e-4
    assert differs.any(axis=0).mean() < 0.4
    assert differs.mean() < 0.04
    assert two.coverage[0, 0] == 1.0
    alone = cut(halves[:1], table)
    assert 0.5 < alone.coverage[0, 0] < 0.75


def test_tiles_that_overlap_give_the_mean_where_both_have_data(tmp_path):
    a, b = noise_image(200, seed=1), noise_image(200, seed=2)
    b[:100] = np.nan
    wcs = tan_wcs(200, rotation_deg=0.0)
    urls = [write_tile(tmp_path / f"{k}.fits", d, wcs, FILTER="g") for k, d in enumerate((a, b))]
    table = objects_at((RA_DEG, DEC_DEG))
    only_a = cut(urls[:1], table).cutouts_nchw[0, 0]
    only_b = cut(urls[1:], table, settings_=IngestSettings(min_coverage=0.3)).cutouts_nchw[0, 0]
    both = cut(urls, table).cutouts_nchw[0, 0]
    np.testing.assert_allclose(both[:31], only_a[:31], atol=1e-5)
    np.testing.assert_allclose(both[33:], (only_a[33:] + only_b[33:]) / 2, atol=1e-5)


def test_the_order_of_tiles_does_not_matter(tmp_path):
    urls = [
        write_tile(tmp_path / f"{k}.fits", noise_image(200, seed=k), tan_wcs(200, rotation_deg=k),
                   FILTER="g", PSF_FWHM=0.6 + 0.1 * k)
        for k in range(3)
    ]  # fmt: skip
    survey_ = survey()
    planes = planes_of(urls, survey_)
    results = [
        cutouts.extract(objects_at((RA_DEG, DEC_DEG)), p, survey=survey_, settings=SETTINGS)
        for p in (planes, planes[::-1])
    ]
    np.testing.assert_array_equal(results[0].cutouts_nchw, results[1].cutouts_nchw)
    assert results[0].psf_fwhm_arcsec[0, 0] == pytest.approx(0.7)


def test_every_tile_is_opened_once_and_only_if_needed(tmp_path, monkeypatch):
    near = write_tile(tmp_path / "near.fits", noise_image(400), FILTER="g")
    far = write_tile(
        tmp_path / "far.fits", noise_image(400), tan_wcs(400, ra_deg=RA_DEG + 1), FILTER="g"
    )
    loads = Counter()
    load = tiles.Plane.load
    monkeypatch.setattr(tiles.Plane, "load", lambda p: (loads.update([p.url]), load(p))[1])
    table = objects_at(*((RA_DEG + 0.002 * k, DEC_DEG) for k in range(5)))
    result = cut([near, far], table)
    assert result.objects.num_rows == 5
    assert loads == {near: 1}


def test_objects_do_not_depend_on_their_company(tmp_path):
    url = write_tile(tmp_path / "t.fits", noise_image(400), FILTER="g")
    table = objects_at(*((RA_DEG + 0.003 * k, DEC_DEG + 0.002 * k) for k in range(5)))
    together = cut([url], table)
    alone = cut([url], table.slice(3, 1))
    np.testing.assert_array_equal(together.cutouts_nchw[3], alone.cutouts_nchw[0])
    np.testing.assert_array_equal(together.noise_sigma[3], alone.noise_sigma[0])


@settings(max_examples=12, deadline=None)
@given(shift_px=st.floats(-24, 24), axis=st.integers(0, 1))
def test_coverage_is_the_share_on_the_tile(tmp_path_factory, shift_px, axis):
    folder = tmp_path_factory.mktemp("coverage")
    wcs = tan_wcs(100, rotation_deg=0.0, scale_arcsec=SCALE)
    url = write_tile(folder / "t.fits", noise_image(100), wcs, FILTER="g")
    # The centre of the object stands `shift_px` inside the tile's upper or right edge.
    pixel = [49.5, 49.5]
    pixel[axis] = 99.5 - shift_px
    position = tuple(float(v) for v in wcs.all_pix2world(*pixel, 0))
    result = cut([url], objects_at(position), settings_=IngestSettings(min_coverage=0.0))
    expected = (SIZE / 2 + shift_px) / SIZE
    assert result.coverage[0, 0] == pytest.approx(expected, abs=1 / SIZE)
    image = result.cutouts_nchw[0, 0]
    assert np.isfinite(image).mean() == pytest.approx(result.coverage[0, 0])


def test_missing_pixels_stay_missing_and_do_not_spread(tmp_path):
    data = noise_image(100)
    data[40:60, 45:50] = np.nan
    wcs = tan_wcs(100, rotation_deg=0.0, scale_arcsec=SCALE)
    url = write_tile(tmp_path / "t.fits", data, wcs, FILTER="g")
    result = cut([url], objects_at((RA_DEG, DEC_DEG)))
    missing = np.isnan(result.cutouts_nchw[0, 0])
    assert missing.sum() == 100
    assert result.coverage[0, 0] == pytest.approx(1 - 100 / SIZE**2)


def test_rejects_say_why(tmp_path):
    good = noise_image(400)
    wcs = tan_wcs(400, rotation_deg=0.0)
    empty = good.copy()
    x, y = (int(v) for v in wcs.all_world2pix(RA_DEG + 0.012, DEC_DEG, 0))
    empty[y - 60 : y + 60, x - 60 : x + 60] = np.nan
    x, y = (int(v) for v in wcs.all_world2pix(RA_DEG - 0.012, DEC_DEG, 0))
    empty[y - 60 : y + 60, x - 60 : x + 60] = 7.0
    urls = [
        write_tile(tmp_path / "g.fits", empty, wcs, FILTER="g"),
        write_tile(tmp_path / "r.fits", good, wcs, FILTER="r"),
        write_tile(tmp_path / "r2.fits", good, tan_wcs(400, ra_deg=RA_DEG + 1), FILTER="r"),
    ]
    edge = DEC_DEG + (200 * 0.336 + 6.4) / 3600
    table = objects_at(
        (RA_DEG + 90, DEC_DEG), (RA_DEG + 1, DEC_DEG), (RA_DEG + 0.012, DEC_DEG),
        (RA_DEG, edge), (RA_DEG - 0.012, DEC_DEG), (RA_DEG, DEC_DEG),
    )  # fmt: skip
    result = cut(urls, table, "g", "r")
    schema.check(result.rejects, schema.REJECTS, where="test")
    reasons = dict(
        zip(*(result.rejects.column(c).to_pylist() for c in ("object_id", "reason")), strict=True)
    )
    assert reasons == {
        "a": "outside all tiles",
        "b": "no tile in band g",
        "c": "no data: every pixel is empty in band g",
        "d": "coverage 0.297 in band g is below ingest.min_coverage 0.5",
        "e": "no noise: the image is constant, or too small to measure, in band g",
    }
    assert set(result.rejects.column("stage").to_pylist()) == {"ingest"}
    assert result.objects.column("object_id").to_pylist() == ["f"]
    assert result.cutouts_nchw.shape == (1, 2, SIZE, SIZE)
    assert result.bands == ("g", "r")
    schema.check(result.objects, schema.CATALOGUE, where="test")


def test_bands_keep_their_order_whatever_that_of_the_files(tmp_path):
    urls = [
        write_tile(tmp_path / f"{k}.fits", noise_image(200, sigma=s), FILTER=b, PSF_FWHM=s)
        for k, (b, s) in enumerate([("i", 3.0), ("g", 1.0), ("r", 2.0)])
    ]
    result = cut(urls, objects_at((RA_DEG, DEC_DEG)), "g", "r", "i")
    np.testing.assert_allclose(result.psf_fwhm_arcsec, [[1, 2, 3]])
    np.testing.assert_allclose(
        result.noise_sigma[0] / result.noise_sigma[0, 0], [1, 2, 3], rtol=0.05
    )
    assert np.isnan(result.depth_mag).all()


def test_noise_is_that_of_the_stored_pixels(tmp_path):
    url = write_tile(tmp_path / "t.fits", noise_image(400, sigma=2.0), FILTER="g")
    result = cut([url], objects_at((RA_DEG, DEC_DEG)), size_px=128, scale_arcsec=0.5)
    image = result.cutouts_nchw[0, 0]
    assert result.noise_sigma[0, 0] == pytest.approx(image.std(), rel=0.02)
    # Pixels 1.49 times as wide sum 2.2 pixels, and share some with their neighbours.
    assert 2.0 < result.noise_sigma[0, 0] < 2.0 * 0.5 / 0.336 * 1.01
    blocks = image.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    measured = 2 * blocks.std() / image.std() - 1
    assert result.noise_correlation[0, 0] == pytest.approx(measured, abs=0.03)
    assert measured > 0.05


@pytest.mark.parametrize("make", [tan_wcs, sip_wcs, tpv_wcs])
@pytest.mark.parametrize("pixel", [(149.5, 149.5), (290.0, 20.0), (-40.0, 150.0)])
def test_the_geometry_is_that_of_the_full_wcs(make, pixel):
    wcs = make(300)
    position = tuple(float(v) for v in wcs.all_pix2world(*pixel, 0))
    grid = astrometry.cutout_wcs(*position, pixel_scale_arcsec=SCALE, size_px=SIZE)
    place = resample.footprint(wcs, (300, 300), grid)
    y, x = np.mgrid[place.rows, place.columns]

    def on_grid(x, y):
        return np.stack(grid.all_world2pix(*wcs.all_pix2world(x, y, 0), 0), axis=-1)

    np.testing.assert_allclose(place.pixmap, on_grid(x, y), atol=1e-4)
    to_right, to_top = (
        on_grid(x + dx, y + dy) - on_grid(x - dx, y - dy) for dx, dy in ((0.5, 0), (0, 0.5))
    )
    area = np.abs(to_right[..., 0] * to_top[..., 1] - to_right[..., 1] * to_top[..., 0])
    np.testing.assert_allclose(place.area, area, rtol=1e-4)


def test_variances_go_through_the_resampling():
    wcs = tan_wcs(120, rotation_deg=20.0)
    grid = astrometry.cutout_wcs(RA_DEG, DEC_DEG, pixel_scale_arcsec=SCALE, size_px=SIZE)
    place = resample.footprint(wcs, (120, 120), grid)
    sigma = np.ones((120, 120), np.float32)
    sigma[:, 60:] = 3.0
    images, variance = [], None
    for seed in range(150):
        patch = resample.resample(place, noise_image(120, seed=seed) * sigma, sigma**2)
        images.append(patch.flux)
        variance = patch.variance
    ratio = np.var(images, axis=0, ddof=1) / variance
    # The mean of 4,096 estimates with 149 degrees of freedom, which overlap: 0.5 % at worst.
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    assert ratio[:, :25].mean() == pytest.approx(1.0, abs=0.02)
    assert ratio[:, -25:].mean() == pytest.approx(1.0, abs=0.02)


def test_rms_serves_where_there_is_no_blank_sky(tmp_path):
    y, x = np.mgrid[:150, :150]
    crowded = noise_image(150, sigma=2.0) + 1e4 * ((x % 12 == 0) & (y % 12 == 0))
    header = tan_wcs(150).to_header()
    header["MAGZERO"] = 31.4
    rms = np.full((150, 150), 2.0, np.float32)
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(crowded, header, name="g_FLUX"),
            fits.ImageHDU(rms, name="g_RMS")]  # fmt: skip
    fits.HDUList(hdus).writeto(tmp_path / "crowded.fits")
    blank = write_tile(tmp_path / "blank.fits", noise_image(150, sigma=2.0), FILTER="g")
    table = objects_at((RA_DEG, DEC_DEG))
    by_rms, by_sky = cut([tmp_path / "crowded.fits"], table), cut([blank], table)
    assert np.isnan(by_rms.noise_correlation[0, 0])
    assert by_rms.noise_sigma[0, 0] == pytest.approx(by_sky.noise_sigma[0, 0], rel=0.04)


def test_the_mean_of_two_tiles_has_half_their_variance(tmp_path):
    header = tan_wcs(150).to_header()
    header["MAGZERO"] = 31.4
    y, x = np.mgrid[:150, :150]
    crowd = noise_image(150, sigma=2.0) + 1e4 * ((x % 12 == 0) & (y % 12 == 0))
    for name in ("a", "b"):
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(crowd, header, name="g_FLUX"),
                fits.ImageHDU(np.full((150, 150), 2.0, np.float32), name="g_RMS")]  # fmt: skip
        fits.HDUList(hdus).writeto(tmp_path / f"{name}.fits")
    table = objects_at((RA_DEG, DEC_DEG))
    one, two = (cut([tmp_path / f"{n}.fits" for n in names], table) for names in ("a", "ab"))
    assert np.isnan(one.noise_correlation[0, 0]) and np.isnan(two.noise_correlation[0, 0])
    assert two.noise_sigma[0, 0] == pytest.approx(one.noise_sigma[0, 0] / np.sqrt(2), rel=1e-3)


def test_bad_rms_pixels_are_not_data(tmp_path):
    header = tan_wcs(100, rotation_deg=0.0, scale_arcsec=SCALE).to_header()
    header["MAGZERO"] = 31.4
    rms = np.ones((100, 100), np.float32)
    rms[45:55, 45:55] = 1e16
    data = noise_image(100)
    data[45:55, 45:55] = 1e6
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(data, header, name="g_FLUX"),
            fits.ImageHDU(rms, name="g_RMS")]  # fmt: skip
    fits.HDUList(hdus).writeto(tmp_path / "t.fits")
    result = cut([tmp_path / "t.fits"], objects_at((RA_DEG, DEC_DEG)))
    assert np.isnan(result.cutouts_nchw).sum() == 100
    assert np.nanmax(result.cutouts_nchw) < 10


def test_nothing_to_cut(tmp_path):
    url = write_tile(tmp_path / "t.fits", noise_image(200), FILTER="g")
    result = cut([url], objects_at())
    assert result.cutouts_nchw.shape == (0, 1, SIZE, SIZE)
    assert result.rejects.num_rows == 0
    none = cut([], objects_at((RA_DEG, DEC_DEG)))
    assert none.rejects.column("reason").to_pylist() == ["outside all tiles"]
    assert none.noise_sigma.shape == (0, 1)


def test_bad_arguments(tmp_path):
    with pytest.raises(ContractError, match=r"cutouts\.extract: a catalogue table needs"):
        cutouts.extract(pa.table({"id": [1]}), [], survey=survey(), settings=SETTINGS)
    url = write_tile(tmp_path / "t.fits", noise_image(200), FILTER="g")
    survey_ = survey()
    planes = planes_of([url], survey_)
    with open(url, "r+b") as stream:
        stream.truncate(9000)
    with pytest.raises(InputError, match=r"t\.fits.*truncated"):
        cutouts.extract(objects_at((RA_DEG, DEC_DEG)), planes, survey=survey_, settings=SETTINGS)
