"""What the segments of a cutout say together, and each by itself: for candidates, by people."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial.distance import pdist

from clusterray.config import CandidateSettings
from clusterray.errors import InputError
from clusterray.features.families import (
    colour_covariance,
    colour_distance,
    consistency,
    families,
)
from clusterray.features.image_registry import band_pairs
from clusterray.features.measurement import EDGE_SIGMA
from clusterray.features.photometry import aperture_colours
from clusterray.features.registry import FeatureMatrix
from clusterray.features.segment_registry import segment_registry
from clusterray.features.segments import Segments, find_segments

__all__ = ["measure_segments", "segment_features", "segment_rows"]

Floats = NDArray[np.float64]

_ARC_LIKE = 2.5
_SOBEL_NOISE_VARIANCE = 12.0
_OTHER_COLOUR = 3.0


def segment_features(
    cutouts_nchw: NDArray[Any],
    *,
    noise_sigma: ArrayLike,
    bands: Sequence[str],
    pixel_scale_arcsec: float,
    psf_fwhm_arcsec: ArrayLike,
    settings: CandidateSettings,
) -> tuple[FeatureMatrix, list[Segments]]:
    """Segment features of each cutout, and the segments they come from.

    Parameters
    ----------
    cutouts_nchw : (n, bands, h, w) flux, nJy; not finite where there is no data.
    noise_sigma, psf_fwhm_arcsec : (n, bands); a PSF may be NaN where it is not known.

    Raises
    ------
    InputError : shapes that do not fit, a cutout without data, or noise that cannot be used.
    """
    noise, fwhm = (np.asarray(v, np.float64) for v in (noise_sigma, psf_fwhm_arcsec))
    if cutouts_nchw.ndim != 4 or not noise.shape == fwhm.shape == cutouts_nchw.shape[:2]:
        raise InputError(
            f"cutouts_nchw has shape {cutouts_nchw.shape}, noise_sigma {noise.shape} and "
            f"psf_fwhm_arcsec {fwhm.shape}; expected (n, bands, h, w) and twice (n, bands)"
        )
    names = tuple(feature.name for feature in segment_registry(bands))
    values = np.full((len(cutouts_nchw), len(names)), np.nan, np.float32)
    every = []
    for row, cutout in enumerate(cutouts_nchw):
        found = find_segments(
            cutout,
            noise_sigma=noise[row],
            psf_fwhm_px=fwhm[row] / pixel_scale_arcsec,
            bcg_radius_px=settings.bcg_radius_arcsec / pixel_scale_arcsec,
        )
        measured = measure_segments(found, bands=bands, pixel_scale_arcsec=pixel_scale_arcsec)
        measured |= _bcg_colours(
            cutout, found, noise[row], fwhm[row] / pixel_scale_arcsec, bands,
            settings.aperture_arcsec / 2 / pixel_scale_arcsec,
        )  # fmt: skip
        values[row] = [measured[name] for name in names]
        every.append(found)
    return FeatureMatrix(values, names), every


def measure_segments(
    found: Segments, *, bands: Sequence[str], pixel_scale_arcsec: float
) -> dict[str, float]:
    """What `segment_registry` defines, but for the BCG's colours, by name."""
    x0, y0 = found.centre_px
    height, width = found.label.shape
    others = found.others
    dx, dy = found.x_px[others] - x0, found.y_px[others] - y0
    arcs = [found.arc[k] for k in others]
    ratio = np.array([a.length_over_width for a in arcs])
    length = np.array([a.length_px for a in arcs])
    values = {
        "seg_number": float(len(others)),
        "seg_bcg_offset_arcsec": np.nan,
        "seg_alignment": _alignment(found),
        "seg_arc_curvature": np.nan,
        "seg_arc_length_arcsec": float(length[ratio >= _ARC_LIKE].sum() * pixel_scale_arcsec),
        "seg_length_width": float(ratio.max()) if len(ratio) else np.nan,
        "seg_separation_arcsec": np.nan,
        "seg_ellipticity_coherence": _coherence(found, dx, dy),
        **_radial(found, pixel_scale_arcsec),
        **_family(found),
        **_gradients(found, np.hypot(dx, dy), bands),
    }
    if found.bcg is not None:
        offset = np.hypot(x0 - (width - 1) / 2, y0 - (height - 1) / 2)
        values["seg_bcg_offset_arcsec"] = float(offset * pixel_scale_arcsec)
    if len(arcs):
        longest = arcs[int(np.argmax(length))]
        values["seg_arc_curvature"] = longest.curvature_per_px / pixel_scale_arcsec
    if len(others) > 1:
        apart = pdist(np.column_stack([dx, dy]))
        values["seg_separation_arcsec"] = float(np.sqrt((apart**2).mean()) * pixel_scale_arcsec)
    return values


