import numpy as np
import pytest

from clusterray.simulate.peculiar import Peculiar, add_peculiar

STEP = 0.25


def shape(name, **changes):
    values = {
        "x_arcsec": 1.3,
        "y_arcsec": -2.2,
        "radius_arcsec": 4.0,
        "axis_ratio": 1.0,
        "angle_rad": 0.0,
        "phase_rad": 0.0,
        "mag": np.array([22.0, 21.0]),
    }
    return Peculiar(name, **(values | changes))


def painted(one, n=400):
    canvas = np.zeros((2, n, n), np.float32)
    middle = n * STEP / 2
    flux = np.array([10.0, 30.0])
    add_peculiar(canvas, one, flux, at_arcsec=(middle, middle), step_arcsec=STEP)
    y, x = (np.mgrid[:n, :n] + 0.5) * STEP - middle
    return canvas, x - one.x_arcsec, y - one.y_arcsec


@pytest.mark.parametrize("name", ["ring", "spiral", "tail"])
def test_a_component_has_its_flux_in_every_band(name):
    canvas, _, _ = painted(shape(name))
    assert canvas.sum(axis=(1, 2)) == pytest.approx([10, 30], rel=1e-4)
    assert canvas.min() >= 0


def test_a_ring_is_an_annulus_a_fifth_of_its_radius_wide():
    canvas, x, y = painted(shape("ring"))
    radius = np.hypot(x, y)
    mean = (canvas[0] * radius).sum() / canvas[0].sum()
    width = np.sqrt((canvas[0] * (radius - mean) ** 2).sum() / canvas[0].sum())
    # ∫ r² exp/∫ r exp of a Gaussian annulus: r (1 + σ²/r²).
    assert mean == pytest.approx(4.0 * 1.04, rel=0.01)
    assert width == pytest.approx(0.2 * 4.0, rel=0.05)
    crest = canvas[0][np.abs(radius - 4) < 0.2]
    assert crest.max() / crest.min() > 2, "uneven around"


def test_a_component_is_seen_at_its_axis_ratio_and_angle():
    canvas, x, y = painted(shape("ring", axis_ratio=0.5, angle_rad=0.7))
    weight = canvas[0] / canvas[0].sum()
    second = [[(weight * a * b).sum() for a in (x, y)] for b in (x, y)]
    values, vectors = np.linalg.eigh(np.array(second))
    assert np.sqrt(values[0] / values[1]) == pytest.approx(0.5, abs=0.02)
    assert np.arctan2(*vectors[::-1, 1]) % np.pi == pytest.approx(0.7, abs=0.03)


def test_a_spiral_has_two_arms_of_its_pitch():
    one = shape("spiral", radius_arcsec=2.0)
    phi = np.linspace(-np.pi, np.pi, 721)[:-1]
    crests = []
    for radius in (2.0, 3.0, 4.0):
        light = one.brightness(radius * np.cos(phi), radius * np.sin(phi))
        modes = np.abs(np.fft.rfft(light))
        assert modes[2] > 1.5 * max(modes[1], modes[3])
        crests.append(phi[np.argmax(np.where(np.abs(phi) < np.pi / 2, light, 0))])
    # tan(pitch) = d ln r/dφ.
    turned = np.diff(np.unwrap(crests, period=np.pi))
    assert np.diff(np.log([2.0, 3.0, 4.0])) / turned == pytest.approx(
        [np.tan(np.radians(18))] * 2, rel=0.05
    )
    disc = np.array([one.brightness(r * np.cos(phi), r * np.sin(phi)).mean() for r in (4.0, 8.0)])
    assert np.log(disc[0] / disc[1]) == pytest.approx(2.0, abs=0.05)


def test_a_tail_is_a_piece_of_a_circle_that_fades():
    canvas, x, y = painted(shape("tail", phase_rad=0.9))
    radius, phi = np.hypot(x, y), np.arctan2(y, x)
    weight = canvas[0] / canvas[0].sum()
    assert (weight * radius).sum() == pytest.approx(4.0, rel=0.02)
    assert np.angle((weight * np.exp(1j * phi)).sum()) == pytest.approx(0.9, abs=0.02)
    assert np.sqrt((weight * (phi - 0.9) ** 2).sum()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", ["ring", "spiral", "tail"])
def test_a_component_ends_where_it_says(name):
    one = shape(name)
    canvas, x, y = painted(one)
    assert not canvas[0][np.maximum(np.abs(x), np.abs(y)) > one.reach_arcsec + 2 * STEP].any()


def test_what_falls_off_the_edge_is_lost():
    canvas = np.zeros((2, 80, 80), np.float32)
    one = shape("ring", x_arcsec=0.0, y_arcsec=0.0, axis_ratio=1.0)
    flux = np.array([10.0, 30.0])
    add_peculiar(canvas, one, flux, at_arcsec=(0.0, 10.0), step_arcsec=STEP)
    assert canvas.sum(axis=(1, 2)) == pytest.approx([5, 15], rel=0.15)
    before = canvas.copy()
    add_peculiar(canvas, one, flux, at_arcsec=(-30.0, 10.0), step_arcsec=STEP)
    assert (canvas == before).all()
