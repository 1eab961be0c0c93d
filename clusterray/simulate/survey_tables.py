"""The tables beside a made survey: catalogue and labels, and, apart, the truth."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from astropy.table import Table
from numpy.typing import NDArray
from pyarrow import csv

from clusterray import schema, storage
from clusterray.errors import ConfigError
from clusterray.provenance import uniform_for

__all__ = ["known_lenses", "write_catalogue", "write_labels"]


def known_lenses(lens_ids: Sequence[str], *, n: int, seed: int) -> list[str]:
    """Draw the known lenses at random from all lenses, by (seed, object_id).

    So in this survey the labelled are *not* the bright ones: SCAR holds by construction.

    Raises
    ------
    ConfigError : fewer lenses than are to be known.
    """
    if n > len(lens_ids):
        raise ConfigError(
            f"simulate.n_known is {n}, but this seed and recipe make {len(lens_ids)} lenses; "
            "lower simulate.n_known, or raise simulate.n_clusters or simulate.lens_fraction"
        )
    rank = uniform_for(seed, lens_ids, purpose="known")
    chosen = sorted(zip(rank, lens_ids, strict=True))[:n]
    return sorted((object_id for _, object_id in chosen), key=int)


def write_catalogue(
    url: str,
    object_id: Sequence[str],
    sky_deg: NDArray[np.float64],
    columns: dict[str, NDArray[np.float64]],
) -> None:
    """Write a cluster catalogue as FITS, under redMaPPer's column names where it has them.

    Parameters
    ----------
    sky_deg : (n, 2) RA, Dec.
    columns : of `cutouts.catalogue_columns`.
    """
    names = {
        "z_lens": "Z_LAMBDA",
        "richness": "LAMBDA",
        "sigma_v_km_s": "SIGMA_V",
        "l_x_erg_s": "L_X",
    }
    # An X-ray luminosity in erg/s overflows float32.
    table = Table(
        {
            "MEM_MATCH_ID": np.array([int(i) for i in object_id], np.int32),
            "RA": sky_deg[:, 0],
            "DEC": sky_deg[:, 1],
            **{theirs: np.asarray(columns[ours], float) for ours, theirs in names.items()},
        },
        units={"RA": "deg", "DEC": "deg", "SIGMA_V": "km/s", "L_X": "erg/s"},
    )
    sink = io.BytesIO()
    table.write(sink, format="fits")
    storage.write_bytes(url, sink.getvalue())


def write_labels(url: str, labels: Sequence[tuple[str, int]], *, source: str) -> None:
    """Write (object_id, s) pairs as a labels table in CSV."""
    n = len(labels)
    rows = {
        "object_id": [i for i, _ in labels],
        "source": [source] * n,
        "date": ["2026-01-01"] * n,
        "s": [s for _, s in labels],
        "grade": ["A" if s == 1 else None for _, s in labels],
    }
    sink = pa.BufferOutputStream()
    csv.write_csv(pa.table(rows, schema=schema.LABELS), sink)
    storage.write_bytes(url, sink.getvalue())
