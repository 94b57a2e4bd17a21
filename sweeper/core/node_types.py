"""Kinds of nodes that an autoscaler may add to a cluster, and how a driver is told of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NODE_TYPES = "SWEEPER_NODE_TYPES"
"""Variable of the driver: Ray's ``available_node_types`` as JSON, or the file of a cluster configuration with them.

Ray keeps what its autoscaler may add from drivers, so whoever starts the cluster tells them.
"""


@dataclass(frozen=True)
class NodeType:
    """Equal nodes of which an autoscaler keeps as many as are asked for.

    Parameters
    ----------
    name:
        Of the group.
    resources:
        Ray resources of one node, such as ``{"CPU": 8.0, "GPU": 1.0}``.
    max_workers:
        Most nodes there may be.
    labels:
        That these nodes are given, beside Ray's own (``ray.io/…``); None: not known.
    """

    name: str
    resources: Mapping[str, float]
    max_workers: int
    labels: Mapping[str, str] | None = None

    def may_have(self, labels: Mapping[str, str]) -> bool:
        """Whether its nodes may have these labels; those of Ray's own are not known before a node is there."""
        return self.labels is None or all(
            self.labels.get(k, v if k.startswith("ray.io/") else None) == v for k, v in labels.items()
        )


def encode_node_types(types: Iterable[NodeType]) -> str:
    """Return the JSON for the variable."""
    return json.dumps(
        {
            each.name: {
                "resources": dict(each.resources),
                "max_workers": each.max_workers,
                "labels": dict(each.labels or {}),
            }
            for each in types
        }
    )
