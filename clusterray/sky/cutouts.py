"""Cutouts of catalogue objects: every band on one north-up grid, in nJy, with its noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from astropy.wcs import WCS

from clusterray import schema
from clusterray.config import IngestSettings
from clusterray.sky import astrometry, noise, resample
from clusterray.sky.image_plane import Plane
from clusterray.sky.surveys import Survey

__all__ = ["CutoutResult", "extract"]

# A pixel counts as data where at least this share of its area was observed.
_MIN_PIXEL_COVERAGE: Final = 0.5

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CutoutResult:
    """Cutouts of the objects that could be cut, in the order of the catalogue, and the rejects.

    `objects` (n rows of `schema.CATALOGUE`); `cutouts_nchw` nJy per pixel, NaN where there is no
    data; the other arrays are (n, bands): `noise_sigma` nJy per pixel, `coverage` share of pixels
    with data, `psf_fwhm_arcsec` and `depth_mag` NaN where unknown, `noise_correlation` as in
    `schema.cutouts`. `rejects` has `schema.REJECTS`.
    """

    objects: pa.Table
    bands: tuple[str, ...]
    cutouts_nchw: FloatArray
    noise_sigma: FloatArray
    coverage: FloatArray
    psf_fwhm_arcsec: FloatArray
    depth_mag: FloatArray
    noise_correlation: FloatArray
    rejects: pa.Table


def extract(
    objects: pa.Table,
    planes: Sequence[Plane],
    *,
    survey: Survey,
    settings: IngestSettings,
) -> CutoutResult:
    """Cut the objects out of the tiles; each tile is opened once.

    Memory is about 3 × objects × bands × size² × 4 bytes beside one tile, so a large catalogue is
    cut in portions, each with the planes that reach it (`Plane.reaches`).

    The noise of a band is what the cutout's blank sky shows, and so that of the stored pixels. Only
    where sources leave no blank sky it is the root of the median variance of the RMS maps, if every
    tile has one, propagated as in `resample.resample`; those maps often describe pixels before an
    earlier resampling (Euclid's NISP: twice the noise that its images show).

    Parameters
    ----------
    objects : rows of `schema.CATALOGUE`.
    planes : of any bands, in any order, which does not change the result.
    survey : bands and grid.
    settings : `min_coverage`.

    Raises
    ------
    ContractError : `objects` is not a catalogue.
    InputError : a tile cannot be read.
    """
    objects = schema.check(objects, schema.CATALOGUE, where="cutouts.extract")
    canvas = _Canvas(objects, survey)
    for plane in sorted(planes, key=lambda p: (p.url, p.hdu, p.index or 0, p.band)):
        if plane.band in survey.band_names:
            canvas.paint(plane)
    return canvas.finish(settings)


class _Canvas:
    """The cutouts while tiles are added to them."""

    def __init__(self, objects: pa.Table, survey: Survey) -> None:
        self.objects = objects
        self.survey = survey
        n, b, size = len(objects), len(survey.bands), survey.size_px
        self.ra_deg = objects.column("ra_deg").to_numpy()
        self.dec_deg = objects.column("dec_deg").to_numpy()
        self.flux = np.zeros((n, b, size, size), np.float32)
        self.covered = np.zeros((n, b, size, size), np.float32)
        self.variance: dict[tuple[int, int], FloatArray] = {}
        self.n_tiles = np.zeros((n, b), np.int32)
        self.n_rms = np.zeros((n, b), np.int32)
        self.fwhm = np.zeros((n, b))
        self.depth = np.zeros((n, b))

    def paint(self, plane: Plane) -> None:
        near = plane.reaches(
            self.ra_deg, self.dec_deg, radius_arcsec=self.survey.half_diagonal_arcsec
        )
        if not near.any():
            return
        wcs = astrometry.celestial(plane.wcs_header, where=plane.where)
        b = self.survey.band_names.index(plane.band)
        pixels = None
        for i in np.flatnonzero(near).tolist():
            place = resample.footprint(wcs, plane.shape, self._grid(i))
            if place is None:
                continue
            if pixels is None:
                flux, sigma = plane.load()
                pixels = flux, None if sigma is None else sigma**2
            self._merge(i, b, resample.resample(place, *pixels))
            self._note(i, b, plane)

    def _grid(self, i: int) -> WCS:
        return astrometry.cutout_wcs(
            self.ra_deg[i],
            self.dec_deg[i],
            pixel_scale_arcsec=self.survey.pixel_scale_arcsec,
            size_px=self.survey.size_px,
        )

    def _merge(self, i: int, b: int, patch: resample.Patch) -> None:
        """Weight what is there and what comes by the area that each observed."""
        total = self.covered[i, b] + patch.covered
        with np.errstate(invalid="ignore"):
            share = np.where(total > 0, patch.covered / total, np.float32(0))
        self.flux[i, b] = self.flux[i, b] * (1 - share) + patch.flux * share
        if patch.variance is not None:
            old = self.variance.get((i, b), np.zeros_like(total))
            self.variance[i, b] = old * (1 - share) ** 2 + patch.variance * share**2
        self.covered[i, b] = total

    def _note(self, i: int, b: int, plane: Plane) -> None:
        self.n_tiles[i, b] += 1
        self.n_rms[i, b] += plane.rms_hdu is not None
        # Several tiles: the mean of what they say, unknown if one does not say.
        for total, value in ((self.fwhm, plane.psf_fwhm_arcsec), (self.depth, plane.depth_mag)):
            total[i, b] += np.nan if value is None else value

    def finish(self, settings: IngestSettings) -> CutoutResult:
        observed = self.covered >= _MIN_PIXEL_COVERAGE
        self.flux[~observed] = np.nan
        coverage = observed.mean(axis=(2, 3), dtype=np.float32)
        sigma, correlation = self._noise(coverage, settings)
        reasons = [
            self._reason(i, coverage[i], sigma[i], settings) for i in range(len(self.objects))
        ]
        keep = np.array([r is None for r in reasons], dtype=bool)
        with np.errstate(invalid="ignore"):
            fwhm, depth = (
                (t / self.n_tiles)[keep].astype(np.float32) for t in (self.fwhm, self.depth)
            )
        return CutoutResult(
            objects=self.objects.filter(pa.array(keep)),
            bands=self.survey.band_names,
            cutouts_nchw=self.flux if keep.all() else self.flux[keep],
            noise_sigma=sigma[keep],
            coverage=coverage[keep],
            psf_fwhm_arcsec=fwhm,
            depth_mag=depth,
            noise_correlation=correlation[keep],
            rejects=_rejects(self.objects, reasons),
        )

    def _noise(
        self, coverage: FloatArray, settings: IngestSettings
    ) -> tuple[FloatArray, FloatArray]:
        sigma = np.full(coverage.shape, np.nan, np.float32)
        correlation = sigma.copy()
        usable = (coverage >= settings.min_coverage) & (coverage > 0)
        for i in np.flatnonzero(usable.all(axis=1)).tolist():
            for b in range(coverage.shape[1]):
                image = self.flux[i, b]
                sigma[i, b], correlation[i, b] = noise.blank_sky(image)
                has_rms = self.n_rms[i, b] == self.n_tiles[i, b]
                if sigma[i, b] > 0 and np.isnan(correlation[i, b]) and has_rms:
                    variance = self.variance[i, b][np.isfinite(image)]
                    sigma[i, b] = np.sqrt(np.median(variance))
        return sigma, correlation

    def _reason(
        self, i: int, coverage: FloatArray, sigma: FloatArray, settings: IngestSettings
    ) -> str | None:
        """Why an object cannot be cut; None where it can."""
        bands = np.array(self.survey.band_names)

        def named(which: npt.NDArray[np.bool_]) -> str:
            return ("band " if which.sum() == 1 else "bands ") + ", ".join(bands[which])

        outside = self.n_tiles[i] == 0
        if outside.all():
            return "outside all tiles"
        if outside.any():
            return f"no tile in {named(outside)}"
        if (coverage == 0).any():
            return f"no data: every pixel is empty in {named(coverage == 0)}"
        if (coverage < settings.min_coverage).any():
            worst = int(np.argmin(coverage))
            return (
                f"coverage {coverage[worst]:.3f} in band {bands[worst]} is below "
                f"ingest.min_coverage {settings.min_coverage:g}"
            )
        if not (sigma > 0).all():
            what = named(~(sigma > 0))
            return f"no noise: the image is constant, or too small to measure, in {what}"
        return None


def _rejects(objects: pa.Table, reasons: Sequence[str | None]) -> pa.Table:
    rows = [(k, r) for k, r in enumerate(reasons) if r is not None]
    table = pa.table(
        {
            "object_id": objects.column("object_id").take(
                pa.array([k for k, _ in rows], pa.int64())
            ),
            "stage": pa.array(["ingest"] * len(rows), pa.string()),
            "reason": pa.array([r for _, r in rows], pa.string()),
            "retryable": pa.array([False] * len(rows), pa.bool_()),
        }
    )
    return schema.check(table, schema.REJECTS, where="cutouts.extract")
