"""The manifests against Kubernetes' and KubeRay's fields, Ray's own reader, and our rules."""

import copy
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloudcoil.models.kubernetes.batch.v1 import CronJob
from cloudcoil.models.kubernetes.core.v1 import Namespace, ServiceAccount
from cloudcoil.models.kubernetes.networking.v1 import NetworkPolicy
from cloudcoil.models.kubernetes.rbac.v1 import Role, RoleBinding
from cloudcoil.models.prometheus_operator.v1 import PodMonitor
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import validate_config

from tests.deploy.kuberay_models import RayCluster, RayJob, strict

DEPLOY = Path(__file__).parents[2] / "deploy"
KINDS = {
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "CronJob": CronJob,
    "Namespace": Namespace,
    "NetworkPolicy": NetworkPolicy,
    "PodMonitor": PodMonitor,
    "Role": Role,
    "RoleBinding": RoleBinding,
    "ServiceAccount": ServiceAccount,
}
FILES = sorted([*(DEPLOY / "kubernetes").glob("*.yaml"), DEPLOY / "monitoring/podmonitor.yaml"])
OBJECTS = {
    f"{path.name}:{o['kind']}:{o['metadata'].get('name')}": o
    for path in FILES
    for o in yaml.safe_load_all(path.read_text())
}


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [copy.deepcopy(o) for o in OBJECTS.values() if o["kind"] == kind]


CLUSTER = of_kind("RayCluster")[0]
JOB = of_kind("RayJob")[0]
CRON = of_kind("CronJob")[0]


@pytest.mark.parametrize("name", OBJECTS)
def test_every_field_is_one_that_exists(name: str) -> None:
    found = OBJECTS[name]
    strict(KINDS[found["kind"]], found)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("RayCluster", lambda o: o["spec"].update(rayVersions="2")),
        ("RayCluster", lambda o: o["spec"]["headGroupSpec"]["template"]["spec"].update(node=1)),
        ("RayCluster", lambda o: o["spec"]["workerGroupSpecs"][0].update(minReplicas=99)),
        ("RayCluster", lambda o: o["spec"]["autoscalerOptions"].update(version="v3")),
        ("RayJob", lambda o: o["spec"].pop("entrypoint")),
        ("RayJob", lambda o: o["spec"].update(clusterSelector={"a": "b"})),
        ("CronJob", lambda o: o["spec"].pop("schedule")),
        ("CronJob", lambda o: o["spec"]["jobTemplate"]["spec"]["template"]["spec"].update(x=1)),
        ("NetworkPolicy", lambda o: o["spec"]["ingress"][0].update(form=[])),
    ],
)
def test_a_spoilt_one_is_refused(kind: str, spoil: Any) -> None:
    found = of_kind(kind)[0]
    spoil(found)
    with pytest.raises((AssertionError, ValueError)):
        strict(KINDS[kind], found)


