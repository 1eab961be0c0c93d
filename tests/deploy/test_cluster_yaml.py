"""`cluster.yaml` as Ray's own checks and our rules for it see it, offline."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()


@pytest.fixture
def cluster() -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load(TEXT))


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "cpu", "gpu"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(max_worker=3),
        lambda c: c["available_node_types"]["cpu"].pop("node_config"),
        lambda c: c.update(head_node_type="heads"),
        lambda c: c["available_node_types"]["gpu"].update(max_workers=99, min_workers=100),
    ],
)
def test_ray_refuses_a_spoilt_one(cluster: dict[str, Any], spoil: Any) -> None:
    spoil(cluster)
    with pytest.raises(Exception, match=r"."):
        validate_config(prepare_config(cluster))


def test_head_runs_no_work_and_workers_start_from_none(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in " ".join(cluster["head_start_ray_commands"])
    assert {types[t]["min_workers"] for t in ("cpu", "gpu")} == {0}
    assert types["gpu"]["resources"]["GPU"] == 1
    spot = {"MarketType": "spot"}
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == spot
    assert "InstanceMarketOptions" not in types["cpu"]["node_config"]
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert sum(types[t]["max_workers"] for t in ("cpu", "gpu")) <= cluster["max_workers"]


def test_every_node_asks_for_the_token(cluster: dict[str, Any]) -> None:
    for group in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in cluster[group]:
            assert "RAY_AUTH_MODE=token" in command
    assert any("RAY_AUTH_MODE=token" in c for c in cluster["setup_commands"])
    assert "~/.ray/auth_token" in cluster["file_mounts"].values()
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_nodes_install_the_pinned_versions(cluster: dict[str, Any]) -> None:
    assert any("-c constraints.txt" in c for c in cluster["setup_commands"])
    assert (ROOT / "constraints.txt").exists()


def test_images_are_for_the_user_to_fill_in(cluster: dict[str, Any]) -> None:
    images = {t["node_config"]["ImageId"] for t in cluster["available_node_types"].values()}
    assert images == {"EDIT_AMI_ID"}
    assert not re.search(r"\bami-[0-9a-f]{8,}", TEXT)
    marked = [line for line in TEXT.splitlines() if "# EDIT" in line]
    assert len(marked) == 2
