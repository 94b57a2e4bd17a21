from __future__ import annotations

import copy
import functools
import json
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import ray
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from ruamel.yaml import YAML

from sweeper.clusters.base import CopyFile, Launch, LaunchState, Run
from sweeper.clusters.kuberay import CONFIG_MAP_BYTES, RayClusterCluster, RayJobCluster, job_state
from sweeper.clusters.pods import quantity
from sweeper.clusters.profiles import KubeRayProfile, load_profile, profile_path
from sweeper.core.errors import InputError
from sweeper.core.node_types import NODE_TYPES
from sweeper.engine.cluster import lane_count, worker_resources
from sweeper.engine.lanes import LaneShape
from sweeper.engine.node_types import node_types

SCHEMA = YAML(typ="safe").load((Path(__file__).parent / "kuberay.yaml").read_text())
KUBERNETES = ("1.28", "1.37")  # the release that KubeRay's reference links to, and the newest one published
SHIPPED = {"kuberay-rayjob": RayJobCluster, "kuberay-raycluster": RayClusterCluster}


def launch(tmp_path, num_bytes=100):
    package = tmp_path / "package.zip"
    package.write_bytes(b"x" * num_bytes)
    return Launch(name="made-1", study="made", package=package, storage_path="/mnt/sweeper/results")


def manifests(steps):
    yaml = YAML(typ="safe")
    return [m for step in steps if isinstance(step, Run) for m in yaml.load_all(step.stdin)]


