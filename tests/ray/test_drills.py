"""One seed of the most telling drills; `make drill` has all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterray import storage
from clusterray.config import ClusterSettings
from clusterray.engine.score import score
from clusterray.engine.session import session
from clusterray.errors import BundleError
from tests.ray import scarcity
from tests.ray.drill_survey import DrillSurvey
from tests.ray.drills import drill
from tests.ray.nodes import Nodes, nodes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(survey: DrillSurvey) -> Iterator[Nodes]:
    with nodes(2, 2) as started:
        yield started


def test_a_lost_node_is_survived(survey, running, tmp_path):
    outcome = drill("node", 1, running, survey, folder=tmp_path)
    assert outcome.failures == []
    assert outcome.hit and outcome.exit == 0


def test_an_output_disk_that_fills_up_is_told_and_the_rest_scored_later(survey, running, tmp_path):
    try:
        outcome = scarcity.full_disk(0, running, survey, folder=tmp_path)
    except scarcity.NotHereError as reason:
        pytest.skip(str(reason))
    assert outcome.failures == []
    assert 0 < outcome.stood < survey.groups


def test_a_bundle_that_a_node_cannot_fetch_is_named(survey, running, tmp_path):
    """It lies in the memory of this process: the driver reads it, and no other process can."""
    url = "memory://only-here/bundle"
    for path in (survey.root / "bundle").iterdir():
        storage.write_bytes(f"{url}/{path.name}", path.read_bytes())
    config = survey.config(tmp_path / "out", f"paths.bundle='{url}'")
    joined = session(ClusterSettings(address=running.address))
    with joined, pytest.raises(BundleError, match=rf"'{url}' holds no manifest\.json"):
        score(config)


def test_a_place_that_cannot_be_written_is_told(survey, running, tmp_path):
    try:
        outcome = scarcity.read_only(0, running, survey, folder=tmp_path)
    except scarcity.NotHereError as reason:
        pytest.skip(str(reason))
    assert outcome.failures == []


@pytest.mark.parametrize("kind", ["worker", "actor", "driver", "cluster", "long-actor"])
def test_whatever_is_killed_the_rest_is_done_later(survey, running, tmp_path: Path, kind):
    assert drill(kind, 1, running, survey, folder=tmp_path).failures == []


def test_a_node_lost_while_others_hold_every_cpu(survey, running, tmp_path):
    assert scarcity.taken_cpus(1, running, survey, folder=tmp_path).failures == []
