"""A made survey as it would be delivered: FITS tiles, catalogue and labels; and, apart, the truth.

`plan` decides everything that must agree between tiles, `render_tile` makes one tile and depends on
nothing else, and `finish` writes the tables. So tiles can be made anywhere, in any order.
"""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray
from pyarrow import csv

from clusterray import schema, storage
from clusterray.config import SimulateSettings
from clusterray.errors import RunError
from clusterray.provenance import seed_for, uniform_for
from clusterray.simulate import population
from clusterray.simulate.galaxies import BANDS
from clusterray.simulate.layout import TileSpec, plan
from clusterray.simulate.observe import Exposure, expose, flux_counts
from clusterray.simulate.scene import paint, paint_lensed, trace
from clusterray.simulate.surroundings import paint_surroundings
from clusterray.simulate.system import Recipe, System

__all__ = ["ClusterRecord", "TileOutcome", "TileSpec", "finish", "plan", "render_tile"]

Canvas = NDArray[np.float32]
_LENSED_BOX_ARCSEC: Final = 84.0
_SAMPLE_ARCSEC: Final = 0.17


@dataclass(frozen=True)
class ClusterRecord:
    """A system as the catalogue lists it, and its truth."""

    object_id: str
    ra_deg: float
    dec_deg: float
    richness: float
    z_lambda: float
    y: int
    kind: str
    theta_e_arcsec: float
    z_source: float | None
    m200_msun: float
    n_multiply_imaged: int
    tries: int


