import io
import math

import h5py
import numpy as np
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from clusterray import storage
from clusterray.errors import ContractError, InputError, StorageError
from clusterray.sky import shards
from clusterray.sky.export import export

BANDS = ("g", "r")
IDS = ["J100000+020000", "a/b c", ".hidden", "σ Oct"]
RA = np.array([150.0, 359.99999, 0.0, 211.3])
DEC = np.array([2.0, 45.0, -60.0, -88.956])


@pytest.fixture(scope="module", params=[32, 33], ids=["even", "odd"])
def shard(request, tmp_path_factory):
    size = request.param
    path = str(tmp_path_factory.mktemp("shard") / "s1.parquet")
    rng = np.random.default_rng(size)
    flux = rng.normal(size=(4, 2, size, size)).astype(np.float32)
    flux[1, 0, 2:5, 7] = np.nan
    shards.write(
        path,
        object_id=IDS,
        ra_deg=RA,
        dec_deg=DEC,
        cutouts_nchw=flux,
        noise_sigma=np.full((4, 2), [1.0, 0.5]),
        bands=BANDS,
        pixel_scale_arcsec=0.336,
        row_group_size=3,
        survey=["hsc", None, "hsc", "hsc"],
        z_lens=[0.3, None, 0.4, 0.5],
        psf_fwhm_arcsec=[[0.8, math.nan]] * 4,
    )
    return path


def pixel_sky(header, x, y):
    """Where a pixel (0-based) lies: the gnomonic projection written out (Calabretta & Greisen
    2002, eqs. 54, 55 and 2), from nothing but the header's numbers."""
    xi = math.radians((x + 1 - header["CRPIX1"]) * header["CDELT1"])
    eta = math.radians((y + 1 - header["CRPIX2"]) * header["CDELT2"])
    dec0 = math.radians(header["CRVAL2"])
    below = math.cos(dec0) - eta * math.sin(dec0)
    ra = header["CRVAL1"] + math.degrees(math.atan2(xi, below))
    dec = math.atan2(math.sin(dec0) + eta * math.cos(dec0), math.hypot(xi, below))
    return SkyCoord(ra * u.deg, math.degrees(dec) * u.deg)


def test_fits_positions_and_flux(shard, tmp_path):
    written = export(shard, str(tmp_path))
    names = ["J100000+020000.fits", "a%2Fb c.fits", "%2Ehidden.fits", "%CF%83 Oct.fits"]
    assert [storage.name_of(w) for w in written] == [*names, "s1_objects.fits"]
    batch = shards.read(shard)
    for i, name in enumerate(names):
        with fits.open(tmp_path / name) as hdus:
            hdus.verify("exception")
            assert [h.header.get("EXTNAME") for h in hdus] == [None, "g", "r"]
            for k, band in enumerate(BANDS):
                hdu = hdus[band]
                np.testing.assert_array_equal(hdu.data, batch.cutouts_nchw[i, k])
                assert u.Unit(hdu.header["BUNIT"]) == u.nJy
                assert hdu.header["SKYSIGMA"] == (1.0, 0.5)[k]
                centre = (hdu.data.shape[0] - 1) / 2
                here = SkyCoord(RA[i] * u.deg, DEC[i] * u.deg)
                for there in (
                    WCS(hdu.header).pixel_to_world(centre, centre),
                    pixel_sky(hdu.header, centre, centre),
                ):
                    assert here.separation(there) < 0.01 * u.arcsec


def test_fits_grid_is_north_up_east_left(shard, tmp_path):
    export(shard, str(tmp_path))
    for i, name in enumerate(("J100000+020000.fits", "a%2Fb c.fits", "%2Ehidden.fits")):
        with fits.open(tmp_path / name) as hdus:
            wcs, header = WCS(hdus["r"].header), hdus["r"].header
        centre = (header["NAXIS1"] - 1) / 2
        here = SkyCoord(RA[i] * u.deg, DEC[i] * u.deg)
        for dx, dy, angle in ((0, 10, 0), (-10, 0, 90)):
            there = wcs.pixel_to_world(centre + dx, centre + dy)
            assert here.separation(there).arcsec == pytest.approx(3.36, rel=1e-5)
            assert here.position_angle(there).deg % 360 == pytest.approx(angle, abs=0.01)
            assert there.separation(pixel_sky(header, centre + dx, centre + dy)).arcsec < 1e-5


