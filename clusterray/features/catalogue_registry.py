"""The features that come from the cluster catalogue and the conditions of the field."""

from collections.abc import Sequence

from clusterray.features.feature import Feature
from clusterray.features.proxies import SOURCES, SURVEYS

__all__ = ["CATEGORICAL", "catalogue_registry"]

CATEGORICAL = ("theta_e_source", "survey")
"""Features that are kinds and no quantities; a model must not order them."""

_UNKNOWN = "not in the catalogue, or not usable"
_BEHIND = "redshift unknown, or the cluster lies behind the sources"

_PROXIES = (
    ("z_lens", "1", "redshift of the cluster", "catalogue", _UNKNOWN),
    ("richness", "1", "richness λ of the cluster", "catalogue", _UNKNOWN),
    (
        "theta_e_richness_arcsec",
        "arcsec",
        "10″ (λ/50)^0.4 √((1+z)/1.4)",
        "project rule",
        f"richness or {_BEHIND}",
    ),
    (
        "theta_e_dispersion_arcsec",
        "arcsec",
        "4π (σ_v/c)² D_ls/D_s at the configured source redshift",
        "Narayan & Bartelmann 1996, eq. 37",
        f"dispersion or {_BEHIND}",
    ),
    (
        "theta_e_xray_arcsec",
        "arcsec",
        "L_X → M500 → M200 → σ_v → 4π (σ_v/c)² D_ls/D_s",
        "Piffaretti et al. 2011, eq. 2; Evrard et al. 2008, eq. 4 and 6",
        f"luminosity or {_BEHIND}",
    ),
    (
        "theta_e_arcsec",
        "arcsec",
        "the proxy from dispersion, else from X-ray luminosity, else from richness",
        "",
        "none of them is known",
    ),
)


def catalogue_registry(bands: Sequence[str]) -> tuple[Feature, ...]:
    """Proxies and, for each of `bands`, seeing and depth; the survey last."""
    proxies = [Feature(*row, group="catalogue") for row in _PROXIES]
    said = ", ".join(f"{code} {name}" for code, name in enumerate(SOURCES))
    source = Feature(
        "theta_e_source", "code", f"what theta_e_arcsec comes from: {said}", "",
        group="catalogue", categories=SOURCES,
    )  # fmt: skip
    context = [
        Feature(
            f"{name}_{band}", unit, f"{text}, {band}", "image header or survey", "not recorded",
            group="field conditions",
        )
        for name, unit, text in (
            ("psf_fwhm_arcsec", "arcsec", "seeing"),
            ("depth_mag", "mag", "5 σ depth"),
        )
        for band in bands
    ]  # fmt: skip
    named = ", ".join(f"{code} {name}" for code, name in enumerate(SURVEYS))
    survey = Feature(
        "survey", "code", f"the survey: {named}", "configuration", "none of these, or not recorded",
        group="field conditions", categories=SURVEYS,
    )  # fmt: skip
    return (*proxies, source, *context, survey)
