import pytest

from clusterray.errors import ConfigError
from clusterray.simulate.recipe import KINDS, load

UNIFORM = '{{ distribution = "uniform", low = {}, high = {} }}'


@pytest.fixture
def recipe_of(tmp_path):
    """A recipe with these lines of TOML laid over the built-in one."""

    def made(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return load(str(path))

    return made


def test_the_built_in_recipe_draws_every_class():
    recipe = load()
    assert set(recipe.classes) == set(KINDS)
    assert sum(recipe.classes.values()) == pytest.approx(1)
    assert min(recipe.classes.values()) > 0
    assert {k for k, y in KINDS.items() if y} == {"lens", "marginal"}


def test_changes_are_laid_over_key_by_key(recipe_of):
    built_in = load()
    mine = recipe_of(
        f"[lens_cluster]\nz = {UNIFORM.format(0.3, 0.5)}\nsubhaloes = 0\n"
        "[classes]\nlens = 0.25\ncluster = 0.75\n"
    )
    assert mine.lens_cluster.z.support == (0.3, 0.5)
    assert mine.lens_cluster.m200_msun == built_in.lens_cluster.m200_msun
    assert mine.classes == {"lens": 0.25, "cluster": 0.75}
    assert mine.source_cluster == built_in.source_cluster


def test_a_distribution_is_replaced_as_a_whole(recipe_of):
    mine = recipe_of('[lens_cluster]\nz = { distribution = "constant", value = 0.4 }\n')
    assert mine.lens_cluster.z.support == (0.4, 0.4)


def test_the_digest_follows_the_values_and_not_how_they_are_written(recipe_of):
    assert recipe_of("").digest() == load().digest()
    assert recipe_of("[criterion]\nmin_snr = 5\n").digest() == load().digest()
    assert recipe_of("[criterion]\nmin_snr = 6\n").digest() != load().digest()


def test_the_share_of_lenses_scales_the_others_alike():
    recipe = load()
    more = recipe.with_lens_fraction(0.3)
    assert more.classes["lens"] == 0.3
    assert sum(more.classes.values()) == pytest.approx(1)
    ratios = {round(more.classes[k] / v, 12) for k, v in recipe.classes.items() if k != "lens"}
    assert len(ratios) == 1
    assert recipe.with_lens_fraction(None) is recipe
    assert recipe.with_lens_fraction(1.0).classes["cluster"] == 0


def test_other_classes_cannot_come_of_nothing(recipe_of):
    only = recipe_of("[classes]\nlens = 1\n")
    assert only.with_lens_fraction(1.0).classes == {"lens": 1.0}
    with pytest.raises(ConfigError, match="lens_fraction: the recipe has no other classes"):
        only.with_lens_fraction(0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"[lens_cluster]\nz = {UNIFORM.format(0.2, 0.9)}",
            r"lens_cluster\.z reaches 0\.9 but source_cluster\.z begins at 0\.8",
        ),
        ("reference_z_source = 0.5", r"reaches 0\.6 but reference_z_source begins at 0\.5"),
        ('[observation]\npsf = "airy"', r"'observation\.psf' is 'airy': .*'moffat' or 'gaussian'"),
        ("[observation]\nmoffat_beta = 1.0", r"'observation\.moffat_beta' is 1\.0"),
        ("[classes]\nlens = 1.1\nspiral = -0.1", r"'classes\.spiral' is -0\.1"),
        ("[surroundings]\nstars_per_arcmin2 = -1", r"'surroundings\.stars_per_arcmin2' is -1"),
        ("[catalogue]\nl_x_share = 1.2", r"'catalogue\.l_x_share' is 1\.2"),
        ("[classes]\nlens = 0.2\ncluster = 0.7", r"classes sum to 0\.9, expected 1"),
        ("[classes]\nlense = 1", r"no class 'lense', did you mean 'lens'\?"),
        ("[lens_cluster]\nm200 = 1", r"unknown key 'lens_cluster\.m200', did you mean 'm200_msun'"),
        ("[lens_clusters]\nz = 1", r"unknown key 'lens_clusters', did you mean 'lens_cluster'"),
        (f"[lens_cluster]\nz = {UNIFORM.format(0.5, 0.2)}", r"lens_cluster\.z.*low 0\.5 is not be"),
        (
            f"[lens_cluster]\nz = {UNIFORM.format(-0.1, 0.5)}",
            r"z is drawn from -0\.1 to 0\.5, expec",
        ),
        (
            f"[lens_cluster]\nicl_share = {UNIFORM.format(0.5, 1.5)}",
            r"icl_share is drawn from 0\.5",
        ),
        (f"[source_cluster]\nz = {UNIFORM.format(1.0, 6.0)}", r"z is drawn from 1 to 6, expected"),
        (
            "[source_cluster]\nmembers_limits = [50, 20]",
            r"members_limits is \[50, 20\], expected 0",
        ),
        ('[lens_cluster]\nz = { distribution = "gauss" }', r"lens_cluster\.z.*'gauss'.*'uniform'"),
        ("[criterion]\nmax_tries = 0", r"'criterion\.max_tries' is 0"),
        ("[criterion]\nmin_snr = nan", r"'criterion\.min_snr' is nan"),
        ("[criterion\nmin_snr = 5", "not a TOML file"),
    ],
)
def test_impossible_recipes_name_the_offending_key(recipe_of, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        recipe_of(text)
    assert "mine.toml" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"simulate\.recipe: .*absent\.toml"):
        load(str(tmp_path / "absent.toml"))