def test_fits_headers_and_table(shard, tmp_path):
    export(shard, str(tmp_path))
    first = fits.getheader(tmp_path / "J100000+020000.fits")
    assert (first["OBJECT"], first["SURVEY"], first["Z_LENS"]) == ("J100000+020000", "hsc", 0.3)
    unknown = fits.getheader(tmp_path / "a%2Fb c.fits")
    assert "Z_LENS" not in unknown
    assert "SURVEY" not in unknown
    green, red = (fits.getheader(tmp_path / "J100000+020000.fits", b) for b in BANDS)
    assert green["PSF_FWHM"] == pytest.approx(0.8)
    assert "PSF_FWHM" not in red
    assert (red["MAGZERO"], red["FILTER"]) == (pytest.approx(31.4), "r")
    table = Table.read(tmp_path / "s1_objects.fits")
    assert list(table["object_id"])[:3] == IDS[:3]
    assert list(table["object_id"])[3] == "\\u03c3 Oct"
    np.testing.assert_array_equal(table["ra_deg"], RA)
    assert table["dec_deg"].unit == u.deg
    np.testing.assert_allclose(table["noise_sigma"], np.full((4, 2), [1.0, 0.5]))
    assert all((tmp_path / name).exists() for name in table["file"])


def test_mmu(shard, tmp_path):
    written = export(shard, str(tmp_path), layout="mmu")
    batch = shards.read(shard)
    seen = []
    for url in written:
        with h5py.File(io.BytesIO(storage.read_bytes(url))) as file:
            data = {name: file[name][()] for name in file}
        assert url.split("/")[-2] == f"healpix={data['healpix'][0]}"
        for j, object_id in enumerate(data["object_id"]):
            i = IDS.index(object_id.decode())
            seen.append(i)
            assert (data["ra"][j], data["dec"][j]) == (RA[i], DEC[i])
            assert [b.decode() for b in data["image_band"][j]] == list(BANDS)
            flux, mask = batch.cutouts_nchw[i], data["image_mask"][j]
            np.testing.assert_array_equal(mask, ~np.isnan(flux))
            np.testing.assert_array_equal(data["image_array"][j], np.nan_to_num(flux))
            assert set(data["image_ivar"][j][1][mask[1]]) == {4.0}
            assert np.all(data["image_ivar"][j][~mask] == 0)
            np.testing.assert_allclose(data["image_scale"][j], 0.336)
            assert data["image_psf_fwhm"][j][0] == np.float32(0.8)
    assert sorted(seen) == [0, 1, 2, 3]


def test_same_content_same_bytes(shard, tmp_path):
    for layout in ("fits", "mmu"):
        a, b = (export(shard, str(tmp_path / d), layout=layout) for d in "ab")
        assert [storage.read_bytes(x) for x in a] == [storage.read_bytes(x) for x in b]


def test_bad_input(shard, tmp_path):
    with pytest.raises(InputError, match="layout 'fit' is not known: did you mean 'fits'"):
        export(shard, str(tmp_path), layout="fit")
    with pytest.raises(StorageError, match="no such file"):
        export(str(tmp_path / "none.parquet"), str(tmp_path))
    storage.write_table(str(tmp_path / "foreign.parquet"), pa.table({"a": [1]}))
    with pytest.raises(ContractError, match=r"foreign\.parquet: not a clusterray cutout shard"):
        export(str(tmp_path / "foreign.parquet"), str(tmp_path))
    shards.write(
        str(tmp_path / "placeless.parquet"),
        object_id=["a"],
        ra_deg=[1.0],
        dec_deg=[1.0],
        cutouts_nchw=np.zeros((1, 1, 16, 16), np.float32),
        noise_sigma=[[1.0]],
        bands=("r",),
    )
    with pytest.raises(InputError, match=r"placeless\.parquet: the shard does not say its pixel"):
        export(str(tmp_path / "placeless.parquet"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