@dataclass(frozen=True)
class TileOutcome:
    """What came of a tile: its files and the systems on it."""

    name: str
    files: tuple[str, ...]
    clusters: tuple[ClusterRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        clusters = tuple(ClusterRecord(**c) for c in value["clusters"])
        return cls(value["name"], tuple(value["files"]), clusters)


def render_tile(
    spec: TileSpec,
    *,
    settings: SimulateSettings,
    seed: int,
    out_url: str,
    recipe: Recipe | None = None,
) -> TileOutcome:
    """Draw a tile's systems, paint them, and write one FITS file per band under `out_url`.

    The bytes depend on (spec, settings, seed, recipe) alone.

    Raises
    ------
    RunError : a system of its class could not be drawn.
    StorageError : a file could not be written.
    """
    recipe = recipe or Recipe()
    pixel = settings.pixel_scale_arcsec
    k = max(1, int(np.ceil(pixel / _SAMPLE_ARCSEC)))
    systems = [
        population.draw(i, kind=kind, seed=seed, recipe=recipe)
        for i, kind in zip(spec.index, spec.kind, strict=True)
    ]
    zero_point = np.array([e.zero_point for e in spec.exposures])
    canvas: Canvas = np.zeros(
        (len(BANDS), spec.shape_px[0] * k, spec.shape_px[1] * k), dtype=np.float32
    )
    paint_surroundings(
        canvas,
        zero_point,
        pixel_arcsec=pixel / k,
        rng=np.random.default_rng(seed_for(seed, tile=spec.name, part="field")),
    )
    for system, x, y in zip(systems, spec.x_arcsec, spec.y_arcsec, strict=True):
        _paint_system(canvas, system, (x, y), zero_point, pixel_arcsec=pixel, supersampling=k)
    files = []
    for scene, exposure in zip(canvas, spec.exposures, strict=True):
        rng = np.random.default_rng(seed_for(seed, tile=spec.name, band=exposure.band))
        image = expose(scene, exposure, pixel_arcsec=pixel, supersampling=k, rng=rng)
        name = f"{spec.name}_{exposure.band}.fits"
        header = _header(spec, exposure, pixel_arcsec=pixel)
        storage.write_bytes(storage.join(out_url, name), _fits_bytes(image, header))
        files.append(name)
    return TileOutcome(spec.name, tuple(files), _records(spec, systems, pixel_arcsec=pixel))


def _paint_system(
    canvas: Canvas,
    system: System,
    at_arcsec: tuple[float, float],
    zero_point: NDArray[np.float64],
    *,
    pixel_arcsec: float,
    supersampling: int,
) -> None:
    sample = pixel_arcsec / supersampling
    members = system.foreground.members
    flux = flux_counts(members.mag, zero_point=zero_point)
    paint(canvas, members.moved(*at_arcsec), flux, pixel_arcsec=sample)
    background, deflector = system.background, system.deflector()
    if background is None:
        return
    flux = flux_counts(background.mag, zero_point=zero_point)
    if deflector is None:
        paint(canvas, background.moved(*at_arcsec), flux, pixel_arcsec=sample)
        return
    columns, rows = (
        _span(centre, pixel_arcsec, size // supersampling)
        for centre, size in zip(at_arcsec, canvas.shape[:0:-1], strict=True)
    )
    plane = trace(
        deflector,
        (columns + 0.5) * pixel_arcsec - at_arcsec[0],
        (rows + 0.5) * pixel_arcsec - at_arcsec[1],
    )
    box = tuple(
        slice(int(s[0]) * supersampling, (int(s[-1]) + 1) * supersampling) for s in (rows, columns)
    )
    paint_lensed(canvas[:, *box], plane, background, flux, sub=3 * supersampling)


def _span(centre_arcsec: float, pixel_arcsec: float, size_px: int) -> NDArray[np.float64]:
    """Pixels of the box in which lensed light is painted, along one axis."""
    first = int((centre_arcsec - _LENSED_BOX_ARCSEC / 2) / pixel_arcsec)
    last = int((centre_arcsec + _LENSED_BOX_ARCSEC / 2) / pixel_arcsec)
    return np.arange(max(first, 0), min(last, size_px), dtype=np.float64)


def _wcs(spec: TileSpec, *, pixel_arcsec: float) -> WCS:
    wcs = WCS(naxis=2)
    rows, columns = spec.shape_px
    angle = np.radians(spec.rotation_deg)
    cos, sin = np.cos(angle), np.sin(angle)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [spec.ra_deg, spec.dec_deg]
    wcs.wcs.crpix = [(columns + 1) / 2, (rows + 1) / 2]
    wcs.wcs.cd = pixel_arcsec / 3600 * np.array([[-cos, sin], [sin, cos]])
    wcs.wcs.radesys = "ICRS"
    return wcs


def _header(spec: TileSpec, exposure: Exposure, *, pixel_arcsec: float) -> fits.Header:
    header = _wcs(spec, pixel_arcsec=pixel_arcsec).to_header()
    header["FILTER"] = exposure.band
    header["BUNIT"] = "adu"
    header["MAGZERO"] = (exposure.zero_point, "AB magnitude of one adu")
    header["PSF_FWHM"] = (round(exposure.psf_fwhm_arcsec, 4), "arcsec")
    header["DEPTH"] = (round(exposure.depth_mag, 3), "5 sigma point source, AB mag")
    header["GAIN"] = (round(exposure.gain(pixel_arcsec), 4), "electrons per adu")
    header["OBJECT"] = spec.name
    return header


def _fits_bytes(image: Canvas, header: fits.Header) -> bytes:
    sink = io.BytesIO()
    fits.PrimaryHDU(image, header=header).writeto(sink)
    return sink.getvalue()


def _records(
    spec: TileSpec, systems: Sequence[System], *, pixel_arcsec: float
) -> tuple[ClusterRecord, ...]:
    sky: SkyCoord = _wcs(spec, pixel_arcsec=pixel_arcsec).pixel_to_world(
        np.array(spec.x_arcsec) / pixel_arcsec - 0.5, np.array(spec.y_arcsec) / pixel_arcsec - 0.5
    )
    return tuple(
        ClusterRecord(
            object_id=s.object_id,
            ra_deg=float(sky.ra.deg[i]),
            dec_deg=float(sky.dec.deg[i]),
            richness=s.foreground.richness,
            z_lambda=s.foreground.z_lambda,
            y=s.y,
            kind=s.kind,
            theta_e_arcsec=s.theta_e_arcsec,
            z_source=s.z_background,
            m200_msun=s.foreground.m200_msun,
            n_multiply_imaged=s.n_multiply_imaged,
            tries=s.tries,
        )
        for i, s in enumerate(systems)
    )


def finish(
    outcomes: Iterable[TileOutcome],
    *,
    settings: SimulateSettings,
    seed: int,
    survey_url: str,
    truth_url: str,
) -> dict[str, Any]:
    """Write ``catalogue.fits`` and ``labels.csv`` under `survey_url`, and the truth to `truth_url`.

    The known lenses are a random draw of all lenses by (seed, object_id): in this survey the
    labelled are *not* the bright ones, so SCAR holds by construction.

    Parameters
    ----------
    truth_url : the Parquet file; keep it outside `survey_url`.

    Returns
    -------
    A summary: counts by class, tries by class, known lenses, how they were chosen.

    Raises
    ------
    RunError : the tiles do not hold every system exactly once.
    """
    records = sorted((c for o in outcomes for c in o.clusters), key=lambda c: int(c.object_id))
    expected = [population.object_id_of(i) for i in range(settings.n_clusters)]
    if [c.object_id for c in records] != expected:
        raise RunError(
            f"{len(records)} systems on the tiles, expected each of {settings.n_clusters} once; "
            "render the missing tiles, or those of the same plan"
        )
    _write_catalogue(storage.join(survey_url, "catalogue.fits"), records)
    known = _known(records, n=settings.n_known, seed=seed)
    _write_labels(storage.join(survey_url, "labels.csv"), known)
    _write_truth(truth_url, records)
    tries: Counter[str] = Counter()
    for record in records:
        tries[record.kind] += record.tries
    return {
        "kinds": dict(sorted(Counter(c.kind for c in records).items())),
        "draws": dict(sorted(tries.items())),
        "known": len(known),
        "known_drawn": "at random from the lenses: SCAR holds",
    }


def _known(records: Sequence[ClusterRecord], *, n: int, seed: int) -> list[str]:
    lenses = [c.object_id for c in records if c.y == 1]
    rank = uniform_for(seed, lenses, purpose="known")
    chosen = sorted(zip(rank, lenses, strict=True))[:n]
    return sorted((object_id for _, object_id in chosen), key=int)


def _write_catalogue(url: str, records: Sequence[ClusterRecord]) -> None:
    table = Table(
        {
            "MEM_MATCH_ID": np.array([int(c.object_id) for c in records], dtype=np.int32),
            "RA": np.array([c.ra_deg for c in records]),
            "DEC": np.array([c.dec_deg for c in records]),
            "LAMBDA": np.array([c.richness for c in records], dtype=np.float32),
            "Z_LAMBDA": np.array([c.z_lambda for c in records], dtype=np.float32),
        },
        units={"RA": "deg", "DEC": "deg"},
    )
    sink = io.BytesIO()
    table.write(sink, format="fits")
    storage.write_bytes(url, sink.getvalue())


def _write_labels(url: str, known: Sequence[str]) -> None:
    n = len(known)
    rows = {
        "object_id": list(known),
        "source": ["simulated follow-up"] * n,
        "date": ["2026-01-01"] * n,
        "s": [1] * n,
        "grade": ["A"] * n,
    }
    sink = pa.BufferOutputStream()
    csv.write_csv(pa.table(rows, schema=schema.LABELS), sink)
    storage.write_bytes(url, sink.getvalue())


def _write_truth(url: str, records: Sequence[ClusterRecord]) -> None:
    rows = [{name: getattr(c, name, None) for name in schema.TRUTH.names} for c in records]
    table = pa.Table.from_pylist(rows, schema=schema.TRUTH)
    storage.write_table(url, schema.check(table, schema.TRUTH, where="simulated truth"))
