"""The gallery: systems of every class as a survey shows them, with their truth drawn over them."""

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clusterray import page
from clusterray.simulate.recipe import KINDS, Recipe
from clusterray.sky.thumbnails import png, rgb

__all__ = ["card", "chosen", "render"]

_WORDS: Final = {
    "lens": "Lenses: two or more members of the background cluster are multiply imaged.",
    "marginal": "Marginal: exactly one member is; in neither training nor metrics.",
    "cluster": "A cluster alone.",
    "lens_off": "Lensing off: a lens whose background cluster's light goes straight.",
    "outside_caustic": "A background cluster beside the region of multiple images.",
    "projected_double": "A second cluster close behind the first.",
    "galaxy_galaxy": "One member galaxy lenses one galaxy behind it.",
    "edge_on": "Edge-on discs, tangential to the centre.",
    "ring_galaxy": "A collisional ring galaxy.",
    "spiral": "Face-on spirals.",
    "merger": "A merger with tidal tails.",
    "star_spikes": "A bright star with diffraction spikes.",
    "satellite_trail": "A satellite's trail in one band.",
    "cosmic_rays": "Cosmic rays in one band.",
    "missing_band": "Part of one band without data.",
    "misaligned_band": "One band out of place.",
    "psf_mismatch": "One band far less sharp than the others.",
}
_STYLE: Final = """<style>
.sky { position: relative; } .sky svg { position: absolute; inset: 0; }
.sky path { fill: none; stroke: #ffd54a; stroke-width: 0.35; }
.sky circle { fill: none; stroke: #6ee7ff; stroke-width: 0.35; }
#overlay:not(:checked) ~ section .sky svg { display: none; }
</style>"""


def chosen(
    kinds: Sequence[str], object_ids: Sequence[str], *, per_class: int
) -> dict[str, list[str]]:
    """Choose the first few objects of each class, in the order given."""
    out: dict[str, list[str]] = defaultdict(list)
    for kind, object_id in zip(kinds, object_ids, strict=True):
        if len(out[kind]) < per_class:
            out[kind].append(object_id)
    return dict(out)


def card(
    image: NDArray[np.float32],
    noise_sigma: NDArray[np.float64],
    bands: Sequence[str],
    truth: Mapping[str, Any],
    *,
    pixel_arcsec: float,
) -> dict[str, Any]:
    """Reduce one system to what the page needs, as plain values.

    Parameters
    ----------
    image : (bands, size, size) nJy.
    noise_sigma : (bands,) nJy.
    truth : row of `truth.truth_row`, its offsets along the image's columns and rows.
    """
    data = base64.b64encode(png(rgb(image, noise_sigma, bands))).decode()
    half = image.shape[-1] * pixel_arcsec / 2

    def numbers(name: str) -> list[float | None]:
        values = np.asarray(truth.get(name, []), float)
        return [None if np.isnan(v) else round(float(v), 2) for v in values]

    return {
        "object_id": truth["object_id"],
        "kind": truth["kind"],
        "png": data,
        "half_arcsec": half,
        "curve": [numbers("critical_x_arcsec"), numbers("critical_y_arcsec")],
        "images": [numbers("image_x_arcsec"), numbers("image_y_arcsec")],
        "snr": numbers("image_snr"),
        **{
            key: None if truth.get(key) is None else float(truth[key])
            for key in ("z_lens", "z_source", "theta_e_arcsec", "m200_msun", "n_multiply_imaged")
        },
    }


def render(cards: Sequence[Mapping[str, Any]], *, recipe: Recipe, about: Mapping[str, Any]) -> str:
    """Write the gallery as one self-contained HTML page, a section per class.

    Parameters
    ----------
    cards : of `card`.
    about : plain nested values, shown at the end.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in cards:
        by_kind[str(one["kind"])].append(one)
    body = [
        _STYLE,
        '<p class="soft">North is up, east to the left. Yellow: tangential critical curve for the '
        "background's redshift (or the recipe's reference where there is none); blue: images of "
        "multiply imaged members that stand out of the noise.</p>",
        '<input type="checkbox" id="overlay" checked> <label for="overlay">Show the truth</label>',
    ]
    for kind in KINDS:
        if kind not in by_kind:
            continue
        share = recipe.classes.get(kind, 0.0)
        items = "".join(_item(one) for one in by_kind[kind])
        body.append(
            page.section(
                f"{kind} ({100 * share:.3g} %)",
                f"<p>{escape(_WORDS[kind])}</p>",
                f'<ul class="cards">{items}</ul>',
            )
        )
    body.append(page.section("Where it comes from", page.facts(about)))
    return page.document("Simulated systems", body)


def _item(one: Mapping[str, Any]) -> str:
    name = f"{one['kind']} {one['object_id']}"
    words = [f"z {one['z_lens']:.2f}", f"θ_E {one['theta_e_arcsec']:.1f}″"]
    if one["z_source"] is not None:
        words.insert(1, f"z_s {one['z_source']:.2f}")
    if one["n_multiply_imaged"]:
        words.append(f"{one['n_multiply_imaged']:.0f} multiply imaged")
    return (
        f'<li><div class="sky"><img alt="Colour image of {escape(name)}" '
        f'src="data:image/png;base64,{one["png"]}">{_overlay(one)}</div>'
        f'<div class="words"><h3>{escape(str(one["object_id"]))}</h3>'
        f"<p>{escape(', '.join(words))}</p></div></li>"
    )


def _overlay(one: Mapping[str, Any]) -> str:
    half = one["half_arcsec"]
    steps, move = [], True
    for x, y in zip(*one["curve"], strict=True):
        if x is None or y is None:
            move = True
            continue
        # SVG counts rows downwards.
        steps.append(f"{'M' if move else 'L'}{x:.2f} {-y:.2f}")
        move = False
    circles = "".join(
        f'<circle cx="{x:.2f}" cy="{-y:.2f}" r="1.1"/>'
        for x, y, snr in zip(*one["images"], one["snr"], strict=True)
        if snr is not None
    )
    box = f"{-half:.2f} {-half:.2f} {2 * half:.2f} {2 * half:.2f}"
    return f'<svg viewBox="{box}" aria-hidden="true"><path d="{" ".join(steps)}"/>{circles}</svg>'
