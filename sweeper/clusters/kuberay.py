"""Kubernetes with the KubeRay operator: a RayJob with a cluster of its own, or jobs on a RayCluster that stays."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.clusters.base import (
    CopyFile,
    Launch,
    LaunchState,
    Request,
    Run,
    Step,
    carry_out,
    copy_results,
    unpack_results,
)
from sweeper.clusters.commands import attempt, run
from sweeper.clusters.doctor import ClusterFacts
from sweeper.clusters.jobs import JobsCluster
from sweeper.clusters.pods import node_types
from sweeper.clusters.profiles import ExistingProfile, KubeRayProfile, WorkerGroup
from sweeper.clusters.supervise import words
from sweeper.core.errors import InputError, Problem, RunFailedError
from sweeper.core.node_types import NODE_TYPES

CONFIG_MAP_BYTES = 700 * 2**10  # Kubernetes' limit is 1 MiB with everything, and base64 adds a third
PACKAGE_FOLDER = "/etc/sweeper"
READER_SECONDS = 300
_STATES = {
    "PENDING": LaunchState.PENDING,
    "RUNNING": LaunchState.RUNNING,
    "SUCCEEDED": LaunchState.SUCCEEDED,
    "STOPPED": LaunchState.STOPPED,
    "FAILED": LaunchState.FAILED,
}
_OWNER = {"app.kubernetes.io/managed-by": "sweeper"}


def to_yaml(*documents: dict[str, Any]) -> str:
    """Return manifests as YAML that kubectl reads, strings that look like numbers quoted."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump_all(documents, stream)
    return stream.getvalue()


