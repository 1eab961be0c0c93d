"""A survey to lose nodes over, made once for all tests in this folder."""

import os

import pytest
import ray

from tests.ray.drill_survey import DrillSurvey, make


@pytest.fixture(scope="session")
def survey(tmp_path_factory: pytest.TempPathFactory) -> DrillSurvey:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # These tests join clusters of their own; another folder's may be running.
    ray.shutdown()
    return make(tmp_path_factory.mktemp("drill"), n_shards=2, rows_per_group=10)
