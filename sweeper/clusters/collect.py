"""Ask every node of the Ray cluster that this runs on, and judge or print what they say.

python -m sweeper.clusters.collect [--storage STORAGE] [--study STUDY.yaml] [--judge]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import secrets
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from sweeper.clusters import facts as node
from sweeper.clusters.doctor import ClusterFacts, NodeFacts, diagnose

NODE_SECONDS = 180.0
SERVERS = {"wandb": "https://api.wandb.ai", "hub": "https://huggingface.co"}


def questions(storage: str | None, *, network: bool = True) -> dict[str, Any]:
    """Return what nodes are asked; servers are W&B's and the hub's own, or those that the environment names."""
    servers = {
        "wandb": os.environ.get("WANDB_BASE_URL", SERVERS["wandb"]),
        "hub": os.environ.get("HF_ENDPOINT", SERVERS["hub"]),
    }
    return {
        "storage": storage,
        "nonce": uuid.uuid4().hex[:12],
        "salt": secrets.token_hex(8),
        "reach": servers if network else {},
    }


def wants(study: Path | None) -> frozenset[str]:
    """Return what a study needs of the network."""
    if study is None:
        return frozenset()
    from sweeper.spec.load import load_study

    spec = load_study(study)
    found = set()
    if any(not model.checkpoint.startswith("/") for model in spec.models):
        found.add("hub")
    wandb = spec.tracking.wandb
    if wandb is not None and (wandb.mode or os.environ.get("WANDB_MODE", "online")) in ("online", "shared"):
        found.add("wandb")
    return frozenset(found)


def this_machine(asked: dict[str, Any]) -> NodeFacts:
    """Return the facts of this machine, without Ray."""
    found = node.node_facts(asked)
    if asked["storage"]:
        node.remove_probe(asked["storage"], asked["nonce"])
    return node_of(found | {"is_head": True})


def cluster_facts(asked: dict[str, Any], wanted: frozenset[str] = frozenset()) -> ClusterFacts:
    """Return the facts of every node of the connected Ray; the connection is the caller's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Nodes run this module's own code, not what is installed there: a missing or other sweeper is a finding.
    ray.cloudpickle.register_pickle_by_value(node)  # type: ignore[no-untyped-call]
    alive = [entry for entry in ray.nodes() if entry["Alive"]]  # type: ignore[no-untyped-call]
    ports = {
        f"{entry['NodeManagerHostname']} ({part})": f"{entry['NodeManagerAddress']}:{entry[port]}"
        for entry in alive
        for part, port in (("node manager", "NodeManagerPort"), ("object manager", "ObjectManagerPort"))
    }
    ask = ray.remote(num_cpus=0, max_retries=0)(node.node_facts)
    look = ray.remote(num_cpus=0, max_retries=0)(node.probe_names)

    def there(entry: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
        return NodeAffinitySchedulingStrategy(entry["NodeID"], soft=False)

    calls = [(time.time(), ask.options(scheduling_strategy=there(e)).remote(asked | {"connect": ports})) for e in alive]
    found = [_node(entry, began, _answer(call)) for entry, (began, call) in zip(alive, calls, strict=True)]
    if asked["storage"]:
        looks = [look.options(scheduling_strategy=there(e)).remote(asked["storage"], asked["nonce"]) for e in alive]
        seen = [_answer(call) for call in looks]
        found = [f | ({"sees": s} if isinstance(s, list) else {}) for f, s in zip(found, seen, strict=True)]
        node.remove_probe(asked["storage"], asked["nonce"])
    return ClusterFacts(
        nodes=tuple(node_of(entry) for entry in found),
        storage=asked["storage"],
        wants=wanted,
        auth_expected=any(not entry["NodeManagerAddress"].startswith("127.") for entry in alive),
    )


def facts_of(text: str) -> ClusterFacts:
    """Read what `main` printed on a cluster.

    Raises
    ------
    ValueError
        When there is no such line.
    """
    line = next((line for line in text.splitlines() if line.startswith(node.MARK)), None)
    if line is None:
        raise ValueError("no facts in the output")
    raw = json.loads(line[len(node.MARK) :])
    nodes = tuple(node_of(entry) for entry in raw["nodes"])
    return ClusterFacts(**{**raw, "nodes": nodes, "wants": frozenset(raw["wants"])})


def _node(entry: dict[str, Any], began: float, answer: dict[str, Any] | str) -> dict[str, Any]:
    """Put together what Ray knows of a node and what the node said."""
    known = {
        "host": entry["NodeManagerHostname"],
        "is_head": "node:__internal_head__" in entry["Resources"],
        "ray_gpus": entry["Resources"].get("GPU", 0.0),
    }
    if isinstance(answer, str):
        return known | {"problem": answer}
    # The task may have waited for its process: the clock was read somewhere between the call and the answer.
    late = max(0.0, answer["asked_at"] + answer["seconds"] - time.time())
    early = max(0.0, began - answer["asked_at"])
    return answer | known | {"clock_offset_seconds": late or -early}


def _answer(call: Any) -> Any:
    import ray

    try:
        return ray.get(call, timeout=NODE_SECONDS)
    except ray.exceptions.GetTimeoutError:
        return f"gave no answer within {NODE_SECONDS:g} s"
    except Exception as error:
        return f"could not be asked: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def node_of(entry: dict[str, Any]) -> NodeFacts:
    """Return a node's facts from JSON."""
    known = {name: value for name, value in entry.items() if name in NodeFacts.__dataclass_fields__}
    for name in ("gpus", "sees"):
        if known.get(name) is not None:
            known[name] = tuple(known[name])
    return NodeFacts(**known)


def main(arguments: list[str] | None = None) -> int:
    """Collect; print one line of JSON, or with ``--judge`` the findings, with 2 for an error among them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage")
    parser.add_argument("--study", type=Path)
    parser.add_argument("--judge", action="store_true")
    given = parser.parse_args(arguments)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    try:
        found = cluster_facts(questions(given.storage), wants(given.study))
    finally:
        ray.shutdown()
    if given.judge:
        diagnosis = diagnose(found)
        print(diagnosis.as_text(), file=sys.stderr, flush=True)  # noqa: T201
        return diagnosis.exit_code
    print(node.MARK + json.dumps(dataclasses.asdict(found) | {"wants": sorted(found.wants)}), flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