def _alignment(found: Segments) -> float:
    """Of the edges inside segments beside the BCG; see `segment_registry`."""
    x0, y0 = found.centre_px
    across = ndimage.sobel(found.detection, axis=1)
    along = ndimage.sobel(found.detection, axis=0)
    strength = across.astype(np.float64) ** 2 + along**2
    inside = (found.label > 0) & ndimage.minimum_filter(found.usable, 3)
    if found.bcg is not None:
        inside &= found.label != found.bcg + 1
    inside &= strength > EDGE_SIGMA**2 * _SOBEL_NOISE_VARIANCE
    if not inside.any():
        return float("nan")
    y, x = np.nonzero(inside)
    s, a, b = strength[inside], across[inside], along[inside]
    weight = 1.0 - EDGE_SIGMA**2 * _SOBEL_NOISE_VARIANCE / s
    angle = 2 * np.arctan2(y - y0, x - x0)
    radial = (a * a - b * b) * np.cos(angle) + 2 * a * b * np.sin(angle)
    return float((weight * radial).sum() / (weight * s).sum())


def _coherence(found: Segments, dx: Floats, dy: Floats) -> float:
    others = found.others
    ellipticity = found.ellipticity[others]
    if len(others) < 2 or not ellipticity.sum() > 0:
        return float("nan")
    from_tangent = found.angle_rad[others] - np.arctan2(dy, dx) - np.pi / 2
    return float(abs((ellipticity * np.exp(2j * from_tangent)).sum()) / ellipticity.sum())


def _radial(found: Segments, pixel_scale_arcsec: float) -> dict[str, float]:
    x0, y0 = found.centre_px
    inside = found.label > 0
    if found.bcg is not None:
        inside &= found.label != found.bcg + 1
    if not inside.any():
        return {"seg_distance_arcsec": np.nan, "seg_concentration": np.nan}
    y, x = np.nonzero(inside)
    distance = np.hypot(x - x0, y - y0)
    light = np.maximum(found.detection[inside].astype(np.float64), 1e-6)
    label = found.label[inside]
    total = np.bincount(label, light)
    mean = np.bincount(label, light * distance)[total > 0] / total[total > 0]
    order = np.argsort(distance, kind="stable")
    share = np.cumsum(light[order]) / light.sum()
    r20, r80 = np.maximum(distance[order][np.searchsorted(share, [0.2, 0.8])], 0.5)
    return {
        "seg_distance_arcsec": float(mean.mean() * pixel_scale_arcsec),
        "seg_concentration": float(5 * np.log10(r80 / r20)),
    }


def _family(found: Segments) -> dict[str, float]:
    """The largest family of a colour that is not the BCG's: members behind share one, too."""
    unknown = {"seg_family_size": np.nan, "seg_family_consistency": np.nan}
    others = found.others
    known = others[np.isfinite(found.colour[others]).all(axis=1)]
    if not found.colour.shape[1] or not len(known):
        return unknown
    covariance = colour_covariance(_magnitude_error(found))
    if found.bcg is not None and np.isfinite(found.colour[found.bcg]).all():
        joint = covariance[known] + covariance[found.bcg]
        apart = colour_distance(found.colour[known], found.colour[found.bcg], joint)
        known = known[apart > _OTHER_COLOUR]
    colours = found.colour[known]
    member = families(colours, covariance[known]) == 0
    return {
        "seg_family_size": float(member.sum()),
        "seg_family_consistency": consistency(colours[member], covariance[known][member]),
    }


