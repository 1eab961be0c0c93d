"""One seed of the most telling drills; `make drill` has all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray import scarcity
from tests.ray.drill_survey import DrillSurvey, make
from tests.ray.drills import drill
from tests.ray.nodes import Nodes, nodes


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> DrillSurvey:
    return make(tmp_path_factory.mktemp("drill"), n_shards=2, rows_per_group=10)


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["worker", "actor", "driver", "cluster"])
def test_whatever_is_killed_the_rest_is_done_later(survey, running, tmp_path: Path, kind):
    assert drill(kind, 1, running, survey, folder=tmp_path).failures == []


@pytest.mark.slow
def test_a_node_lost_while_others_hold_every_cpu(survey, running, tmp_path):
    assert scarcity.taken_cpus(1, running, survey, folder=tmp_path).failures == []
