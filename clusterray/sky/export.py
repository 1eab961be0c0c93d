"""Cutout shards as files that other programs read: FITS, or the Multimodal Universe's HDF5.

FITS is one file per cutout, which is what a person opens in ds9 or loads into a lens modeller:
an empty primary HDU with what is known of the object, and an image HDU per band (EXTNAME = band)
in nJy with NaN where there is no data and the TAN WCS of the cutout. A table of all objects of
the shard is written beside them, last.
"""

import io
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote

import h5py
import numpy as np
import numpy.typing as npt
from astropy import units as u
from astropy.io import fits
from astropy.table import Table, vstack
from astropy_healpix import HEALPix

from clusterray import storage
from clusterray.errors import InputError, did_you_mean
from clusterray.sky import astrometry, shards

__all__ = ["Layout", "export"]

Layout = Literal["fits", "mmu"]
_LAYOUTS = ("fits", "mmu")

_HEALPIX_NSIDE = 16
_KEYWORDS = {
    "survey": ("SURVEY", "survey"),
    "z_lens": ("Z_LENS", "redshift of the cluster"),
    "richness": ("RICHNESS", "richness lambda"),
    "sigma_v_km_s": ("SIGMA_V", "[km/s] velocity dispersion"),
    "l_x_erg_s": ("L_X", "[erg/s] X-ray luminosity"),
    "ebv": ("EBV", "[mag] E(B-V)"),
}
_BAND_KEYWORDS = {
    "psf_fwhm_arcsec": ("PSF_FWHM", "[arcsec] FWHM of the PSF"),
    "depth_mag": ("DEPTH", "[mag] depth"),
    "zero_point": ("MAGZERO", "AB magnitude of one unit"),
    "noise_correlation": ("NOISECOR", "noise of 2x2 means over white noise, -1"),
    "coverage": ("COVERAGE", "share of pixels on a tile"),
    "clipped_fraction": ("CLIPPED", "share of pixels too bright to be held"),
}
_UNITS = {
    "ra_deg": "deg",
    "dec_deg": "deg",
    "sigma_v_km_s": "km/s",
    "l_x_erg_s": "erg/s",
    "ebv": "mag",
    "psf_fwhm_arcsec": "arcsec",
    "depth_mag": "mag",
    "zero_point": "mag",
    "noise_sigma": "nJy",
    "step": "nJy",
}


def export(shard_url: str, out_url: str, *, layout: Layout = "fits") -> list[str]:
    """Write a shard's cutouts in another format.

    Parameters
    ----------
    shard_url : a cutout shard, path or URL.
    out_url : folder to write into; several shards may share it.
    layout : "fits": ``OBJECT_ID.fits`` per cutout and ``SHARD_objects.fits``, a table of their
        metadata with a column of file names. "mmu": ``healpix=N/SHARD-ROWGROUP.hdf5`` (nside
        16, nested) with the image datasets of the Multimodal Universe (The Multimodal Universe
        Collaboration 2024, arXiv:2412.02527): flux and inverse variance are 0 where there is no
        data, the mask is true where there is.

    Returns
    -------
    URLs of the files written. Characters of an object_id that do not suit a file name are
    percent-encoded.

    Raises
    ------
    InputError : an unknown layout, or a shard that was written without its pixel scale.
    StorageError, ContractError : as `shards.read`.
    """
    if layout not in _LAYOUTS:
        raise InputError(f"layout '{layout}' is not known: {did_you_mean(layout, _LAYOUTS)}")
    about = shards.describe(shard_url)
    if about["pixel_scale_arcsec"] is None:
        raise InputError(
            f"{storage.redact(shard_url)}: the shard does not say its pixel scale, so its pixels "
            "have no place on the sky; write it with pixel_scale_arcsec=…"
        )
    stem = storage.name_of(shard_url).removesuffix(".parquet")
    batches = (shards.read_row_group(shard_url, i) for i in range(len(about["row_groups"])))
    files = _fits_files(batches, stem) if layout == "fits" else _mmu_files(batches, stem)
    written = []
    for name, data in files:
        written.append(storage.join(out_url, name))
        storage.write_bytes(written[-1], data)
    return written


def _file_name(object_id: str) -> str:
    name = quote(object_id, safe="+-_ ()=,@~")
    return ("%2E" + name[1:] if name.startswith(".") else name) + ".fits"


