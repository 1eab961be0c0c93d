"""The best candidates as cards: image, probability, position, and what is known of them."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa

from clusterray import page
from clusterray.rank.evidence import Evidence
from clusterray.sky.thumbnails import Thumbnail, png, rgb

__all__ = ["Cards", "section"]

_FLAG_TONES = {"partial": "warn", "clipped": "warn"}


@dataclass(frozen=True)
class Cards:
    """Draws rows of a ranking, wherever in it they stand.

    Parameters
    ----------
    thumbnails : by object_id; one that is missing is shown as such.
    """

    evidence: Evidence
    thumbnails: Mapping[str, Thumbnail]
    bands: Sequence[str]
    rgb_bands: Sequence[str] | None

    def __call__(self, row: Mapping[str, Any]) -> str:
        """One list item of HTML."""
        name = escape(row["object_id"])
        thumbnail = self.thumbnails.get(row["object_id"])
        if thumbnail is None:
            image = '<div class="noimage">no image</div>'
        else:
            encoded = base64.b64encode(png(rgb(*thumbnail, self.bands, self.rgb_bands))).decode()
            alt = f"Colour image of {name}, rank {row['rank']}"
            image = f'<img src="data:image/png;base64,{encoded}" alt="{alt}" loading="lazy">'
        interval = f"{row['p_lens_low']:.2g}–{row['p_lens_high']:.2g}"
        score = row["anomaly_score"]
        anomaly = "" if score is None or not np.isfinite(score) else f", d = {score:.3g}"
        return (
            f'<li>{image}<div class="words"><h3>{row["rank"]}. {name}</h3>'
            f"<p>p = {row['p_lens']:.3g} ({interval}){anomaly}</p>"
            f"<p>RA {row['ra_deg']:.5f}°, Dec {row['dec_deg']:+.5f}°</p>"
            f"{page.chips(self._marks(row))}</div></li>"
        )

    def _marks(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        # Ranks count the rows of the ranking.
        index, evidence = row["rank"] - 1, self.evidence
        marks = []
        if evidence.s[index]:
            marks.append(("known lens" if evidence.s[index] > 0 else "known non-lens", "mark"))
        if evidence.y is not None and evidence.kind is not None:
            verdict, tone = {
                1: ("truth: lens", "good"),
                0: ("truth: not a lens", "warn"),
                -1: ("truth: marginal", ""),
            }.get(int(evidence.y[index]), ("no truth", ""))
            kind = evidence.kind[index]
            marks.append((f"{verdict} ({kind})" if kind else verdict, tone))
        flags = [f for f in row["flags"].split(";") if f]
        return marks + [(flag, _FLAG_TONES.get(flag, "")) for flag in flags]


def section(ranking: pa.Table, top: int, cards: Cards) -> str:
    """Cards of the first rows."""
    shown = ranking.slice(0, top).to_pylist()
    colours = ", ".join(cards.rgb_bands or tuple(reversed(cards.bands[-3:])))
    text = (
        f"North is up, east is left. Bands from red to blue: {colours}; fluxes share one scale, so "
        "a colour means the same in every image. p is the calibrated probability with its 90 % "
        "interval, d the distance from ordinary clusters."
    )
    return page.section(
        f"The first {len(shown)}",
        f'<p class="soft">{escape(text)}</p>',
        f'<ul class="cards">{"".join(cards(row) for row in shown)}</ul>',
    )
