"""KubeRay manifests for a job: RayCluster, RayJob, NetworkPolicy and a ConfigMap with the job file. Imports no torch and no ray.

They are rendered, parsed and checked for structure, no more: nothing here has been applied to a Kubernetes.
"""

import importlib.metadata
import re
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cluster.job import JobSpec, as_written
from trainers.errors import ConfigError

FILES = ("configmap.yaml", "networkpolicy.yaml", "raycluster.yaml", "rayjob.yaml")
_USER = 1000
_HOME = "/home/consortium"
_LONGEST_NAME = 40
"""KubeRay adds to it, and a label holds 63 characters"""
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_CPUS_A_GPU, _MEMORY_A_GPU, _MEMORY_A_CPU_WORKER = 8, 64, 16
"""GiB of main memory: weights pass through it, and with ZeRO offloading stay there"""

_POD = {"runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER, "seccompProfile": {"type": "RuntimeDefault"}}
_CONTAINER = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
_ENVIRONMENT = {
    "HOME": _HOME,
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Site:
    """Where a job is to run, as the command is told."""

    image: str
    claim: str
    """Of a volume that all pods mount"""
    namespace: str = "default"
    mount: str = "/shared"
    per_pod: int = 8
    """Workers in a pod"""
    autoscale: int | None = None
    """Most worker pods, or None for a cluster of fixed size"""


@dataclass(frozen=True)
class Deployment:
    """What the templates are filled with."""

    name: str
    site: Site
    job: str
    """The job file as it is mounted"""
    pods: int
    """Of workers"""
    head_resources: dict[str, str]
    worker_resources: dict[str, str]
    max_failures: int
    ray_version: str


def plan_deployment(job: JobSpec, site: Site) -> Deployment:
    """What a job needs of a Kubernetes. Workers share pods of `per_pod`, since GPUs of one pod talk to each other directly.

    Raises ConfigError: names that Kubernetes does not take, workers left open, paths outside the shared storage, workers that fill no whole
    pods, too low a limit.
    """
    _check_names(site)
    workers, gpus = job.cluster.most, 1 if job.cluster.gpus_per_worker == "auto" else job.cluster.gpus_per_worker
    if job.cluster.workers == "auto":
        raise ConfigError(
            "cluster.workers: expected a number: the cluster it would be chosen from is not there yet", "--set cluster.workers=8"
        )
    _check_paths(job, site.mount)
    per_pod = min(site.per_pod, workers)
    if workers % per_pod:
        raise ConfigError(f"{workers} workers do not fill pods of {per_pod}", "--per-pod N with a divisor of cluster.workers")
    pods = workers // per_pod
    if site.autoscale is not None and site.autoscale < pods:
        raise ConfigError(f"--autoscale {site.autoscale}: the job needs {pods} pods of {per_pod} workers", f"--autoscale {pods} or more")
    submitted = job.model_copy(update={"cluster": job.cluster.model_copy(update={"address": "auto", "gpus_per_worker": gpus})})
    return Deployment(
        name=kubernetes_name(job.name),
        site=site,
        job=yaml.safe_dump(as_written(submitted), sort_keys=False, allow_unicode=True),
        pods=pods,
        head_resources={"cpu": "4", "memory": "16Gi"},
        worker_resources=_worker_resources(per_pod, gpus, job.cluster.cpus_per_worker),
        max_failures=job.cluster.max_failures,
        ray_version=importlib.metadata.version("ray"),
    )


def render(deployment: Deployment) -> dict[str, str]:
    """The manifests by file name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "kuberay"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"flow": _flow, "block": _block}
    env = [{"name": name, "value": value} for name, value in _ENVIRONMENT.items()]
    filled: dict[str, Any] = (
        asdict(deployment) | asdict(deployment.site) | {"pod": _POD, "container": _CONTAINER, "env": env, "home": _HOME, "user": _USER}
    )
    return {name: templates.get_template(f"{name}.j2").render(filled).strip() + "\n" for name in FILES}


def _flow(value: Any) -> str:
    """YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()


def _block(value: Any, width: int) -> str:
    """YAML on lines of their own, so far indented."""
    return "\n" + textwrap.indent(yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=10**6), " " * width).rstrip()


def kubernetes_name(name: str) -> str:
    """A job's name as Kubernetes takes it, for services too: lower case letters, digits and hyphens, a letter first."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (words if words[:1].isalpha() else f"job-{words}")[:_LONGEST_NAME].strip("-")


def _worker_resources(per_pod: int, gpus: int, cpus: int) -> dict[str, str]:
    if not gpus:
        return {"cpu": str(per_pod * max(2, cpus)), "memory": f"{per_pod * _MEMORY_A_CPU_WORKER}Gi"}
    return {
        "cpu": str(per_pod * max(_CPUS_A_GPU, cpus)),
        "memory": f"{per_pod * _MEMORY_A_GPU}Gi",
        "nvidia.com/gpu": str(per_pod * gpus),
    }


def _check_names(site: Site) -> None:
    for option, name in (("--namespace", site.namespace), ("--storage-claim", site.claim)):
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{option} {name!r}: expected lower case letters, digits and hyphens", "kubectl get namespaces, kubectl get pvc"
            )
    if not site.image or any(not letter.isprintable() or letter.isspace() for letter in site.image):
        raise ConfigError(f"--image {site.image!r}: expected the name of an image", "as in registry/consortium:1")


def _check_paths(job: JobSpec, mount: str) -> None:
    """What a job reads and writes lies on the storage that all pods mount."""
    paths = [("output", job.output)]
    paths += [("data.train", path) for path in job.data.train] + [("data.validation", path) for path in job.data.validation]
    paths += [("model.path", Path(job.model.path))] if job.model.path else []
    paths += [("model.add_tokens", job.model.add_tokens)] if job.model.add_tokens else []
    outside = [f"{name} {path}" for name, path in paths if not PurePosixPath(path).is_relative_to(mount)]
    if outside:
        raise ConfigError(f"not under {mount}, where the pods see the shared storage: {', '.join(outside)}",
                          "put it there and give that path, or mount the storage elsewhere: --mount PATH")  # fmt: skip
