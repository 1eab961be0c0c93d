import ast
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from clusterray import __version__, cli, config, storage
from clusterray.engine.telemetry import RunSummary
from clusterray.errors import InputError, RunError
from clusterray.features.registry import registry
from clusterray.features.segment_registry import segment_registry
from clusterray.sky import shards

ROOT = Path(__file__).parents[1]


def verb(monkeypatch: pytest.MonkeyPatch, name: str, run) -> None:
    """Put `run` where the command line looks for a verb."""
    module = types.ModuleType(f"clusterray.engine.{name}")
    setattr(module, name, run)
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        ([], "required: VERB"),
        (["rank", "--cofnig", "x"], "unrecognized arguments: --cofnig"),
        (["tune", "forest"], "invalid choice: 'forest'"),
        (["export", "a.parquet"], "required: out"),
        (["export", "a.parquet", "out", "--layout", "png"], "invalid choice: 'png'"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_version(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"clusterray {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["rank", "--set", "rank.budget=[1]"],
            "clusterray rank: error: defaults: unknown key 'rank.budget', did you mean 'budgets'?",
        ),
        (["score", "--set", "seed"], "clusterray score: error: --set seed: expected section.key"),
        (["train", "--config", "none.toml"], "clusterray train: error: no settings: cannot open"),
    ],
)
def test_bad_settings(arguments: list[str], message: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


class Done:
    exit_code = 0

    def __str__(self) -> str:
        return "rank: all done"


def test_a_verb_gets_the_settings_and_its_summary_is_shown(tmp_path, capsys, monkeypatch) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 5\n[paths]\nroot = 'r'\n")
    got: list[config.Config] = []

    def run(settings: config.Config) -> Done:
        got.append(settings)
        return Done()

    verb(monkeypatch, "rank", run)
    assert cli.main(["rank", "--config", str(path), "--set", "rank.report_top=3"]) == 0
    assert got == [config.load(path, ["rank.report_top=3"])]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "seed = 5"
    assert out[-1] == "rank: all done"
    assert "report_top=3" in " ".join(out)
    assert 'scores="r/scores"' in " ".join(out)


@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        ([], "lightgbm"),
        (["lightgbm"], "lightgbm"),
        (["nnpu"], "nnpu"),
        (["--set", "tune.model=nnpu"], "nnpu"),
    ],
)
def test_tune_is_told_which_model(arguments: list[str], model: str, monkeypatch) -> None:
    got: list[config.Config] = []

    def run(settings: config.Config) -> Done:
        got.append(settings)
        return Done()

    verb(monkeypatch, "tune", run)
    assert cli.main(["tune", *arguments]) == 0
    assert got[0].tune.model == model


def fails(error: BaseException):
    def run(settings: config.Config) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("nothing was scored"), 2, "clusterray rank: error: nothing was scored\n"),
        (RunError("too many rejects"), 1, "clusterray rank: error: too many rejects\n"),
        (KeyboardInterrupt(), 130, "\nclusterray rank: stopped; run it again to go on\n"),
    ],
)
def test_exit_codes(error, code: int, message: str, capsys, monkeypatch) -> None:
    verb(monkeypatch, "rank", fails(error))
    assert cli.main(["rank"]) == code
    assert capsys.readouterr().err == message


def test_a_defect_is_not_hidden(monkeypatch) -> None:
    verb(monkeypatch, "rank", fails(ZeroDivisionError("defect")))
    with pytest.raises(ZeroDivisionError, match="defect"):
        cli.main(["rank"])


@pytest.mark.parametrize("name", cli._VERBS)
def test_every_verb_is_a_function_of_the_engine(name: str) -> None:
    source = (ROOT / "clusterray" / "engine" / f"{name}.py").read_text()
    functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    (found,) = [f for f in functions if f.name == name]
    assert [a.arg for a in found.args.args] == ["config"]


@pytest.fixture
def shard(tmp_path: Path) -> str:
    url = str(tmp_path / "s.parquet")
    shards.write(
        url,
        object_id=["one", "two"],
        ra_deg=[10.0, 11.0],
        dec_deg=[-1.0, 1.0],
        cutouts_nchw=np.arange(2 * 2 * 16 * 16, dtype=np.float32).reshape(2, 2, 16, 16),
        noise_sigma=np.full((2, 2), 8.0),
        bands=("g", "r"),
        pixel_scale_arcsec=0.5,
    )
    return url


def test_every_feature_is_listed_without_a_run(capsys) -> None:
    assert cli.main(["features", "--list", "--set", "survey.bands=['g', 'r']"]) == 0
    out = capsys.readouterr().out
    settings = config.load(overrides=["survey.bands=['g', 'r']"])
    listed = (*registry(("g", "r"), settings.features), *segment_registry(("g", "r")))
    for feature in listed:
        assert f"  {feature.name}  [{feature.unit}]  {feature.definition}" in out
    assert "source: Lupton, Gunn & Szalay 1999" in out
    assert "patch_0_0_mean_i" not in out


def test_export_writes_fits(shard: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "fits"
    assert cli.main(["export", shard, str(out)]) == 0
    assert capsys.readouterr().out == f"export: 3 files in {out}\n"
    assert {p.name for p in out.iterdir()} == {"one.fits", "two.fits", "s_objects.fits"}
    want = shards.read(shard).cutouts_nchw[1, 0]
    np.testing.assert_array_equal(fits.getdata(out / "two.fits", extname="g"), want)


def test_export_writes_the_multimodal_universe_layout(shard: str, tmp_path: Path) -> None:
    assert cli.main(["export", shard, str(tmp_path / "mmu"), "--layout", "mmu"]) == 0
    assert list((tmp_path / "mmu").rglob("*.hdf5"))


def test_export_of_what_is_no_shard(tmp_path: Path, capsys) -> None:
    assert cli.main(["export", str(tmp_path / "none.parquet"), str(tmp_path)]) == 1
    assert "none.parquet': no such file" in capsys.readouterr().err
    (tmp_path / "text.parquet").write_text("x,y\n")
    assert cli.main(["export", str(tmp_path / "text.parquet"), str(tmp_path)]) == 1
    assert "not a readable Parquet file" in capsys.readouterr().err


def test_shown_settings_can_be_read_back(capsys) -> None:
    loaded = config.load(overrides=["vision.image_size_px=null", "paths.tiles=['a', 'b c']"])
    cli._show(loaded)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"seed = {loaded.seed}"
    (paths,) = [line for line in lines if line.startswith("[paths]")]
    assert 'tiles=["a", "b c"]' in paths
    assert json.loads(paths.rpartition("candidates=")[2]) == storage.join("runs/demo", "candidates")


def test_a_job_must_not_write_into_its_removed_copy(monkeypatch, capsys):
    job = '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
    assert cli.main(["rank", "--set", "paths.root='runs/mine'"]) == 2
    assert "absolute path or a URL" in capsys.readouterr().err
    # An absolute root passes, and the verb then misses its bundle.
    assert cli.main(["rank", "--set", "paths.root='/nowhere'"]) == 2
    assert "absolute path or a URL" not in capsys.readouterr().err


def test_a_limit_exceeded_is_the_exit_code(capsys, monkeypatch) -> None:
    summary = RunSummary(
        verb="rank", unit="shards", done=1, skipped=0, rows=1, rejected=0, seconds=1.0, outputs={},
        exceeded=("psi of the PSF is 0.4, at most 0.25",),
    )  # fmt: skip
    verb(monkeypatch, "rank", lambda settings: summary)
    assert cli.main(["rank"]) == 3
    assert "limit exceeded: psi of the PSF is 0.4" in capsys.readouterr().out
