"""Sources in a cutout, found and deblended by SEP, with colours and shapes."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sep
from numpy.typing import ArrayLike, NDArray

from clusterray.errors import InputError
from clusterray.features.arcs import ArcShape, arc_shape
from clusterray.features.photometry import colours_of, match_psf

__all__ = ["Segments", "detection_image", "find_segments"]

Floats = NDArray[np.float64]

_THRESHOLD_SIGMA, _MIN_PIXELS = 1.5, 5
_DEBLEND_LEVELS, _DEBLEND_CONTRAST = 32, 0.005
_MESH_PX = 32
_SHAPED_PIXELS = 12


@dataclass(frozen=True)
class Segments:
    """The m sources of one cutout, in SEP's order.

    Attributes
    ----------
    label : (h, w) number of the source of each pixel, from 1; 0 is sky.
    detection : (h, w) the image they were found in, in units of its noise.
    usable : (h, w) pixels with data in a band.
    x_px, y_px : (m,) barycentre. area_px : (m,) pixels.
    ellipticity : (m,) 1 − b/a. angle_rad : (m,) of the major axis from x towards y.
    flux_njy, flux_error_njy : (m, bands) summed over the segment, bands matched in PSF if `flags`
        does not say otherwise; NaN in bands without a pixel there.
    colour, colour_error : (m, bands − 1) mag.
    arc : (m,) lengths, widths and curvatures.
    bcg : which is the brightest cluster galaxy; None where no source lies near the centre.
    flags : of `clusterray.features.segments`: "no_bcg", "psf_unknown", "not_deblended".
    """

    label: NDArray[np.int32]
    detection: NDArray[np.float32]
    usable: NDArray[np.bool_]
    x_px: Floats
    y_px: Floats
    area_px: NDArray[np.int64]
    ellipticity: Floats
    angle_rad: Floats
    flux_njy: Floats
    flux_error_njy: Floats
    colour: Floats
    colour_error: Floats
    arc: tuple[ArcShape, ...]
    bcg: int | None
    flags: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.x_px)

    @property
    def centre_px(self) -> tuple[float, float]:
        """x, y of the BCG or, where there is none, of the catalogue position."""
        if self.bcg is not None:
            return float(self.x_px[self.bcg]), float(self.y_px[self.bcg])
        height, width = self.label.shape
        return (width - 1) / 2, (height - 1) / 2

    @property
    def others(self) -> NDArray[np.intp]:
        """Every source but the BCG."""
        return np.array([k for k in range(len(self)) if k != self.bcg], np.intp)


def detection_image(
    cutout_chw: NDArray[Any], noise: Floats
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Sum of the bands in units of their noise, over the root of how many there are.

    Returns
    -------
    (h, w) image of unit noise, 0 where no band has data; (h, w) where one has.
    """
    usable = np.isfinite(cutout_chw)
    number = usable.sum(axis=0)
    total = (np.where(usable, cutout_chw, 0) / noise[:, None, None]).sum(axis=0)
    return (total / np.sqrt(np.maximum(number, 1))).astype(np.float32), number > 0


def find_segments(
    cutout_chw: NDArray[Any],
    *,
    noise_sigma: ArrayLike,
    psf_fwhm_px: ArrayLike,
    bcg_radius_px: float,
) -> Segments:
    """Detect, deblend and measure the sources of one cutout.

    Sources have 5 connected pixels above 1.5 σ of the noise-weighted sum of the bands, filtered
    with SEP's default kernel, over a background of 32 px meshes (Bertin & Arnouts 1996, A&AS 117,
    393; Barbary 2016, JOSS 1, 58). The BCG is the brightest, in the reddest band with data, of
    those whose barycentre lies within `bcg_radius_px` of the cutout's centre and in the source
    itself (that of an Einstein ring does not).

    Parameters
    ----------
    cutout_chw : (bands, h, w) flux, nJy; not finite where there is no data.
    noise_sigma : (bands,) noise of a pixel, nJy; may be NaN in a band without data.
    psf_fwhm_px : (bands,); where a width is not known, bands are not matched, and `flags` say so.

    Raises
    ------
    InputError : no data at all, or noise that is not positive in a band with data.
    """
    usable = np.isfinite(cutout_chw)
    noise = _noise(noise_sigma, usable)
    image, anywhere = detection_image(cutout_chw, noise)
    found, label, flags = _extract(image, ~anywhere)
    fwhm = np.asarray(psf_fwhm_px, np.float64)
    planes = np.where(usable, cutout_chw, 0).astype(np.float32)
    if (np.isfinite(fwhm) & (fwhm > 0)).all():
        planes = match_psf(planes, fwhm)
    else:
        flags.append("psf_unknown")
    flux, error = _fluxes(planes, usable, noise, label, len(found))
    bcg = _bcg(found, label, flux, bcg_radius_px)
    flags += ["no_bcg"] if bcg is None else []
    colour, colour_error = colours_of(flux, error)
    return Segments(
        label=label,
        detection=image,
        usable=anywhere,
        x_px=found["x"],
        y_px=found["y"],
        area_px=found["npix"].astype(np.int64),
        ellipticity=1.0 - found["b"] / np.maximum(found["a"], 1e-9),
        angle_rad=found["theta"].astype(np.float64),
        flux_njy=flux,
        flux_error_njy=error,
        colour=colour,
        colour_error=colour_error,
        arc=_shapes(label, len(found)),
        bcg=bcg,
        flags=tuple(sorted(flags)),
    )


