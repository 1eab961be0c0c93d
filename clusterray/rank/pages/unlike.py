"""The second list: what is unlike anything known, whatever its probability."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from clusterray import page
from clusterray.rank.discovery import unlike_known

__all__ = ["section"]


def section(ranking: pa.Table, top: int, card: Callable[[Mapping[str, Any]], str]) -> str:
    """Cards of the rows with the greatest anomaly score.

    Parameters
    ----------
    card : draws a row of the ranking.
    """
    rows = unlike_known(ranking, top).to_pylist()
    if not rows:
        return ""
    text = (
        "Farthest from the distribution of ordinary clusters (shrunk Mahalanobis distance d): new "
        "morphologies have no known example to be found by. Artefacts stand here too. The whole "
        "list is in unlike.csv."
    )
    return page.section(
        "Unlike anything known",
        f'<p class="soft">{page.escaped(text)}</p>',
        f'<ul class="cards">{"".join(card(row) for row in rows)}</ul>',
    )
