"""What the autoscaler may add, as the driver was told in a variable; else as Ray knows it, where it does."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from sweeper.core.errors import InputError, Problem
from sweeper.core.node_types import NODE_TYPES, NodeType

UNLIMITED = 10_000  # nodes of a group without a limit


def node_types() -> list[NodeType]:
    """Return the kinds of nodes that an autoscaler may add; none where there is no autoscaler, or none is known.

    Raises
    ------
    InputError
        When `NODE_TYPES` is set to something else.
    """
    told = os.environ.get(NODE_TYPES)
    return _told(told) if told else _of_ray()


def _told(text: str) -> list[NodeType]:
    try:
        if text.lstrip().startswith("{"):
            config: Mapping[str, Any] = {"available_node_types": json.loads(text)}
        else:
            from ruamel.yaml import YAML

            config = YAML(typ="safe").load(Path(text).expanduser())
        most = int(config.get("max_workers", UNLIMITED))
        return [
            NodeType(
                name=name,
                resources={resource: float(amount) for resource, amount in entry["resources"].items()},
                max_workers=min(most, int(entry.get("max_workers", most))),
                labels={str(key): str(value) for key, value in entry.get("labels", {}).items()},
            )
            for name, entry in config["available_node_types"].items()
            if name != config.get("head_node_type")
        ]
    except Exception as error:
        rule = "must be Ray's available_node_types as JSON, or a cluster configuration with them"
        remedy = "correct it, or unset it where no autoscaler adds nodes"
        raise InputError(Problem(NODE_TYPES, rule, f"{type(error).__name__}: {error}"[:200], remedy)) from None


def _of_ray() -> list[NodeType]:
    """Return what Ray keeps in its own store, which hosted services fill in; Ray has no public way to ask for it."""
    try:
        config = ray._private.state.state.get_cluster_config()
    except Exception:  # an older or newer Ray: then the nodes that are there count
        return []
    groups = config.node_group_configs if config is not None else ()
    return [
        NodeType(group.name, dict(group.resources), UNLIMITED if group.max_count < 0 else group.max_count)
        for group in groups
    ]