def _noise(noise_sigma: ArrayLike, usable: NDArray[np.bool_]) -> Floats:
    noise = np.asarray(noise_sigma, np.float64)
    seen = usable.any(axis=(1, 2))
    if noise.shape != (len(usable),):
        raise InputError(f"noise_sigma has shape {noise.shape}, expected ({len(usable)},) in nJy")
    if not seen.any():
        raise InputError("every pixel is blank: there is nothing to find segments in")
    good = np.isfinite(noise) & (noise > 0)
    if (seen & ~good).any():
        band = int(np.argmax(seen & ~good))
        raise InputError(
            f"noise_sigma[{band}] is {noise[band]}, expected > 0 and finite (nJy) where the band "
            "has pixels"
        )
    return np.where(good, noise, 1.0)


def _extract(
    image: NDArray[np.float32], mask: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.int32], list[str]]:
    mesh = min(_MESH_PX, *image.shape)
    sky = sep.Background(image, mask=mask, bw=mesh, bh=mesh, fw=3, fh=3)
    options: dict[str, Any] = {
        "mask": mask,
        "minarea": _MIN_PIXELS,
        "deblend_nthresh": _DEBLEND_LEVELS,
        "segmentation_map": True,
    }
    above = image - sky.back()
    try:
        found, label = sep.extract(
            above, _THRESHOLD_SIGMA, deblend_cont=_DEBLEND_CONTRAST, **options
        )
    except Exception as error:  # SEP raises nothing more special
        if "deblending overflow" not in str(error):
            raise
        found, label = sep.extract(above, _THRESHOLD_SIGMA, deblend_cont=1.0, **options)
        return found, label, ["not_deblended"]
    return found, label, []


def _fluxes(
    planes: NDArray[np.float32],
    usable: NDArray[np.bool_],
    noise: Floats,
    label: NDArray[np.int32],
    number: int,
) -> tuple[Floats, Floats]:
    flat = label.ravel()

    def sums(weights: NDArray[Any]) -> Floats:
        return np.asarray(np.bincount(flat, weights.ravel(), number + 1)[1:], np.float64)

    pixels = np.stack([sums(mask) for mask in usable], axis=1)
    flux = np.stack([sums(np.where(m, p, 0)) for p, m in zip(planes, usable, strict=True)], axis=1)
    known = pixels > 0
    # Convolution correlates the noise of neighbours, but over a segment it only moves it about.
    return np.where(known, flux, np.nan), np.where(known, noise * np.sqrt(pixels), np.nan)


def _bcg(
    found: NDArray[Any], label: NDArray[np.int32], flux: Floats, radius_px: float
) -> int | None:
    height, width = label.shape
    x, y = found["x"], found["y"]
    own = label[np.rint(y).astype(int), np.rint(x).astype(int)] == np.arange(1, len(x) + 1)
    near = own & (np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) <= radius_px)
    for band in range(flux.shape[1] - 1, -1, -1):
        candidates = np.flatnonzero(near & np.isfinite(flux[:, band]))
        if len(candidates):
            return int(candidates[np.argmax(flux[candidates, band])])
    return None


def _shapes(label: NDArray[np.int32], number: int) -> tuple[ArcShape, ...]:
    flat = label.ravel()
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(1, number + 2)).tolist()
    y, x = (axis.astype(np.float64) for axis in np.divmod(order, label.shape[1]))
    return tuple(_shape(x[a:b], y[a:b]) for a, b in itertools.pairwise(bounds))


def _shape(x: Floats, y: Floats) -> ArcShape:
    if len(x) >= _SHAPED_PIXELS:
        return arc_shape(x, y)
    side = float(np.sqrt(len(x)))
    return ArcShape(side, side, 0.0)
