"""From no workers to some and back, with Ray's autoscaler and its provider of pretend nodes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
)

from clusterray.config import ClusterSettings
from clusterray.engine import work
from clusterray.engine.rank import rank
from clusterray.engine.score import score
from clusterray.engine.session import cluster_shape, session
from tests.ray.drill_survey import DrillSurvey
from tests.ray.heads import Head, free_ports, head

pytestmark = pytest.mark.slow
COMMANDS = (
    *("initialization", "setup", "head_setup", "worker_setup"),
    *("head_start_ray", "worker_start_ray"),
)


@pytest.fixture(scope="module")
def autoscaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head without CPUs; workers of two CPUs, and of one with a pretend GPU, from none."""
    ports = free_ports(3)
    config = {
        "cluster_name": "pretend",
        "max_workers": 4,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 10.0,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{ports[0]}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 1,
            },
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        # Ray wants them, and the provider runs none.
        **{f"{which}_commands": [] for which in COMMANDS},
    }
    path = tmp_path_factory.mktemp("autoscaler") / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    env = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    arguments = ("--num-cpus=0", "--num-gpus=0", f"--autoscaling-config={path}")
    with head(*arguments, env=env, ports=ports) as running:
        yield running


class PretendNetwork:
    """A stage that takes a GPU and says where it ran."""

    def __call__(self, table: pa.Table) -> pa.Table:
        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        node = ray.get_runtime_context().get_node_id()
        said = json.dumps({"gpus": gpus, "node": node})
        return table.append_column("said", pa.array([said] * len(table)))


def workers() -> list[dict]:
    return [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != FAKE_HEAD_NODE_ID]


def test_a_run_brings_workers_and_they_go_when_it_is_done(
    survey: DrillSurvey, autoscaled: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = survey.config(tmp_path, "cluster.expected_cpus=2")
    with session(ClusterSettings(address=autoscaled.address)):
        assert (cluster_shape(), workers()) == ((0.0, 0.0), [])
        assert score(config).done == survey.groups
        rank(config)
        assert Path(config.paths.ranking, "ranking.parquet").read_bytes() == survey.ranking
        assert cluster_shape()[0] >= 2

        stages = [work.Stage("network", PretendNetwork, num_cpus=0, num_gpus=1)]
        answers = [
            json.loads(said)
            for table in work.run(4, stages, verb="score")
            for said in table["said"].to_pylist()
        ]
        (gpu,) = [n for n in ray.nodes() if n["Resources"].get("GPU")]
        assert {(a["node"], tuple(a["gpus"])) for a in answers} == {(gpu["NodeID"], ("0",))}

        deadline = time.monotonic() + 120
        while workers():
            assert time.monotonic() < deadline, "workers stay"
            time.sleep(0.5)
