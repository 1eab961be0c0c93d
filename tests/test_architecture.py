"""What the order of the packages promises, read from the source alone."""

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = (
    *("errors", "config", "schema", "storage", "provenance", "page", "compilation"),
    *("sky", "simulate", "features", "vision", "pu", "ensemble", "rank", "engine", "cli"),
)
# The core modules stand on one level; config reads through storage.
LEVEL = {name: max(0, i - 6) for i, name in enumerate(LEVELS)}
CORE = tuple(name for name in LEVELS if LEVEL[name] == 0)
CORE_ORDER = ("errors", "storage", "config", "schema", "provenance", "page", "compilation")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): ast.parse(path.read_text(), str(path))
    for folder in ("clusterray", "jobs", "tuning")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(module: ast.Module) -> Iterator[str]:
    """Every module imported anywhere in the file, with what it imports from a package."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Call) and getattr(
            node.func, "attr", getattr(node.func, "id", "")
        ) in ("import_module", "__import__"):
            named = _named(node.args[0])
            if named is not None:
                yield named


def _named(argument: ast.expr) -> str | None:
    """What a late import names, as far as the text tells; None for a package's own modules."""
    if isinstance(argument, ast.JoinedStr):
        argument = argument.values[0]
    if isinstance(argument, ast.FormattedValue) and ast.unparse(argument.value) == "__name__":
        return None
    assert isinstance(argument, ast.Constant), "an import that the source does not name"
    return str(argument.value)


def inside(imported: str) -> str | None:
    """The part of clusterray that is imported: 'sky' of clusterray.sky.shards."""
    parts = imported.split(".")
    return parts[1] if parts[0] == "clusterray" and len(parts) > 1 else None


def offenders(banned: Callable[[str, str], bool]) -> list[str]:
    """Every "module imports name" for which `banned(module, name)`."""
    return [
        f"{name} imports {imported}"
        for name, module in MODULES.items()
        for imported in imports(module)
        if banned(name, imported)
    ]


def test_there_is_something_to_look_at() -> None:
    found = {name.split(".")[1] for name in MODULES if name.startswith("clusterray.")}
    assert set(LEVELS) <= found
    assert found <= set(LEVELS), "a package that the order does not know"


def test_packages_import_only_from_above() -> None:
    def banned(name: str, imported: str) -> bool:
        own, other = inside(name), inside(imported)
        if own is None or other not in LEVEL or own == other:
            return False
        if own in CORE_ORDER and other in CORE_ORDER:
            return CORE_ORDER.index(other) > CORE_ORDER.index(own)
        return LEVEL[other] > LEVEL[own]

    assert offenders(banned) == []


def test_only_the_engine_jobs_and_tuning_import_ray() -> None:
    homes = ("clusterray.engine", "jobs", "tuning")
    assert any(i.split(".")[0] == "ray" for m in MODULES.values() for i in imports(m))
    assert offenders(lambda n, i: i.split(".")[0] == "ray" and not n.startswith(homes)) == []


def test_only_jobs_and_tuning_import_the_command_line() -> None:
    assert offenders(lambda n, i: inside(n) not in (None, "cli") and inside(i) == "cli") == []


def test_the_package_imports_neither_jobs_nor_tests() -> None:
    roots = ("jobs", "tuning", "tests")
    own = "clusterray"
    assert offenders(lambda n, i: n.startswith(own) and i.split(".")[0] in roots) == []


def test_no_file_is_named_after_nothing() -> None:
    empty = {"utils", "util", "helpers", "common", "misc"}
    assert [n for n in MODULES if not empty.isdisjoint(n.split("."))] == []


def test_nothing_is_unpickled() -> None:
    banned = ("pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal")
    assert offenders(lambda n, i: i.split(".")[0] in banned or i == "torch.load") == []
    for name, module in MODULES.items():
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("torch.load", "lightgbm.sklearn"), name
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", f"{name}:{node.value.lineno}"


def test_only_simulate_and_rank_and_what_shows_them_know_where_the_truth_is() -> None:
    """So training cannot open it."""
    knows = {
        name
        for name, module in MODULES.items()
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute)
        and node.attr == "truth"
        and ast.unparse(node.value).endswith("paths")
    }
    allowed = {
        "clusterray.engine.simulate",
        "clusterray.engine.rank",
        "jobs.demo",
        "jobs.benchmarks.learning",
    }
    assert knows <= allowed
    assert {"clusterray.engine.simulate", "clusterray.engine.rank"} <= knows


def test_training_reads_no_truth_table() -> None:
    """Neither by the name of its schema, nor by that of its setting, nor from any package."""
    seen, todo = set(), ["clusterray.engine.train"]
    while todo:
        name = todo.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        for imported in imports(MODULES[name]):
            todo += [imported, imported.rpartition(".")[0]]
    assert {"clusterray.engine.sample", "clusterray.engine.fits"} <= seen
    core = {f"clusterray.{name}" for name in CORE} | {"clusterray"}
    for name in sorted(seen - core):
        for node in ast.walk(MODULES[name]):
            mentioned = getattr(node, "attr", getattr(node, "id", ""))
            assert mentioned not in ("truth", "TRUTH"), f"{name}:{node.lineno}"


def test_every_module_says_what_is_public() -> None:
    silent = [
        name
        for name, module in MODULES.items()
        if name.startswith("clusterray") and "__all__" not in assigned(module)
    ]
    assert silent == []


def assigned(module: ast.Module) -> set[str]:
    found = [
        n.targets if isinstance(n, ast.Assign) else [n.target]
        for n in module.body
        if isinstance(n, ast.Assign | ast.AnnAssign)
    ]
    return {t.id for targets in found for t in targets if isinstance(t, ast.Name)}


@pytest.mark.parametrize("package", ["clusterray", *(f"clusterray.{n}" for n in CORE)])
def test_public_names_exist(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name)


def test_jobs_are_short() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path.name


def test_what_is_imported_is_installed_by_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names_in(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=!~ ]", d)[0].lower() for d in requirements}

    declared = names_in(project["dependencies"])
    # What is compared with in a benchmark is nothing that a user installs.
    compared = names_in(project["optional-dependencies"]["dev"])
    names = {"sklearn": "scikit-learn", "astropy_healpix": "astropy-healpix", "yaml": "pyyaml"}
    names["skimage"] = "scikit-image"
    own = {"clusterray", "jobs", "tuning"} | set(sys.stdlib_module_names)
    for name, module in MODULES.items():
        roots = {i.split(".")[0] for i in imports(module)} - own
        allowed = declared | (compared if name.startswith("jobs.benchmarks.") else set())
        assert {names.get(root, root) for root in roots} - allowed == set(), name
