import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from clusterray import config
from clusterray.errors import ConfigError


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_defaults_lie_under_root() -> None:
    paths = config.load(overrides=["paths.root=s3://bucket/run/"]).paths
    assert paths.tiles == ("s3://bucket/run/survey/tiles",)
    assert paths.catalogue == "s3://bucket/run/survey/catalogue.fits"
    assert paths.labels == "s3://bucket/run/survey/labels.csv"
    assert paths.truth == ""
    for name in ("shards", "features", "training", "bundle", "scores", "ranking"):
        assert getattr(paths, name) == f"s3://bucket/run/{name}"


def test_a_given_path_is_kept_and_the_others_follow_root() -> None:
    paths = config.load(overrides=["paths.root=here", "paths.scores=/elsewhere/scores"]).paths
    assert (paths.scores, paths.ranking) == ("/elsewhere/scores", "here/ranking")


def test_file_and_overrides_are_merged(tmp_path: Path) -> None:
    path = toml(tmp_path, 'seed = 3\n[train]\nn_folds = 4\nmodels = ["vit"]\n')
    loaded = config.load(path, ["train.n_folds=7", "vision.epochs = 2"])
    assert loaded.seed == 3
    assert loaded.train.n_folds == 7
    assert loaded.train.models == ("vit",)
    assert loaded.vision.epochs == 2


@pytest.mark.parametrize(
    ("override", "read", "want"),
    [
        ("paths.tiles=['a', 'b/*_g.fits']", lambda c: c.paths.tiles, ("a", "b/*_g.fits")),
        ("paths.catalogue=a b.fits", lambda c: c.paths.catalogue, "a b.fits"),
        ("paths.catalogue='quoted.fits'", lambda c: c.paths.catalogue, "quoted.fits"),
        ("paths.catalogue=x=1.fits", lambda c: c.paths.catalogue, "x=1.fits"),
        ("train.lightgbm={num_leaves=7}", lambda c: c.train.lightgbm, {"num_leaves": 7}),
        (
            "vision.model_options.depth=4",
            lambda c: c.vision.model_options,
            {"depth": 4},
        ),
        (
            'ingest.tile_bands."*_J.fits"=J',
            lambda c: c.ingest.tile_bands,
            {"*_J.fits": "J"},
        ),
        ("survey.zero_point.g=30", lambda c: c.survey.zero_point, {"g": 30.0}),
        ("vision.augment=false", lambda c: c.vision.augment, False),
        ("vision.image_size_px=null", lambda c: c.vision.image_size_px, None),
        ("vision.learning_rate=1e-3", lambda c: c.vision.learning_rate, 1e-3),
        ("seed=-5", lambda c: c.seed, -5),
    ],
)
def test_set_reads_toml_values_and_bare_text(override, read, want) -> None:
    assert read(config.load(overrides=[override])) == want


