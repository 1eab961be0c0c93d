"""Survey tiles: which FITS planes are images, of which band, where on the sky, in which unit."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, Final

import numpy as np
from astropy.io import fits
from fsspec.core import get_fs_token_paths

from clusterray import storage
from clusterray.config import IngestSettings
from clusterray.errors import ConfigError, InputError
from clusterray.sky import astrometry, photometry
from clusterray.sky.fitsfile import open_fits
from clusterray.sky.image_plane import Plane
from clusterray.sky.surveys import Survey, is_known_filter

__all__ = ["Plane", "find", "scan"]

_SUFFIXES: Final = (".fits", ".fit", ".fts", ".fits.fz", ".fits.gz", ".fit.gz", ".fit.fz")
_NOT_AN_IMAGE_FILE: Final = frozenset(
    ("psf", "rms", "weight", "weights", "wht", "mask", "variance", "var", "flag", "flags", "invvar")
)
_NOT_AN_IMAGE: Final = _NOT_AN_IMAGE_FILE | frozenset(
    (
        "psfmodel", "wt", "msk", "err", "error", "errors", "sigma", "noise", "dq", "ivar", "exp",
        "exposure", "nexp", "bkg", "background", "sky", "ctx", "context", "seg", "segmentation",
        "map", "chi2",
    )
)  # fmt: skip
_RMS: Final = frozenset({"rms"})
_SCIENCE: Final = frozenset(
    {"flux", "sci", "science", "image", "img", "data", "primary", "compressed"}
)
_FILTER_KEYS: Final = ("FILTER", "FILTNAM", "FILTER1", "BAND")
_FWHM_KEYS: Final = ("PSF_FWHM", "PSFFWHM", "SEEING", "IQIMAGE")
_DEPTH_KEYS: Final = ("DEPTH", "MAGLIM")


def find(patterns: Iterable[str]) -> list[str]:
    """FITS files named by files, folders or glob patterns; paths or URLs, sorted, each once.

    Raises
    ------
    InputError : a pattern or folder that holds no FITS file, or a file that is none.
    """
    found: set[str] = set()
    for pattern in patterns:
        if any(c in pattern for c in "*?["):
            matches = [m for m in _glob(pattern) if _is_fits(m)]
        elif storage.exists(pattern):
            if not _is_fits(pattern):
                raise InputError(
                    f"paths.tiles: '{storage.redact(pattern)}' is not named like a FITS file; "
                    f"expected {', '.join(_SUFFIXES)}"
                )
            matches = [pattern]
        else:
            matches = [e.url for e in storage.list_files(pattern) if _is_fits(e.url)]
        if not matches:
            raise InputError(
                f"paths.tiles: no FITS file at '{storage.redact(pattern)}' "
                f"({', '.join(_SUFFIXES)}); expected files, folders or patterns such as "
                "'tiles/*_g.fits'"
            )
        found.update(matches)
    if not found:
        raise ConfigError("paths.tiles is empty; expected files, folders or patterns")
    return sorted(found)


def _is_fits(url: str) -> bool:
    return storage.name_of(url).lower().endswith(_SUFFIXES)


def _glob(pattern: str) -> list[str]:
    if not storage.is_remote(pattern):
        fs, _, paths = get_fs_token_paths(pattern, mode="rb")
        return [str(p) for p in paths if fs.isfile(p)]
    folder = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    return [e.url for e in storage.list_files(folder) if fnmatch(e.url, pattern)]


def scan(
    url: str,
    *,
    survey: Survey,
    settings: IngestSettings,
    zero_points: Mapping[str, float] | None = None,
) -> list[Plane]:
    """The image planes of one FITS file that show a band of the survey.

    Only headers are read. The file may hold one image, a cube with bands along its first axis, or
    many extensions, compressed or not. PSF, RMS, weight, mask and variance planes, known by the
    name of their extension or file, are never images; ``<BAND>_RMS`` becomes the noise map of its
    band's image and borrows that one's WCS. A band comes from `settings.tile_bands` (pattern on
    the file name; for a cube its bands in order, ``"g,r,i"``), else from the FILTER keyword, else
    from the name of the extension. Images in filters that the survey does not use are passed over.

    Parameters
    ----------
    url : path or URL.
    survey, settings : what is looked for.
    zero_points : AB magnitude of one count per band, for headers that do not say; before the
        survey's own.

    Returns
    -------
    Planes in the order of the file; none for a file that is a weight map or the like by its name.

    Raises
    ------
    InputError : not FITS, truncated, no image in it, no usable celestial WCS, a band or zero point
        that cannot be known, a noise map of another shape.
    ConfigError : `tile_bands` names a band that the survey does not have.
    """
    stem = re.sub(r"\.(fits|fit|fts)(\.(fz|gz))?$", "", storage.name_of(url).lower())
    if _words(stem) & _NOT_AN_IMAGE_FILE:
        return []
    where = storage.redact(url)
    with open_fits(url) as hdus:
        images = [(k, hdu) for k, hdu in enumerate(hdus) if _is_image(hdu)]
        science = [(k, hdu) for k, hdu in images if not _words(hdu.name) & _NOT_AN_IMAGE]
        if not science:
            raise InputError(
                f"{where}: no image plane in it; it has "
                f"{', '.join(f'{h.name} {_shape(h)}' for h in hdus)}"
            )
        rms = {_stem(hdu.name): (k, hdu) for k, hdu in images if _words(hdu.name) & _RMS}
        planes = []
        for k, hdu in science:
            # Keywords of the whole file, such as FILTER, often stand in the primary header only.
            header = _Header(hdu.header, hdus[0].header)
            bands = _bands(url, hdu, header, survey=survey, settings=settings)
            for index, band in bands:
                noise = rms.get(_stem(hdu.name))
                if noise and _shape(noise[1]) != _shape(hdu):
                    raise InputError(
                        f"{where}: noise map {noise[1].name} is {_shape(noise[1])}, its image "
                        f"{hdu.name} {_shape(hdu)}; expected the same shape"
                    )
                planes.append(
                    _plane(
                        url, k, index, band, header,
                        shape=_shape(hdu)[-2:], survey=survey, zero_points=zero_points or {},
                        rms_hdu=noise[0] if noise else None,
                    )
                )  # fmt: skip
    return planes


class _Header:
    """An extension's header with the primary's for what it lacks."""

    def __init__(self, own: fits.Header, primary: fits.Header) -> None:
        self.own = own
        self.primary = primary

    def first(self, keys: Iterable[str]) -> Any:
        for header in (self.own, self.primary):
            for key in keys:
                value = header.get(key)
                if value is not None and not isinstance(value, fits.card.Undefined) and value != "":
                    return value
        return None

    def number(self, keys: Iterable[str], *, where: str) -> float | None:
        value = self.first(keys)
        try:
            number = None if value is None else float(value)
        except ValueError as error:
            raise InputError(
                f"{where}: header value {value!r} of one of {', '.join(keys)} is not a number"
            ) from error
        return number if number is not None and np.isfinite(number) else None


def _words(name: str) -> set[str]:
    return {w for w in re.split(r"[^a-z0-9]+", name.lower()) if w}


def _stem(extname: str) -> tuple[str, ...]:
    """What an extension and its noise map have in common: VIS_FLUX and VIS_RMS give VIS."""
    words = re.split(r"[^a-z0-9]+", extname.lower())
    return tuple(w for w in words if w and w not in _SCIENCE | _RMS)


def _shape(hdu: Any) -> tuple[int, ...]:
    shape = tuple(int(n) for n in getattr(hdu, "shape", ()) or ())
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _is_image(hdu: Any) -> bool:
    return bool(hdu.is_image) and len(_shape(hdu)) in (2, 3)


def _bands(
    url: str, hdu: Any, header: _Header, *, survey: Survey, settings: IngestSettings
) -> list[tuple[int | None, str]]:
    """Planes of one HDU and their bands: (None, band) for an image, (k, band) for a cube."""
    labels = _labels(url, hdu, header, settings=settings, survey=survey)
    shape = _shape(hdu)
    where = f"{storage.redact(url)}[{hdu.name}]"
    n_planes = shape[0] if len(shape) == 3 else 1
    if len(labels) != n_planes:
        raise InputError(
            f"{where}: {n_planes} planes of shape {shape}, but band names {labels}; name them "
            "in order with BAND1, BAND2, … in the header or with "
            f'ingest.tile_bands."{storage.name_of(url)}" = "g,r,i"'
        )
    found: list[tuple[int | None, str]] = []
    for k, label in enumerate(labels):
        band = survey.band_of(label)
        if band is None and not is_known_filter(label):
            raise InputError(
                f"{where}: filter '{label}' is none of the survey's bands "
                f"({', '.join(survey.band_names)}) nor another known filter; say which with "
                f'ingest.tile_bands."{storage.name_of(url)}" = "…"'
            )
        if band is not None:
            found.append((k if len(shape) == 3 else None, band))
    return found


def _labels(
    url: str, hdu: Any, header: _Header, *, settings: IngestSettings, survey: Survey
) -> list[str]:
    name = storage.name_of(url)
    for pattern, bands in settings.tile_bands.items():
        if fnmatch(name, pattern):
            labels = [b.strip() for b in bands.split(",")]
            for wanted in labels:
                survey.band(wanted)
            return labels
    if len(_shape(hdu)) == 3:
        listed = header.first(("BANDS", "FILTERS"))
        if listed is not None:
            return [w for w in re.split(r"[\s,;]+", str(listed)) if w]
        numbered = [header.first((f"BAND{k}", f"FILTER{k}")) for k in range(1, _shape(hdu)[0] + 1)]
        return [str(b) for b in numbered if b is not None]
    # An extension's own name goes before the file's FILTER keyword.
    label: Any = next((hdu.header[k] for k in _FILTER_KEYS if hdu.header.get(k)), None)
    if label is None and survey.band_of(hdu.name) is None:
        label = next((header.primary[k] for k in _FILTER_KEYS if header.primary.get(k)), None)
        if label is None and not is_known_filter(hdu.name):
            raise InputError(
                f"{storage.redact(url)}[{hdu.name}]: the band is not known: no "
                f"{', '.join(_FILTER_KEYS)} in the header, and the extension's name is no band of "
                f"the survey ({', '.join(survey.band_names)}); say it with "
                f'ingest.tile_bands."{name}" = "{survey.band_names[0]}" (patterns such as '
                '"*_J.fits" work)'
            )
    return [str(label).strip() if label is not None else hdu.name]


def _plane(
    url: str,
    hdu: int,
    index: int | None,
    band: str,
    header: _Header,
    *,
    shape: tuple[int, ...],
    survey: Survey,
    zero_points: Mapping[str, float],
    rms_hdu: int | None,
) -> Plane:
    where = f"{storage.redact(url)}[{hdu}]"
    wcs_header = astrometry.cards(header.own)
    wcs = astrometry.celestial(wcs_header, where=where)
    unit = header.own.get("BUNIT") or header.primary.get("BUNIT")
    preset = survey.band(band)
    to_njy = photometry.to_njy(
        str(unit or ""),
        zero_point=header.number(photometry.ZERO_POINT_KEYS, where=where),
        fallback_zero_point=zero_points.get(band, preset.zero_point),
        pixel_area_arcsec2=astrometry.pixel_area_arcsec2(wcs),
        band=band,
        where=where,
    )
    fwhm = header.number(_FWHM_KEYS, where=where)
    depth = header.number(_DEPTH_KEYS, where=where)
    return Plane(
        url=url,
        hdu=hdu,
        index=index,
        band=band,
        wcs_header=wcs_header,
        shape=(shape[0], shape[1]),
        to_njy=to_njy,
        rms_hdu=rms_hdu,
        corners_deg=astrometry.corners(wcs, shape),
        # Zero and less stand for "not measured".
        psf_fwhm_arcsec=fwhm if fwhm is not None and fwhm > 0 else preset.psf_fwhm_arcsec,
        depth_mag=depth if depth is not None and depth > 0 else preset.depth_mag,
    )
