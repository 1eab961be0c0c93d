"""Small surveys written as a telescope would deliver them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import fits
from astropy.wcs import WCS
from scipy.special import erf

from clusterray import schema

RA_DEG, DEC_DEG = 150.0, 2.2


def tan_wcs(
    size_px: int,
    *,
    scale_arcsec: float = 0.336,
    rotation_deg: float = 7.0,
    ra_deg: float = RA_DEG,
    dec_deg: float = DEC_DEG,
) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = [ra_deg, dec_deg]
    wcs.wcs.crpix = [(size_px + 1) / 2, (size_px + 1) / 2]
    c, s = np.cos(np.radians(rotation_deg)), np.sin(np.radians(rotation_deg))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * scale_arcsec / 3600
    wcs.wcs.set()
    return wcs


def gaussian(shape: tuple[int, int], x: float, y: float, sigma_px: float) -> np.ndarray:
    """Unit flux, integrated over pixels by the error function's differences."""

    def profile(n: int, centre: float) -> np.ndarray:
        edges = np.arange(n + 1) - 0.5
        return np.diff(erf((edges - centre) / (sigma_px * np.sqrt(2)))) / 2

    return np.outer(profile(shape[0], y), profile(shape[1], x))


def noise_image(size_px: int, *, sigma: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sigma, (size_px, size_px)).astype(np.float32)


def write_tile(path: Path, data: np.ndarray, wcs: WCS | None = None, **cards: Any) -> str:
    """Write one image in nJy; keywords go to the header, None takes one away."""
    wcs = tan_wcs(data.shape[-1]) if wcs is None else wcs
    header = wcs.to_header(relax=True)
    for key, value in {"MAGZERO": 31.4, **cards}.items():
        if value is None:
            header.pop(key, None)
        else:
            header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".fz"):
        hdus = fits.HDUList(
            [fits.PrimaryHDU(), fits.CompImageHDU(data, header, quantize_level=-0.01)]
        )
    else:
        hdus = fits.HDUList([fits.PrimaryHDU(data, header)])
    hdus.writeto(path)
    return str(path)


def objects_at(*positions: tuple[float, float]) -> pa.Table:
    """Make a catalogue of positions (deg), named a, b, c, …"""
    n = len(positions)
    nothing = {
        k: pa.nulls(n, pa.float64())
        for k in ("z_lens", "richness", "sigma_v_km_s", "l_x_erg_s", "ebv")
    }
    table = pa.table(
        {
            "object_id": pa.array([chr(ord("a") + k) for k in range(n)], pa.string()),
            "ra_deg": pa.array([p[0] for p in positions], pa.float64()),
            "dec_deg": pa.array([p[1] for p in positions], pa.float64()),
            **nothing,
            "survey": pa.array(["test"] * n, pa.string()),
        }
    )
    return schema.check(table, schema.CATALOGUE, where="test")
