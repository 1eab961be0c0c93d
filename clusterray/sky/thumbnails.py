"""Cutouts as colour images for people."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from astropy.visualization import ManualInterval, make_lupton_rgb
from matplotlib.image import imsave
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import InputError, did_you_mean

__all__ = ["Thumbnail", "png", "rgb"]

_STRETCH_SIGMA = 6.0
_SOFTENING_Q = 8.0
_NO_DATA = 70
"""Grey level of a pixel that has no data in any band shown."""


class Thumbnail(NamedTuple):
    """What the report draws: cutout_chw (bands, h, w) in nJy and its noise (bands,) in nJy."""

    cutout_chw: NDArray[np.float32]
    noise_sigma: NDArray[Any]


def rgb(
    cutout_chw: NDArray[Any],
    noise_sigma: ArrayLike,
    bands: Sequence[str],
    rgb_bands: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """Colour image after Lupton et al. 2004 (PASP 116, 133), by astropy.

    Fluxes stay in nJy, so an AB colour has one hue in every cutout; the stretch is linear to
    about 6 times the noise and asinh beyond.

    Parameters
    ----------
    cutout_chw : (bands, h, w) flux density, nJy; not finite where there is no data.
    noise_sigma : (bands,) noise of a pixel, nJy.
    bands : names, blue to red.
    rgb_bands : bands shown as red, green, blue; the reddest three where None. Of two bands, green
        is their mean; one band is shown in grey.

    Returns
    -------
    (h, w, 3) uint8, rows as in the cutout; grey 70 where no band has data.

    Raises
    ------
    InputError : shapes that do not fit, or a band that is not there.
    """
    if cutout_chw.ndim != 3 or len(cutout_chw) != len(bands) or not len(bands):
        raise InputError(
            f"cutout has shape {cutout_chw.shape}, expected ({len(bands)}, h, w) for bands "
            f"{', '.join(bands) or '(none)'}"
        )
    noise = np.asarray(noise_sigma, np.float64)
    if noise.shape != (len(bands),):
        raise InputError(f"noise_sigma has shape {noise.shape}, expected ({len(bands)},)")
    chosen = _channels(tuple(bands), rgb_bands)
    planes = [np.mean([cutout_chw[i] for i in group], axis=0) for group in chosen]
    has_data = np.any([np.isfinite(plane) for plane in planes], axis=0)
    levels = [np.mean([noise[i] for i in group]) for group in chosen]
    usable = [level for level in levels if np.isfinite(level) and level > 0]
    sigma = float(np.mean(usable)) if usable else 1.0
    # astropy divides by the intensity before it asks whether there is any.
    with np.errstate(invalid="ignore", divide="ignore"):
        image = make_lupton_rgb(
            *(np.nan_to_num(plane, nan=0.0, posinf=0.0, neginf=0.0) for plane in planes),
            interval=ManualInterval(vmin=-sigma, vmax=None),
            stretch=_STRETCH_SIGMA * sigma,
            Q=_SOFTENING_Q,
        )
    return np.where(has_data[..., None], image, np.uint8(_NO_DATA))


def _channels(bands: tuple[str, ...], wanted: Sequence[str] | None) -> list[tuple[int, ...]]:
    """For each of red, green, blue the bands to average."""
    if wanted is not None:
        unknown = [b for b in wanted if b not in bands]
        if unknown or len(wanted) != 3:
            said = did_you_mean(unknown[0], bands) if unknown else "expected three bands"
            raise InputError(f"rgb_bands is {', '.join(wanted)}: {said}")
        return [(bands.index(b),) for b in wanted]
    last = len(bands) - 1
    if last >= 2:
        return [(last,), (last - 1,), (last - 2,)]
    return [(last,), (0, last), (0,)]


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image of `rgb` as PNG, first row at the bottom: north is up, east is left."""
    buffer = io.BytesIO()
    imsave(buffer, image, format="png", origin="lower")
    return buffer.getvalue()
