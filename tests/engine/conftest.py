"""A small survey taken the whole way once; every test starts from a copy or only reads it."""

import os

import pytest
import ray

from clusterray.config import ClusterSettings, Config
from tests.engine import network_survey
from tests.engine.tiny_survey import tiny_config


@pytest.fixture(scope="session")
def _auth() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"


def _start_ray() -> None:
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")


@pytest.fixture(scope="module")
def ray_session(_auth: None) -> None:
    """A local Ray, left running for the next module: starting one costs as much as a test."""
    _start_ray()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, _auth: None) -> Config:
    """Simulated, ingested, trained, scored and ranked; read it, or copy its folder."""
    from clusterray.engine.ingest import ingest
    from clusterray.engine.rank import rank
    from clusterray.engine.score import score
    from clusterray.engine.simulate import simulate
    from clusterray.engine.train import train

    settings = tiny_config(tmp_path_factory.mktemp("tiny"))
    _start_ray()
    # To draw the survey is work enough for two actors.
    simulate(settings.model_copy(update={"cluster": ClusterSettings(workers=2)}))
    for step in (ingest, train, score, rank):
        step(settings)
    return settings


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory, _auth: None) -> Config:
    """Two networks and LightGBM trained, scored by one actor a stage, and ranked; read it."""
    from clusterray.engine.rank import rank
    from clusterray.engine.score import score
    from clusterray.engine.train import train

    root = tmp_path_factory.mktemp("networks")
    network_survey.write_survey(root)
    config = network_survey.settings(root)
    _start_ray()
    for step in (train, score, rank):
        step(config)
    return config
