import numpy as np
import pytest

from clusterray.simulate import gallery
from clusterray.simulate.recipe import KINDS, load

BANDS = ("g", "r", "i")


def card(kind, object_id, **truth):
    rng = np.random.default_rng(len(kind))
    image = rng.normal(0, 1, (3, 40, 40)).astype(np.float32)
    image[1, :5] = np.nan
    row = {
        "object_id": object_id,
        "kind": kind,
        "z_lens": 0.4,
        "z_source": None,
        "theta_e_arcsec": 12.34,
        "m200_msun": 8e14,
        "n_multiply_imaged": 0,
        "critical_x_arcsec": np.array([1.0, 2.0, np.nan, 5.0, 6.0]),
        "critical_y_arcsec": np.array([3.0, 4.0, np.nan, 7.0, 8.0]),
    }
    return gallery.card(image, np.ones(3), BANDS, row | truth, pixel_arcsec=0.5)


@pytest.fixture(scope="module")
def cards():
    images = {
        "z_source": 1.1,
        "n_multiply_imaged": 2,
        "image_x_arcsec": np.array([4.0, -9.0]),
        "image_y_arcsec": np.array([1.5, 2.0]),
        "image_snr": np.array([12.0, np.nan]),
    }
    made = [card(kind, str(k)) for k, kind in enumerate(KINDS) if kind != "lens"]
    return [card("lens", "<b>&7", **images), *made]


def test_the_page_shows_every_class_in_the_recipes_order(cards):
    html = gallery.render(cards, recipe=load(), about={"seed": 3})
    places = [html.index(f"{kind} (") for kind in KINDS]
    assert places == sorted(places)
    assert html.count("<img ") == len(KINDS)
    assert "lens (2 %)" in html


def test_the_page_stands_alone_and_escapes_its_text(cards):
    html = gallery.render(cards, recipe=load(), about={"note": "<script>alert(1)</script>"})
    assert "http" not in html
    assert "src=" in html
    assert html.count('src="data:image/png;base64,') == html.count("src=")
    assert "<b>&7" not in html
    assert "&lt;b&gt;&amp;7" in html
    assert "<script>alert" not in html


def test_equal_inputs_give_equal_text(cards):
    again = [card(c["kind"], c["object_id"]) for c in cards[1:]]
    texts = [gallery.render(c, recipe=load(), about={"seed": 3}) for c in (cards[1:], again)]
    assert texts[0] == texts[1]


def test_curves_and_seen_images_are_drawn_on_the_sky(cards):
    html = gallery.render(cards[:1], recipe=load(), about={})
    # Rows count upwards on the sky and downwards on the page.
    assert 'viewBox="-10.00 -10.00 20.00 20.00"' in html
    assert 'd="M1.00 -3.00 L2.00 -4.00 M5.00 -7.00 L6.00 -8.00"' in html
    assert html.count("<circle") == 1
    assert '<circle cx="4.00" cy="-1.50"' in html
    assert "z_s 1.10" in html
    assert "2 multiply imaged" in html


def test_a_class_without_cards_has_no_section(cards):
    html = gallery.render(cards[:2], recipe=load(), about={})
    assert "spiral (" not in html


def test_the_first_few_of_each_class_are_chosen():
    kinds = ["lens", "cluster", "lens", "lens", "cluster"]
    found = gallery.chosen(kinds, ["1", "2", "3", "4", "5"], per_class=2)
    assert found == {"lens": ["1", "3"], "cluster": ["2", "5"]}
    assert gallery.chosen(kinds, ["1", "2", "3", "4", "5"], per_class=0) == {
        "lens": [],
        "cluster": [],
    }


def test_a_card_is_plain_values(cards):
    lens = cards[0]
    assert lens["half_arcsec"] == 10
    assert lens["curve"] == [[1.0, 2.0, None, 5.0, 6.0], [3.0, 4.0, None, 7.0, 8.0]]
    assert lens["snr"] == [12.0, None]
    assert cards[1]["images"] == [[], []]
    assert cards[1]["z_source"] is None
