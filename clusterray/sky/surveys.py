"""What a survey delivers: bands, zero points, seeing, depth, and the cutout grid made from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from clusterray.config import SurveySettings
from clusterray.errors import ConfigError, did_you_mean

__all__ = ["PRESETS", "Band", "Survey", "is_known_filter", "resolve"]


@dataclass(frozen=True)
class Band:
    """One filter of a survey. `zero_point` is the AB magnitude of one count; None is unknown.

    `depth_mag` is the 5σ point-source depth (AB), `aliases` other labels that mean this filter.
    """

    name: str
    aliases: tuple[str, ...] = ()
    zero_point: float | None = None
    psf_fwhm_arcsec: float | None = None
    depth_mag: float | None = None


@dataclass(frozen=True)
class Survey:
    """Bands, blue to red, and the grid of a cutout: `size_px` square pixels."""

    name: str
    bands: tuple[Band, ...]
    pixel_scale_arcsec: float
    size_px: int

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names in the order that cutouts are stacked."""
        return tuple(band.name for band in self.bands)

    @property
    def half_diagonal_arcsec(self) -> float:
        """Distance from the centre of a cutout to its corner."""
        return self.size_px * self.pixel_scale_arcsec / 2**0.5

    def band(self, name: str) -> Band:
        """The band of this exact name.

        Raises
        ------
        ConfigError : the survey has no such band.
        """
        for band in self.bands:
            if band.name == name:
                return band
        raise ConfigError(
            f"survey '{self.name}' has no band '{name}', {did_you_mean(name, self.band_names)}"
        )

    def band_of(self, label: str) -> str | None:
        """The band that a FILTER value or extension name means, or None.

        The whole label is tried first, then its words, of which exactly one band may be meant:
        ``HSC-G``, ``g.MP9402``, ``r SDSS c6602``, ``NIR_Y_FLUX`` read as g, g, r and Y.
        """
        return _match(label, self.bands)


def _words(label: str) -> tuple[str, ...]:
    return tuple(w for w in re.split(r"[^a-z0-9']+", label.lower()) if w)


def _match(label: str, bands: tuple[Band, ...]) -> str | None:
    words = _words(label)
    names = {_words(alias): b.name for b in bands for alias in (b.name, *b.aliases)}
    if words in names:
        return names[words]
    found = {names[(word,)] for word in words if (word,) in names}
    return found.pop() if len(found) == 1 else None


def is_known_filter(label: str) -> bool:
    """Whether a label means some filter of some survey, wanted here or not."""
    return any(_match(label, survey.bands) for survey in (*PRESETS.values(), _OTHERS))


def _optical(
    names: str,
    *,
    zero_point: float | None = None,
    psf_fwhm_arcsec: tuple[float, ...] = (),
    depth_mag: tuple[float, ...] = (),
) -> tuple[Band, ...]:
    aliases = {
        "u": ("u*", "u'", "sdssu"),
        "g": ("g'", "sdssg", "gsdss"),
        "r": ("r'", "r2", "sdssr", "rsdss"),
        "i": ("i'", "i2", "sdssi", "isdss"),
        "z": ("z'", "sdssz", "zsdss"),
        "y": (),
        "Y": (),
    }
    return tuple(
        Band(
            name,
            aliases[name],
            zero_point,
            psf_fwhm_arcsec[k] if psf_fwhm_arcsec else None,
            depth_mag[k] if depth_mag else None,
        )
        for k, name in enumerate(names)
    )


_OTHERS: Final = Survey(
    "other",
    (*_optical("ugrizy"), *(Band(n) for n in ("B", "V", "R", "J", "H")), Band("Ks", ("K",))),
    1.0,
    1,
)

