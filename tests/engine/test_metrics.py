"""What Prometheus sees of a run, read from Ray's own endpoint."""

import time
import urllib.request
from collections.abc import Iterator

import pyarrow as pa
import pytest
import ray

from clusterray.config import PriceSettings
from clusterray.engine import work
from clusterray.engine.metrics import METRICS, RunMeters

EXPOSED = {
    name: f"ray_{name}_total" if kind == "counter" else f"ray_{name}"
    for name, (kind, _, _) in METRICS.items()
}


class Pass:
    """An actor that hands its units on; unit 0 finds storage busy once."""

    def __call__(self, table: pa.Table) -> pa.Table:
        from clusterray import storage

        if 0 in table.column("unit").to_pylist():
            storage._retries[0] += 1
        return table


@pytest.fixture(scope="module")
def endpoint(_auth: None) -> Iterator[str]:
    if ray.is_initialized():
        ray.shutdown()
    ray.init(
        num_cpus=2,
        include_dashboard=True,
        dashboard_port=0,
        log_to_driver=False,
        logging_level="error",
        _system_config={"metrics_report_interval_ms": 500},
    )
    (node,) = ray.nodes()
    yield f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    ray.shutdown()


def sums(endpoint: str) -> dict[tuple[str, str], float]:
    """Value by name and stage, over all processes."""
    found: dict[tuple[str, str], float] = {}
    with urllib.request.urlopen(endpoint, timeout=10) as answer:
        text = answer.read().decode()
    for line in text.splitlines():
        name, brace, rest = line.partition("{")
        if brace and "clusterray" in name:
            labels, _, value = rest.rpartition("} ")
            stage = labels.partition('stage="')[2].partition('"')[0]
            found[name, stage] = found.get((name, stage), 0) + float(value.split()[0])
    return found


def test_every_metric_reaches_prometheus_with_its_amount(endpoint):
    prices = PriceSettings(cpu_hour=3600.0, currency="EUR")
    meters = RunMeters("score", units=4, shape=(2, 0), prices=prices)
    stages = [work.Stage("read", Pass, num_cpus=0.5), work.Stage("finish", Pass, num_cpus=0.5)]
    for _ in work.run(4, stages, verb="score", rows=[6, 6, 6, 2]):
        pass
    together = [work.Stage(name, Pass, num_cpus=0.5) for name in ("vit", "stack")]
    for _ in work.run(4, together, verb="score", rows=[6, 6, 6, 2], fused=True):
        pass
    meters.advance(3, rejected=2)
    want = {
        ("ray_clusterray_stage_rows_total", "read"): 20,
        ("ray_clusterray_stage_rows_total", "finish"): 20,
        ("ray_clusterray_stage_units_total", "finish"): 4,
        ("ray_clusterray_storage_retries_total", "read"): 1,
        ("ray_clusterray_stage_rows_total", "vit"): 20,
        ("ray_clusterray_stage_units_total", "stack"): 4,
        ("ray_clusterray_storage_retries_total", "vit"): 1,
        ("ray_clusterray_storage_retries_total", "stack"): 1,
        ("ray_clusterray_units_waiting", ""): 1,
        ("ray_clusterray_rejected_rows_total", ""): 2,
    }
    deadline = time.monotonic() + 60
    found = sums(endpoint)
    while not (want.items() <= found.items() and set(EXPOSED.values()) <= {n for n, _ in found}):
        assert time.monotonic() < deadline, found
        found = sums(endpoint)
    assert found["ray_clusterray_cost", ""] > 0
    assert found["ray_clusterray_stage_busy_seconds_total", "read"] > 0
