"""What the worker pods of a KubeRay profile are to Ray: kinds of nodes with resources, a limit and labels."""

from __future__ import annotations

import math

from sweeper.clusters.profiles import KubeRayProfile
from sweeper.core.node_types import NodeType, encode_node_types

_UNITS = {"": 1.0, "m": 0.001} | {
    f"{letter}{binary}": float((1024 if binary else 1000) ** power)
    for power, letter in enumerate("KMGTP", start=1)
    for binary in ("", "i")
}


def node_types(profile: KubeRayProfile) -> str:
    """Return what a driver must be told of the profile's groups of workers; see `sweeper.core.node_types`."""
    return encode_node_types(
        [
            NodeType(
                name=group.name,
                resources={
                    "CPU": math.ceil(quantity(group.cpus)),  # as KubeRay rounds
                    "memory": math.floor(quantity(group.memory)),
                    **({"GPU": group.gpus} if group.gpus else {}),
                },
                max_workers=group.max_replicas,
                labels=group.labels,
            )
            for group in profile.workers
        ]
    )


def quantity(text: str) -> float:
    """Return a Kubernetes quantity as a number: ``500m`` is 0.5, ``1Ki`` is 1024."""
    number = text.rstrip("mKMGTPi")
    return float(number) * _UNITS[text[len(number) :]]
