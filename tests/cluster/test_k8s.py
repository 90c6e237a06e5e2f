"""Manifests as Kubernetes would parse them: required fields, and nothing that lets a pod out of its place."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.job import JobSpec, load_job
from cluster.k8s import FILES, Deployment, Site, kubernetes_name, plan_deployment, render
from trainers.errors import ConfigError


def _make_job(**blocks: Any) -> JobSpec:
    values = {
        "name": "Big_Assistant",
        "task": "sft",
        "model": "/shared/models/m",
        "data": "/shared/data/rows.jsonl",
        "output": "/shared/runs",
    }
    return JobSpec.model_validate(values | {"cluster": {"workers": 16}} | blocks)


def _plan(job: JobSpec, **changes: Any) -> Deployment:
    return plan_deployment(job, replace(Site(image="registry/consortium:1", claim="pvc", namespace="ml"), **changes))


def _documents(deployment: Deployment) -> dict[str, list[dict[str, Any]]]:
    return {name: list(yaml.safe_load_all(text)) for name, text in render(deployment).items()}


def _cluster_specs(documents: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [documents["raycluster.yaml"][0]["spec"], documents["rayjob.yaml"][0]["spec"]["rayClusterSpec"]]


def _pods(documents: Mapping[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for spec in _cluster_specs(documents):
        yield spec["headGroupSpec"]["template"]["spec"]
        yield from (group["template"]["spec"] for group in spec["workerGroupSpecs"])
    yield documents["rayjob.yaml"][0]["spec"]["submitterPodTemplate"]["spec"]


@pytest.fixture(scope="module")
def documents() -> dict[str, list[dict[str, Any]]]:
    return _documents(_plan(_make_job(), autoscale=4))


def test_every_manifest_has_kind_version_name_and_namespace(documents: dict[str, list[dict[str, Any]]]) -> None:
    kinds = {name: (found[0]["kind"], found[0]["apiVersion"]) for name, found in documents.items()}
    assert kinds == {
        "configmap.yaml": ("ConfigMap", "v1"),
        "networkpolicy.yaml": ("NetworkPolicy", "networking.k8s.io/v1"),
        "raycluster.yaml": ("RayCluster", "ray.io/v1"),
        "rayjob.yaml": ("RayJob", "ray.io/v1"),
    }
    assert all(document["metadata"]["namespace"] == "ml" for found in documents.values() for document in found)
    assert documents["rayjob.yaml"][0]["metadata"]["name"] == "big-assistant"


def test_no_pod_is_privileged_or_on_the_hosts_network(documents: dict[str, list[dict[str, Any]]]) -> None:
    pods = list(_pods(documents))
    assert len(pods) == 5
    for pod in pods:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys() and not any("hostPath" in volume for volume in pod["volumes"])
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            context = container["securityContext"]
            assert "privileged" not in context and context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True and context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] and container["resources"]["limits"]
            written = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/home/consortium"} <= written  # where Ray and caches write, the root being read-only


def test_tokens_are_asked_for_and_nothing_is_sent_home(documents: dict[str, list[dict[str, Any]]]) -> None:
    assert all(spec["authOptions"] == {"mode": "token"} for spec in _cluster_specs(documents))
    for pod in _pods(documents):
        env = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
        assert env["RAY_USAGE_STATS_ENABLED"] == "0" and env["HF_HUB_OFFLINE"] == "1"


def test_workers_share_pods_with_as_many_gpus_and_the_storage(documents: dict[str, list[dict[str, Any]]]) -> None:
    for spec in _cluster_specs(documents):
        group = spec["workerGroupSpecs"][0]
        container = group["template"]["spec"]["containers"][0]
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 4) and spec["enableInTreeAutoscaling"] is True
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        assert {"name": "storage", "mountPath": "/shared"} in container["volumeMounts"]
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == "pvc"


def test_a_job_on_cpus_without_autoscaling_asks_for_neither() -> None:
    documents = _documents(_plan(_make_job(cluster={"workers": 2, "gpus_per_worker": 0})))
    spec = _cluster_specs(documents)[0]
    assert "nvidia.com/gpu" not in spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert spec["enableInTreeAutoscaling"] is False and "autoscalerOptions" not in spec and len(documents["networkpolicy.yaml"]) == 1
    assert spec["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_only_own_pods_the_operator_and_a_labelled_client_are_let_in(documents: dict[str, list[dict[str, Any]]]) -> None:
    policy = documents["networkpolicy.yaml"][0]["spec"]
    own = policy["podSelector"]["matchLabels"]
    heads = [spec["headGroupSpec"]["template"]["metadata"]["labels"] for spec in _cluster_specs(documents)]
    assert all(own.items() <= labels.items() for labels in heads) and policy["policyTypes"] == ["Ingress", "Egress"]
    among, clients = policy["ingress"]
    assert among["from"] == [{"podSelector": {"matchLabels": own}}] and clients["ports"] == [{"protocol": "TCP", "port": 8265}]
    submitter = documents["rayjob.yaml"][0]["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert clients["from"][0]["podSelector"]["matchLabels"] == submitter
    assert not any({} in rule.get("to", [{}]) for rule in policy["egress"])


def test_the_job_file_in_the_manifest_is_the_job(documents: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(documents["configmap.yaml"][0]["data"]["job.yaml"])
    job = load_job(tmp_path / "job.yaml")
    assert (job.name, job.cluster.address, job.cluster.workers, job.output) == ("Big_Assistant", "auto", 16, Path("/shared/runs"))
    mounts = _cluster_specs(documents)[1]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(mount["mountPath"] == "/etc/consortium" for mount in mounts)
    assert "/etc/consortium/job.yaml --resume" in documents["rayjob.yaml"][0]["spec"]["entrypoint"]


def test_every_manifest_says_that_it_was_never_applied() -> None:
    assert all("never applied" in render(_plan(_make_job()))[name].splitlines()[1] for name in FILES)


def test_what_a_user_writes_cannot_become_yaml_of_its_own() -> None:
    plan = _plan(_make_job())
    documents = _documents(replace(plan, site=replace(plan.site, image='x" , hostNetwork: true #', claim="a\nb: c")))
    pods = list(_pods(documents))
    assert pods[0]["containers"][0]["image"] == 'x" , hostNetwork: true #' and not any("hostNetwork" in pod for pod in pods)


@pytest.mark.parametrize(
    ("name", "expected"), [("Run_1.b", "run-1-b"), ("7b", "job-7b"), ("a" * 60, "a" * 40), ("x-" * 30, ("x-" * 20)[:-1])]
)
def test_names_are_those_kubernetes_takes(name: str, expected: str) -> None:
    assert kubernetes_name(name) == expected


@pytest.mark.parametrize(
    ("blocks", "changes", "message"),
    [
        ({"cluster": {}}, {}, "cluster.workers: expected a number"),
        ({"output": "/home/me/runs"}, {}, "not under /shared, where the pods see the shared storage: output /home/me/runs"),
        ({"model": "org/model"}, {}, "model.path org/model"),
        ({}, {"per_pod": 6}, "16 workers do not fill pods of 6"),
        ({}, {"autoscale": 1}, "the job needs 2 pods"),
        ({}, {"namespace": "ML Team"}, "--namespace 'ML Team': expected lower case"),
        ({}, {"claim": ""}, "--storage-claim '': expected lower case"),
        ({}, {"image": ""}, "--image '': expected the name of an image"),
    ],
)
def test_a_job_that_cannot_run_there_is_one_line(blocks: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _plan(_make_job(**blocks), **changes)
    assert message in caught.value.message and caught.value.hint and caught.value.exit_code == 2
