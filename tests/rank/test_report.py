"""The report as a reader meets it: what it says, that it is safe, whole and the same each time."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.image import imread

from clusterray import schema
from clusterray.config import RankSettings
from clusterray.errors import ContractError, InputError
from clusterray.rank import Thumbnail, render, rgb
from clusterray.rank.evidence import gather
from clusterray.rank.figures import rank_bins
from clusterray.sky.thumbnails import png

BANDS = ("g", "r", "i")
EVIL = '<script>alert("x")</script>&'
VOID = {"meta", "img", "path", "use", "rect", "line"}


class Page(HTMLParser):
    """Checks nesting and collects tags with attributes, ids and words."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def world(made_scores, ranked):
    """A list whose first ten are lenses but for the fourth; the eleventh is one."""
    n = 60
    logit = np.linspace(3, -6, n)
    scores = made_scores(n, logit_stack=logit, fold=[1, None, -1] + [None] * (n - 3))
    ids = scores["object_id"].to_pylist()
    y = [1 if i < 11 and i != 3 else 0 for i in range(n)]
    truth = truth_table([*ids, "LOST"], [*y, 1])
    labels = label_table([(ids[0], "2026-01-01", 1), (ids[3], "2026-01-01", -1)])
    return ranked(scores), truth, labels


def truth_table(ids, y):
    n = len(ids)
    columns = {f.name: pa.nulls(n, f.type) for f in schema.TRUTH}
    columns |= {"object_id": pa.array(ids), "y": pa.array(y, pa.int8())}
    columns["kind"] = pa.array(["lens" if v == 1 else "lens_off" for v in y])
    return pa.table(columns, schema=schema.TRUTH)


def label_table(rows):
    columns = [pa.array(list(c)) for c in zip(*rows, strict=True)]
    return pa.table(
        {
            "object_id": columns[0],
            "source": pa.array(["people"] * len(rows)),
            "date": columns[1],
            "s": columns[2].cast(pa.int8()),
            "grade": pa.nulls(len(rows), pa.string()),
        },
        schema=schema.LABELS,
    )


def thumbnail(seed=0, size=24):
    rng = np.random.default_rng(seed)
    return Thumbnail(rng.normal(size=(3, size, size)).astype(np.float32), np.ones(3))


def page_of(ranking, **options):
    settings = RankSettings(budgets=(5, 10, 1000), report_top=8)
    ids = ranking["object_id"].to_pylist()
    return render(
        ranking,
        **{
            "thumbnails": {i: thumbnail(k) for k, i in enumerate(ids[:7])},
            "bands": BANDS,
            "provenance": {"run_key": "abc123", "prior": {"source": "fallback", "value": 1e-4}},
            "settings": settings,
            **options,
        },
    )


def test_with_truth_the_numbers_are_the_true_ones(world):
    ranking, truth, labels = world
    page = Page(page_of(ranking, truth=truth, labels=labels))
    assert "9 of 10 lenses are in the first 10" in page.text
    assert "8 of 9 lenses that nobody knew are in the first 10" in page.text
    assert "(1 more were never ranked)" in page.text
    assert "known lenses: 1; known non-lenses: 1" in page.text
    # Three lenses of ten stand before the first false positive.
    assert "30 % of lenses before the first false positive" in page.text
    row = re.search(r"10 ([\d.]+) ([\d.]+) % 9 90 % \(60–98\) 82 % 1 of 1", page.text)
    expected = ranking["expected_finds"][9].as_py()
    assert row
    assert float(row.group(1)) == pytest.approx(expected, abs=0.05)
    assert float(row.group(2)) == pytest.approx(10 * expected, abs=0.05)
    assert page.text.index("area under the ROC") > page.text.index("average precision")
    assert page.text.count("truth: lens (lens)") == 7
    assert "truth: not a lens (lens_off)" in page.text


def test_without_truth_only_labels_and_probabilities_speak(world):
    ranking, _, labels = world
    page = Page(page_of(ranking, labels=labels))
    assert "truth" not in page.text.lower()
    assert "completeness" not in page.text
    assert "Recall of 1 known lenses by out-of-fold score, median rank 1 of 60" in page.text
    assert "Reliability" not in page.text
    bare = Page(page_of(ranking))
    assert "Recall" not in bare.text
    assert "expected purity" in bare.text


