import re
from html.parser import HTMLParser

import numpy as np

from clusterray.ensemble.drift_reference import summarise
from clusterray.rank import drift, drift_page

RNG = np.random.default_rng(8)
OLD = {
    ("psf", "psf_fwhm_arcsec_g"): RNG.normal(0.7, 0.05, 900),
    ("feature", "annulus_0_mean_<bad>"): RNG.normal(0, 1, 900),
    ("score", "logit_stack"): RNG.normal(-6, 2, 900),
}
NEW = {
    ("psf", "psf_fwhm_arcsec_g"): RNG.normal(0.9, 0.05, 300),
    ("feature", "annulus_0_mean_<bad>"): RNG.normal(0, 1, 300),
    ("score", "logit_stack"): np.empty(0),
}


class Sound(HTMLParser):
    """Fails on a tag that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def render(**limits) -> str:
    reference, new = summarise(OLD), summarise(NEW)
    found = drift.compare(reference, NEW, **limits)
    found.append(drift.of_run("reject_rate", 0.02, most=0.01, n_night=300))
    return drift_page.render(
        found, night="2026-11-26", facts={"bundle": "abc"}, reference=reference, new=new
    )


def test_page_is_sound_and_loads_nothing():
    text = render(max_psi={"psf": 0.25})
    page = Sound()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)
    assert text == render(max_psi={"psf": 0.25})


def test_page_says_what_is_beyond_its_limit_first():
    text = render(max_psi={"psf": 0.25})
    assert text.index("Limits exceeded") < text.index("By group")
    assert "PSI of psf_fwhm_arcsec_g (psf) is" in text
    assert "reject_rate is 0.02, at most 0.01 allowed" in text
    assert "<strong>2</strong> limits exceeded" in text
    assert "<strong>1 of 3</strong> quantities beyond chance (PSI)" in text
    assert "annulus_0_mean_&lt;bad&gt;" in text and "<bad>" not in text


def test_what_could_not_be_measured_is_named():
    assert "want of new objects that training never saw: scores." in render()


def test_page_without_reference_or_without_new_objects():
    run = [drift.of_run("reject_rate", None, most=None, n_night=0)]
    bare = drift_page.render(run, night="n", facts={}, reference=None, new=None)
    assert "No reference: drift not measured" in bare
    idle = drift_page.render(run, night="n", facts={}, reference=summarise(OLD), new=None)
    assert "No new objects" in idle