PRESETS: Final[Mapping[str, Survey]] = {
    s.name: s
    for s in (
        Survey("demo", _optical("gri"), 0.5, 128),
        # Aihara et al. 2022 (PDR3, table 2): seeing and 5σ depth of the Wide layer.
        Survey(
            "hsc",
            _optical(
                "grizy",
                zero_point=27.0,
                psf_fwhm_arcsec=(0.79, 0.75, 0.61, 0.68, 0.68),
                depth_mag=(26.5, 26.5, 26.2, 25.2, 24.4),
            ),
            0.336,
            224,
        ),
        # Seeing as in lenstronomy's ObservationConfig; ten-year depth of Ivezić et al. 2019
        # (table 1). Images are delivered in nJy.
        Survey(
            "lsst",
            _optical(
                "ugrizy",
                zero_point=31.4,
                psf_fwhm_arcsec=(0.81, 0.77, 0.73, 0.71, 0.69, 0.68),
                depth_mag=(26.1, 27.4, 27.5, 26.8, 26.1, 24.9),
            ),
            0.336,
            224,
        ),
        # Seeing as in lenstronomy's ObservationConfig; Abbott et al. 2021 (DR2): coadds at zero
        # point 30; the published depths are at S/N 10, 0.75 mag brighter than these.
        Survey(
            "des",
            _optical(
                "grizY",
                zero_point=30.0,
                psf_fwhm_arcsec=(1.12, 0.96, 0.88, 0.84, 0.90),
                depth_mag=(25.45, 25.15, 24.55, 23.85, 22.45),
            ),
            0.336,
            224,
        ),
        # 0.2″ keeps the field at 77″: VIS is then undersampled (FWHM 0.16″), NISP is not. The zero
        # point differs from band to band and release to release, so it must come from the header.
        # Seeing as in lenstronomy's ObservationConfig; depths from Mellier et al. 2025.
        Survey(
            "euclid",
            (
                Band("VIS", (), None, 0.16, 26.2),
                Band("Y", ("NISP-Y", "NIR_Y"), None, 0.48, 24.4),
                Band("J", ("NISP-J", "NIR_J"), None, 0.49, 24.4),
                Band("H", ("NISP-H", "NIR_H"), None, 0.50, 24.4),
            ),
            0.2,
            384,
        ),
        # T0007 stacks are scaled to AB zero point 30 (Hudelot et al. 2012).
        Survey("cfhtls", _optical("gri", zero_point=30.0), 0.336, 224),
    )
}
"""Surveys by name. Headers go before these values, and the configuration replaces them."""


def resolve(settings: SurveySettings) -> Survey:
    """The survey that the settings name, with their replacements.

    Raises
    ------
    ConfigError : a name that is no preset without bands, pixel scale and size of its own; a band
        given twice, or one that does not exist.
    """
    if settings.name in PRESETS:
        base = PRESETS[settings.name]
    elif settings.bands and settings.pixel_scale_arcsec and settings.size_px:
        base = Survey(settings.name, (), settings.pixel_scale_arcsec, settings.size_px)
    else:
        raise ConfigError(
            f"survey.name is '{settings.name}', which is no preset, "
            f"{did_you_mean(settings.name, PRESETS)} A survey of your own needs survey.bands, "
            "survey.pixel_scale_arcsec and survey.size_px"
        )
    survey = replace(
        base,
        bands=_choose(base, settings.bands),
        pixel_scale_arcsec=settings.pixel_scale_arcsec or base.pixel_scale_arcsec,
        size_px=settings.size_px or base.size_px,
    )
    for key in ("zero_point", "psf_fwhm_arcsec", "depth_mag"):
        survey = _override(survey, key, getattr(settings, key))
    return survey


def _choose(base: Survey, names: tuple[str, ...] | None) -> tuple[Band, ...]:
    if names is None:
        return base.bands
    if not names or len({n.lower() for n in names}) != len(names):
        raise ConfigError(f"survey.bands is {list(names)}; expected one or more different bands")
    own = {b.name.lower() for b in base.bands}
    known = {b.name: b for b in base.bands}
    known |= {b.name: b for b in _OTHERS.bands if b.name.lower() not in own}
    if base.name not in PRESETS:
        return tuple(known.get(n, Band(n)) for n in names)
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ConfigError(
            f"survey.bands: '{base.name}' has no band '{unknown[0]}', "
            f"{did_you_mean(unknown[0], known)} (a survey.name of your own may have any bands)"
        )
    return tuple(known[n] for n in names)


def _override(survey: Survey, key: str, values: Mapping[str, float]) -> Survey:
    unknown = [n for n in values if n not in survey.band_names]
    if unknown:
        raise ConfigError(
            f"survey.{key}.{unknown[0]}: the survey's bands are {', '.join(survey.band_names)}; "
            f"{did_you_mean(unknown[0], survey.band_names)}"
        )

    def changed(band: Band) -> Band:
        change: dict[str, Any] = {key: values[band.name]} if band.name in values else {}
        return replace(band, **change)

    return replace(survey, bands=tuple(changed(b) for b in survey.bands))