def test_the_page_is_whole_accessible_and_loads_nothing(world):
    ranking, truth, labels = world
    text = page_of(ranking, truth=truth, labels=labels)
    page = Page(text)
    assert "://" not in text
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == 7
    assert all(a["src"].startswith("data:image/png;base64,") and a["alt"] for a in images)
    assert "no image" in page.text
    figures = [a for tag, a in page.tags if tag == "svg"]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(figures) == 6
    assert all(a["role"] == "img" and a["aria-labelledby"] in ids for a in figures)
    assert len(set(ids)) == len(ids)
    for _, a in page.tags:
        for reference in re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in a.values())):
            assert reference in ids
        if "xlink:href" in a:
            assert a["xlink:href"][1:] in ids
    assert ("html", {"lang": "en"}) in page.tags
    assert "prefers-color-scheme: dark" in text
    assert "#010203" not in text


def test_equal_inputs_give_equal_pages(world):
    ranking, truth, labels = world
    first = page_of(ranking, truth=truth, labels=labels)
    assert first == page_of(ranking, truth=truth, labels=labels)


def test_whatever_comes_in_is_escaped(made_scores, ranked):
    scores = made_scores(12, object_id=[EVIL, *(f"a{i}" for i in range(11))])
    ranking = ranked(scores)
    text = page_of(
        ranking,
        thumbnails={EVIL: thumbnail()},
        provenance={EVIL: EVIL, "config": {EVIL: [EVIL, {"deep": EVIL}]}},
        settings=RankSettings(report_top=12),
        truth=truth_table([EVIL], [1]).set_column(2, schema.TRUTH.field("kind"), pa.array([EVIL])),
    )
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in text
    assert EVIL in " ".join(page.words)
    assert any(a.get("alt", "").startswith(f"Colour image of {EVIL}") for _, a in page.tags)


def test_the_run_and_its_prior_are_told(world):
    ranking, _, _ = world
    page = Page(
        page_of(
            ranking,
            provenance={
                "run_key": "feed",
                "commit": "0123abc",
                "versions": {"numpy": "2.1"},
                "prior": {"value": 0.0001, "source": "fallback", "why": "none was valid"},
                "config": {"rank": {"budgets": [10, 40], "rgb_bands": None}},
            },
        )
    )
    for told in ("feed", "0123abc", "2.1", "0.0001", "none was valid", "10 , 40", "(not set)"):
        assert told.replace(" , ", ", ") in page.text
    details = [a for tag, a in page.tags if tag == "details"]
    assert ["open" in a for a in details] == [True, False, False]


@pytest.mark.parametrize("n", [1, 2, 11])
def test_short_lists_have_a_report_too(made_scores, ranked, n):
    scores = made_scores(n)
    ranking = ranked(scores)
    ids = scores["object_id"].to_pylist()
    for y in ([0] * n, [1] * n, [-1] * n):
        page = Page(
            page_of(ranking, truth=truth_table(ids, y), labels=label_table([(ids[0], "2026", 1)]))
        )
        assert f"{n} clusters ranked" in page.text
        assert f"Truth is known: {n if y[0] == 1 else 0} of them are lenses" in page.text
        assert ("Against the truth" in page.text) == (y[0] != -1)


def test_marginal_and_unknown_objects_stay_out_of_the_metrics(made_scores, ranked):
    scores = made_scores(6, logit_stack=np.arange(6.0)[::-1])
    ranking = ranked(scores)
    ids = ranking["object_id"].to_pylist()
    page = Page(page_of(ranking, truth=truth_table(ids[:4], [-1, 1, 0, 0])))
    assert "1 lenses and 2 others, marginal left out" in page.text
    assert " 100 % of lenses before the first false positive" in page.text
    assert "truth: marginal" in page.text
    assert "no truth" in page.text


def test_a_tie_of_probability_and_logit_counts_against_us(made_scores, ranked):
    scores = made_scores(4, logit_stack=[2.0, 2.0, 1.0, 0.0])
    ranking = ranked(scores)
    ids = ranking["object_id"].to_pylist()
    page = Page(page_of(ranking, truth=truth_table(ids, [1, 0, 1, 0])))
    assert " 0 % of lenses before the first false positive" in page.text
    apart = ranked(scores, p_lens=np.full(4, 0.5), p_low=np.zeros(4), p_high=np.ones(4))
    page = Page(page_of(apart, truth=truth_table(ids, [1, 1, 0, 0])))
    assert " 100 % of lenses before the first false positive" in page.text