@functools.cache
def kubernetes(version):
    """Kubernetes' published definitions of a release, strict: unknown fields are refused."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    return Resource.from_contents(json.loads((folder / "_definitions.json").read_text())) @ Registry()


def problems(manifest, version=KUBERNETES[-1]):
    """What KubeRay 1.6.2 on a release of Kubernetes would refuse of a manifest."""
    if manifest["apiVersion"] != "ray.io/v1":
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [error.message]
        return []
    schema = {**SCHEMA, "$ref": f"#/$defs/{manifest['kind']}"}
    errors = Draft202012Validator(schema, registry=kubernetes(version)).iter_errors(manifest)
    return [f"{list(error.absolute_path)}: {error.message}" for error in errors]


def check(manifest):
    assert {version: problems(manifest, version) for version in KUBERNETES} == {version: [] for version in KUBERNETES}


@pytest.mark.parametrize("name", SHIPPED)
def test_manifests_of_the_profiles_that_come_along_fit_the_published_schemas(name, tmp_path):
    cluster = SHIPPED[name](load_profile(profile_path(name)))
    found = manifests(cluster.steps(launch(tmp_path)))
    assert [manifest["apiVersion"] for manifest in found].count("ray.io/v1") == 1
    for manifest in (*found, cluster._reader("made-1-reader")):
        check(manifest)


def within(manifest, place):
    """What lies at a place such as ``spec.workerGroupSpecs.0``."""
    for word in place.split("."):
        manifest = manifest[int(word) if word.isdigit() else word]
    return manifest


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("spec", "entryPoint", "python"),
        ("spec", "backoffLimit", "3"),
        ("spec", "shutdownAfterJobFinishes", False),
        ("spec", "deletionStrategy", {"onSuccess": {"policy": "DeleteSelf"}}),
        ("spec", "deletionStrategy", {"deletionRules": [{"policy": "DeleteSelf", "condition": {"ttlSeconds": 1}}]}),
        ("spec", "deletionStrategy", {"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "DONE"}}]}),
        ("spec.rayClusterSpec", "managedBy", "somebody"),
        ("spec.rayClusterSpec", "auth", {"mode": "token"}),
        ("spec.rayClusterSpec.authOptions", "mode", "none"),
        ("spec.rayClusterSpec.autoscalerOptions", "version", 2),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams", "num-cpus", 0),
        ("spec.rayClusterSpec.headGroupSpec.template.spec", "nodeselector", {}),
        ("spec.rayClusterSpec.workerGroupSpecs.0", "maxReplicas", None),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0", "resource", {}),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.volumeMounts.0", "path", "/x"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes.0.emptyDir", "size", "1Gi"),
        ("metadata", "name", "4-digits"),
        ("metadata", "name", "n" * 48),
    ],
)
def test_the_schemas_refuse_what_a_cluster_would(place, key, value, tmp_path):
    [_, job] = manifests(RayJobCluster(load_profile(profile_path("kuberay-rayjob"))).steps(launch(tmp_path)))
    wrong = copy.deepcopy(job)
    within(wrong, place)[key] = value
    assert problems(job) == []
    assert len(problems(wrong)) == 1


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ("cluster_name: 2nd", "at most 53 lower-case letters, digits and dashes, starting with a letter"),
        (f"cluster_name: {'n' * 54}", "at most 53 lower-case letters, digits and dashes, starting with a letter"),
        ("head: {node_selector: {pool: on demand}}", "labels are at most 63 .* not pool: on demand"),
        ("workers: [{name: a, max_replicas: 1, labels: {_gpu: l4}}]", "labels are at most 63 .* not _gpu: l4"),
    ],
)
def test_what_the_operator_refuses_of_names_and_labels_is_refused_first(wrong, rule, tmp_path):
    path, right = tmp_path / "k.yaml", YAML(typ="safe").load(profile_path("kuberay-raycluster"))
    right.update(YAML(typ="safe").load(wrong))
    path.write_text(json.dumps(right))
    with pytest.raises(InputError, match=rule):
        load_profile(path)


def test_a_manifest_with_every_option_fits_the_schema(tmp_path):
    profile = KubeRayProfile(
        type="kuberay-rayjob",
        image="i",
        image_pull_secrets=["pull"],
        service_account="trainer",
        secrets=["wandb"],
        token_secret="token",
        environment={"HF_HUB_OFFLINE": "1"},
        head={"node_selector": {"pool": "safe"}},
        workers=[
            {"name": "cpu", "max_replicas": 2},
            {"name": "gpu", "gpus": 2, "max_replicas": 1, "labels": {"a": "b"}},
        ],
        storage_path="s3://bucket/results",
    )
    [package, job] = manifests(RayJobCluster(profile).steps(launch(tmp_path)))
    check(package)
    check(job)
    assert package["kind"] == "ConfigMap"
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "token"}


def test_the_head_is_safe_and_holds_no_lanes(tmp_path):
    [_, job] = manifests(RayJobCluster(load_profile(profile_path("kuberay-rayjob"))).steps(launch(tmp_path)))
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "spot" not in json.dumps(cluster["headGroupSpec"])
    assert "entrypointNumCpus" not in job["spec"], "a job without resources runs on the head"
    assert job["spec"]["backoffLimit"] > 0
    assert cluster["authOptions"] == {"mode": "token"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert "spot" in json.dumps(groups["gpu-spot"]["template"]["spec"]["tolerations"])
    assert shlex.split(job["spec"]["entrypoint"])[1:3] == ["-m", "sweeper.clusters.supervise"]


def test_a_large_package_goes_to_object_storage_or_is_refused(tmp_path):
    profile = load_profile(profile_path("kuberay-rayjob"))
    large = launch(tmp_path, CONFIG_MAP_BYTES + 1)
    with pytest.raises(InputError, match=r"package_storage: a package over 700 KiB.*shared_paths"):
        RayJobCluster(profile).steps(large)
    stored = profile.model_copy(update={"package_storage": "s3://bucket/packages/"})
    copy, job = RayJobCluster(stored).steps(large)
    assert isinstance(copy, CopyFile)
    assert copy.target == "s3://bucket/packages/made-1.zip"
    [manifest] = manifests([job])
    check(manifest)
    assert YAML(typ="safe").load(manifest["spec"]["runtimeEnvYAML"])["working_dir"] == copy.target


@pytest.mark.parametrize("name", SHIPPED)
def test_the_driver_is_told_which_nodes_the_autoscaler_may_add(name, tmp_path, monkeypatch):
    """No worker stands when a study starts on the profiles that come along: without this no lane would fit."""
    [*_, step] = SHIPPED[name](load_profile(profile_path(name))).steps(launch(tmp_path))
    if name == "kuberay-rayjob":
        [job] = manifests([step])
        told = YAML(typ="safe").load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    else:
        told = step.body["runtime_env"]["env_vars"]
    monkeypatch.setenv(NODE_TYPES, told[NODE_TYPES])
    found = {each.name: each for each in node_types()}
    assert found["gpu"].resources == {"CPU": 8, "GPU": 1, "memory": 32 * 2**30}
    assert found["gpu"].max_workers == 4
    assert found["gpu"].may_have({"accelerator": "l4", "ray.io/accelerator-type": "L4"})
    assert not found["gpu"].may_have({"market": "spot"})
    assert found["gpu-spot"].may_have({"market": "spot"})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"memory": 1.0}, "Labels": {}}])  # a head
    lane = LaneShape(num_workers=1, resources_per_worker=worker_resources("auto", 1))
    assert lane_count(lane, "auto") == 4 + 8


def test_quantities_are_numbers():
    wanted = {"4": 4, "500m": 0.5, "1.5": 1.5, "2K": 2000, "16Gi": 16 * 2**30, "1T": 10**12}
    assert {text: quantity(text) for text in wanted} == wanted


def test_storage_that_no_pod_mounts_is_refused(tmp_path):
    path = tmp_path / "k.yaml"
    path.write_text(profile_path("kuberay-rayjob").read_text().replace("volume_claim: sweeper\n", ""))
    with pytest.raises(InputError, match="storage_path must lie below volume_path with a volume_claim"):
        load_profile(path)


@pytest.mark.parametrize(
    ("deployment", "job", "state"),
    [
        ("", "", LaunchState.PENDING),
        ("Initializing", "", LaunchState.PENDING),
        ("Running", "RUNNING", LaunchState.RUNNING),
        ("Retrying", "", LaunchState.RUNNING),
        ("Complete", "SUCCEEDED", LaunchState.SUCCEEDED),
        ("Suspended", "", LaunchState.STOPPED),
        ("Failed", "FAILED", LaunchState.FAILED),
        ("Failed", "STOPPED", LaunchState.STOPPED),
        ("Failed", "RUNNING", LaunchState.FAILED),  # its time was over
        ("Failed", "", LaunchState.FAILED),  # its cluster did not come up
        ("ValidationFailed", "", LaunchState.FAILED),
    ],
)
def test_a_rayjob_that_failed_without_its_job_having_ended_is_not_waited_for(deployment, job, state):
    assert job_state({"jobDeploymentStatus": deployment, "jobStatus": job}) is state
