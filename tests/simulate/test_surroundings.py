import numpy as np
import pytest

from clusterray.simulate.surroundings import draw_field, draw_stars


def test_the_field_fills_its_rectangle_at_its_density(demo_maker):
    law = demo_maker.recipe.surroundings
    rng = np.random.default_rng(2)
    drawn = draw_field((1200.0, 600.0), law, photometry=demo_maker.photometry, rng=rng)
    expected = 30 * 1200 * 600 / 3600
    assert len(drawn) == pytest.approx(expected, abs=5 * expected**0.5)
    assert np.abs(drawn.x_arcsec).max() == pytest.approx(600, abs=2)
    assert np.abs(drawn.y_arcsec).max() == pytest.approx(300, abs=2)
    assert abs(drawn.x_arcsec.mean()) < 25
    assert drawn.mag[:, 2].max() < 26.1


def test_stars_fill_it_too_and_have_black_body_colours(demo_maker):
    law = demo_maker.recipe.surroundings.model_copy(update={"stars_per_arcmin2": 20.0})
    rng = np.random.default_rng(2)
    x, y, mag = draw_stars((600.0, 1200.0), law, photometry=demo_maker.photometry, rng=rng)
    assert len(x) == pytest.approx(4000, abs=5 * 4000**0.5)
    assert np.abs(x).max() == pytest.approx(300, abs=2)
    assert np.abs(y).max() == pytest.approx(600, abs=2)
    assert mag.shape == (len(x), 3)
    assert 16.5 < mag[:, 2].min() < mag[:, 2].max() < 23.5
    assert (np.diff(mag, axis=1) < 0.3).all(), "no star is far bluer than a black body can be"


def test_an_empty_sky_may_be_asked_for(demo_maker):
    none = {"galaxies_per_arcmin2": 0.0, "stars_per_arcmin2": 0.0}
    law = demo_maker.recipe.surroundings.model_copy(update=none)
    args = (80.0, 80.0), law
    kwargs = {"photometry": demo_maker.photometry, "rng": np.random.default_rng(1)}
    assert len(draw_field(*args, **kwargs)) == 0
    assert len(draw_stars(*args, **kwargs)[0]) == 0