def test_the_later_override_wins() -> None:
    assert config.load(overrides=["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", r"unknown key 'sed', did you mean 'seed'\?"),
        ("visoin.epochs=1", r"unknown key 'visoin', did you mean 'vision'\?"),
        ("vision.epohcs=1", r"unknown key 'vision.epohcs', did you mean 'epochs'\?"),
        ("paths.catalog=x", r"unknown key 'paths.catalog', did you mean 'catalogue'\?"),
        ("cluster.num_cpu=1", r"unknown key 'cluster.num_cpu', did you mean 'num_cpus'\?"),
        (
            "rank.xyzzy=1",
            "unknown key 'rank.xyzzy', known: budgets, cost_per_hour, .*report_top, rgb_bands",
        ),
        ("seed", "--set seed: expected section.key=value"),
        ("=1", "--set =1: expected section.key=value"),
        ("train..n_folds=1", "expected section.key=value"),
        (".n_folds=1", "expected section.key=value"),
        ("seed.x=1", "'seed' is "),
        ("train=5", "'train' is 5"),
        ("train.n_folds=1", "'train.n_folds' is 1: .*greater than or equal to 2"),
        ("train.n_folds=many", "'train.n_folds' is 'many': .*integer"),
        ("train.holdout_fraction=1", "'train.holdout_fraction' is 1: .*less than 1"),
        ("train.models=['cnn']", "no model 'cnn', known: lightgbm, vit"),
        ("train.scenario=both", "'train.scenario' is 'both': .*'single-sample' or 'case-control'"),
        ("vision.learning_rate=inf", "'vision.learning_rate' is inf: .*finite"),
        ("vision.learning_rate=nan", "'vision.learning_rate' is nan"),
        ("ingest.min_coverage=1.5", "'ingest.min_coverage' is 1.5"),
        ("paths.tiles=one.fits", "'paths.tiles' is 'one.fits': .*tuple"),
        ("survey.bands=g", "'survey.bands' is 'g': .*tuple"),
        ("survey.zero_point.g=bright", "'survey.zero_point.g' is 'bright': .*number"),
        ("score.dtype=float16", "'score.dtype' is 'float16': .*'float32' or 'bfloat16'"),
        ("rank.rgb_bands=['i','r']", "'rank.rgb_bands"),
        ("simulate.output=cubes", "'simulate.output' is 'cubes': .*'tiles' or 'shards'"),
        ("simulate.lens_fraction=1.5", "'simulate.lens_fraction' is 1.5"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(overrides=[override])


def test_a_value_is_no_section(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set seed.x=1: 'seed' is a value, not a section"):
        config.load(toml(tmp_path, "seed = 1"), ["seed.x=1"])


def test_every_offending_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'vision.epohcs'.*'sed'") as caught:
        config.resolve({"vision": {"epohcs": 1}, "sed": 1}, where="run.toml")
    assert str(caught.value).startswith("run.toml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = ", r"run\.toml: not a TOML file"),
        ("seed = 1\nseed = 2", r"run\.toml: not a TOML file"),
        ("[paths]\nrooot = 'x'", r"run\.toml: unknown key 'paths.rooot', did you mean 'root'\?"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(toml(tmp_path, text))


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a TOML file"):
        config.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml': no such file"):
        config.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "override",
    [
        "paths.root=s3://USER:HUNTER@bucket/run",
        "paths.root=s3://USER:HUN/TER@bucket/run",
        "paths.tiles=['s3://USER:HUNTER@bucket/tiles']",
        "vision.weights=https://USER:HUNTER@host/w.safetensors",
        "tune.storage=s3://USER:HUNTER@bucket/tune",
    ],
)
def test_credentials_are_refused_and_not_repeated(override: str) -> None:
    with pytest.raises(ConfigError, match="credentials in it; put them in the") as caught:
        config.load(overrides=[override])
    assert override.partition(".")[0] in str(caught.value)
    for secret in ("USER", "HUN", "TER@"):
        assert secret not in str(caught.value)


def test_frozen() -> None:
    loaded = config.load()
    with pytest.raises(ValidationError, match="frozen"):
        loaded.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        loaded.train.n_folds = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "paths.root=file:///data/run",
            "paths.tiles=['a', 's3://b/c']",
            "survey.bands=['g', 'r']",
            "survey.zero_point={g=30.5}",
            "vision.image_size_px=null",
            "train.lightgbm={learning_rate=1.0, num_leaves=7, extra_trees=true, metric='auc'}",
            "rank.rgb_bands=['i', 'r', 'g']",
        ],
    ],
)
def test_dump_resolves_to_the_same_config(overrides: list[str]) -> None:
    loaded = config.load(overrides=overrides)
    again = config.resolve(loaded.dump())
    assert again == loaded
    assert again.dump() == loaded.dump()


def test_the_demo_config_loads() -> None:
    path = Path(__file__).parents[1] / "jobs" / "demo.toml"
    loaded = config.load(path)
    given = tomllib.loads(path.read_text())
    for section, values in given.items():
        if isinstance(values, dict):
            assert getattr(loaded, section).model_dump(include=set(values)) == values


def test_a_further_network_changes_that_of_vision() -> None:
    settings = config.resolve(
        {
            "vision": {"epochs": 7, "learning_rate": 1e-3},
            "networks": {"resnet": {"model": "resnet18", "learning_rate": 2e-3}},
            "train": {"models": ["lightgbm", "vit", "resnet"]},
        }
    )
    assert settings.network("vit") == settings.vision
    second = settings.network("resnet")
    assert (second.model, second.learning_rate, second.epochs) == ("resnet18", 2e-3, 7)
    assert config.resolve(settings.dump()) == settings


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"train": {"models": ["resnet"]}}, r"no model 'resnet'.*\[networks.resnet\]"),
        ({"networks": {"resnet": {"modle": "x"}}}, "networks.resnet: .*'modle', did you mean 'mod"),
        ({"networks": {"resnet": {"epochs": 0}}}, "networks.resnet: 'epochs' is 0"),
        ({"networks": {"vit": {}}}, "networks.vit: a network is named"),
        ({"networks": {"stack": {}}}, "networks.stack"),
        ({"networks": {"../x": {}}}, "networks.../x"),
    ],
)
def test_networks_that_cannot_be(values: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config.resolve(values)