def _ascii(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _card(header: fits.Header, keyword: str, value: Any, comment: str) -> None:
    """Set a keyword; an unknown value stays out, as a header can hold neither NaN nor Unicode."""
    if isinstance(value, str):
        header[keyword] = (_ascii(value), comment)
    elif value is not None and np.isfinite(value):
        header[keyword] = (float(value), comment)


def _hdus(batch: shards.CutoutBatch, i: int) -> fits.HDUList:
    ra_deg, dec_deg = (float(batch.columns[name][i]) for name in ("ra_deg", "dec_deg"))
    primary = fits.PrimaryHDU()
    _card(primary.header, "OBJECT", batch.object_id[i], "object_id")
    _card(primary.header, "RA", ra_deg, "[deg] ICRS")
    _card(primary.header, "DEC", dec_deg, "[deg] ICRS")
    for name, (keyword, comment) in _KEYWORDS.items():
        _card(primary.header, keyword, batch.columns[name][i], comment)
    primary.header["BANDS"] = (" ".join(batch.bands), "one image extension each")
    assert batch.pixel_scale_arcsec is not None
    wcs = astrometry.cutout_wcs(
        ra_deg,
        dec_deg,
        pixel_scale_arcsec=batch.pixel_scale_arcsec,
        size_px=batch.cutouts_nchw.shape[-1],
    ).to_header()
    hdus = fits.HDUList([primary])
    for k, band in enumerate(batch.bands):
        image = fits.ImageHDU(batch.cutouts_nchw[i, k], header=wcs)
        # Not as name=, which turns "g" into "G".
        image.header["EXTNAME"] = _ascii(band)
        _card(image.header, "FILTER", band, "band")
        image.header["BUNIT"] = ("nJy", "AB zero point 31.4")
        _card(image.header, "SKYSIGMA", batch.noise_sigma[i, k], "[nJy] noise of one pixel")
        _card(image.header, "QSTEP", batch.step[i, k], "[nJy] step the pixels were rounded to")
        for name, (keyword, comment) in _BAND_KEYWORDS.items():
            _card(image.header, keyword, batch.columns[name][i, k], comment)
        hdus.append(image)
    return hdus


def _fits_files(batches: Iterator[shards.CutoutBatch], stem: str) -> Iterator[tuple[str, bytes]]:
    tables = []
    for batch in batches:
        for i, object_id in enumerate(batch.object_id):
            yield _file_name(object_id), _fits_bytes(_hdus(batch, i))
        tables.append(_table(batch))
    if tables:
        objects = fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(vstack(tables))])
        yield f"{stem}_objects.fits", _fits_bytes(objects)


def _fits_bytes(hdus: fits.HDUList) -> bytes:
    stream = io.BytesIO()
    hdus.writeto(stream)
    return stream.getvalue()


def _table(batch: shards.CutoutBatch) -> Table:
    ids = list(batch.object_id)
    columns: dict[str, Any] = {
        "object_id": [_ascii(v) for v in ids],
        "file": [_file_name(v) for v in ids],
        **batch.columns,
        "survey": [_ascii(v or "") for v in batch.columns["survey"]],
        "noise_sigma": batch.noise_sigma,
        "step": batch.step,
    }
    table = Table(columns, meta={"BANDS": _ascii(" ".join(batch.bands))})
    for name, unit in _UNITS.items():
        table[name].unit = unit
    return table


def _mmu_files(batches: Iterator[shards.CutoutBatch], stem: str) -> Iterator[tuple[str, bytes]]:
    grid = HEALPix(nside=_HEALPIX_NSIDE, order="nested")
    for index, batch in enumerate(batches):
        ra, dec = (batch.columns[name] * u.deg for name in ("ra_deg", "dec_deg"))
        cells = grid.lonlat_to_healpix(ra, dec)
        for cell in np.unique(cells):
            rows = np.flatnonzero(cells == cell)
            yield f"healpix={cell}/{stem}-{index:05d}.hdf5", _mmu_bytes(batch, rows, int(cell))


def _mmu_bytes(batch: shards.CutoutBatch, rows: npt.NDArray[np.intp], cell: int) -> bytes:
    flux = batch.cutouts_nchw[rows]
    mask = ~np.isnan(flux)
    inverse_variance = batch.noise_sigma[rows].astype(np.float64) ** -2
    per_band = np.ones((len(rows), len(batch.bands)), np.float32)
    text = h5py.string_dtype("utf-8")
    datasets: dict[str, Any] = {
        "object_id": np.array(batch.object_id[rows], text),
        "ra": batch.columns["ra_deg"][rows],
        "dec": batch.columns["dec_deg"][rows],
        "healpix": np.full(len(rows), cell),
        "image_band": np.array([batch.bands] * len(rows), text),
        "image_array": np.where(mask, flux, np.float32(0)),
        "image_ivar": (mask * inverse_variance[:, :, None, None]).astype(np.float32),
        "image_mask": mask,
        "image_psf_fwhm": batch.columns["psf_fwhm_arcsec"][rows],
        "image_scale": per_band * np.float32(batch.pixel_scale_arcsec),
    }
    numeric = [n for n in _KEYWORDS if n != "survey"]
    datasets |= {name: batch.columns[name][rows].astype(np.float32) for name in numeric}
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
        file["image_array"].attrs["unit"] = "nJy"
        file["image_ivar"].attrs["unit"] = "1 / nJy2"
    return stream.getvalue()
