"""Pixel values to flux densities in nJy, the unit of every cutout."""

from typing import Final

from clusterray.errors import InputError

__all__ = ["NJY_ZERO_POINT", "ZERO_POINT_KEYS", "to_njy"]

NJY_ZERO_POINT: Final = 31.4
"""AB magnitude of 1 nJy."""
ZERO_POINT_KEYS: Final = (
    "MAGZERO", "MAGZPT", "PHOT_ZP", "PHOTZP", "ABMAGZP", "MAGZP", "MZP_AB", "ZP",
)  # fmt: skip
_MAGGY_NJY: Final = 3631e9
# Any instrument's lies inside; 0, −99 and 99 are placeholders.
_ZERO_POINTS: Final = (5.0, 50.0)


def to_njy(
    unit: str,
    *,
    zero_point: float | None,
    fallback_zero_point: float | None,
    pixel_area_arcsec2: float,
    band: str,
    where: str,
) -> float:
    """The factor from a tile's pixel values to nJy per pixel.

    A flux unit decides alone; for counts it is 10^((31.4 − zero point)/2.5), with the AB zero
    point (magnitude of one count) of the header or, failing that, of the configuration.

    Parameters
    ----------
    unit : BUNIT, empty where the header has none.
    zero_point, fallback_zero_point : the header's; the configured or published one.
    pixel_area_arcsec2 : for units per solid angle.
    band, where : for the error.

    Raises
    ------
    InputError : counts without a zero point, or with one that no instrument has.
    """
    factor = _flux_factor(unit, pixel_area_arcsec2)
    if factor is not None:
        return factor
    value = zero_point if zero_point is not None else fallback_zero_point
    if value is None:
        raise InputError(
            f"{where}: pixels are in '{unit or 'unknown units'}', and the header has no zero "
            f"point ({', '.join(ZERO_POINT_KEYS)}); set survey.zero_point.{band} to the AB "
            "magnitude of one count"
        )
    low, high = _ZERO_POINTS
    if not low <= value <= high:
        raise InputError(
            f"{where}: the zero point of band {band} is {value:g}, expected {low:g} to {high:g} "
            "AB mag; correct the header (a placeholder such as 0 or -99 must go for "
            f"survey.zero_point.{band} to be used)"
        )
    return float(10 ** ((NJY_ZERO_POINT - value) / 2.5))


def _flux_factor(unit: str, pixel_area_arcsec2: float) -> float | None:
    text = unit.strip().replace("/pixel", "").replace("/pix", "")
    if text.lower().rstrip("s") in ("nanomaggy", "nanomaggie", "nmgy"):
        return _MAGGY_NJY * 1e-9
    # Here, for everything that touches a shard imports this module, and few read a header's unit.
    import astropy.units as u

    parsed = u.Unit(text, parse_strict="silent")
    if parsed.is_equivalent(u.nJy):
        return float(parsed.to(u.nJy))
    if parsed.is_equivalent(u.nJy / u.sr):
        return float((pixel_area_arcsec2 * u.arcsec**2 * parsed).to_value(u.nJy))
    return None