class Kubectl:
    """kubectl with the profile's context and namespace."""

    def __init__(self, profile: KubeRayProfile) -> None:
        context = ["--context", profile.context] if profile.context else []
        self.words = (profile.kubectl, *context, "--namespace", profile.namespace)

    def __call__(self, *words: str, stdin: str = "") -> str:
        """Run it; see `commands.run`."""
        return run([*self.words, *words], stdin=stdin)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object, None where there is none of that name."""
        done = attempt([*self.words, "get", kind, name, "--output", "json"])
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout)
            return found
        if "NotFound" in done.stderr:
            return None
        raise RunFailedError(f"kubectl get {kind} {name}: {' '.join(done.stderr.split())[:300]}")


def cluster_spec(profile: KubeRayProfile, package_map: str | None = None) -> dict[str, Any]:
    """Return a ``rayClusterSpec``: an on-demand head without lanes, and the profile's groups of workers.

    Parameters
    ----------
    package_map:
        ConfigMap with ``package.zip``, mounted in every pod.
    """
    head = profile.head
    auth = {"mode": "token"} | ({"secretName": profile.token_secret} if profile.token_secret else {})
    # No CPUs for lanes on the head: driver, ledger and Train controllers must not be starved or evicted.
    head_pod = _pod(profile, "ray-head", head.cpus, head.memory, package_map, node_selector=head.node_selector)
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001}
    head_pod["spec"]["containers"][0]["ports"] = [{"name": name, "containerPort": at} for name, at in ports.items()]
    return {
        "rayVersion": profile.ray_version,
        "authOptions": auth,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": profile.idle_seconds},
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - the service needs it
            "template": head_pod,
        },
        "workerGroupSpecs": [_group(profile, group, package_map) for group in profile.workers],
    }


def _group(profile: KubeRayProfile, group: WorkerGroup, package_map: str | None) -> dict[str, Any]:
    pod = _pod(
        profile,
        "ray-worker",
        group.cpus,
        group.memory,
        package_map,
        gpus={group.gpu_resource: group.gpus} if group.gpus else {},
        shared_memory=group.shared_memory,
        node_selector=group.node_selector,
        tolerations=group.tolerations,
    )
    return {
        "groupName": group.name,
        "replicas": group.min_replicas,
        "minReplicas": group.min_replicas,
        "maxReplicas": group.max_replicas,
        "rayStartParams": {},
        "template": pod,
    } | ({"labels": group.labels} if group.labels else {})


def _pod(
    profile: KubeRayProfile,
    container: str,
    cpus: str,
    memory: str,
    package_map: str | None,
    *,
    gpus: dict[str, int] | None = None,
    shared_memory: str = "2Gi",
    node_selector: dict[str, str] | None = None,
    tolerations: Sequence[dict[str, str]] = (),
) -> dict[str, Any]:
    amounts = {"cpu": cpus, "memory": memory, **{name: str(count) for name, count in (gpus or {}).items()}}
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
    ]
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - in the pod
    if profile.volume_claim:
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": profile.volume_claim}})
        mounts.append({"name": "storage", "mountPath": profile.volume_path})
    if package_map:
        volumes.append({"name": "package", "configMap": {"name": package_map}})
        mounts.append({"name": "package", "mountPath": PACKAGE_FOLDER, "readOnly": True})
    variables = {"RAY_USAGE_STATS_ENABLED": "0", **profile.environment}
    spec: dict[str, Any] = {
        "containers": [
            {
                "name": container,
                "image": profile.image,
                "resources": {"requests": amounts, "limits": amounts},
                "env": [{"name": name, "value": value} for name, value in variables.items()],
                "volumeMounts": mounts,
            }
            | ({"envFrom": [{"secretRef": {"name": name}} for name in profile.secrets]} if profile.secrets else {})
        ],
        "volumes": volumes,
    }
    if node_selector:
        spec["nodeSelector"] = node_selector
    if tolerations:
        spec["tolerations"] = list(tolerations)
    if profile.service_account:
        spec["serviceAccountName"] = profile.service_account
    if profile.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in profile.image_pull_secrets]
    return {"metadata": {"labels": dict(_OWNER)}, "spec": spec}


def job_state(status: Mapping[str, Any]) -> LaunchState:
    """Return what the operator wrote into a RayJob's ``status``.

    A RayJob may fail before its job ends: its cluster never came up, its time was over, its spec was refused.
    """
    deployment, job = status.get("jobDeploymentStatus"), _STATES.get(status.get("jobStatus", ""))
    if deployment == "Suspended":
        return LaunchState.STOPPED
    if deployment in ("Failed", "ValidationFailed"):
        return job if job is not None and job.is_final else LaunchState.FAILED
    if deployment == "Retrying":
        return LaunchState.RUNNING
    return job or LaunchState.PENDING


class _KubeRay:
    """What both ways share: kubectl, and fetching from a volume."""

    def __init__(self, profile: KubeRayProfile) -> None:
        self._profile = profile
        self._kubectl = Kubectl(profile)

    def fetch(self, handle: str, results: str, target: Path) -> None:
        """Copy from object storage, or through a pod that mounts the volume for as long as that takes."""
        if "://" in results:
            copy_results(results, target)
            return
        name = f"{handle[:40]}-reader"
        self._kubectl("apply", "--filename", "-", stdin=to_yaml(self._reader(name)))
        try:
            self._kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={READER_SECONDS}s")
            pack = [
                "tar",
                "--create",
                "--gzip",
                "--directory",
                results,
                "--exclude=./.scratch",
                "--exclude=./lock.json",
            ]
            words = [*self._kubectl.words, "exec", name, "--", *pack, "."]
            _extract(words, target)
        finally:
            attempt([*self._kubectl.words, "delete", "pod", name, "--wait=false"])

    def facts(self, storage: str | None, wants: frozenset[str]) -> ClusterFacts:
        """Ask kubectl; the nodes of a RayJob do not exist yet, and are examined by the job itself before it starts."""
        tools = {name: self._tool(*words) for name, words in self._tools().items()}
        return ClusterFacts(tools=tools, storage=storage, wants=wants)

    def _tools(self) -> dict[str, tuple[str, ...]]:
        """Return commands that must succeed, the last word of each being what to do when one does not."""
        profile = self._profile
        kind = "rayjobs.ray.io" if profile.type == "kuberay-rayjob" else "rayclusters.ray.io"
        found: dict[str, tuple[str, ...]] = {
            "kubectl": ("version", "choose a context whose cluster answers"),
            "operator": ("get", "crd", kind, "install KubeRay 1.6 or newer: helm install kuberay-operator"),
            "rights": ("auth", "can-i", "create", kind, "ask for the role edit in the namespace"),
            "namespace": ("get", "namespace", profile.namespace, "correct namespace, or create it"),
        }
        if profile.volume_claim:
            words = ("get", "persistentvolumeclaim", profile.volume_claim)
            found["volume"] = (*words, "create a ReadWriteMany claim of that name")
        secrets = [*profile.secrets, *([profile.token_secret] if profile.token_secret else [])]
        for name in secrets:
            found[f"secret {name}"] = ("get", "secret", name, f"kubectl create secret generic {name} ...")
        return found

    def _tool(self, *words: str) -> str:
        try:
            done = attempt([*self._kubectl.words, *words[:-1]])
        except InputError as error:
            return str(error)
        said = " ".join((done.stderr or done.stdout).split())[:200]
        return "" if done.returncode == 0 else f"{said or 'refused'}; {words[-1]}"

    def _reader(self, name: str) -> dict[str, Any]:
        pod = _pod(self._profile, "reader", "250m", "256Mi", None)
        pod["spec"]["restartPolicy"] = "Never"
        pod["spec"]["containers"][0]["command"] = ["sleep", str(READER_SECONDS * 4)]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(_OWNER)}} | {
            "spec": pod["spec"]
        }


class RayJobCluster(_KubeRay):
    """A `Cluster` that makes a RayJob for every launch; the operator makes and removes its Ray cluster.

    The handle is the RayJob's name. A lost head costs a fresh cluster (``backoffLimit``), in which the study goes on.
    """

    def steps(self, launch: Launch) -> Sequence[Step]:
        """Put the package into a ConfigMap or object storage, then apply the RayJob."""
        small = launch.package.stat().st_size <= CONFIG_MAP_BYTES
        apply = (*self._kubectl.words, "apply", "--filename", "-")
        if small:
            return [
                Run(words=apply, stdin=to_yaml(self._package_map(launch))),
                Run(words=apply, stdin=to_yaml(self._job(launch, f"file://{PACKAGE_FOLDER}/package.zip", launch.name))),
            ]
        target = self._package_url(launch)
        return [
            CopyFile(source=launch.package, target=target),
            Run(words=apply, stdin=to_yaml(self._job(launch, target, None))),
        ]

    def submit(self, launch: Launch) -> str:
        """Do so."""
        for step in self.steps(launch):
            carry_out(step)  # type: ignore[arg-type]
        return launch.name

    def state(self, handle: str) -> LaunchState:
        """Read the RayJob's status."""
        found = self._kubectl.get("rayjob.ray.io", handle)
        if found is None:
            return LaunchState.LOST
        return job_state(found.get("status", {}))

    def logs(self, handle: str, *, follow: bool) -> Iterator[str]:
        """Yield the submitter pod's output, which is the driver's."""
        words = [*self._kubectl.words, "logs", f"job/{handle}", "--tail=-1", *(["--follow"] if follow else [])]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            yield from (line.rstrip("\n") for line in process.stdout)
            said = process.stderr.read()
        if process.returncode and "NotFound" not in said and "waiting to start" not in said:
            raise RunFailedError(f"kubectl logs: {' '.join(said.split())[:300]}")

    def cancel(self, handle: str) -> None:
        """Suspend the RayJob: its cluster is removed, the RayJob and the results stay."""
        if not self.state(handle).is_final:
            self._kubectl("patch", "rayjob.ray.io", handle, "--type=merge", "--patch", '{"spec": {"suspend": true}}')

    def _package_url(self, launch: Launch) -> str:
        if self._profile.package_storage is None:
            size = f"{launch.package.stat().st_size / 2**20:.1f} MiB"
            rule = f"a package over {CONFIG_MAP_BYTES // 2**10} KiB does not fit a ConfigMap"
            remedy = "name an s3:// or gs:// folder, or put data and checkpoints on the volume (shared_paths)"
            raise InputError(Problem("package_storage", rule, size, remedy))
        return f"{self._profile.package_storage.rstrip('/')}/{launch.name}.zip"

    def _package_map(self, launch: Launch) -> dict[str, Any]:
        content = base64.b64encode(launch.package.read_bytes()).decode()
        labels = _OWNER | {"sweeper/study": launch.name}
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": launch.name, "labels": labels},
            "binaryData": {"package.zip": content},
        }

    def _job(self, launch: Launch, package: str, package_map: str | None) -> dict[str, Any]:
        profile = self._profile
        command = words(
            profile.python,
            launch.name,
            max_restarts=profile.max_restarts,
            check=launch.storage_path if profile.check else None,
            overrides=launch.overrides,
        )
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {
                "name": launch.name,
                "labels": dict(_OWNER),
                "annotations": {"sweeper/results": launch.results, "sweeper/package-sha256": _sha256(launch.package)},
            },
            "spec": {
                "entrypoint": shlex.join(command),
                "runtimeEnvYAML": to_yaml({"working_dir": package, "env_vars": {NODE_TYPES: node_types(profile)}}),
                "submissionMode": "K8sJobMode",
                "backoffLimit": profile.head_restarts,
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": profile.keep_seconds,
                "rayClusterSpec": cluster_spec(profile, package_map),
            },
        }


