import numpy as np
import pytest

from clusterray.simulate import halo
from clusterray.simulate.system import draw_background, draw_foreground


@pytest.fixture(scope="module")
def foreground(demo_maker):
    def drawn(mass=8e14, seed=0, **changes):
        rng = np.random.default_rng(seed)
        recipe, photometry = demo_maker.recipe, demo_maker.photometry
        return draw_foreground(mass, recipe=recipe, photometry=photometry, rng=rng, **changes)

    return drawn


def test_drawn_values_stay_in_their_ranges(foreground):
    for seed in range(25):
        lens = foreground(10 ** (14 + seed / 20), seed)
        assert 0.2 <= lens.z_lens <= 0.6
        assert 3 <= lens.concentration <= 7
        assert 0.5 <= lens.axis_ratio <= 0.9
        assert 20 <= len(lens.members) - 1 <= 60
        assert (lens.members.x_arcsec[0], lens.members.y_arcsec[0]) == (0, 0)
        assert lens.luminosity[0] > 1.5
        assert abs(lens.z_lambda - lens.z_lens) < 0.05


def test_concentration_falls_with_mass_and_scatters(foreground):
    light, heavy = (
        np.log([foreground(m, s).concentration for s in range(150)]) for m in (2e14, 1e15)
    )
    assert np.median(heavy - light) < 0
    # Cut off at 3 and 7, a scatter of 0.2 shrinks a little.
    assert 0.14 < np.std(light) < 0.21
    assert np.exp(np.median(light)) == pytest.approx(5 * 0.4**-0.08, rel=0.07)


def test_richness_follows_the_mass_observable_relation(foreground):
    # Equal seeds have equal scatter.
    ratio = foreground(6.16e14).richness / foreground(3.08e14).richness
    assert ratio == pytest.approx(2 ** (1 / 1.356))
    richness = np.log([foreground(3.08e14, k).richness for k in range(150)])
    assert np.exp(np.median(richness)) == pytest.approx(40, rel=0.06)
    assert np.std(richness) == pytest.approx(0.2, rel=0.2)


def test_observables_are_known_for_their_share_of_clusters(foreground):
    lenses = [foreground(8e14, k, z=0.3) for k in range(200)]
    for name, expected, scatter in (
        ("sigma_v_km_s", halo.dispersion_km_s(8e14, 0.3), 0.1),
        ("l_x_erg_s", halo.luminosity_erg_s(8e14, 0.3), 0.4),
    ):
        values = np.array([getattr(f, name) for f in lenses])
        known = np.isfinite(values)
        assert known.mean() == pytest.approx(0.3, abs=0.1)
        assert np.median(np.log(values[known] / expected)) == pytest.approx(0, abs=scatter / 2)
        assert np.std(np.log(values[known])) == pytest.approx(scatter, rel=0.35)


def test_the_mass_is_a_halo_a_bcg_bright_members_and_subhaloes(foreground):
    lens = foreground(z=0.4)
    names, values = lens.deflector.profiles, lens.deflector.parameters
    assert names[:2] == ("NFW_ELLIPSE_CSE", "SIE")
    assert set(names[2:]) == {"PJAFFE"}
    ratio = halo.distance_ratio(0.4, 1.2)
    theta_e = np.array(
        [2 * p["sigma0"] * p["Ra"] * p["Rs"] / (p["Rs"] - p["Ra"]) for p in values[2:]]
    )
    sigma = np.sqrt(theta_e / halo.isothermal_radius_arcsec(1.0, ratio))
    bright = np.argsort(-lens.luminosity[1:], kind="stable")[: min(29, len(lens.members) - 1)] + 1
    # Faber–Jackson, and cut radii that follow the square root of the light.
    assert sigma[: len(bright)] == pytest.approx(180 * lens.luminosity[bright] ** 0.25, rel=1e-6)
    cut = np.array([p["Rs"] for p in values[2:]]) * halo.kpc_per_arcsec(0.4)
    assert cut[: len(bright)] == pytest.approx(30 * lens.luminosity[bright] ** 0.5, rel=1e-6)
    assert [p["center_x"] for p in values[2 : 2 + len(bright)]] == pytest.approx(
        lens.members.x_arcsec[bright]
    )
    assert (sigma[len(bright) :] >= 149).all()
    assert (sigma[len(bright) :] <= 501).all()


def test_a_member_may_be_given_its_dispersion(foreground):
    plain, boosted = foreground(), foreground(boosted=(2, 300.0))
    changed = [
        k
        for k, (a, b) in enumerate(
            zip(plain.deflector.parameters, boosted.deflector.parameters, strict=True)
        )
        if a != b
    ]
    assert len(changed) == 1
    x = boosted.deflector.parameters[changed[0]]["center_x"]
    assert x == boosted.members.x_arcsec[2]


def test_more_mass_has_a_larger_radius(foreground):
    radii = [foreground(m, z=0.35).theta_e_arcsec(1.2) for m in (2e14, 5e14, 1.2e15)]
    assert radii == sorted(radii)
    assert radii[-1] > 10


def test_the_radius_grows_with_the_sources_redshift(foreground):
    lens = foreground(z=0.35)
    radii = [lens.theta_e_arcsec(z) for z in (0.3, 0.5, 1.0, 2.0)]
    assert radii[0] == 0
    assert radii == sorted(radii)


@pytest.mark.parametrize("offset", [0.0, 5.0, 25.0])
def test_a_background_cluster_stands_where_it_is_put(demo_maker, offset):
    law, photometry = demo_maker.recipe.source_cluster, demo_maker.photometry
    places, numbers = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        drawn = draw_background(
            1.1, offset_arcsec=offset, law=law, photometry=photometry, lensed=True, rng=rng
        )
        x, y = drawn.members.x_arcsec, drawn.members.y_arcsec
        places.append(np.hypot(np.median(x), np.median(y)))
        numbers.append(len(x))
        assert (drawn.members.z == 1.1).all()
        assert len(drawn.light) >= len(drawn.members)
    assert np.median(places) == pytest.approx(offset, abs=2.5)
    assert 20 <= min(numbers) < max(numbers) <= 50
