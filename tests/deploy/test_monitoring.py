"""Every metric that is shown exists, and every metric that exists is shown."""

import importlib.util
import json
import re
from pathlib import Path

import yaml

from clusterray.engine.metrics import METRICS

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text())
QUERIES = [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]] + [
    variable["query"]["query"]
    for variable in DASHBOARD["templating"]["list"]
    if variable["type"] == "query"
]
SHOWN = {name for query in QUERIES for name in re.findall(r"\bray_\w+", query)}
OURS = {
    f"ray_{name}_total" if kind == "counter" else f"ray_{name}": set(tags)
    for name, (kind, _, tags) in METRICS.items()
}


def rays_own() -> str:
    """What Ray's own dashboards show."""
    spec = importlib.util.find_spec("ray.dashboard.modules.metrics.dashboards")
    assert spec is not None and spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    return "\n".join(p.read_text() for p in Path(folder).glob("*.py"))


def test_what_is_shown_exists() -> None:
    known = rays_own()
    for name in SHOWN - set(OURS):
        assert re.search(rf"\b{name}\b", known), name
    assert any("gpus_utilization" in name for name in SHOWN)


def test_what_exists_is_shown() -> None:
    assert set(OURS) <= SHOWN


def test_queries_use_tags_that_the_metric_has() -> None:
    for query in QUERIES:
        for name, tags in OURS.items():
            if name not in query:
                continue
            used = set(re.findall(r'(\w+)=~?"', query))
            for by in re.findall(r"by \(([^)]*)\)", query):
                used |= set(re.split(r",\s*", by))
            assert used <= tags, query


def test_panels_have_places_and_numbers_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    cells = [
        (x, y)
        for p in panels
        for g in [p["gridPos"]]
        for x in range(g["x"], g["x"] + g["w"])
        for y in range(g["y"], g["y"] + g["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_prometheus_reads_the_list_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    (path,) = scrape["file_sd_configs"][0]["files"]
    assert path == f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"
