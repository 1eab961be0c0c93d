"""One image plane of a tile: what is needed to place it on the sky and to read it."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from clusterray import storage
from clusterray.errors import InputError
from clusterray.sky.fitsfile import open_fits

__all__ = ["Plane"]

_BAD_RMS: Final = 1e15


@dataclass(frozen=True)
class Plane:
    """A single-band image in a FITS file, without its pixels.

    `index` is the plane of a cube (None for an image); `wcs_header` holds the header cards that a
    WCS is made of; `to_njy` turns pixel values into nJy; `corners_deg` are the ICRS positions of
    the four corners.
    """

    url: str
    hdu: int
    index: int | None
    band: str
    wcs_header: str
    shape: tuple[int, int]
    to_njy: float
    rms_hdu: int | None
    corners_deg: tuple[tuple[float, float], ...]
    psf_fwhm_arcsec: float | None = None
    depth_mag: float | None = None

    @property
    def where(self) -> str:
        """File and extension, for messages."""
        return f"{storage.redact(self.url)}[{self.hdu}]"

    def reaches(
        self, ra_deg: npt.ArrayLike, dec_deg: npt.ArrayLike, *, radius_arcsec: float
    ) -> npt.NDArray[np.bool_]:
        """Whether circles about positions can touch this plane; never a false "no".

        The plane counts as the circle about its corners.

        Parameters
        ----------
        ra_deg, dec_deg : (n,) ICRS.
        radius_arcsec : of the circles, such as half the diagonal of a cutout.

        Returns
        -------
        (n,)
        """
        centre, reach_rad = self.circle()
        positions = _unit_vectors(np.atleast_1d(ra_deg), np.atleast_1d(dec_deg))
        # Chords instead of arc cosines, which lose their digits at small angles.
        angle = 2 * np.arcsin(np.minimum(np.linalg.norm(positions - centre, axis=1) / 2, 1.0))
        return np.asarray(angle <= reach_rad + np.radians(radius_arcsec / 3600))

    def circle(self) -> tuple[npt.NDArray[np.float64], float]:
        """Centre as a unit vector (3,) and radius in radians of a circle that holds the plane."""
        corners = _unit_vectors(*np.array(self.corners_deg).T)
        centre = corners.mean(axis=0)
        centre /= np.linalg.norm(centre)
        reach = 2 * np.arcsin(np.linalg.norm(corners - centre, axis=1).max() / 2)
        return centre, float(1.01 * reach)

    def load(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """Flux and, where there is a noise map, its σ, both in nJy per pixel of the tile.

        Pixels without data are NaN: blank or not finite, or with an RMS that is not a positive
        number below 10¹⁵.

        Returns
        -------
        (h, w) flux, and (h, w) σ or None.

        Raises
        ------
        InputError : the file is truncated, or has changed since it was scanned.
        StorageError : the file cannot be reached.
        """
        with open_fits(self.url) as hdus:
            flux = self._read(hdus, self.hdu)
            sigma = self._read(hdus, self.rms_hdu) if self.rms_hdu is not None else None
        flux[~np.isfinite(flux)] = np.nan
        if sigma is not None:
            bad = ~(np.isfinite(sigma) & (sigma > 0) & (sigma < _BAD_RMS))
            flux[bad] = np.nan
            sigma[bad] = np.nan
            sigma *= np.float32(self.to_njy)
        flux *= np.float32(self.to_njy)
        return flux, sigma

    def _read(self, hdus: Any, hdu: int) -> npt.NDArray[np.float32]:
        data = hdus[hdu].data if hdu < len(hdus) else None
        if data is None or data.shape[-2:] != self.shape:
            raise InputError(
                f"{self.where}: extension {hdu} is {None if data is None else data.shape}, "
                f"expected an image of {self.shape}; the file has changed since it was scanned"
            )
        while data.ndim > 2 and data.shape[0] == 1:
            data = data[0]
        if self.index is not None:
            data = data[self.index]
        return np.array(data, dtype=np.float32)


def _unit_vectors(ra_deg: npt.ArrayLike, dec_deg: npt.ArrayLike) -> npt.NDArray[np.float64]:
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)
