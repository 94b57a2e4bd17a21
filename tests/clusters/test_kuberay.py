from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from sweeper.clusters.base import CopyFile, Launch, Run
from sweeper.clusters.kuberay import CONFIG_MAP_BYTES, RayClusterCluster, RayJobCluster
from sweeper.clusters.profiles import KubeRayProfile, load_profile, profile_path
from sweeper.core.errors import InputError

SCHEMA = YAML(typ="safe").load((Path(__file__).parent / "kuberay.yaml").read_text())
SHIPPED = {"kuberay-rayjob": RayJobCluster, "kuberay-raycluster": RayClusterCluster}


def launch(tmp_path, num_bytes=100):
    package = tmp_path / "package.zip"
    package.write_bytes(b"x" * num_bytes)
    return Launch(name="made-1", study="made", package=package, storage_path="/mnt/sweeper/results")


def manifests(steps):
    yaml = YAML(typ="safe")
    return [m for step in steps if isinstance(step, Run) for m in yaml.load_all(step.stdin)]


def check(manifest):
    validator = Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{manifest['kind']}"})
    assert [f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(manifest)] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_manifests_of_the_profiles_that_come_along_fit_the_schema(name, tmp_path):
    found = manifests(SHIPPED[name](load_profile(profile_path(name))).steps(launch(tmp_path)))
    ray = [manifest for manifest in found if manifest["apiVersion"] == "ray.io/v1"]
    assert len(ray) == 1
    check(ray[0])


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
    assert YAML(typ="safe").load(manifest["spec"]["runtimeEnvYAML"]) == {"working_dir": copy.target}


def test_storage_that_no_pod_mounts_is_refused(tmp_path):
    path = tmp_path / "k.yaml"
    path.write_text(profile_path("kuberay-rayjob").read_text().replace("volume_claim: sweeper\n", ""))
    with pytest.raises(InputError, match="storage_path must lie below volume_path with a volume_claim"):
        load_profile(path)
