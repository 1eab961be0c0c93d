from pathlib import Path

import pytest

from clusterray import config
from clusterray.sky.surveys import resolve

PROFILES = sorted((Path(__file__).parents[2] / "deploy" / "profiles").glob("*.toml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_profile_is_a_valid_config(path: Path) -> None:
    loaded = config.load(path)
    resolve(loaded.survey)
    assert loaded.paths.scores.startswith(loaded.paths.root)


def test_there_is_one_for_each_size() -> None:
    assert {p.stem for p in PROFILES} == {"laptop", "gpu_host", "survey_cluster"}
    cluster = config.load(next(p for p in PROFILES if p.stem == "survey_cluster"))
    assert cluster.paths.root.startswith("s3://")
    # A cluster that starts from no workers must be planned for what it grows to.
    assert cluster.cluster.expected_cpus and cluster.cluster.expected_gpus
    assert cluster.nightly.max_psi
