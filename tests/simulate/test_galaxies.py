from dataclasses import replace

import numpy as np
import pytest

from clusterray.simulate import galaxies, halo


@pytest.fixture(scope="module")
def members(photometry):
    def drawn(n=4000, z=0.4, seed=3, **changes):
        values = {
            "photometry": photometry,
            "red_fraction": 0.8,
            "core_kpc": 80.0,
            "outer_kpc": 400.0,
            "elongation": (0.6, 0.7),
            "limits": (0.05, 3.0),
        }
        rng = np.random.default_rng(seed)
        return galaxies.cluster_members(n, z, **(values | changes), rng=rng)

    return drawn


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


def test_members_form_a_tilted_red_sequence(members, photometry):
    mag = members(n=8000, red_fraction=1.0).mag
    g_r, r_i = (mag[:, :-1] - mag[:, 1:]).T
    young = galaxies.red_young_share(0.4)
    template = photometry.magnitudes(20.0, z=0.4, young_share=young)[0]
    brightest = mag[:, 2] < galaxies.characteristic_mag_i(0.4) + 0.5
    assert np.median(r_i[brightest]) == pytest.approx(template[1] - template[2], abs=0.02)
    slope, _ = np.polyfit(mag[:, 2], g_r, 1)
    assert slope == pytest.approx(-0.02, abs=0.004)
    assert np.std(g_r - slope * mag[:, 2]) == pytest.approx(0.05, abs=0.005)
    assert np.polyfit(mag[:, 2], r_i, 1)[0] == pytest.approx(-0.01, abs=0.004)


def test_red_and_blue_members_differ_in_colour_shape_and_number(members, photometry):
    drawn = members()
    red = drawn.n_sersic > 2
    assert red.mean() == pytest.approx(0.8, abs=0.03)
    g_i = drawn.mag[:, 0] - drawn.mag[:, 2]
    assert np.median(g_i[red]) > np.median(g_i[~red]) + 0.5
    assert (drawn.young_share[~red] >= 0.3).all()
    assert drawn.n_sersic[~red].max() <= 1.3


def test_members_are_sorted_and_stretched_along_the_halo(members):
    drawn = members(red_fraction=1.0)
    light = 10 ** (-0.4 * drawn.mag[:, 2])
    assert light[:400].min() > light[-400:].max()
    values, vectors = np.linalg.eigh(np.cov(drawn.x_arcsec, drawn.y_arcsec))
    assert np.sqrt(values[0] / values[1]) == pytest.approx(0.6, abs=0.03)
    assert np.arctan2(*vectors[::-1, 1]) % np.pi == pytest.approx(0.7, abs=0.06)
    reach = np.hypot(drawn.x_arcsec, drawn.y_arcsec).max() * halo.kpc_per_arcsec(0.4)
    assert 300 < reach <= 400


def test_members_follow_their_surface_density(members):
    drawn = members(n=20_000, elongation=(1.0, 0.0))
    radius = np.hypot(drawn.x_arcsec, drawn.y_arcsec) * halo.kpc_per_arcsec(0.4)
    edges = np.array([0, 40, 80, 160, 250, 400.0])
    # ∫ r dr/(1 + (r/c)²) ∝ ln(1 + (r/c)²)
    expected = np.diff(np.log1p((edges / 80) ** 2)) / np.log1p(25) * 20_000
    assert (np.abs(np.histogram(radius, edges)[0] - expected) < 5 * np.sqrt(expected)).all()


def test_the_central_galaxy_is_a_large_red_one(photometry):
    drawn = [
        galaxies.central(
            0.4,
            photometry=photometry,
            luminosity=5.0,
            axis_ratio=0.8,
            angle_rad=0.3,
            rng=np.random.default_rng(k),
        )
        for k in range(60)
    ]
    expected = galaxies.characteristic_mag_i(0.4) - 2.5 * np.log10(5)
    mag_i = [g.mag[0, 2] for g in drawn]
    # LSST's i is SDSS' to some hundredths.
    assert np.mean(mag_i) == pytest.approx(expected, abs=0.05)
    size_kpc = np.array([g.r_eff_arcsec[0] for g in drawn]) * halo.kpc_per_arcsec(0.4)
    assert np.median(size_kpc) == pytest.approx(18, rel=0.1)
    assert all((g.x_arcsec[0], g.y_arcsec[0], g.n_sersic[0]) == (0, 0, 4) for g in drawn)