def _magnitude_error(found: Segments) -> Floats:
    """(m, bands), see `photometry.colours_of`."""
    flux, error = found.flux_njy, found.flux_error_njy
    return np.asarray(2.5 / np.log(10) * error / np.hypot(flux, 2 * 1.042 * error))


def _gradients(found: Segments, distance_px: Floats, bands: Sequence[str]) -> dict[str, float]:
    values = {}
    radius = np.log10(np.maximum(distance_px, 0.5))
    for k, (blue, red) in enumerate(band_pairs(bands)):
        colour, error = found.colour[found.others, k], found.colour_error[found.others, k]
        known = np.isfinite(colour) & (error > 0)
        slope = np.nan
        if known.sum() > 2:
            weight = 1 / error[known] ** 2
            off = radius[known] - np.average(radius[known], weights=weight)
            spread = (weight * off**2).sum()
            slope = float((weight * off * colour[known]).sum() / spread) if spread > 0 else np.nan
        values[f"seg_colour_gradient_{blue}_{red}"] = slope
    return values


def _bcg_colours(
    cutout: NDArray[Any], found: Segments, noise: Floats, fwhm_px: Floats, bands: Sequence[str],
    radius_px: float,
) -> dict[str, float]:  # fmt: skip
    pairs = band_pairs(bands)
    values = {f"seg_bcg_colour_{blue}_{red}": np.nan for blue, red in pairs}
    values |= {f"seg_bcg_colour_error_{blue}_{red}": np.nan for blue, red in pairs}
    if found.bcg is None or "psf_unknown" in found.flags:
        return values
    x, y = found.centre_px
    light = aperture_colours(
        cutout, noise_sigma=noise, psf_fwhm_px=fwhm_px, x_px=x, y_px=y, radius_px=radius_px
    )
    for k, (blue, red) in enumerate(pairs):
        values[f"seg_bcg_colour_{blue}_{red}"] = float(light.colour[0, k])
        values[f"seg_bcg_colour_error_{blue}_{red}"] = float(light.colour_error[0, k])
    return values


def segment_rows(
    object_id: str, found: Segments, *, bands: Sequence[str], pixel_scale_arcsec: float
) -> list[dict[str, Any]]:
    """One row of `schema.segments` for each segment; offsets are from the catalogue position."""
    height, width = found.label.shape
    pairs = band_pairs(bands)
    rows = []
    for k in range(len(found)):
        row = {
            "object_id": object_id,
            "segment": k + 1,
            "is_bcg": k == found.bcg,
            # Rows of a cutout run north, columns west.
            "east_arcsec": -(found.x_px[k] - (width - 1) / 2) * pixel_scale_arcsec,
            "north_arcsec": (found.y_px[k] - (height - 1) / 2) * pixel_scale_arcsec,
            "area_arcsec2": found.area_px[k] * pixel_scale_arcsec**2,
            "ellipticity": found.ellipticity[k],
            # From north through east, as position angles are.
            "position_angle_deg": np.degrees(found.angle_rad[k] + np.pi / 2) % 180.0,
            "length_arcsec": found.arc[k].length_px * pixel_scale_arcsec,
            "width_arcsec": found.arc[k].width_px * pixel_scale_arcsec,
        }
        for p, (blue, red) in enumerate(pairs):
            row[f"colour_{blue}_{red}"] = found.colour[k, p]
            row[f"colour_error_{blue}_{red}"] = found.colour_error[k, p]
        rows.append(row)
    return rows
