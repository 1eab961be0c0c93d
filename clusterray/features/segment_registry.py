"""The features of candidates: what the segments of a cutout say together."""

from collections.abc import Sequence

from clusterray.features.feature import Feature
from clusterray.features.image_registry import band_pairs

__all__ = ["segment_registry"]

_NONE = "no segment beside the BCG"
_PAIRS = "fewer than two segments beside the BCG"
_CUTOUT = (
    ("seg_number", "1", "segments beside the BCG", "Bertin & Arnouts 1996; SEP", ""),
    (
        "seg_bcg_offset_arcsec",
        "arcsec",
        "distance of the BCG, the brightest source near the catalogue position, from it",
        "",
        "no source near the catalogue position; distances are then from that",
    ),
    (
        "seg_alignment",
        "1",
        "how tangential the edges inside the segments run about the BCG: radial less tangential "
        "part of the squared Sobel gradients, each weighed with its excess over 4 times its noise, "
        "over their sum; 1 for a ring, −1 for radial spokes",
        "",
        "no such edge in a segment beside the BCG",
    ),
    (
        "seg_arc_curvature",
        "1/arcsec",
        "curvature of the longest segment; 0 where no circle describes it",
        "Taubin 1991, IEEE Trans. Pattern Anal. Mach. Intell. 13, 1115",
        _NONE,
    ),
    (
        "seg_arc_length_arcsec",
        "arcsec",
        "summed length of the segments at least 2.5 times as long as wide",
        "after Bartelmann & Weiss 1994, A&A 287, 1",
        "",
    ),
    (
        "seg_length_width",
        "1",
        "length over width of the most elongated segment",
        "after Bartelmann & Weiss 1994, A&A 287, 1",
        _NONE,
    ),
    (
        "seg_distance_arcsec",
        "arcsec",
        "mean over the segments of the mean distance of their light from the BCG",
        "",
        _NONE,
    ),
    (
        "seg_ellipticity_coherence",
        "1",
        "length of the sum of the segments' ellipticities, as vectors e·exp(2iψ) with ψ the angle "
        "to the tangent about the BCG, over the sum of their lengths; 1 where all point one way",
        "",
        _PAIRS,
    ),
    (
        "seg_separation_arcsec",
        "arcsec",
        "root mean square of the distances between segments",
        "",
        _PAIRS,
    ),
    (
        "seg_concentration",
        "mag",
        "5 log10(r80/r20) of the radii about the BCG that hold 80 and 20 % of the segments' light",
        "Kent 1985, ApJS 59, 115",
        _NONE,
    ),
    (
        "seg_family_size",
        "1",
        "segments in the largest family of one colour, other than the BCG's",
        "complete linkage at 3 times the joint error (features.families)",
        "one band, or no segment with all colours",
    ),
    (
        "seg_family_consistency",
        "1",
        "how well that family agrees on one colour: mean of exp(−max(d² − 1, 0)/2), d the "
        "error-regularised Mahalanobis distance from a Huber centroid",
        "Huber 1964, Ann. Math. Statist. 35, 73",
        "fewer than two segments in it",
    ),
)


def segment_registry(bands: Sequence[str]) -> tuple[Feature, ...]:
    """Features over the segments of a cutout, then colour gradients and the BCG's colours."""
    features = [Feature(*row, group="segments") for row in _CUTOUT]
    for blue, red in band_pairs(bands):
        features.append(
            Feature(
                f"seg_colour_gradient_{blue}_{red}",
                "mag/dex",
                f"slope of the segments' colour {blue} − {red} against log10 of their distance "
                "from the BCG, weighed by the errors",
                "",
                "fewer than three segments with this colour",
                group="segment colours",
            )
        )
    for blue, red in band_pairs(bands):
        features += [
            Feature(
                f"seg_bcg_colour_{blue}_{red}",
                "mag",
                f"colour {blue} − {red} of the BCG in a round aperture, PSFs matched",
                "Lupton, Gunn & Szalay 1999, AJ 118, 1406, eq. 3",
                "no BCG, a PSF not recorded, or unusable pixels in the aperture",
                group="segment colours",
            ),
            Feature(
                f"seg_bcg_colour_error_{blue}_{red}",
                "mag",
                f"error of that colour {blue} − {red}, from the noise of the pixels",
                "",
                "as the colour",
                group="segment colours",
            ),
        ]
    return tuple(features)
