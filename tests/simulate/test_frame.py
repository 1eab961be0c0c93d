import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterray.errors import ConfigError
from clusterray.simulate.frame import Frame


def test_the_demo_is_painted_twice_as_fine(demo_maker):
    frame = demo_maker.frame
    assert (frame.size_px, frame.pixel_arcsec, frame.supersampling) == (128, 0.5, 2)
    assert frame.step_arcsec == 0.25
    assert frame.n_samples == 2 * (128 + 2 * frame.margin_px)
    assert frame.margin_px * frame.pixel_arcsec == pytest.approx(2, abs=0.5)
    assert frame.field_arcsec == 64


@given(
    pixel=st.floats(0.1, 1.0), fwhm=st.floats(0.15, 1.5), size=st.integers(30, 300), px=st.data()
)
def test_samples_resolve_the_psf_and_tile_the_pixels(pixel, fwhm, size, px):
    if not (pixel <= 2 * fwhm and 20 <= size * pixel <= 200):
        return
    frame = Frame.around(size, pixel, sharpest_fwhm_arcsec=fwhm)
    assert frame.step_arcsec <= 0.45 * fwhm * (1 + 1e-9)
    axis = frame.axis_arcsec
    assert len(axis) == frame.n_samples
    assert axis == pytest.approx(-axis[::-1])
    assert np.diff(axis) == pytest.approx(frame.step_arcsec)
    kept = np.arange(frame.n_samples // frame.supersampling)[frame.kept()]
    assert len(kept) == size
    # The middle of a pixel lies in it.
    k = px.draw(st.integers(0, size - 1))
    middle = axis.reshape(-1, frame.supersampling).mean(axis=1)[frame.kept()][k]
    assert frame.pixel_of(np.array([middle]))[0] == k


def test_places_outside_have_pixels_outside(demo_maker):
    at = np.array([-32.01, -31.99, 31.99, 32.01])
    assert demo_maker.frame.pixel_of(at).tolist() == [-1, 0, 127, 128]


def test_a_smaller_field_may_be_looked_at():
    frame = Frame.around(220, 0.336, sharpest_fwhm_arcsec=0.8, field_arcsec=64.0)
    assert frame.half_field_arcsec == 32
    assert frame.centre_arcsec == pytest.approx((110 + frame.margin_px) * 0.336)


@pytest.mark.parametrize(
    ("size_px", "pixel", "message"),
    [
        (128, 1.7, "pixels of 1.7″ cannot be simulated: expected 0.02 to 1.6″"),
        (128, 0.01, "pixels of 0.01″"),
        (30, 0.5, "a field of 15″ cannot be simulated: expected 20 to 200″; change survey.size_px"),
        (500, 0.5, "a field of 250″"),
    ],
)
def test_frames_that_hold_no_cluster_are_refused(size_px, pixel, message):
    with pytest.raises(ConfigError, match=message):
        Frame.around(size_px, pixel, sharpest_fwhm_arcsec=0.8)