def test_kustomize_names_what_exists_and_makes_what_is_mounted() -> None:
    plan = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    for resource in plan["resources"]:
        assert (DEPLOY / resource).exists()
    made = {}
    for generator in plan["configMapGenerator"]:
        for entry in generator["files"]:
            key, _, path = entry.rpartition("=")
            assert (DEPLOY / path).exists()
            made.setdefault(generator["name"], set()).add(key or Path(path).name)
    mounted = {v["configMap"]["name"] for pod in pods() for v in pod["volumes"] if "configMap" in v}
    assert mounted == set(made)
    assert made["clusterray-run"] == {JOB["spec"]["entrypoint"].rpartition("/")[2]}
    assert made["clusterray-gencert"] == {"gencert.sh"}
    (container,) = CRON["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-1].rpartition("/")[2] in made["clusterray-night"]


def test_ray_reads_the_cluster_as_it_is_meant() -> None:
    cr = copy.deepcopy(CLUSTER)
    cr["metadata"]["namespace"] = "clusterray"
    config = _derive_autoscaling_config_from_ray_cr(cr)
    validate_config(config)
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert (types["cpu"]["min_workers"], types["gpu"]["min_workers"]) == (0, 0)
    assert types["cpu"]["resources"]["CPU"] == 30
    assert types["gpu"]["resources"]["GPU"] == 1
    assert config["idle_timeout_minutes"] == 5


def test_the_night_runs_on_the_same_cluster() -> None:
    assert JOB["spec"]["rayClusterSpec"] == CLUSTER["spec"]
    assert JOB["spec"]["shutdownAfterJobFinishes"]
    assert 0 < JOB["spec"]["activeDeadlineSeconds"] < 86400
    pins = dict(
        line.split("==")
        for line in (DEPLOY.parent / "constraints.txt").read_text().split()
        if "==" in line
    )
    assert CLUSTER["spec"]["rayVersion"] == pins["ray"]


def test_the_cron_job_creates_it_and_may_do_no_more() -> None:
    assert CRON["spec"]["concurrencyPolicy"] == "Forbid"
    pod = CRON["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (role,) = of_kind("Role")
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
    ]
    (binding,) = of_kind("RoleBinding")
    assert binding["subjects"][0]["name"] == pod["serviceAccountName"] == "clusterray-night"
    accounts = {a["metadata"]["name"] for a in of_kind("ServiceAccount")}
    assert {p["serviceAccountName"] for p in pods()} == accounts


def pods() -> list[dict[str, Any]]:
    """Every pod of Ray and of the CronJob."""
    groups = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
    return [g["template"]["spec"] for g in groups] + [
        CRON["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    ]


def submitter() -> dict[str, Any]:
    return JOB["spec"]["submitterPodTemplate"]["spec"]


def test_nothing_runs_as_root_or_without_limits() -> None:
    for pod in [*pods(), submitter()]:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    options = CLUSTER["spec"]["autoscalerOptions"]
    assert options["securityContext"]["runAsNonRoot"] and options["resources"]["limits"]


def test_every_ray_process_speaks_tls_and_asks_for_the_token() -> None:
    spec = CLUSTER["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    environments = [g["template"]["spec"]["containers"][0]["env"] for g in groups]
    for environment in [*environments, spec["autoscalerOptions"]["env"]]:
        found = {e["name"]: e["value"] for e in environment}
        assert found["RAY_USE_TLS"] == "1"
        assert {"RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"} <= set(found)


def test_the_key_of_the_ca_stays_in_the_init_container() -> None:
    for pod in pods()[:-1]:
        mounts = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert "ca" not in mounts
        assert "ca" in {m["name"] for m in pod["initContainers"][0]["volumeMounts"]}


def test_only_operator_and_submitters_reach_the_dashboard() -> None:
    policy = next(p for p in of_kind("NetworkPolicy") if p["metadata"]["name"] == "clusterray")
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    to_dashboard = [
        rule
        for rule in policy["spec"]["ingress"]
        if "ports" not in rule or 8265 in [p["port"] for p in rule["ports"]]
    ]
    sources = [s for rule in to_dashboard for s in rule["from"]]
    assert all("podSelector" in s for s in sources)
    assert len(sources) == 3
    label = JOB["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": label}} in sources


def test_prometheus_finds_ports_that_are_there_and_may_be_reached() -> None:
    (monitor,) = of_kind("PodMonitor")
    asked = {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]}
    (head, *_) = pods()
    ports = {p["name"]: p["containerPort"] for p in head["containers"][0]["ports"]}
    assert asked <= set(ports)
    policy = next(p for p in of_kind("NetworkPolicy") if p["metadata"]["name"] == "clusterray")
    allowed = {p["port"] for rule in policy["spec"]["ingress"] for p in rule.get("ports", [])}
    assert {ports[name] for name in asked} <= allowed


def test_no_secret_is_in_a_manifest() -> None:
    assert "Secret" not in {o["kind"] for o in OBJECTS.values()}
    for path in FILES:
        text = path.read_text()
        assert "PRIVATE KEY" not in text and "AWS_SECRET" not in text, path.name


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def certificate(folder: Path, ca: Path, name: str) -> Path:
    out = folder / name
    out.mkdir()
    subprocess.run(
        ["sh", str(DEPLOY / "kubernetes/gencert.sh")],
        check=True,
        capture_output=True,
        env={
            "PATH": "/usr/bin:/bin:/usr/local/bin",
            "CA_DIR": str(ca),
            "TLS_DIR": str(out),
            "NAMESPACE": "clusterray",
            "POD_IP": "10.1.2.3",
        },
    )
    return out


def test_certificates_made_by_the_script_let_two_pods_talk(tmp_path: Path) -> None:
    """Both sides check the other's, as Ray's gRPC does; a stranger's CA is refused."""
    for name in ("ca", "stranger"):
        (tmp_path / name).mkdir()
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca"),
            *("-keyout", str(tmp_path / name / "ca.key"), "-out", str(tmp_path / name / "ca.crt")),
        )
    head = certificate(tmp_path, tmp_path / "ca", "head")
    worker = certificate(tmp_path, tmp_path / "ca", "worker")
    assert sorted(p.name for p in head.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]
    assert (head / "tls.key").stat().st_mode & 0o077 == 0
    for name in ("clusterray-head-svc.clusterray.svc.cluster.local", "10.1.2.3", "localhost"):
        handshake(head, worker, name)
    foreign = certificate(tmp_path, tmp_path / "stranger", "foreign")
    with pytest.raises(ssl.SSLError):
        handshake(head, foreign, "localhost")
    with pytest.raises(ssl.SSLError):
        handshake(head, worker, "clusterray-head-svc.elsewhere.svc.cluster.local")


def handshake(server: Path, client: Path, name: str) -> None:
    contexts = []
    for side, folder in ((ssl.PROTOCOL_TLS_SERVER, server), (ssl.PROTOCOL_TLS_CLIENT, client)):
        context = ssl.SSLContext(side)
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        context.load_verify_locations(folder / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        contexts.append(context)
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        contexts[0].wrap_bio(a, b, server_side=True),
        contexts[1].wrap_bio(b, a, server_hostname=name),
    ]
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
