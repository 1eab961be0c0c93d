"""Colours: template spectra of galaxies and stars through the filters of a survey."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from astropy import units as u
from astropy.modeling.physical_models import BlackBody
from astropy.utils.exceptions import AstropyDeprecationWarning
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import ConfigError, did_you_mean

with warnings.catch_warnings():
    # It imports a part of astropy that is to go, and that it does not need.
    warnings.simplefilter("ignore", AstropyDeprecationWarning)
    from speclite import filters

__all__ = ["SURVEYS", "Photometry", "photometry"]

Floats = NDArray[np.float64]

SURVEYS: Final = {
    "demo": {"g": "lsst2023-g", "r": "lsst2023-r", "i": "lsst2023-i"},
    "hsc": {b: f"hsc2017-{b}{'2' if b in 'ri' else ''}" for b in "grizy"},
    "lsst": {b: f"lsst2023-{b}" for b in "ugrizy"},
    "des": {b: f"decamDR1noatm-{b}" for b in "grizY"},
    "euclid": {b: f"Euclid-{b}" for b in ("VIS", "Y", "J", "H")},
}
"""Surveys that can be simulated, and speclite's name of each band's filter."""
_REFERENCE: Final = "sdss2010-i"
_Z_GRID: Final = np.concatenate([np.arange(0.02, 2.0, 0.03), np.arange(2.0, 3.91, 0.1)])
_T_GRID: Final = np.geomspace(2800.0, 12000.0, 60)
# Of skypy's kcorrect templates (Blanton & Roweis 2007): old and passive; star-forming; starburst.
_OLD, _FORMING, _BURST = 3, 4, 1
_BURST_SHARE: Final = 0.25


@dataclass(frozen=True, eq=False)
class Photometry:
    """Fluxes in the bands of a survey over that in the reference band, SDSS i.

    `old` and `young` (redshifts, bands) belong to a passive and a star-forming galaxy, `star`
    (temperatures, bands) to black bodies.
    """

    bands: tuple[str, ...]
    old: Floats
    young: Floats
    star: Floats

    def magnitudes(self, mag_i: ArrayLike, *, z: ArrayLike, young_share: ArrayLike) -> Floats:
        """AB magnitudes of galaxies.

        Parameters
        ----------
        mag_i : (n,) observed SDSS i magnitude.
        z : (n,) or a number; held at 0.02 and 3.9 outside.
        young_share : (n,) or a number; share of the observed i light that is star-forming.

        Returns
        -------
        (n, bands)
        """
        mag, redshift, share = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(v, float)) for v in (mag_i, z, young_share))
        )
        ratio = np.empty((len(mag), len(self.bands)))
        for b in range(len(self.bands)):
            old, young = (np.interp(redshift, _Z_GRID, t[:, b]) for t in (self.old, self.young))
            ratio[:, b] = (1 - share) * old + share * young
        return np.asarray(mag[:, None] - 2.5 * np.log10(ratio), float)

    def star_magnitudes(self, mag_i: ArrayLike, *, temperature_k: ArrayLike) -> Floats:
        """(n, bands) AB magnitudes of stars as black bodies (to some 0.1 mag; no molecules)."""
        kelvin = np.asarray(temperature_k, float)
        ratio = np.stack(
            [np.interp(kelvin, _T_GRID, self.star[:, b]) for b in range(len(self.bands))],
            axis=-1,
        )
        return np.asarray(np.asarray(mag_i, float)[:, None] - 2.5 * np.log10(ratio), float)


@lru_cache(maxsize=8)
def photometry(survey: str, bands: Sequence[str]) -> Photometry:
    """Tabulate the templates through a survey's filters (about a second, kept for the process).

    Parameters
    ----------
    survey : one of `SURVEYS`.
    bands : of that survey.

    Raises
    ------
    ConfigError : a survey or band that cannot be simulated.
    """
    if survey not in SURVEYS:
        raise ConfigError(
            f"survey.name is '{survey}', which cannot be simulated; {did_you_mean(survey, SURVEYS)}"
        )
    known = SURVEYS[survey]
    for band in bands:
        if band not in known:
            raise ConfigError(
                f"survey.bands: '{survey}' has no band '{band}' to simulate, "
                f"{did_you_mean(band, known)}"
            )
    chosen = filters.load_filters(_REFERENCE, *(known[b] for b in bands))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyDeprecationWarning)
        # It reads its template file as it is imported.
        from skypy.galaxies.spectrum import kcorrect

    wavelength = kcorrect.wavelength.to_value(u.AA)
    templates = kcorrect.templates.value
    at = int(np.searchsorted(wavelength, 4500.0))
    normal = templates / templates[:, at : at + 1]
    young = (1 - _BURST_SHARE) * normal[_FORMING] + _BURST_SHARE * normal[_BURST]
    ratios = [
        np.array([_over_reference(chosen, s, wavelength * (1 + z)) for z in _Z_GRID])
        for s in (normal[_OLD], young)
    ]
    in_band = (wavelength > 2000) & (wavelength < 30000)
    stars = [
        _over_reference(chosen, _black_body(t, wavelength[in_band]), wavelength[in_band])
        for t in _T_GRID
    ]
    return Photometry(tuple(bands), ratios[0], ratios[1], np.array(stars))


def _over_reference(chosen: filters.FilterSequence, f_lambda: Floats, angstrom: Floats) -> Floats:
    """AB flux densities (relative) in every filter over that in the first, which is dropped."""
    mags = np.array(chosen.get_ab_magnitudes(f_lambda * 1e-17, angstrom).as_array().tolist()[0])
    return np.asarray(10 ** (-0.4 * (mags[1:] - mags[0])), float)


def _black_body(temperature_k: float, angstrom: Floats) -> Floats:
    per_wavelength = BlackBody(
        temperature_k * u.K, scale=1.0 * u.erg / (u.cm**2 * u.s * u.AA * u.sr)
    )
    light = per_wavelength(angstrom * u.AA).value
    return np.asarray(light / light.max(), float)
