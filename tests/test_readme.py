"""What the README shows must be true."""

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from clusterray import cli, config
from clusterray.sky.surveys import PRESETS, resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PARSER = cli._parser()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    examples = blocks("python")
    assert len(examples) >= 3
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert "(4, 3, 64, 64)" in capsys.readouterr().out


def test_examples_that_need_the_demo_name_what_exists() -> None:
    (example,) = blocks("python after-demo")
    wanted = [
        (f"{node.module}.{alias.name}", node.module, alias.name)
        for node in ast.parse(example).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert wanted
    for whole, module, name in wanted:
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        defined = {
            n.name for n in ast.parse(Path(spec.origin).read_text()).body if hasattr(n, "name")
        }
        assert name in defined or importlib.util.find_spec(whole) is not None


def test_the_settings_example_is_valid() -> None:
    example, *others = blocks("toml")
    loaded_others = [config.resolve(tomllib.loads(other)) for other in others]
    assert 36 in [other.nightly.max_latency_hours for other in loaded_others]
    loaded = config.resolve(tomllib.loads(example))
    assert resolve(loaded.survey).band_names == ("g", "r", "i")
    assert loaded.ingest.tile_bands == {"*_HSC-G_*": "g"}
    (listed,) = re.findall(r"a preset: (.*)", example)
    assert listed.split(", ") == list(PRESETS)


def commands(program: str) -> list[str]:
    """Every command of a program, in shell blocks and in `inline code`."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    code = [*"\n".join(blocks("sh")).splitlines(), *re.findall(r"`([^`]+)`", prose)]
    code += [line.strip() for line in prose.splitlines() if line.startswith("    ")]
    found = [re.sub(r"\s+#.*", "", c) for c in code if re.match(rf"{program} +\S", c)]
    assert found, program
    return found


@pytest.mark.parametrize("command", commands("clusterray"))
def test_commands_are_understood(command: str) -> None:
    PARSER.parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", commands("ray job submit"))
def test_jobs_exist(command: str) -> None:
    entry = shlex.split(command.partition(" -- ")[2])
    assert entry[:2] == ["python", "-m"]
    assert (ROOT / (entry[2].replace(".", "/") + ".py")).exists()
    PARSER.parse_args([entry[2].partition(".")[2], *entry[3:]])


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_and_variables_exist(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in shlex.split(command)[1:]:
        variable, assigned, _ = word.partition("=")
        pattern = rf"^{variable} \?=" if assigned else rf"^{variable}:"
        assert re.search(pattern, makefile, flags=re.MULTILINE), word


def test_settings_named_in_the_text_exist() -> None:
    known = config.Config()
    sections = ["survey", "paths", "ingest", "train", "score", "rank", "tune", "cluster", "vision"]
    sections += ["features", "pretrain", "simulate", "candidates", "nightly", "prices"]
    named = re.findall(rf"`({'|'.join(sections)})\.(\w+)`", README)
    assert len(named) >= 5
    for section, key in named:
        is_file = key in ("parquet", "csv", "html")
        assert is_file or hasattr(getattr(known, section), key), f"{section}.{key}"


def test_modules_named_in_the_text_exist() -> None:
    for path in re.findall(r"(?:clusterray|jobs|tuning)/[\w/]*(?:\.\w+)?", README):
        assert (ROOT / path).exists(), path


def test_links_lead_somewhere() -> None:
    headings = {
        h.lower().replace(" ", "-") for h in re.findall(r"^##+ (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings
        elif "://" not in target:
            assert (ROOT / target).exists()
