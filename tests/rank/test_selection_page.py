"""The selection page as a reader meets it."""

import re

import numpy as np
import pytest

from clusterray.config import RankSettings
from clusterray.rank import selection, selection_page
from clusterray.rank.selection_figures import completeness_plane
from tests.rank.test_report import EVIL, Page, page_of
from tests.rank.test_selection import make_truth

SETTINGS = RankSettings(budgets=(10, 40, 1000), selection_threshold=0.3)


def shown(ranking, truth, settings=SETTINGS):
    return selection_page.render(selection.measure(ranking, truth, settings))


@pytest.fixture(scope="module")
def world(made_scores, ranked):
    """80 objects in order of their score, 30 lenses first; one lens never ranked."""
    n = 80
    rng = np.random.default_rng(1)
    ids = [f"CL{i:03d}" for i in range(n)]
    ranking = ranked(made_scores(n, logit_stack=np.linspace(3, -6, n)))
    y = [1] * 30 + [-1] * 2 + [0] * 48
    kind = ["lens"] * 30 + ["marginal"] * 2 + ["lens_off", EVIL] * 24
    columns = {name: [*rng.uniform(1, 2, 30), *[np.nan] * 50, 1.5] for name in selection.QUANTITIES}
    columns["richness"][0] = np.nan
    truth = make_truth([*ids, "LOST"], [*y, 1], kind=[*kind, "lens"], **columns)
    return ranking, truth


def test_the_numbers_are_the_true_ones(world):
    page = Page(shown(*world))
    assert "Lenses: 31; lost before the ranking, and so missed: 1." in page.text
    assert "(one multiply imaged galaxy; 2) count nowhere" in page.text
    assert "32 % of lenses in the first 10" in page.text
    assert "97 % of lenses in the first 80" in page.text
    # Ten of 31 found, at most ten of 31; no false positive, marginal or unknown among them.
    assert re.search(r"first 10 10 10 of 31 32 % \(19–50\) 32 % 0 0 0", page.text)
    assert re.search(r"first 40 40 30 of 31 97 % \(84–99\) 100 % 8 2 0", page.text)
    assert "lens_off 24 24 4 17 % (7–36) 50 % (22–78)" in page.text
    assert "marginal (marginal) 2 2 2 100 % (34–100) –" in page.text
    assert "p ≥ 0.3" in page.text


def test_the_page_is_whole_accessible_safe_and_loads_nothing(world):
    text = shown(*world)
    page = Page(text)
    assert "://" not in text
    assert "<script" not in text
    assert EVIL in " ".join(page.words)
    figures = [a for tag, a in page.tags if tag == "svg"]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(figures) == len(selection.QUANTITIES) + 4 + 2
    assert all(a["role"] == "img" and a["aria-labelledby"] in ids for a in figures)
    assert len(set(ids)) == len(ids)
    for _, a in page.tags:
        for reference in re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in a.values())):
            assert reference in ids
    assert "#010203" not in text
    targets = [a["href"] for tag, a in page.tags if tag == "a"]
    names = ("selection", "selection_kinds", "selection_half")
    assert targets == ["report.html", *(f"{n}.{k}" for n in names for k in ("csv", "parquet"))]
    assert text == shown(*world)


def test_figures_say_what_they_show(world):
    page = Page(shown(*world))
    assert re.search(r"Completeness by richness λ: first 10: .*1 of 1 in unknown", page.text)
    assert page.text.count("hatched where fewer than 5 lenses are") == 1


def test_cells_with_few_lenses_are_hatched_and_have_no_share():
    def cell(n_lenses, n_found, low_2, high_2):
        return {
            "bin": "1 to 2", "low": 1, "high": 2, "bin_2": f"{low_2}", "low_2": low_2,
            "high_2": high_2, "n_lenses": n_lenses, "n_found": n_found,
            "completeness": n_found / n_lenses,
        }  # fmt: skip

    enough = completeness_plane([cell(5, 2, 0, 1)], labels=("a", "b"), name="p")
    assert "<pattern" not in enough
    assert "40 %" in enough
    both = completeness_plane([cell(5, 2, 0, 1), cell(4, 3, 1, 2)], labels=("a", "b"), name="p")
    assert both.count("<pattern") == 1
    assert "75 %" not in both
    assert "3 of 4" in both


@pytest.mark.parametrize("y", [[0] * 12, [1] * 12, [-1] * 12, [1] + [0] * 11])
def test_odd_surveys_have_a_page_too(made_scores, ranked, y):
    ids = [f"CL{i:03d}" for i in range(12)]
    page = Page(shown(ranked(made_scores(12)), make_truth(ids, y)))
    assert f"Lenses: {y.count(1)};" in page.text
    assert ("Half completeness" in page.text) == (1 in y)


def test_objects_without_truth_take_places_and_are_told(made_scores, ranked):
    ids = [f"CL{i:03d}" for i in range(12)]
    page = Page(shown(ranked(made_scores(12)), make_truth(ids[:6], [1, 1, 1, 0, 0, 0])))
    assert re.search(r"first 12 12 3 of 3 100 % \(44–100\) 100 % 3 0 6", page.text)


def test_the_report_links_to_pages_beside_it(world):
    ranking, truth = world
    page = Page(page_of(ranking, truth=truth, beside=[("selection.html", "Selection function")]))
    assert ("a", {"href": "selection.html"}) in page.tags
    assert "a" not in {tag for tag, _ in Page(page_of(ranking, truth=truth)).tags}
