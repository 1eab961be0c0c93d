from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare, spearmanr

from clusterray.errors import InputError, RunError
from clusterray.features import proxies
from clusterray.simulate import population
from clusterray.simulate.cutouts import CutoutMaker
from clusterray.simulate.recipe import KINDS
from clusterray.simulate.truth import find_images


def test_classes_have_their_shares(demo_maker):
    recipe = demo_maker.recipe
    kinds = Counter(population.kind_of(i, seed=3, recipe=recipe) for i in range(20_000))
    expected = np.array([recipe.classes[k] for k in KINDS]) * 20_000
    assert chisquare([kinds[k] for k in KINDS], expected).pvalue > 1e-3


def test_the_class_of_an_object_depends_on_seed_and_id_alone(demo_maker):
    recipe = demo_maker.recipe
    kinds = [[population.kind_of(i, seed=s, recipe=recipe) for i in range(60)] for s in (1, 2)]
    assert kinds[0] != kinds[1]
    assert kinds[0][::-1] == [
        population.kind_of(i, seed=1, recipe=recipe) for i in reversed(range(60))
    ]


def test_a_class_that_is_not_asked_for_never_comes(demo_maker):
    only = demo_maker.recipe.model_copy(update={"classes": {"spiral": 0.5, "merger": 0.5}})
    kinds = {population.kind_of(i, seed=1, recipe=only) for i in range(50)}
    assert kinds == {"spiral", "merger"}


def test_ids_count_from_one():
    assert [population.object_id_of(i) for i in (0, 41)] == ["1", "42"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_system_meets_the_criterion_of_its_class(demo_maker, kind):
    drawn = demo_maker.draw("5", kind)
    system, row = drawn.system, drawn.truth
    assert (row["kind"], row["y"]) == (kind, KINDS[kind])
    assert system.tries == row["tries"] == 1 + sum(system.cuts.values())
    n = 0
    if system.background is not None and system.background.lensed:
        plane = system.foreground.plane(demo_maker.frame)
        criterion = demo_maker.recipe.criterion
        exposures = demo_maker.exposures("5")
        members = system.background.members
        n = len(find_images(members, plane, demo_maker.frame, exposures, criterion).multiple)
        assert row["theta_e_arcsec"] >= criterion.min_theta_e_arcsec
    wanted = {"lens": n >= 2, "marginal": n == 1}.get(kind, n == 0)
    assert wanted
    assert row["n_multiply_imaged"] == n
    assert (system.background is not None) == (
        kind in ("lens", "marginal", "lens_off", "outside_caustic", "projected_double")
    )
    assert (system.source is not None) == (kind == "galaxy_galaxy")


def test_a_draw_depends_on_seed_and_id_alone(demo_maker, lens):
    again = demo_maker.draw("1", "lens")
    other = CutoutMaker(demo_maker.survey, demo_maker.recipe, 12).draw("1", "lens")
    second = demo_maker.draw("2", "lens")
    for name, value in lens.truth.items():
        assert np.array_equal(again.truth[name], value, equal_nan=isinstance(value, np.ndarray))
    masses = {d.system.foreground.m200_msun for d in (lens, again, other, second)}
    assert len(masses) == 3
    assert (again.system.background.light.mag == lens.system.background.light.mag).all()


def test_field_and_stars_are_those_of_the_object_whatever_its_class(demo_maker, lens):
    alone = demo_maker.draw("1", "cluster").system
    assert (alone.field.mag == lens.system.field.mag).all()
    assert (alone.stars[2] == lens.system.stars[2]).all()


def test_proxies_follow_the_true_radius(demo_maker):
    maker = demo_maker
    kinds = [population.kind_of(i, seed=maker.seed, recipe=maker.recipe) for i in range(160)]
    drawn = [maker.draw(population.object_id_of(i), k) for i, k in enumerate(kinds)]
    lenses = [d.system.foreground for d in drawn]
    z, richness, sigma_v, l_x = (
        np.array([getattr(f, n) for f in lenses])
        for n in ("z_lambda", "richness", "sigma_v_km_s", "l_x_erg_s")
    )
    true = np.array([d.truth["theta_e_reference_arcsec"] for d in drawn])
    reference = {"source_redshift": maker.recipe.reference_z_source}
    for name, proxy, least in (
        ("richness", proxies.theta_e_from_richness(richness, z, **reference), 0.5),
        ("sigma_v", proxies.theta_e_from_dispersion(sigma_v, z, **reference), 0.5),
        ("L_X", proxies.theta_e_from_luminosity(l_x, z, **reference), 0.5),
    ):
        known = np.isfinite(proxy)
        rank = spearmanr(proxy[known], true[known]).statistic
        print(f"{name}: Spearman {rank:.2f} over {known.sum()}")
        assert rank >= least
    assert 25 <= np.isfinite(sigma_v).sum() <= 75


def test_an_unknown_class_is_named(demo_maker):
    with pytest.raises(InputError, match=r"kind 'lense' .* did you mean 'lens'"):
        demo_maker.draw("1", "lense")


def test_a_criterion_that_nothing_meets_says_so_with_its_cuts(demo_maker):
    recipe = demo_maker.recipe
    hard = recipe.criterion.model_copy(update={"min_theta_e_arcsec": 90.0, "max_tries": 4})
    maker = CutoutMaker(demo_maker.survey, recipe.model_copy(update={"criterion": hard}), 1)
    message = r"object 3: none of 4 draws is a 'lens' .*4 cut by min_theta_e_arcsec.*max_tries"
    with pytest.raises(RunError, match=message):
        maker.draw("3", "lens")
