"""A page of the non-lenses that each model ranks highest, for people to look at."""

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from clusterray import page, storage
from clusterray.config import Config
from clusterray.sky import shards
from clusterray.sky.thumbnails import png, rgb

__all__ = ["write_page"]


def write_page(
    url: str,
    *,
    worst: Mapping[str, Sequence[str]],
    table: Mapping[str, Mapping[str, Any]],
    truth: Mapping[str, Mapping[str, Any]],
    settings: Config,
) -> None:
    """Write one self-contained HTML page.

    Parameters
    ----------
    worst : for each model the object ids to show, the worst first.
    table : for each model its metrics.
    truth : rows of the truth table by object id.
    settings : of the survey whose shards hold the cutouts.
    """
    wanted = {object_id for ids in worst.values() for object_id in ids}
    images = _images(settings.paths.shards, wanted)
    names = ("tpr_at_fpr_1e-3", "tpr_at_fpr_1e-2", "average_precision")
    rows = [
        [model, *(f"{row[n]:.3f}" if n in row else "" for n in names)]
        for model, row in table.items()
    ]
    body = [page.table("Against truth", ["model", *names], rows)]
    for model, ids in worst.items():
        cards = "".join(_card(images[i], truth[i]) for i in ids)
        body.append(page.section(f"Worst of '{model}'", f'<ul class="cards">{cards}</ul>'))
    text = page.document("False positives", body)
    storage.write_bytes(url, text.encode())


def _images(folder: str, wanted: set[str]) -> dict[str, bytes]:
    found = defaultdict(bytes)
    for entry in storage.list_files(folder, suffix=".parquet", recursive=False):
        batch = shards.read(entry.url)
        for row, object_id in enumerate(batch.object_id):
            if object_id in wanted:
                image = rgb(batch.cutouts_nchw[row], batch.noise_sigma[row], batch.bands)
                found[object_id] = png(image)
    return found


def _card(image: bytes, row: Mapping[str, Any]) -> str:
    data = base64.b64encode(image).decode()
    z = "" if row["z_lens"] is None else f"z {row['z_lens']:.2f}"
    theta = "" if row["theta_e_arcsec"] is None else f", θ_E {row['theta_e_arcsec']:.1f}″"
    name = escape(f"{row['kind']} {row['object_id']}")
    return (
        f'<li><img alt="Colour image of {name}" src="data:image/png;base64,{data}">'
        f'<div class="words"><h3>{name}</h3><p>{escape(z + theta)}</p></div></li>'
    )
