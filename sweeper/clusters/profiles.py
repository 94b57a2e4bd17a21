"""Cluster profiles: files like study files, one type a kind of cluster. Every key has a documented default."""

from __future__ import annotations

import difflib
import json
import re
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from sweeper.clusters.base import Cluster
from sweeper.core.errors import InputError, Problem
from sweeper.spec.load import validate
from sweeper.spec.yaml import read_yaml

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_CLUSTER = re.compile(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGTP]i?|m)?")
_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)", re.IGNORECASE)


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError("must be at most 63 lower-case letters, digits and dashes, starting with a letter or digit")
    return text


def _cluster_name(text: str) -> str:
    if not _CLUSTER.fullmatch(text):  # what KubeRay's operator takes
        raise ValueError("must be at most 53 lower-case letters, digits and dashes, starting with a letter")
    return text


def _quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text):
        raise ValueError("must be a Kubernetes quantity such as 4, 500m or 16Gi")
    return text


def _labels(labels: dict[str, str]) -> dict[str, str]:
    if wrong := next((k for k, v in labels.items() if not (_KEY.fullmatch(k) and _VALUE.fullmatch(v))), None):
        rule = "keys and values of labels are at most 63 letters, digits, dashes, dots and underscores"
        raise ValueError(f"{rule}, with a letter or digit at both ends, not {wrong}: {labels[wrong]}")
    return labels


def _no_secrets(values: dict[str, str]) -> dict[str, str]:
    secret = next((name for name in values if _SECRET.search(name) and not name.endswith("_PATH")), None)
    if secret is not None:
        raise ValueError(f"{secret} looks like a secret, and profiles hold none; see docs/clusters.md for its place")
    return values