class RayClusterCluster(_KubeRay):
    """A `Cluster` that keeps one RayCluster and sends it jobs through a forwarded port."""

    def steps(self, launch: Launch) -> Sequence[Step]:
        """Make the RayCluster where it does not exist, then submit a job."""
        profile = self._profile
        apply = Run(words=(*self._kubectl.words, "apply", "--filename", "-"), stdin=to_yaml(self._manifest()))
        address = f"http://localhost (port-forward of svc/{profile.cluster_name}-head-svc)"
        [request] = JobsCluster(self._jobs_profile("http://localhost:8265")).steps(launch)
        assert isinstance(request, Request)
        return [apply, Request(address=address, body=request.body)]

    def submit(self, launch: Launch) -> str:
        """Do so; waits until the head answers."""
        carry_out(self.steps(launch)[0])  # type: ignore[arg-type]
        name = self._profile.cluster_name
        selector = f"ray.io/cluster={name},ray.io/node-type=head"
        deadline = time.monotonic() + READER_SECONDS
        while not self._kubectl("get", "pods", "--selector", selector, "--output", "name").strip():
            if time.monotonic() > deadline:
                raise RunFailedError(f"the operator made no head for RayCluster {name}; does KubeRay run?")
            time.sleep(2)
        self._kubectl("wait", "pod", "--selector", selector, "--for=condition=Ready", f"--timeout={READER_SECONDS}s")
        with self._jobs() as jobs:
            return jobs.submit(launch)

    def state(self, handle: str) -> LaunchState:
        """Ask the Jobs API."""
        if self._kubectl.get("raycluster.ray.io", self._profile.cluster_name) is None:
            return LaunchState.LOST
        with self._jobs() as jobs:
            return jobs.state(handle)

    def logs(self, handle: str, *, follow: bool) -> Iterator[str]:
        """Ask the Jobs API."""
        with self._jobs() as jobs:
            yield from jobs.logs(handle, follow=follow)

    def cancel(self, handle: str) -> None:
        """Stop the job; the cluster stays: ``kubectl delete raycluster NAME`` removes it."""
        with self._jobs() as jobs:
            jobs.cancel(handle)

    def facts(self, storage: str | None, wants: frozenset[str]) -> ClusterFacts:
        """Ask kubectl, and where the RayCluster runs its nodes too."""
        asked = super().facts(storage, wants)
        if any(asked.tools.values()):
            return asked
        if self._kubectl.get("raycluster.ray.io", self._profile.cluster_name) is None:
            return asked
        with self._jobs() as jobs:
            nodes = jobs.facts(storage, wants)
        return replace(nodes, tools={**asked.tools, **nodes.tools})

    def _manifest(self) -> dict[str, Any]:
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {"name": self._profile.cluster_name, "labels": dict(_OWNER)},
            "spec": cluster_spec(self._profile),
        }

    def _jobs_profile(self, address: str) -> ExistingProfile:
        profile = self._profile
        kept = {name: getattr(profile, name) for name in ("python", "max_restarts", "check")}
        kept["environment"] = {NODE_TYPES: node_types(profile), **profile.environment}
        return ExistingProfile(type="existing", address=address, storage_path=profile.storage_path, **kept)

    @contextmanager
    def _jobs(self) -> Iterator[JobsCluster]:
        """Forward a free port of loopback to the head's dashboard for the block."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        name = self._profile.cluster_name
        words = [*self._kubectl.words, "port-forward", f"service/{name}-head-svc", f"{port}:8265"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            if "Forwarding from" not in (line := process.stdout.readline()):
                raise RunFailedError(f"kubectl port-forward to {name}: {line.strip()[:300] or 'it said nothing'}")
            yield JobsCluster(self._jobs_profile(f"http://127.0.0.1:{port}"), token=self._token())
        finally:
            process.terminate()
            process.wait(timeout=10)

    def _token(self) -> str:
        secret = self._profile.token_secret or self._profile.cluster_name  # the operator's own has the cluster's name
        found = self._kubectl.get("secret", secret)
        if found is None or "auth_token" not in found.get("data", {}):
            raise RunFailedError(f"Secret {secret} with auth_token is not there; KubeRay 1.6 or newer makes it")
        return base64.b64decode(found["data"]["auth_token"]).decode()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _extract(words: Sequence[str], target: Path) -> None:
    """Unpack what a command writes as a tar.gz."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            unpack_results(process.stdout, target)
        except RunFailedError as error:
            process.stdout.close()  # a command that is still writing ends
            said = " ".join(process.stderr.read().decode().split())[:300]
            raise RunFailedError(f"kubectl exec: {error} {said}".strip()) from None
        said = process.stderr.read().decode()
    if process.returncode:
        raise RunFailedError(f"kubectl exec: {' '.join(said.split())[:300]}")
