"""World coordinates: a tile's own WCS made sure of, and the grid of a cutout."""

from typing import Any, Final

import astropy.units as u
import numpy as np
import numpy.typing as npt
from astropy.coordinates import ICRS, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area, proj_plane_pixel_scales, wcs_to_celestial_frame

from clusterray.errors import InputError

__all__ = [
    "cards",
    "celestial",
    "corners",
    "cutout_wcs",
    "pixel_area_arcsec2",
    "to_icrs",
    "to_pixel",
]

_MAX_SCALE_ARCSEC: Final = 60.0
_RENAMED: Final = {"RADECSYS": "RADESYS"}
_NOT_NEEDED: Final = frozenset(
    (
        "",
        "COMMENT",
        "HISTORY",
        "CONTINUE",
        "SIMPLE",
        "XTENSION",
        "BITPIX",
        "PCOUNT",
        "GCOUNT",
        "EXTEND",
    )
)


def cards(header: fits.Header) -> str:
    """The header without comments, small and exact enough to travel between processes.

    Where a CD and a PC matrix are both present (SWarp output edited by other programs), CD holds
    and PC and CDELT go: the FITS standard allows only one of them.
    """
    kept = fits.Header()
    has_cd = any(k.startswith("CD1_") or k.startswith("CD2_") for k in header)
    for card in header.cards:
        key = card.keyword
        if len(key) > 8 or key in _NOT_NEEDED:
            continue
        if has_cd and (key.startswith(("PC1_", "PC2_")) or key in ("CDELT1", "CDELT2")):
            continue
        if isinstance(card.value, (bool, int, float)) or (
            isinstance(card.value, str) and len(card.value) <= 68
        ):
            kept.append(fits.Card(_RENAMED.get(key, key), card.value), bottom=True)
    return str(kept.tostring(sep="", endcard=True, padding=False))


def celestial(wcs_header: str, *, where: str) -> WCS:
    """The two-dimensional celestial WCS of `cards`, with its SIP, TPV or other distortion.

    Raises
    ------
    InputError : no celestial axes, or more than 60″ per pixel, which is what astropy makes of
        missing keywords.
    """
    try:
        # The fixes that astropy would apply, without its warnings; nothing here may touch the
        # warning filters, which are not safe between threads.
        wcs = WCS(fits.Header.fromstring(wcs_header), naxis=2, fix=False)
        wcs.wcs.fix()
        wcs.wcs.set()
    except Exception as error:
        # wcslib and astropy raise a dozen unrelated classes for a broken header.
        raise InputError(
            f"{where}: the WCS cannot be read ({type(error).__name__}: {error}); correct the "
            "header, or solve the astrometry again"
        ) from error
    if not wcs.has_celestial:
        raise InputError(
            f"{where}: no celestial WCS in the header (CTYPE is {list(wcs.wcs.ctype)}); expected "
            "RA and Dec axes: solve the astrometry first (SCAMP, astrometry.net)"
        )
    scale_arcsec = float(np.max(proj_plane_pixel_scales(wcs))) * 3600
    if not 0 < scale_arcsec < _MAX_SCALE_ARCSEC:
        raise InputError(
            f"{where}: the WCS says {scale_arcsec:g}″ per pixel, expected less than "
            f"{_MAX_SCALE_ARCSEC:g}″; CD or CDELT is probably missing"
        )
    return wcs


def pixel_area_arcsec2(wcs: WCS) -> float:
    """Area of a pixel at the reference point."""
    return float(proj_plane_pixel_area(wcs)) * 3600**2


def to_icrs(wcs: WCS, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Any, Any]:
    """ICRS right ascension and declination, degrees, of zero-based pixel coordinates."""
    world = wcs.all_pix2world(x, y, 0)
    longitude, latitude = world[wcs.wcs.lng], world[wcs.wcs.lat]
    frame = wcs_to_celestial_frame(wcs)
    if isinstance(frame, ICRS):
        return longitude, latitude
    sky = SkyCoord(longitude * u.deg, latitude * u.deg, frame=frame).icrs
    return sky.ra.deg, sky.dec.deg


def to_pixel(wcs: WCS, ra_deg: npt.ArrayLike, dec_deg: npt.ArrayLike) -> tuple[Any, Any]:
    """Zero-based pixel coordinates of ICRS positions near the image; good to about 0.01 px."""
    frame = wcs_to_celestial_frame(wcs)
    if isinstance(frame, ICRS):
        longitude, latitude = np.asarray(ra_deg), np.asarray(dec_deg)
    else:
        sky = SkyCoord(ra_deg, dec_deg, unit="deg").transform_to(frame).spherical
        longitude, latitude = sky.lon.deg, sky.lat.deg
    world = (longitude, latitude) if wcs.wcs.lng == 0 else (latitude, longitude)
    x, y = wcs.all_world2pix(*world, 0, quiet=True, tolerance=1e-3)
    return x, y


def corners(wcs: WCS, shape: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
    """ICRS positions, degrees, of the outer corners of the four corner pixels."""
    ny, nx = shape[-2:]
    ra, dec = to_icrs(
        wcs, np.array([-0.5, nx - 0.5, nx - 0.5, -0.5]), np.array([-0.5, -0.5, ny - 0.5, ny - 0.5])
    )
    return tuple((float(a), float(d)) for a, d in zip(ra, dec, strict=True))


def cutout_wcs(ra_deg: float, dec_deg: float, *, pixel_scale_arcsec: float, size_px: int) -> WCS:
    """The grid of a cutout: gnomonic, north up, east left, centred on a position (ICRS).

    The position is the centre of the image, which for an even size is the corner that the middle
    four pixels share: zero-based pixel coordinate (size − 1)/2.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval = [ra_deg, dec_deg]
    wcs.wcs.crpix = [(size_px + 1) / 2, (size_px + 1) / 2]
    wcs.wcs.cdelt = [-pixel_scale_arcsec / 3600, pixel_scale_arcsec / 3600]
    wcs.array_shape = (size_px, size_px)
    wcs.wcs.set()
    return wcs