Label = Annotated[str, AfterValidator(_label)]
ClusterName = Annotated[str, AfterValidator(_cluster_name)]
Quantity = Annotated[str, AfterValidator(_quantity)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
Variables = Annotated[dict[str, str], AfterValidator(_no_secrets)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Profile(_Section):
    """What all profiles have."""

    type: str
    storage_path: str | None = Field(
        None,
        description="folder that all nodes see under this path, or an s3:// or gs:// URL; results go to "
        "<storage_path>/<study>. None: the study's own storage_path, which must be such a place too",
    )
    shared_paths: list[str] = Field(
        default_factory=list,
        description="folders that are the same here and on all nodes: files below them are not packaged",
    )
    python: str = Field("python3", min_length=1, description="interpreter on the cluster that has sweeper installed")
    environment: Variables = Field(default_factory=dict, description="variables of the driver; never secrets")
    max_restarts: int = Field(5, ge=0, description="restarts of the driver in a row, each within ten minutes")
    check: bool = Field(True, description="let the doctor examine the cluster before the first trial")

    @property
    def package_prefix(self) -> str:
        """What stands before names in packages: Ray strips one folder from packages that it fetches from a URL."""
        return "study/" if self.type == "kuberay-rayjob" else ""

    @field_validator("shared_paths")
    @classmethod
    def _absolute(cls, paths: list[str]) -> list[str]:
        if wrong := next((path for path in paths if not path.startswith("/")), None):
            raise ValueError(f"must be absolute paths, not {wrong}")
        return paths

    @field_validator("storage_path")
    @classmethod
    def _place(cls, path: str | None) -> str | None:
        if path is not None and not re.match(r"(/|s3://.|gs://.)", path):
            raise ValueError("must be an absolute path, or an s3:// or gs:// URL")
        return path


class LocalProfile(Profile):
    """The machine itself: the driver runs in the background with a Ray of its own on loopback."""

    type: Literal["local"]
    python: str = Field("", description="interpreter; empty: the one that runs sweeper now")
    check: bool = Field(False, description="let the doctor examine the machine before the first trial")


class TokenSpec(_Section):
    """Where the token of a running cluster is found on this machine. It travels in a header, never in a file."""

    environment: str | None = Field(None, description="name of a variable that holds it")
    path: str | None = Field(None, description="file that holds it, such as ~/.ray/auth_token")

    @model_validator(mode="after")
    def _one(self) -> TokenSpec:
        if (self.environment is None) == (self.path is None):
            raise ValueError("exactly one of environment and path must be given")
        return self


class ExistingProfile(Profile):
    """A running Ray cluster, by the address of its dashboard."""

    type: Literal["existing"]
    address: str = Field(description="http(s)://HOST:PORT of the dashboard, 8265 by default")
    token: TokenSpec | None = Field(None, description="None: the cluster has token authentication turned off")
    verify: bool | str = Field(True, description="https: check the certificate; a file: against this authority")

    @field_validator("address")
    @classmethod
    def _url(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/@?#]+(:\d+)?/?", value):
            raise ValueError("must be http(s)://HOST:PORT of the dashboard, without user or path")
        return value.rstrip("/")


class HeadSpec(_Section):
    """The head pod or node: CPUs only, never preemptible; driver, ledger and Train controllers live here."""

    cpus: Quantity = Field("4", description="cores; a lane's controller and helpers use about .7 GB of memory each")
    memory: Quantity = "16Gi"
    node_selector: Labels = Field(default_factory=dict, description="keep it on on-demand nodes")


class WorkerGroup(_Section):
    """Equal worker pods."""

    name: Label
    cpus: Quantity = "4"
    memory: Quantity = "16Gi"
    gpus: int = Field(0, ge=0, description="GPUs of a pod")
    gpu_resource: str = Field("nvidia.com/gpu", description="the device plug-in's name of a GPU")
    min_replicas: int = Field(0, ge=0)
    max_replicas: int = Field(ge=1)
    shared_memory: Quantity = Field("4Gi", description="size of /dev/shm: Ray's object store and NCCL need it")
    node_selector: Labels = Field(default_factory=dict, description="such as the cloud's label of a GPU type")
    tolerations: list[dict[str, str]] = Field(default_factory=list, description="as in a pod, such as for spot nodes")
    labels: Labels = Field(
        default_factory=dict, description="labels of the Ray nodes, for models that ask for an accelerator"
    )

    @model_validator(mode="after")
    def _order(self) -> WorkerGroup:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must be at most max_replicas")
        return self


class KubeRayProfile(Profile):
    """Kubernetes with the KubeRay operator, 1.6 or newer (``authOptions``)."""

    type: Literal["kuberay-rayjob", "kuberay-raycluster"]
    namespace: Label = "default"
    context: str | None = Field(None, description="context of kubectl; None: the current one")
    kubectl: str = "kubectl"
    image: str = Field(description="built from clusters/Dockerfile; the same on all pods")
    image_pull_secrets: list[str] = Field(default_factory=list)
    service_account: str | None = None
    ray_version: str = Field("2.60.0", pattern=r"\d+\.\d+\.\d+", description="that of the image")
    cluster_name: ClusterName = Field(
        "sweeper", description="kuberay-raycluster: the cluster, made when it does not exist"
    )
    head: HeadSpec = Field(default_factory=HeadSpec)
    workers: list[WorkerGroup] = Field(min_length=1)
    idle_seconds: int = Field(120, ge=10, description="the autoscaler removes a worker that was idle for so long")
    volume_claim: str | None = Field(None, description="ReadWriteMany claim, mounted in all pods at volume_path")
    volume_path: str = Field("/mnt/sweeper", pattern=r"/.+")
    secrets: list[Label] = Field(
        default_factory=list, description="Secrets whose keys become variables of all pods: W&B's key, cloud keys"
    )
    token_secret: Label | None = Field(
        None, description="Secret with a key auth_token; None: the operator makes one for each cluster"
    )
    package_storage: str | None = Field(
        None,
        pattern=r"(s3|gs)://.+",
        description="kuberay-rayjob: where packages over 700 KiB are put; smaller ones travel in a ConfigMap",
    )
    head_restarts: int = Field(3, ge=0, description="kuberay-rayjob: fresh clusters after a lost head")
    keep_seconds: int = Field(600, ge=0, description="kuberay-rayjob: how long the ended cluster stays, for its logs")

    @model_validator(mode="after")
    def _storage(self) -> KubeRayProfile:
        inside = self.storage_path is not None and f"{self.storage_path}/".startswith(f"{self.volume_path}/")
        if self.storage_path and self.storage_path.startswith("/") and not (self.volume_claim and inside):
            raise ValueError("storage_path must lie below volume_path with a volume_claim, or be an s3:// or gs:// URL")
        return self


class SlurmProfile(Profile):
    """SLURM: one batch job that starts Ray on its nodes by ``ray symmetric-run`` and ends it afterwards."""

    type: Literal["slurm"]
    folder: str = Field(pattern=r"/.+", description="shared folder for packages, scripts and logs, one for each launch")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = Field(1, ge=1)
    cpus_per_node: int = Field(4, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    memory_per_node: str | None = Field(None, pattern=r"\d+[KMGT]?", description="such as 64G; None: the partition's")
    time: str = Field("24:00:00", pattern=r"(\d+-)?\d+(:\d\d){0,2}", description="limit of the job")
    exclusive: bool = Field(True, description="whole nodes: `ray stop` at the end ends every Ray of yours on a node")
    join_seconds: int = Field(300, ge=30, description="how long the head waits for the other nodes")
    setup: list[str] = Field(
        default_factory=list, description="shell lines before Ray, such as module load and activate"
    )
    options: list[str] = Field(default_factory=list, description="further options of sbatch, one each")
    sbatch: str = Field("sbatch", description="the program; squeue, sacct, scontrol and scancel lie beside it")

    @field_validator("options")
    @classmethod
    def _options(cls, options: list[str]) -> list[str]:
        if wrong := next((o for o in options if not re.fullmatch(r"--?[A-Za-z][^\n]*", o)), None):
            raise ValueError(f"must be options such as --constraint=a100, not {wrong!r}")
        return options


class RayUpProfile(Profile):
    """Virtual machines of a cloud, started by ``ray up``."""

    type: Literal["ray-up"]
    ray: str = Field("ray", description="the program on this machine")
    folder: str = Field("~/sweeper", description="folder of packages on the head")
    cluster: dict[str, Any] = Field(description="Ray's own cluster configuration; `ray up` reads it")

    @field_validator("cluster")
    @classmethod
    def _ray_reads_it(cls, value: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft7Validator  # comes with ray[default], which validates by it too

        [package] = find_spec("ray.autoscaler").submodule_search_locations  # type: ignore[union-attr,misc]
        schema = json.loads((Path(package) / "ray-schema.json").read_text())
        error = next(iter(Draft7Validator(schema).iter_errors(value)), None)
        if error is not None:
            place = ".".join(str(part) for part in error.absolute_path)
            raise ValueError(f"must be a cluster configuration of Ray's: {place or 'the top'}: {error.message}")
        return value


TYPES: dict[str, tuple[type[Profile], str]] = {
    "local": (LocalProfile, "sweeper.clusters.local:LocalCluster"),
    "existing": (ExistingProfile, "sweeper.clusters.jobs:JobsCluster"),
    "kuberay-rayjob": (KubeRayProfile, "sweeper.clusters.kuberay:RayJobCluster"),
    "kuberay-raycluster": (KubeRayProfile, "sweeper.clusters.kuberay:RayClusterCluster"),
    "slurm": (SlurmProfile, "sweeper.clusters.slurm:SlurmCluster"),
    "ray-up": (RayUpProfile, "sweeper.clusters.ray_up:RayUpCluster"),
}
"""Built-in types: how a profile is written, and the `Cluster` that acts on it."""


def profiles_folder() -> Path:
    """Return the folder of the profiles that come with sweeper."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "cluster_profiles"  # in a wheel
    return inside if inside.is_dir() else package.parent / "clusters"


def profile_path(name: str, base: Path | None = None) -> Path:
    """Return the file of a profile: a path, ``clusters/NAME.yaml`` below ``base``, or one that comes with sweeper.

    Raises
    ------
    InputError
        When there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return (base or Path()) / Path(name).expanduser()
    own = (base or Path()) / "clusters" / f"{name}.yaml"
    for path in (own, profiles_folder() / f"{name}.yaml"):
        if re.fullmatch(r"[\w.-]+", name) and path.is_file():
            return path
    known = sorted({p.stem for folder in (own.parent, profiles_folder()) for p in folder.glob("*.yaml")})
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "copy one of them to clusters/ beside the study and adapt it"
    raise InputError(Problem("cluster.profile", f"profiles are {', '.join(known)}, or a .yaml file", name, remedy))


def load_profile(path: str | Path) -> Profile:
    """Load and check a profile file.

    Raises
    ------
    InputError
        With every problem, as for study files.
    """
    document = read_yaml(path)
    name = document.data.get("type") if isinstance(document.data, dict) else None
    if not isinstance(name, str) or name not in _types():
        near = difflib.get_close_matches(str(name), _types(), n=1)
        remedy = f"did you mean {near[0]}?" if near else "see docs/clusters.md"
        place = document.place(("type",) if name is not None else ())
        raise InputError(Problem(place, f"type must be one of {', '.join(_types())}", str(name), remedy))
    return validate(_types()[name][0], document)


def make_cluster(profile: Profile) -> Cluster:
    """Return the cluster that acts on a profile."""
    module, _, attribute = _types()[profile.type][1].partition(":")
    cluster: Cluster = getattr(import_module(module), attribute)(profile)
    return cluster


def _types() -> dict[str, tuple[type[Profile], str]]:
    """Return the built-in types and those of other packages (entry points ``sweeper.clusters``).

    An entry point names a module with ``PROFILE``, a subclass of `Profile`, and ``CLUSTER``, a class of clusters.
    """
    found = dict(TYPES)
    for point in entry_points(group="sweeper.clusters"):
        found.setdefault(point.name, (point.load().PROFILE, f"{point.value}:CLUSTER"))
    return found
