"""What is wrong with a cluster, from the facts alone: pure functions, each finding with its remedy.

Facts come from `facts` (a node) and `collect` (all nodes, by Ray), or from what a cluster's own tools say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["error", "warning", "fine"]

CLOCK_WARNING_SECONDS, CLOCK_ERROR_SECONDS = 2.0, 60.0  # time budgets; object storage refuses 15 minutes, tokens less
LEAST_DISK_BYTES = 5 * 10**9  # Ray's logs and spilled objects, encoded splits, snapshots
LEAST_SHARED_BYTES = 10**9  # containers get 64 MB; Ray then puts its object store on the disk, and NCCL fails
MUST_AGREE = ("ray", "fairsweep")  # to the last digit: Ray refuses or misbehaves, results would differ
SHOULD_AGREE = ("torch", "transformers", "datasets", "optuna", "pyarrow", "numpy", "tokenizers", "safetensors", "peft")
TORCHVISION_AHEAD = 15  # torchvision 0.(N + 15) is made for torch 2.N


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node, as `facts.node_facts` saw it; what was not asked is left at its default.

    Parameters
    ----------
    clock_offset_seconds:
        Its clock minus the asking node's, half the way there and back taken off; None: not asked.
    sees:
        Names of the probe files in the storage as seen from here, after all nodes wrote theirs.
    ray_gpus:
        GPUs that Ray counts on it.
    problem:
        Why no facts came from it.
    """

    host: str
    is_head: bool = False
    asked_at: float = 0.0
    seconds: float = 0.0
    python: str = ""
    executable: str = ""
    packages: Mapping[str, str | None] = field(default_factory=dict)
    torch: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[Mapping[str, Any], ...] = ()
    driver: str | None = None
    driver_cuda: str | None = None
    auth_mode: str = ""
    token_digest: str | None = None
    storage: Mapping[str, Any] | None = None
    sees: tuple[str, ...] | None = None
    disk_free_bytes: int | None = None
    shared_memory_bytes: int | None = None
    memory_bytes: int | None = None
    reach: Mapping[str, str] = field(default_factory=dict)
    connect: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    clock_offset_seconds: float | None = None
    ray_gpus: float | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class ClusterFacts:
    """A whole cluster.

    Parameters
    ----------
    nodes:
        Every node that was asked.
    here:
        The machine that launches, where that is none of them.
    tools:
        What must work before a launch (``kubectl``, ``dashboard``), and what is wrong with it; empty: it works.
    storage:
        The place of results that was probed.
    wants:
        What the study needs of the network: ``wandb``, ``hub``.
    auth_expected:
        Whether token authentication must be on: clusters of more than loopback.
    """

    nodes: tuple[NodeFacts, ...] = ()
    here: NodeFacts | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    storage: str | None = None
    wants: frozenset[str] = frozenset()
    auth_expected: bool = True


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at: on which nodes, what was found, what to do."""

    check: str
    level: Level
    where: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"error": "ERROR", "warning": "warning", "fine": "fine"}[self.level]
        text = f"{mark:7} {self.check}: {self.found}" + (f" ({self.where})" if self.where else "")
        return text + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All findings, errors first."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """2 with an error: the environment is an input of a study; else 0."""
        return 2 if any(finding.level == "error" for finding in self.findings) else 0

    def as_dict(self) -> dict[str, Any]:
        """JSON for machines."""
        return {"findings": [asdict(finding) for finding in self.findings], "exit_code": self.exit_code}

    def as_text(self) -> str:
        """A line each, and a count."""
        count = Counter(finding.level for finding in self.findings)
        last = f"{count['error']} errors, {count['warning']} warnings, {count['fine']} checks fine"
        return "\n".join([*map(str, self.findings), last])


def diagnose(facts: ClusterFacts) -> Diagnosis:
    """Return every finding; a check that finds nothing wrong says so in one line."""
    found: list[Finding] = []
    for name, check in CHECKS.items():
        mine = list(check(facts))
        found += mine or [Finding(check=name, level="fine", where="", found="nothing wrong")]
    order = {"error": 0, "warning": 1, "fine": 2}
    return Diagnosis(findings=tuple(sorted(found, key=lambda finding: order[finding.level])))


def _tools(facts: ClusterFacts) -> Iterator[Finding]:
    for name, problem in facts.tools.items():
        if problem:
            text, _, remedy = problem.partition("; ")
            yield Finding(check=name, level="error", where="", found=text, remedy=remedy)
    for node in facts.nodes:
        if node.problem:
            remedy = "see Ray's logs on that node, or take it out of the cluster"
            yield Finding(check="nodes", level="error", where=node.host, found=node.problem, remedy=remedy)


def _versions(facts: ClusterFacts) -> Iterator[Finding]:
    nodes = _answered(facts)
    head = _head(facts)
    if head is None:
        return
    for node in [*nodes, *([facts.here] if facts.here else [])]:
        mine, theirs = node.python.split(".")[:2], head.python.split(".")[:2]
        if mine != theirs and node is not facts.here:
            text = f"Python {node.python}, the head has {head.python}"
            yield _error("python", node, text, "use one image or environment on all nodes")
        for name in MUST_AGREE:
            if node.packages.get(name) != head.packages.get(name):
                label = "sweeper" if name == "fairsweep" else name
                text = f"{label} {node.packages.get(name) or 'is missing'}, the head has {head.packages.get(name)}"
                level: Level = "warning" if node is facts.here else "error"
                remedy = "install the head's version (constraints.txt pins it)"
                yield Finding(check="versions", level=level, where=node.host, found=text, remedy=remedy)
        if node is not facts.here and (skewed := [n for n in SHOULD_AGREE if _minor(node, n) != _minor(head, n)]):
            text = ", ".join(f"{n} {node.packages.get(n)} against the head's {head.packages.get(n)}" for n in skewed)
            yield _error("versions", node, text, "results would depend on the node: install from constraints.txt")


def _authentication(facts: ClusterFacts) -> Iterator[Finding]:
    nodes = _answered(facts)
    modes = {node.host: node.auth_mode or "not set" for node in nodes}
    if len(set(modes.values())) > 1:
        text = ", ".join(f"{host}: {mode}" for host, mode in sorted(modes.items()))
        remedy = "set RAY_AUTH_MODE=token and the same token on every node before `ray start`"
        yield Finding(check="authentication", level="error", where="", found=f"modes differ, {text}", remedy=remedy)
    elif facts.auth_expected and nodes and set(modes.values()) != {"token"}:
        text = f"RAY_AUTH_MODE is {next(iter(modes.values()))}: whoever reaches Ray's ports runs code"
        remedy = "start every node with RAY_AUTH_MODE=token; `ray get-auth-token --generate` makes a token"
        yield Finding(check="authentication", level="warning", where="all nodes", found=text, remedy=remedy)
    with_token = [node for node in nodes if node.auth_mode == "token"]
    for node in with_token:
        if node.token_digest is None:
            remedy = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with mode 600"
            yield _error("authentication", node, "token mode without a token", remedy)
    digests = Counter(node.token_digest for node in with_token if node.token_digest)
    if len(digests) > 1:
        usual = digests.most_common(1)[0][0]
        others = sorted(node.host for node in with_token if node.token_digest not in (None, usual))
        remedy = "copy the head's token to them and start Ray anew there"
        yield Finding(
            check="authentication", level="error", where=", ".join(others), found="another token", remedy=remedy
        )


def _devices(facts: ClusterFacts) -> Iterator[Finding]:
    for node in _answered(facts):
        torch = node.torch
        if torch.get("error"):
            yield _error("torch", node, f"torch does not import: {torch['error']}", "install it from constraints.txt")
        if node.gpus and torch.get("version") and not torch.get("cuda"):
            text = f"{len(node.gpus)} GPUs, but torch {torch['version']} is a CPU build"
            yield _error("torch", node, text, f"install a CUDA build; the driver supports up to {node.driver_cuda}")
        elif torch.get("cuda") and node.driver_cuda and _major(torch["cuda"]) > _major(node.driver_cuda):
            text = f"torch is built for CUDA {torch['cuda']}, driver {node.driver} supports up to {node.driver_cuda}"
            yield _error("torch", node, text, "update the driver, or install a torch built for it")
        elif node.gpus and torch.get("version") and torch.get("devices", 0) < len(node.gpus):
            text = f"nvidia-smi shows {len(node.gpus)} GPUs, torch {torch.get('devices', 0)}"
            if "CUDA_VISIBLE_DEVICES" not in node.environment:
                yield _error("gpus", node, text, "check the driver, the container's runtime and its device requests")
        if node.gpus and node.ray_gpus is not None and node.ray_gpus < len(node.gpus):
            text = f"{len(node.gpus)} GPUs, of which Ray counts {node.ray_gpus:g}"
            yield _warning("gpus", node, text, "start Ray with --num-gpus, or let it see the devices")
        names = {gpu["name"] for gpu in node.gpus}
        if len(names) > 1:
            text = f"different GPUs in one node: {', '.join(sorted(names))}"
            yield _warning("gpus", node, text, "time budgets compare unequal devices; label nodes by accelerator")


def _torchvision(facts: ClusterFacts) -> Iterator[Finding]:
    for node in _answered(facts):
        torch, vision = node.packages.get("torch"), node.packages.get("torchvision")
        if not torch or not vision:
            continue
        major, minor = torch.split(".")[:2]
        wanted = f"0.{int(minor) + TORCHVISION_AHEAD}" if major == "2" and minor.isdigit() else None
        problem = node.torch.get("torchvision_error")
        if problem or (wanted and not vision.startswith(f"{wanted}.")):
            text = f"torchvision {vision} beside torch {torch}" + (f": {problem}" if problem else "")
            remedy = f"install torchvision {wanted or 'made for that torch'}, or remove it: sweeper does not need it"
            yield _error("torchvision", node, text, f"even BERT's import would fail; {remedy}")


def _storage(facts: ClusterFacts) -> Iterator[Finding]:
    if facts.storage is None:
        return
    probed = [node for node in _answered(facts) if node.storage is not None]
    for node in probed:
        assert node.storage is not None
        if node.storage["error"]:
            text = f"{facts.storage} is not writable: {node.storage['error']}"
            remedy = "mount it there with write access for the user that runs Ray, or correct storage_path"
            yield _error("storage", node, text, remedy)
    written = {str(node.storage["name"]) for node in probed if node.storage and not node.storage["error"]}
    blind = [node for node in probed if node.sees is not None and not written <= set(node.sees)]
    for node in blind:
        text = f"{facts.storage} shows {len(written & set(node.sees or ()))} of {len(written)} nodes' files"
        remedy = "it is a folder of its own there: mount the shared file system, or give an s3:// or gs:// URL"
        yield _error("storage", node, text, remedy)


def _clocks(facts: ClusterFacts) -> Iterator[Finding]:
    for node in _answered(facts):
        offset = node.clock_offset_seconds
        if offset is not None and abs(offset) > CLOCK_WARNING_SECONDS:
            level: Level = "error" if abs(offset) > CLOCK_ERROR_SECONDS else "warning"
            text = f"the clock is {abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}"
            remedy = "turn time synchronisation on (chrony, systemd-timesyncd)"
            yield Finding(check="clocks", level=level, where=node.host, found=text, remedy=remedy)


def _space(facts: ClusterFacts) -> Iterator[Finding]:
    for node in _answered(facts):
        free = node.disk_free_bytes
        if free is not None and free < LEAST_DISK_BYTES:
            remedy = "free some, or set RAY_TMPDIR to a larger disk; Ray stops working at 95%"
            yield _error("disk", node, f"{free / 1e9:.1f} GB free for temporary files", remedy)
        shared = node.shared_memory_bytes
        if shared is not None and shared < LEAST_SHARED_BYTES:
            text = f"/dev/shm has {shared / 1e6:.0f} MB"  # noqa: S108
            remedy = "give containers --shm-size or a memory-backed /dev/shm of some gigabytes"
            yield _warning("shared memory", node, text, remedy)


def _network(facts: ClusterFacts) -> Iterator[Finding]:
    for node in _answered(facts):
        for name, problem in node.connect.items():
            if problem:
                remedy = "open Ray's ports between the nodes (docs/clusters.md lists them)"
                yield _error("ports", node, f"cannot connect to {name}: {problem}", remedy)
    remedies = {
        "wandb": "set WANDB_MODE=offline and bring the runs in later by `sweeper track`",
        "hub": "name local checkpoints, or fill the cache and set HF_HUB_OFFLINE=1",
    }
    for name, remedy in remedies.items():
        cut_off = [node for node in _answered(facts) if node.reach.get(name)]
        if cut_off:
            needed = name in facts.wants
            yield Finding(
                check=name,
                level="error" if needed and name == "hub" else "warning",  # without W&B a study goes on offline
                where=", ".join(node.host for node in cut_off),
                found=f"out of reach{'' if needed else ', and no study here asks for it'}: {cut_off[0].reach[name]}",
                remedy=remedy,
            )


CHECKS: Mapping[str, Callable[[ClusterFacts], Iterator[Finding]]] = {
    "access": _tools,
    "versions": _versions,
    "authentication": _authentication,
    "torch and GPUs": _devices,
    "torchvision": _torchvision,
    "storage": _storage,
    "clocks": _clocks,
    "disk and shared memory": _space,
    "network": _network,
}
"""Every check by the name under which it says that nothing is wrong."""


def _answered(facts: ClusterFacts) -> list[NodeFacts]:
    return [node for node in facts.nodes if not node.problem]


def _head(facts: ClusterFacts) -> NodeFacts | None:
    nodes = _answered(facts)
    return next((node for node in nodes if node.is_head), nodes[0] if nodes else None)


def _error(check: str, node: NodeFacts, found: str, remedy: str) -> Finding:
    return Finding(check=check, level="error", where=node.host, found=found, remedy=remedy)


def _warning(check: str, node: NodeFacts, found: str, remedy: str) -> Finding:
    return Finding(check=check, level="warning", where=node.host, found=found, remedy=remedy)


def _minor(node: NodeFacts, name: str) -> str | None:
    version = node.packages.get(name)
    return ".".join(version.split("+")[0].split(".")[:2]) if version else None


def _major(version: str) -> int:
    return int(version.split(".")[0])
