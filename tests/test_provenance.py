import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clusterray import __version__, provenance

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_canonical_json_says_the_same(value: object) -> None:
    assert json.loads(provenance.canonical_json(value)) == value


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=5))
def test_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    backwards = dict(reversed(value.items()))
    assert provenance.digest(backwards) == provenance.digest(value)


def test_digest_is_that_of_the_canonical_text() -> None:
    want = hashlib.sha256(b'{"a":[1,2.5],"b":null}').hexdigest()
    assert provenance.digest({"b": None, "a": (1, 2.5)}) == want
    assert provenance.digest(b"bytes") == hashlib.sha256(b"bytes").hexdigest()
    assert provenance.digest(memoryview(b"bytes")) == provenance.digest(b"bytes")
    with pytest.raises(ValueError, match="not JSON compliant"):
        provenance.digest({"a": float("nan")})


def test_data_fingerprint_knows_contents_not_order() -> None:
    assert provenance.data_fingerprint(["b", "a"]) == provenance.data_fingerprint(iter("ab"))
    assert provenance.data_fingerprint(["a"]) != provenance.data_fingerprint(["a", "a"])


def test_seeds_are_pinned() -> None:
    # What they were when results were first written: another value changes every result.
    assert provenance.seed_for(7) == 5004513604212969849
    assert provenance.seed_for(7, fold=2, model="vit") == 9067261431050360028
    assert provenance.uniform_for(7, ["a"], purpose="fold") == [0.3670506118918212]


@given(st.integers(0, 2**40), st.dictionaries(st.sampled_from("abcd"), st.integers(), max_size=4))
def test_seed_for_does_not_depend_on_the_order_of_labels(
    root: int, labels: dict[str, object]
) -> None:
    seed = provenance.seed_for(root, **labels)
    assert seed == provenance.seed_for(root, **dict(reversed(labels.items())))
    assert 0 <= seed < 2**63
    assert seed != provenance.seed_for(root + 1, **labels)
    assert seed != provenance.seed_for(root, **labels, more=0)


@given(st.lists(st.text(), unique=True, max_size=8), st.randoms(use_true_random=False))
def test_uniform_for_depends_on_the_object_alone(ids: list[str], random) -> None:
    drawn = dict(zip(ids, provenance.uniform_for(3, ids, purpose="p"), strict=True))
    shuffled = random.sample(ids, len(ids))
    assert provenance.uniform_for(3, shuffled, purpose="p") == [drawn[i] for i in shuffled]
    for i in ids:
        assert provenance.uniform_for(3, [i], purpose="p") == [drawn[i]]


def test_uniform_for_is_uniform_and_independent() -> None:
    ids = [f"object-{i}" for i in range(4000)]
    one, other, seeded = (
        np.array(provenance.uniform_for(seed, ids, purpose=purpose))
        for seed, purpose in ((1, "fold"), (1, "draw"), (2, "fold"))
    )
    for drawn in (one, other, seeded):
        assert drawn.min() >= 0
        assert drawn.max() < 1
        assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr(one, other).statistic) < 0.06
    assert abs(stats.spearmanr(one, seeded).statistic) < 0.06


def test_git_state_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.COMMIT_ENV, "abc123+dirty")
    assert provenance.git_state() == "abc123+dirty"
    assert provenance.provenance()["commit"] == "abc123+dirty"


def _module_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(provenance.COMMIT_ENV, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(provenance, "__file__", str(folder / "provenance.py"))


def test_git_state_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module_in(tmp_path, monkeypatch)
    assert provenance.git_state() == "unknown"


def test_git_state_says_whether_the_tree_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _module_in(tmp_path, monkeypatch)
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "--no-verify", "-m", "first")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert provenance.git_state() == commit
    (tmp_path / "a").write_text("2")
    assert provenance.git_state() == f"{commit}+dirty"


def test_versions_and_hardware() -> None:
    found = provenance.provenance()
    assert found["versions"]["clusterray"] == __version__
    assert {"python", "ray", "torch", "numpy", "pyarrow"} <= set(found["versions"])
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_gib"] > 0
    json.dumps(found)


def test_a_missing_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "no-such-package"))
    assert set(provenance.versions()) == {"python", "numpy"}
