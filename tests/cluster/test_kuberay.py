"""The manifests for KubeRay, through a strict check of keys and types and through Ray's own reader of RayClusters.

The API server drops unknown keys silently and the published definitions are megabytes, so the keys used here (and
their nearest neighbours) are listed by hand, after KubeRay's ray.io/v1 types.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.kuberay.utils import parse_quantity
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.runtime_env import RuntimeEnv

Manifest = dict[str, Any]


class ManifestError(AssertionError):
    """A manifest breaks the hand-written rules; the message names the path of the key."""


# A type; a set of allowed values; [schema of each item]; {key: schema}, where a key that ends in "!" is required;
# or TEXT_MAP.
TEXT_MAP = "a mapping of text to text"
COUNT = int

METADATA = {"name!": str, "namespace": str, "labels": TEXT_MAP, "annotations": TEXT_MAP}
RESOURCES = {"requests!": TEXT_MAP, "limits!": TEXT_MAP}
CONTAINER = {
    "name!": str,
    "image!": str,
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "command": [str],
    "args": [str],
    "env": [{"name!": str, "value": str, "valueFrom": {"secretKeyRef": {"name!": str, "key!": str}}}],
    "ports": [{"name": str, "containerPort!": COUNT, "protocol": {"TCP", "UDP"}}],
    "resources!": RESOURCES,
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
}
TOLERATION = {
    "key": str,
    "operator": {"Exists", "Equal"},
    "value": str,
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
}
POD = {
    "metadata": {"labels": TEXT_MAP, "annotations": TEXT_MAP},
    "spec!": {
        "containers!": [CONTAINER],
        "serviceAccountName": str,
        "restartPolicy": {"Always", "OnFailure", "Never"},
        "nodeSelector": TEXT_MAP,
        "tolerations": [TOLERATION],
        "imagePullSecrets": [{"name!": str}],
        "terminationGracePeriodSeconds": COUNT,
    },
}
HEAD_GROUP = {
    "template!": POD,
    "rayStartParams": TEXT_MAP,
    "resources": TEXT_MAP,
    "labels": TEXT_MAP,
    "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
    "enableIngress": bool,
}
WORKER_GROUP = {
    "groupName!": str,
    "replicas": COUNT,
    "minReplicas!": COUNT,
    "maxReplicas!": COUNT,
    "numOfHosts": COUNT,
    "idleTimeoutSeconds": COUNT,
    "priority": COUNT,
    "resources": TEXT_MAP,
    "labels": TEXT_MAP,
    "rayStartParams": TEXT_MAP,
    "suspend": bool,
    "template!": POD,
}
CLUSTER_SPEC = {
    "rayVersion!": str,
    "authOptions": {"mode": {"token", "disabled"}, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": {"v1", "v2"},
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "idleTimeoutSeconds": COUNT,
        "image": str,
        "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
        "resources": RESOURCES,
    },
    "headGroupSpec!": HEAD_GROUP,
    "workerGroupSpecs": [WORKER_GROUP],
    "suspend": bool,
}
JOB_SPEC = {
    "entrypoint!": str,
    "runtimeEnvYAML": str,
    "submissionMode": {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"},
    "backoffLimit": COUNT,
    "submitterConfig": {"backoffLimit": COUNT},
    "activeDeadlineSeconds": COUNT,
    "preRunningDeadlineSeconds": COUNT,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": COUNT,
    "suspend": bool,
    "rayClusterSpec!": CLUSTER_SPEC,
}


def manifest(kind: str, spec: Manifest) -> Manifest:
    return {"apiVersion!": {"ray.io/v1"}, "kind!": {kind}, "metadata!": METADATA, "spec!": spec}


SCHEMAS = {"RayCluster": manifest("RayCluster", CLUSTER_SPEC), "RayJob": manifest("RayJob", JOB_SPEC)}


def check_shape(value: Any, schema: Any, path: str) -> None:
    """Raises ManifestError at the first key that is unknown or missing, or value that is of a wrong type."""
    if schema is TEXT_MAP:
        if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
            raise ManifestError(f"{path}: {value!r} must be {TEXT_MAP}")
    elif isinstance(schema, dict):
        if not isinstance(value, dict):
            raise ManifestError(f"{path}: {value!r} must be a mapping")
        keys = {key.removesuffix("!"): part for key, part in schema.items()}
        for key in value:
            if key not in keys:
                raise ManifestError(f"{path}.{key}: unknown key; known are {', '.join(keys)}")
        for key in schema:
            if key.endswith("!") and key.removesuffix("!") not in value:
                raise ManifestError(f"{path}.{key.removesuffix('!')}: missing")
        for key, part in value.items():
            check_shape(part, keys[key], f"{path}.{key}")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise ManifestError(f"{path}: {value!r} must be a list")
        for i, item in enumerate(value):
            check_shape(item, schema[0], f"{path}[{i}]")
    elif isinstance(schema, set):
        if not isinstance(value, str) or value not in schema:
            raise ManifestError(f"{path}: {value!r} must be one of {', '.join(sorted(schema))}")
    elif not isinstance(value, schema) or (isinstance(value, bool) and schema is not bool):
        raise ManifestError(f"{path}: {value!r} must be of type {schema.__name__}")


def pods(spec: Manifest) -> list[Manifest]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def check_rules(spec: Manifest, path: str) -> None:
    """Raises ManifestError where the shape is right but Kubernetes or Ray would not do what is meant."""
    for group in spec["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group["maxReplicas"]:
            raise ManifestError(f"{path}: minReplicas of {group['groupName']} must lie between 0 and maxReplicas")
    for pod in pods(spec):
        for container in pod["containers"]:
            if not container["image"]:
                raise ManifestError(f"{path}: container {container['name']} has no image")
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            if requests != limits:
                raise ManifestError(f"{path}: requests and limits of {container['name']} differ")
            if not {"cpu", "memory"} <= set(limits) or any(parse_quantity(q) <= 0 for q in limits.values()):
                raise ManifestError(f"{path}: {container['name']} needs cpu and memory above 0")


def check(content: Manifest) -> None:
    kind = content.get("kind")
    if kind not in SCHEMAS:
        raise ManifestError(f"kind: {kind!r} must be one of {', '.join(SCHEMAS)}")
    check_shape(content, SCHEMAS[kind], kind)
    check_rules(cluster_spec(content), kind)


def cluster_spec(content: Manifest) -> Manifest:
    return content["spec"].get("rayClusterSpec", content["spec"])


@pytest.fixture(params=["ray_cluster", "ray_job"])
def content(request: pytest.FixtureRequest) -> Manifest:
    return request.getfixturevalue(request.param)


def autoscaling(spec: Manifest) -> Manifest:
    """What Ray's autoscaler makes of a RayCluster (its reader also validates against Ray's schema)."""
    ray_cr = {"metadata": {"name": "raybal", "namespace": "default"}, "spec": spec}
    return _derive_autoscaling_config_from_ray_cr(copy.deepcopy(ray_cr))


def test_manifests_pass(content: Manifest) -> None:
    check(content)


@pytest.mark.parametrize(
    "path",
    [
        "enableInTreeAutoscalling",
        "autoscalerOptions.versions",
        "authOptions.modes",
        "headGroupSpec.rayStartParam",
        "headGroupSpec.template.specs",
        "workerGroupSpecs.0.maxReplica",
        "workerGroupSpecs.1.template.spec.toleration",
        "workerGroupSpecs.1.template.spec.tolerations.0.operators",
        "workerGroupSpecs.0.template.spec.containers.0.img",
        "workerGroupSpecs.0.template.spec.containers.0.resources.request",
    ],
)
def test_an_unknown_key_fails(content: Manifest, path: str) -> None:
    *parents, key = path.split(".")
    put(cluster_spec(content), parents, key, "anything")
    with pytest.raises(ManifestError, match=rf"{re.escape(key)}: unknown key"):
        check(content)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("enableInTreeAutoscaling", "true"),
        ("rayVersion", 2.6),
        ("autoscalerOptions.version", "v3"),
        ("autoscalerOptions.idleTimeoutSeconds", "600"),
        ("headGroupSpec.rayStartParams.num-cpus", 0),
        ("workerGroupSpecs", {}),
        ("workerGroupSpecs.0.maxReplicas", "8"),
        ("workerGroupSpecs.0.minReplicas", False),
        ("workerGroupSpecs.1.template.spec.tolerations.0.operator", "Equals"),
        ("workerGroupSpecs.0.template.spec.containers.0.image", None),
        ("workerGroupSpecs.1.template.spec.containers.0.resources.limits.nvidia.com/gpu", 1),
    ],
)
def test_a_wrong_type_fails(content: Manifest, path: str, value: Any) -> None:
    parts = path.replace("nvidia.com/gpu", "nvidia~com/gpu").split(".")
    *parents, key = [part.replace("~", ".") for part in parts]
    put(cluster_spec(content), parents, key, value)
    with pytest.raises(ManifestError, match=re.escape(key)):
        check(content)


@pytest.mark.parametrize(("key", "value"), [("backoffLimit", "3"), ("shutdownAfterJobFinishes", 1), ("entrypoint", [])])
def test_a_wrong_type_in_the_job_fails(ray_job: Manifest, key: str, value: Any) -> None:
    ray_job["spec"][key] = value
    with pytest.raises(ManifestError, match=key):
        check(ray_job)


def test_an_unknown_key_in_the_job_fails(ray_job: Manifest) -> None:
    ray_job["spec"]["ttlSecondsAfterFinish"] = 600
    with pytest.raises(ManifestError, match="ttlSecondsAfterFinish: unknown key"):
        check(ray_job)


def test_a_container_without_image_fails(content: Manifest) -> None:
    del pods(cluster_spec(content))[1]["containers"][0]["image"]
    with pytest.raises(ManifestError, match="image: missing"):
        check(content)


def test_limits_that_differ_from_requests_fail(content: Manifest) -> None:
    pods(cluster_spec(content))[0]["containers"][0]["resources"]["limits"]["memory"] = "16Gi"
    with pytest.raises(ManifestError, match="differ"):
        check(content)


def test_fewer_replicas_at_most_than_at_least_fail(content: Manifest) -> None:
    cluster_spec(content)["workerGroupSpecs"][0].update(minReplicas=2, maxReplicas=1)
    with pytest.raises(ManifestError, match="minReplicas"):
        check(content)


def test_an_old_api_version_fails(content: Manifest) -> None:
    content["apiVersion"] = "ray.io/v1alpha1"
    with pytest.raises(ManifestError, match="apiVersion"):
        check(content)


def put(tree: Any, parents: list[str], key: str, value: Any) -> None:
    for part in parents:
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    tree[key] = value


def test_both_manifests_describe_the_same_cluster(ray_cluster: Manifest, ray_job: Manifest) -> None:
    assert ray_cluster["spec"] == ray_job["spec"]["rayClusterSpec"]


def test_ray_reads_a_head_that_schedules_nothing_and_workers_that_scale_from_zero(ray_cluster: Manifest) -> None:
    config = autoscaling(ray_cluster["spec"])
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert (types["cpu-spot"]["min_workers"], types["gpu-spot"]["min_workers"]) == (0, 0)
    assert types["cpu-spot"]["max_workers"] > 0
    assert types["gpu-spot"]["max_workers"] > 0
    assert types["cpu-spot"]["resources"]["CPU"] == 8
    assert "GPU" not in types["cpu-spot"]["resources"]
    assert types["gpu-spot"]["resources"]["GPU"] == 1
    assert types["gpu-spot"]["resources"]["memory"] == 28 * 2**30
    assert types["gpu-spot"]["labels"] == {"ray.io/market-type": "spot"}


def test_ray_refuses_replicas_the_wrong_way_round(ray_cluster: Manifest) -> None:
    ray_cluster["spec"]["workerGroupSpecs"][1].update(minReplicas=5, maxReplicas=4)
    config = AutoscalingConfig(autoscaling(ray_cluster["spec"]), skip_content_hash=True)
    with pytest.raises(AssertionError):
        config.get_node_type_configs()


def test_the_autoscaler_and_the_token_are_on(ray_cluster: Manifest) -> None:
    spec = ray_cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}


def test_workers_run_on_spot_nodes_and_the_head_does_not(ray_cluster: Manifest) -> None:
    head, *workers = pods(ray_cluster["spec"])
    assert head["nodeSelector"] == {"eks.amazonaws.com/capacityType": "ON_DEMAND"}
    assert "tolerations" not in head
    for worker in workers:
        assert worker["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
        assert {
            "key": "eks.amazonaws.com/capacityType",
            "operator": "Equal",
            "value": "SPOT",
            "effect": "NoSchedule",
        } in (worker["tolerations"])


def test_gpu_pods_and_only_they_run_the_gpu_image_and_tolerate_the_gpu_taint(ray_cluster: Manifest) -> None:
    for pod in pods(ray_cluster["spec"]):
        (container,) = pod["containers"]
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-gpu" if gpu else "-cpu")
        assert ("nvidia.com/gpu" in [t["key"] for t in pod.get("tolerations", [])]) == gpu


def test_all_pods_have_the_identity_that_is_applied_first(ray_cluster: Manifest, service_account: Manifest) -> None:
    assert (service_account["apiVersion"], service_account["kind"]) == ("v1", "ServiceAccount")
    assert {pod["serviceAccountName"] for pod in pods(ray_cluster["spec"])} == {service_account["metadata"]["name"]}
    assert "REPLACE_" in service_account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]


def test_a_job_is_tried_again_and_its_cluster_goes(ray_job: Manifest) -> None:
    spec = ray_job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0


def test_store_and_pool_of_a_job_outlive_its_cluster(ray_job: Manifest) -> None:
    words = ray_job["spec"]["entrypoint"].split()
    for option in ("--store", "--pool"):
        assert words[words.index(option) + 1].startswith("s3://")


def test_the_job_uses_the_code_of_the_image(ray_job: Manifest, runtime_env: Manifest, root: Path) -> None:
    from ray._private.runtime_env.packaging import get_local_dir_uri_path
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a RayJob has nothing to upload from")

    content = RuntimeEnv(**yaml.safe_load(ray_job["spec"]["runtimeEnvYAML"]))
    assert content["env_vars"] == runtime_env["env_vars"]
    assert upload_working_dir_if_needed(dict(content), include_gitignore=True, upload_fn=refuse) == dict(content)
    workdir = re.findall(r"^WORKDIR (\S+)$", (root / "cluster/Dockerfile").read_text(), re.MULTILINE)[-1]
    assert str(get_local_dir_uri_path(content["working_dir"])) == workdir