def test_the_latest_decisive_label_counts(world):
    ranking, _, _ = world
    a, b, c, *_ = ranking["object_id"].to_pylist()
    labels = label_table(
        [
            (a, "2025-01-01", 1), (a, "2026-01-01", -1),
            (b, "2026-03-01", 1), (b, "2026-04-01", 0),
            (c, "2026-01-01", -1), (c, "2026-01-01", 1),
            ("elsewhere", "2026-01-01", 1),
        ]
    )  # fmt: skip
    assert gather(ranking, labels=labels, truth=None).s.tolist()[:4] == [-1, 1, 1, 0]


def test_a_broken_table_or_an_empty_list_is_refused(world):
    ranking, truth, _ = world
    with pytest.raises(ContractError, match=r"truth: .*more than once"):
        page_of(ranking, truth=pa.concat_tables([truth, truth]))
    with pytest.raises(ContractError, match="labels: table is truth, expected labels"):
        page_of(ranking, labels=truth)
    with pytest.raises(InputError, match="ranking is empty"):
        page_of(ranking.slice(0, 0))


@pytest.mark.parametrize(
    ("n", "bins"),
    [
        (1, [0, 1]),
        (10, [0, 10]),
        (60, [0, 10, 20, 50, 60]),
        (200, [0, 10, 20, 50, 100, 200]),
    ],
)
def test_rank_bins_cover_the_list_once(n, bins):
    assert rank_bins(n) == bins


def test_colours_mean_what_they_say():
    size = 40
    y, x = np.indices((size, size))
    light = np.zeros((3, size, size), np.float32)
    red, blue = np.hypot(x - 10, y - 20) < 4, np.hypot(x - 30, y - 20) < 4
    light[:, red] = np.array([5.0, 15.0, 45.0])[:, None]
    light[:, blue] = np.array([45.0, 15.0, 5.0])[:, None]
    image = rgb(light, [1.0, 1.0, 1.0], BANDS)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    r, g, b = image[20, 10].astype(int)
    assert r > g + 30 > b + 60
    assert (image[20, 30].astype(int) == [b, g, r]).all()
    swapped = rgb(light, [1.0, 1.0, 1.0], BANDS, ("g", "r", "i"))
    np.testing.assert_array_equal(swapped, image[..., ::-1])


def test_pixels_without_data_are_grey_and_harm_nobody():
    cutout = thumbnail(1).cutout_chw
    holed = cutout.copy()
    holed[:, :5] = np.nan
    holed[0, 10, 10] = np.inf
    image, whole = rgb(holed, np.ones(3), BANDS), rgb(cutout, np.ones(3), BANDS)
    assert (image[:5] == image[0, 0]).all()
    assert len(set(image[0, 0])) == 1
    changed = (image != whole).any(axis=2)
    assert changed[5:].sum() <= 1
    nothing = rgb(np.full((3, 8, 8), np.nan, np.float32), np.full(3, np.nan), BANDS)
    assert len(np.unique(nothing)) == 1


@pytest.mark.parametrize("bands", [("r",), ("g", "r"), ("g", "r", "i", "z", "y")])
def test_any_number_of_bands_can_be_shown(bands):
    rng = np.random.default_rng(0)
    cutout = rng.normal(size=(len(bands), 9, 9))
    image = rgb(cutout, np.ones(len(bands)), bands)
    if len(bands) == 1:
        assert (np.ptp(image.astype(int), axis=2) <= 1).all()
    if len(bands) > 3:
        np.testing.assert_array_equal(image, rgb(cutout[2:], np.ones(3), bands[2:]))


def test_png_has_north_up():
    image = np.zeros((4, 4, 3), np.uint8)
    image[-1, 0] = 255
    back = imread(BytesIO(base64.b64decode(base64.b64encode(png(image)))))
    assert back[0, 0, :3].min() == 1
    assert back[-1, 0, :3].max() == 0


@pytest.mark.parametrize(
    ("shape", "noise", "rgb_bands", "message"),
    [
        ((2, 8, 8), np.ones(3), None, r"shape \(2, 8, 8\), expected \(3, h, w\)"),
        ((3, 8, 8), np.ones(2), None, r"noise_sigma has shape \(2,\), expected \(3,\)"),
        ((3, 8, 8), np.ones(3), ("i", "r", "u"), "rgb_bands is i, r, u"),
        ((3, 8, 8), np.ones(3), ("i", "r"), "expected three bands"),
    ],
)
def test_rgb_refuses_what_does_not_fit(shape, noise, rgb_bands, message):
    with pytest.raises(InputError, match=message):
        rgb(np.zeros(shape), noise, BANDS, rgb_bands)
