"""Pieces of HTML: one self-contained, accessible page in light and dark. All text is escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = [
    "chips",
    "document",
    "escaped",
    "facts",
    "figure",
    "headline",
    "links",
    "section",
    "table",
]

_CSS = """
:root { color-scheme: light dark; --paper: #fbfbfa; --ink: #1d2025; --soft: #5d646e;
  --line: #d9dce1; --card: #ffffff; --mark: #0b62a8; --good: #0a6b4c; --warn: #94480a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --ink: #e7e9ec; --soft: #a3aab5;
  --line: #343a43; --card: #1c1f25; --mark: #7cbcf0; --good: #63d0a6; --warn: #f0a868; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1.2rem clamp(0.9rem, 3vw, 2.4rem) 4rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0.4rem 0; } h2 { font-size: 1.25rem; margin: 2.6rem 0 0.6rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { max-width: 46rem; } .soft, figcaption { color: var(--soft); font-size: 0.9rem; }
.headline { display: grid; gap: 0.8rem; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); }
.headline li { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem;
  padding: 0.7rem 0.9rem; }
.headline strong { display: block; font-size: 1.6rem; font-variant-numeric: tabular-nums; }
.figures { display: grid; gap: 1.2rem; margin-top: 1.6rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; } .figures figure { background: var(--card); border: 1px solid var(--line);
  border-radius: 0.5rem; padding: 0.8rem; } svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.93rem; }
caption { text-align: left; color: var(--soft); font-size: 0.9rem; padding-bottom: 0.3rem; }
td, tbody th { white-space: nowrap; }
th, td { text-align: right; padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
.cards { display: grid; gap: 1rem; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }
.cards li { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem;
  overflow: hidden; } .cards img, .noimage { width: 100%; aspect-ratio: 1; display: block; }
.noimage { display: grid; place-items: center; background: var(--line); color: var(--soft); }
.words { padding: 0.6rem 0.8rem 0.8rem; } .words p { margin: 0.15rem 0; font-size: 0.9rem;
  font-variant-numeric: tabular-nums; }
.chip { display: inline-block; border: 1px solid currentColor; border-radius: 1rem;
  padding: 0 0.55rem; margin: 0.25rem 0.25rem 0 0; font-size: 0.8rem; color: var(--soft); }
.chip.good { color: var(--good); } .chip.warn { color: var(--warn); }
.chip.mark { color: var(--mark); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: 0.2rem 1rem;
  font-size: 0.93rem; margin: 0.5rem 0; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; } dd dl { margin: 0; }
a { color: var(--mark); }
details { margin: 0.6rem 0; } summary { cursor: pointer; font-weight: 600; }
@media print { .cards li, .figures figure { break-inside: avoid; } }
"""


def document(title: str, body: Sequence[str]) -> str:
    """Assemble the whole page; `body` is HTML."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>",
            f"<h1>{escape(title)}</h1>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def escaped(text: str) -> str:
    """Text as HTML."""
    return escape(text)


def section(heading: str, *parts: str) -> str:
    """Part of the page under a heading; `parts` are HTML."""
    return "\n".join([f"<section>\n<h2>{escape(heading)}</h2>", *parts, "</section>"])


def headline(numbers: Sequence[tuple[str, str]]) -> str:
    """Large numbers, each with what it is."""
    items = (f"<li><strong>{escape(v)}</strong> {escape(text)}</li>" for v, text in numbers)
    return f'<ul class="headline">{"".join(items)}</ul>'


def figure(svg: str, caption: str) -> str:
    """Wrap an SVG of `figures` with its caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out text cells in rows, the first column naming the row."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def links(targets: Sequence[tuple[str, str]]) -> str:
    """Files beside the page: (relative address, what it is)."""
    items = (f'<a href="{escape(to)}">{escape(text)}</a>' for to, text in targets)
    return f"<p>{' · '.join(items)}</p>"


def chips(words: Sequence[tuple[str, str]]) -> str:
    """Short marks: (text, one of "", "good", "warn", "mark")."""
    return "".join(f'<span class="chip {tone}">{escape(text)}</span>' for text, tone in words)


def facts(values: Mapping[str, Any]) -> str:
    """Nested plain values as nested definition lists."""
    items = "".join(f"<dt>{escape(str(k))}</dt><dd>{_fact(v)}</dd>" for k, v in values.items())
    return f"<dl>{items}</dl>"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return facts(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact(v) for v in value) or "(none)"
    if value is None or value == "" or value == {}:
        return "(not set)"
    return escape(f"{value:.6g}" if isinstance(value, float) else str(value))
