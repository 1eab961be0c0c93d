from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from clusterray.errors import ConfigError, InputError, RunError
from clusterray.simulate import halo, negatives, population
from clusterray.simulate.system import KINDS, Recipe, draw_foreground

SEED = 11
RECIPE = Recipe()


@given(n=st.integers(1, 400), share=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_there_are_exactly_as_many_lenses_as_asked_for(n, share, seed):
    n_lenses = int(n * share)
    kinds = population.kinds(n, n_lenses, seed=seed, recipe=RECIPE)
    assert len(kinds) == n
    assert kinds.count("lens") == n_lenses
    assert set(kinds) <= set(KINDS)
    rest = n - n_lenses
    for kind in ("marginal", "lens_off", "double"):
        assert abs(kinds.count(kind) - getattr(RECIPE, kind) * rest) < 1


def test_classes_are_scattered_by_the_seed():
    first, second = (population.kinds(300, 30, seed=s, recipe=RECIPE) for s in (1, 2))
    assert first != second
    at = np.flatnonzero(np.array(first) == "lens")
    assert at.min() < 60
    assert at.max() > 240


@pytest.mark.parametrize("kind", KINDS)
def test_a_system_meets_the_criterion_of_its_class(kind):
    for index in range(3):
        system = population.draw(index, kind=kind, seed=SEED)
        images = population.multiply_imaged(system, recipe=RECIPE)
        n = int((images >= 2).sum())
        assert system.n_multiply_imaged == n
        assert system.y == {"lens": 1, "marginal": -1}.get(kind, 0)
        if kind == "lens":
            assert n >= 2
            assert 5 <= system.theta_e_arcsec <= 20
        else:
            assert n == (kind == "marginal")


def test_a_draw_depends_on_seed_and_id_alone():
    first = [population.draw(i, kind="lens", seed=SEED) for i in (0, 1, 2)]
    again = [population.draw(i, kind="lens", seed=SEED) for i in (2, 1, 0)][::-1]
    for a, b in zip(first, again, strict=True):
        assert a.foreground.m200_msun == b.foreground.m200_msun
        assert (a.background.mag == b.background.mag).all()
        assert a.tries == b.tries
    other = population.draw(0, kind="lens", seed=SEED + 1)
    assert other.foreground.m200_msun != first[0].foreground.m200_msun
    assert len({s.foreground.m200_msun for s in first}) == 3


def test_the_lens_off_twin_differs_in_nothing_but_the_path_of_light():
    lens = population.draw(4, kind="lens", seed=SEED)
    twin = population.draw(4, kind="lens_off", seed=SEED)
    made = negatives.lens_off(lens)
    for off in (twin, made):
        assert (off.foreground.members.mag == lens.foreground.members.mag).all()
        assert (off.background.x_arcsec == lens.background.x_arcsec).all()
        assert (off.background.mag == lens.background.mag).all()
        assert off.deflector() is None
        assert off.y == 0
    assert lens.deflector() is not None


def test_doubles_are_of_both_sorts():
    doubles = [population.draw(i, kind="double", seed=SEED) for i in range(12)]
    behind = [s for s in doubles if s.lensed]
    beside = [s for s in doubles if not s.lensed]
    assert behind
    assert beside
    for system in beside:
        gap = system.z_background - system.foreground.z_lens
        assert 0.03 <= gap <= 0.1
        assert halo.distance_ratio(system.foreground.z_lens, system.z_background) < 0.3


def test_drawn_values_stay_in_their_ranges():
    for index in range(40):
        system = population.draw(index, kind="cluster", seed=SEED)
        lens = system.foreground
        assert 0.2 <= lens.z_lens <= 0.6
        assert 1e14 <= lens.m200_msun <= 1.5e15
        assert 3 <= lens.concentration <= 7
        assert 20 <= len(lens.members) - 1 <= 60
        assert (lens.members.x_arcsec[0], lens.members.y_arcsec[0]) == (0, 0)
        assert lens.luminosity[0] > 1.5
        assert system.background is None


def test_richness_follows_the_mass_observable_relation():
    def richness(mass, seed):
        rng = np.random.default_rng(seed)
        return draw_foreground(mass, recipe=RECIPE, rng=rng).richness

    # Equal seeds have equal scatter.
    assert richness(6.16e14, 0) / richness(3.08e14, 0) == pytest.approx(2 ** (1 / 1.356))
    assert np.median([richness(3.08e14, k) for k in range(60)]) == pytest.approx(40, rel=0.1)


def test_richness_proxy_follows_the_true_radius():
    systems = [population.draw(i, kind="cluster", seed=SEED) for i in range(120)]
    richness = np.array([s.foreground.richness for s in systems])
    z = np.array([s.foreground.z_lambda for s in systems])
    proxy = 10 * (richness / 50) ** 0.4 * np.sqrt((1 + z) / 1.4)
    truth = [s.theta_e_arcsec for s in systems]
    assert spearmanr(proxy, truth).statistic > 0.5


def test_an_unknown_class_is_named():
    with pytest.raises(InputError, match=r"kind 'lense' .* did you mean 'lens'"):
        population.draw(0, kind="lense", seed=SEED)


def test_a_class_that_cannot_be_drawn_says_so():
    blind = replace(RECIPE, depth_mag=(15.0, 15.0, 15.0), max_tries=4)
    with pytest.raises(RunError, match="object 3: none of 4 draws is a 'lens'"):
        population.draw(2, kind="lens", seed=SEED, recipe=blind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_lens": (0.2, 0.9)}, "'z_lens' reaches 0.9 but 'z_source' begins at 0.8"),
        ({"reference_z_source": 0.5}, "begins at 0.5"),
        ({"z_source": (1.5, 0.8)}, "'z_source' is \\(1.5, 0.8\\)"),
        ({"m200_msun": (-1.0, 1e15)}, "'m200_msun' is"),
        ({"double": 1.2}, "'double' is 1.2, expected a share"),
        ({"marginal": -0.1}, "'marginal' is -0.1"),
        ({"double": 0.6, "lens_off": 0.6}, "more than all non-lenses"),
        ({"max_tries": 0}, "'max_tries'"),
        ({"field_arcsec": 0.0}, "'field_arcsec'"),
    ],
)
def test_impossible_recipes_fail_before_any_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(RECIPE, **changes)


def test_the_digest_follows_the_recipe():
    assert Recipe().digest() == RECIPE.digest()
    assert replace(RECIPE, rich=0.3).digest() != RECIPE.digest()
