import numpy as np
import pytest

from clusterray.simulate import galaxies, halo


def members(n=4000, z=0.4, seed=3, **changes):
    values = {
        "red_fraction": 0.8,
        "core_kpc": 80.0,
        "outer_kpc": 400.0,
        "elongation": (0.6, 0.7),
        "limits": (0.05, 3.0),
    }
    return galaxies.cluster_members(n, z, **(values | changes), rng=np.random.default_rng(seed))


def test_characteristic_magnitude_at_its_published_normalisation():
    assert galaxies.characteristic_mag_i(0.2) == pytest.approx(17.85, abs=0.01)


def test_characteristic_magnitude_grows_without_steps():
    z = np.linspace(0.15, 1.5, 300)
    step = np.diff([galaxies.characteristic_mag_i(v) for v in z])
    assert step.min() > 0
    assert step.max() < 0.12


def test_schechter_follows_its_density():
    rng = np.random.default_rng(5)
    light = galaxies.schechter(40_000, alpha=-0.9, faintest=0.05, brightest=3.0, rng=rng)
    edges = np.geomspace(0.05, 3.0, 9)
    fine = np.geomspace(0.05, 3.0, 4001)
    middle = (fine[1:] + fine[:-1]) / 2
    weight = middle**-0.9 * np.exp(-middle) * np.diff(fine)
    expected = np.histogram(middle, edges, weights=weight)[0]
    expected *= 40_000 / expected.sum()
    assert (np.abs(np.histogram(light, edges)[0] - expected) < 5 * np.sqrt(expected)).all()


def test_members_form_a_red_sequence():
    mag = members(red_fraction=1.0).mag
    g_r, r_i = (mag[:, :-1] - mag[:, 1:]).T
    expected = galaxies.colours(0.4, red=True)
    assert np.median(r_i) == pytest.approx(expected[1], abs=0.01)
    assert np.std(r_i) == pytest.approx(0.05, abs=0.005)
    bright, faint = g_r[:400].mean(), g_r[-400:].mean()
    assert bright > faint


def test_members_are_sorted_and_stretched_along_the_halo():
    drawn = members()
    assert (np.diff(drawn.mag[:, 2]) >= 0).all()
    values, vectors = np.linalg.eigh(np.cov(drawn.x_arcsec, drawn.y_arcsec))
    assert np.sqrt(values[0] / values[1]) == pytest.approx(0.6, abs=0.03)
    assert np.arctan2(*vectors[::-1, 1]) % np.pi == pytest.approx(0.7, abs=0.06)
    reach = np.hypot(drawn.x_arcsec, drawn.y_arcsec).max() * halo.kpc_per_arcsec(0.4)
    assert 300 < reach <= 400


def test_field_counts_rise_as_stated():
    drawn = galaxies.field(
        50_000, extent_arcsec=(100.0, 50.0), faintest_mag_i=25.0, rng=np.random.default_rng(1)
    )
    counts = np.histogram(drawn.mag[:, 2], [21, 22, 23, 24, 25])[0]
    assert np.diff(np.log10(counts)) == pytest.approx([0.35] * 3, abs=0.05)
    assert drawn.x_arcsec.max() <= 100
    assert drawn.y_arcsec.max() <= 50
    assert np.isfinite(drawn.mag).all()


def test_take_move_and_join():
    drawn = members(n=5)
    both = galaxies.Galaxies.join(drawn, drawn.moved(1.0, -2.0))
    assert len(both) == 10
    second = both.take(np.arange(5, 10))
    assert second.x_arcsec == pytest.approx(drawn.x_arcsec + 1)
    assert second.y_arcsec == pytest.approx(drawn.y_arcsec - 2)
    assert (second.mag == drawn.mag).all()
