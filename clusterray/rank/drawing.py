"""Axes to draw on, as inline SVG that takes its ink from the page around it."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "GREY", "INK", "ORANGE", "PURPLE", "drawn_axes", "plain_counts"]

# Replaced by `currentColor`, so that axes and words are dark on light and light on dark.
INK: Final = "#010203"
# Okabe & Ito's palette, at lightnesses that stand out on white and on near-black.
BLUE: Final = "#2f86c8"
ORANGE: Final = "#d97722"
GREEN: Final = "#1f9e77"
GREY: Final = "#8b9099"
PURPLE: Final = "#b066c4"
_STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 11.0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def drawn_axes(
    svg: list[str],
    *,
    name: str,
    description: str,
    size_in: tuple[float, float] = (6.4, 4.0),
) -> Iterator[Axes]:
    """Give axes to draw on; the SVG is appended to `svg` at the end.

    Parameters
    ----------
    name : prefix of the ids inside the SVG, its own in each page.
    description : what a screen reader says.
    size_in : width and height in inches, for letters of 11 points.
    """
    # The salt names the clip paths: it must differ between the figures of one page.
    settings: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure = Figure(figsize=size_in, layout="constrained")
        axes = figure.subplots()
        yield axes
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg.append(_inline(buffer.getvalue(), name, description))


def _inline(document: str, name: str, description: str) -> str:
    """Only the `<svg>` element, without links, metadata or fixed size, and with a spoken name."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    head, _, rest = body.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    label = f'role="img" aria-labelledby="{name}-title"'
    title = f'<title id="{name}-title">{escape(description)}</title>'
    # Matplotlib names groups figure_1, axes_1 … in every figure; an id may stand once in a page.
    rest = re.sub(r'<g id="[A-Za-z.]+(?:2d)?_\d+"', "<g", rest)
    return f"<svg {box.group() if box else ''} {label}>{title}{rest}".replace(INK, "currentColor")


def plain_counts(axes: Axes) -> None:
    """Whole numbers on a symmetric-log axis of counts."""
    top = axes.get_ylim()[1]
    ticks = [0, *(10**k for k in range(8) if 10**k <= top)]
    axes.set_yticks(ticks, [f"{t:,}" for t in ticks])
    axes.minorticks_off()
