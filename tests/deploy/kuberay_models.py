"""KubeRay's ray.io/v1 as strict models, after its API reference; pods are Kubernetes' own."""

from typing import Any, Literal

from cloudcoil.models.kubernetes.core import v1 as core
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"] | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None  # noqa: N815
    idleTimeoutSeconds: int | None = None  # noqa: N815
    image: str | None = None
    imagePullPolicy: str | None = None  # noqa: N815
    env: list[dict[str, Any]] = []
    envFrom: list[dict[str, Any]] = []  # noqa: N815
    volumeMounts: list[dict[str, Any]] = []  # noqa: N815
    securityContext: dict[str, Any] | None = None  # noqa: N815
    resources: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _parts(self) -> "AutoscalerOptions":
        for kind, parts in (
            (core.EnvVar, self.env),
            (core.VolumeMount, self.volumeMounts),
            (core.SecurityContext, [self.securityContext or {}]),
            (core.ResourceRequirements, [self.resources or {}]),
        ):
            for part in parts:
                strict(kind, part)
        return self


class Group(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: dict[str, Any]

    @model_validator(mode="after")
    def _pod(self) -> "Group":
        strict(core.PodTemplateSpec, self.template)
        return self


class HeadGroup(Group):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None  # noqa: N815
    enableIngress: bool | None = None  # noqa: N815


class WorkerGroup(Group):
    groupName: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")  # noqa: N815
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)  # noqa: N815
    maxReplicas: int = Field(ge=0)  # noqa: N815
    numOfHosts: int | None = None  # noqa: N815
    idleTimeoutSeconds: int | None = None  # noqa: N815

    @model_validator(mode="after")
    def _ordered(self) -> "WorkerGroup":
        assert self.minReplicas <= self.replicas <= self.maxReplicas
        return self


class RayClusterSpec(Strict):
    rayVersion: str  # noqa: N815
    enableInTreeAutoscaling: bool | None = None  # noqa: N815
    authOptions: AuthOptions | None = None  # noqa: N815
    autoscalerOptions: AutoscalerOptions | None = None  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup] = []  # noqa: N815
    suspend: bool | None = None


class Metadata(Strict):
    name: str | None = None
    generateName: str | None = None  # noqa: N815
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJobSpec(Strict):
    entrypoint: str
    activeDeadlineSeconds: int | None = Field(default=None, gt=0)  # noqa: N815
    backoffLimit: int | None = None  # noqa: N815
    clusterSelector: dict[str, str] | None = None  # noqa: N815
    metadata: dict[str, str] | None = None
    rayClusterSpec: RayClusterSpec | None = None  # noqa: N815
    runtimeEnvYAML: str | None = None  # noqa: N815
    shutdownAfterJobFinishes: bool | None = None  # noqa: N815
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode"] | None = None  # noqa: N815
    submitterPodTemplate: dict[str, Any] | None = None  # noqa: N815
    suspend: bool | None = None
    ttlSecondsAfterFinished: int | None = None  # noqa: N815

    @model_validator(mode="after")
    def _sound(self) -> "RayJobSpec":
        assert (self.rayClusterSpec is None) != (self.clusterSelector is None)
        assert self.shutdownAfterJobFinishes or not self.ttlSecondsAfterFinished
        if self.submitterPodTemplate is not None:
            strict(core.PodTemplateSpec, self.submitterPodTemplate)
        return self


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


def strict(kind: type[BaseModel], value: dict[str, Any]) -> None:
    """Validate, and refuse a key that the model passed over: its models allow any."""
    known = kind.model_validate(value).model_dump(by_alias=True, exclude_unset=True, mode="json")
    _same_keys(value, known, kind.__name__)


def _same_keys(given: Any, known: Any, where: str) -> None:
    if isinstance(given, dict) and isinstance(known, dict):
        unknown = set(given) - set(known)
        assert not unknown, f"{where}: unknown {sorted(unknown)}"
        for key, value in given.items():
            _same_keys(value, known[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(known, list):
        for i, (a, b) in enumerate(zip(given, known, strict=True)):
            _same_keys(a, b, f"{where}[{i}]")