def test_intracluster_light_is_its_share_of_all(members, photometry):
    rng = np.random.default_rng(2)
    others = members(n=40)
    bcg = galaxies.central(
        0.4, photometry=photometry, luminosity=6.0, axis_ratio=0.8, angle_rad=0.3, rng=rng
    )
    icl = galaxies.intracluster_light(bcg, others, share=0.12, axis_ratio=0.7, rng=rng)
    light = [(10 ** (-0.4 * g.mag)).sum() for g in (icl, bcg, others)]
    assert light[0] / sum(light) == pytest.approx(0.12)
    assert np.ptp(icl.mag - bcg.mag) == pytest.approx(0, abs=1e-9)
    assert 60 <= icl.r_eff_arcsec[0] * halo.kpc_per_arcsec(0.4) <= 140


def test_field_counts_rise_as_stated(photometry):
    drawn = galaxies.field(
        50_000,
        extent_arcsec=(100.0, 50.0),
        faintest_mag_i=25.0,
        photometry=photometry,
        rng=np.random.default_rng(1),
    )
    counts = np.histogram(drawn.mag[:, 2], [21, 22, 23, 24])[0]
    assert np.diff(np.log10(counts)) == pytest.approx([0.35] * 2, abs=0.05)
    assert drawn.x_arcsec.max() <= 100
    assert drawn.y_arcsec.max() <= 50
    assert np.isfinite(drawn.mag).all()
    faint = drawn.mag[:, 2] > 24
    assert np.median(drawn.z[faint]) > np.median(drawn.z[~faint])


def test_clumps_keep_the_light_and_the_place_of_their_host(make_galaxies, photometry):
    mag = photometry.magnitudes(np.full(300, 22.0), z=1.2, young_share=0.8)
    smooth = make_galaxies(np.zeros(300), 1.0, r_eff=0.5, q=0.6, angle=0.4, mag=mag)
    rng = np.random.default_rng(6)
    share = rng.uniform(0.15, 0.55, 300)
    both = galaxies.with_clumps(smooth, share=share, photometry=photometry, rng=rng)
    discs, clumps = both.take(np.arange(300)), both.take(np.arange(300, len(both)))
    assert 3 * 300 <= len(clumps) <= 8 * 300
    # In SDSS i nothing is lost; LSST's i is nearly that.
    flux = [(10 ** (-0.4 * g.mag)).sum(axis=0) for g in (discs, clumps, smooth)]
    assert (flux[0] + flux[1])[2] == pytest.approx(flux[2][2], rel=0.01)
    assert flux[1][2] / flux[2][2] == pytest.approx(share.mean(), rel=0.02)
    assert discs.mag - smooth.mag == pytest.approx(
        np.broadcast_to(-2.5 * np.log10(1 - share)[:, None], (300, 3))
    )
    colour = clumps.mag[:, 0] - clumps.mag[:, 2]
    assert (colour < smooth.mag[0, 0] - smooth.mag[0, 2]).all()
    assert np.hypot(clumps.x_arcsec.mean(), clumps.y_arcsec.mean() - 1) < 0.05
    assert clumps.r_eff_arcsec == pytest.approx(0.03)


def test_quiet_galaxies_have_no_clumps(make_galaxies, photometry):
    quiet = make_galaxies([0.0, 1.0], [0.0, 1.0])
    quiet = replace(quiet, young_share=np.array([0.1, 0.5]))
    both = galaxies.with_clumps(
        quiet, share=np.full(2, 0.4), photometry=photometry, rng=np.random.default_rng(0)
    )
    assert len(both) == 2
    assert (both.mag == quiet.mag).all()


def test_take_move_and_join(members):
    drawn = members(n=5)
    both = galaxies.Galaxies.join(drawn, drawn.moved(1.0, -2.0))
    assert len(both) == 10
    second = both.take(np.arange(5, 10))
    assert second.x_arcsec == pytest.approx(drawn.x_arcsec + 1)
    assert second.y_arcsec == pytest.approx(drawn.y_arcsec - 2)
    assert (second.mag == drawn.mag).all()
