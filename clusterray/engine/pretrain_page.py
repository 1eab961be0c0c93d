"""The page of a pretraining: how loss and spread went, and what the pairs look like."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

from clusterray import page
from clusterray.rank.drawing import BLUE, GREY, ORANGE, drawn_axes
from clusterray.sky.shards import CutoutBatch
from clusterray.sky.thumbnails import png, rgb

__all__ = ["render"]

_SHOWN: Final = 12
"""Pairs on the page."""


def render(
    history: Sequence[Mapping[str, float]], pairs: CutoutBatch, *, facts: Mapping[str, Any]
) -> str:
    """Write a pretraining as one self-contained HTML page.

    Parameters
    ----------
    history : `vision.lensiam.PretrainingEpoch` of each epoch, as plain values.
    pairs : cutouts (nJy) of which rows 2k and 2k + 1 are a pair; the first few are shown.
    facts : what else the reader should know, as plain values.
    """
    first, last = history[0], history[-1]
    parts = [
        page.headline(
            [
                (f"{first['loss']:.3f} → {last['loss']:.3f}", "loss (−1: partners look alike)"),
                (f"{last['spread']:.2f}", "spread (1: healthy, 0: collapse)"),
                (str(len(history)), "epochs"),
            ]
        ),
        page.figure(_curves(history), "Loss and spread of the representation, by epoch."),
        page.section(
            "Pairs",
            "<p>Each card is one lens twice: before another sky, in other seeing and depth.</p>",
            _cards(pairs),
        ),
        page.section("The run", page.facts(facts)),
        page.section("Files", page.links([("trunk.safetensors", "The trunk")])),
    ]
    return page.document("A trunk from simulated pairs", parts)


def _curves(history: Sequence[Mapping[str, float]]) -> str:
    svg: list[str] = []
    text = f"loss from {history[0]['loss']:.3f} to {history[-1]['loss']:.3f}, and the spread"
    epochs = [e["epoch"] for e in history]
    with drawn_axes(svg, name="pretraining", description=text) as axes:
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.plot(epochs, [e["loss"] for e in history], color=BLUE, marker=".", label="loss")
        axes.plot(epochs, [e["spread"] for e in history], color=ORANGE, marker=".", label="spread")
        axes.set_xlabel("epoch")
        axes.set_ylim(-1.05, 1.2)
        axes.legend()
    return svg[0]


def _cards(pairs: CutoutBatch) -> str:
    cards = []
    for k in range(0, min(2 * _SHOWN, len(pairs.object_id)), 2):
        name = str(pairs.object_id[k]).removesuffix("a")
        images = "".join(_image(pairs, row, name) for row in (k, k + 1))
        cards.append(f'<li>{images}<div class="words"><h3>{page.escaped(name)}</h3></div></li>')
    return f'<ul class="cards">{"".join(cards)}</ul>'


def _image(pairs: CutoutBatch, row: int, name: str) -> str:
    image = rgb(pairs.cutouts_nchw[row], pairs.noise_sigma[row], pairs.bands)
    data = base64.b64encode(png(image)).decode()
    side = "first" if row % 2 == 0 else "second"
    return f'<img src="data:image/png;base64,{data}" alt="{page.escaped(name)}, {side} view">'
