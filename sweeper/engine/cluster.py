"""Connecting to Ray, and how many lanes fit. Whoever was connected before is left as they were."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from sweeper.core.errors import InputError, Problem
from sweeper.engine import environment
from sweeper.engine.lanes import LaneShape

logger = logging.getLogger("sweeper")

UNLIMITED = 10_000  # nodes of a group without a limit


@contextmanager
def connection(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block.

    An existing connection of this process is used and kept. With ``address`` a running cluster is joined and left
    again. Otherwise a Ray of our own is started on loopback and ended with the block (`environment.prepare`
    must have run before ray was imported).

    Parameters
    ----------
    address:
        ``HOST:PORT`` of a running cluster.
    num_cpus:
        Cores of a Ray of our own; None: all that this process may use.
    """
    if ray.is_initialized():
        yield
        return
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        with environment.no_way_out(), environment.on_loopback():
            ray.init(
                address="local",  # never the cluster whose address an earlier Ray left in the temporary folder
                num_cpus=num_cpus or len(os.sched_getaffinity(0)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Capacity:
    """Lanes that fit: on the nodes that are there, and with those that the autoscaler may still add."""

    now: int
    later: int


def worker_resources(asked: Mapping[str, float] | str, num_workers: int) -> dict[str, float]:
    """Return the resources of one worker; ``auto``: a GPU where the cluster has one for each worker, else a core."""
    if not isinstance(asked, str):
        return dict(asked)
    live = sum(node.get("GPU", 0) for node in _live_nodes({}))
    possible = sum(resources.get("GPU", 0) * most for resources, most in _node_groups())
    return {"CPU": 1.0, "GPU": 1.0} if max(live, possible) >= num_workers else {"CPU": 1.0}


def capacity(shape: LaneShape) -> Capacity:
    """Return how many lanes fit the cluster.

    Workers of one lane may lie on several nodes, unless its placement says otherwise; each worker lies on one.
    """
    needs = {name: amount for name, amount in shape.resources_per_worker.items() if amount > 0}

    def lanes(nodes: list[tuple[Mapping[str, float], int]]) -> int:
        each = [(min(int(node.get(name, 0) / amount + 1e-9) for name, amount in needs.items()), n) for node, n in nodes]
        if shape.placement == "STRICT_PACK":
            return sum(workers // shape.num_workers * n for workers, n in each)
        return sum(workers * n for workers, n in each) // shape.num_workers

    now = lanes([(node, 1) for node in _live_nodes(shape.node_labels)])
    return Capacity(now=now, later=max(now, lanes(_node_groups())))


def lane_count(shape: LaneShape, asked: int | str, work: int | None = None) -> int:
    """Return how many lanes to keep: as many as fit, at most ``asked`` unless that is ``auto``, at most the work.

    Parameters
    ----------
    work:
        Trials that are left at most; None: any number.

    Raises
    ------
    InputError
        When not even one lane fits, now or after upscaling.
    """
    lanes = capacity(shape).later
    if lanes == 0:
        needs = dict(shape.resources_per_worker)
        nodes = _live_nodes(shape.node_labels)
        have = {name: sum(node.get(name, 0) for node in nodes) for name in needs}
        where = f" of nodes with labels {dict(shape.node_labels)}" if shape.node_labels else ""
        raise InputError(
            Problem(
                "training",
                f"one lane of {shape.num_workers} worker(s) x {needs} must fit the cluster",
                f"{have}{where}",
                "lower num_workers or resources_per_worker, or add nodes",
            )
        )
    if not isinstance(asked, str):
        if asked > lanes:
            logger.warning("max_concurrent_trials: %d asked, %d fit the cluster", asked, lanes)
        lanes = min(asked, lanes)
    return lanes if work is None else max(1, min(lanes, work))


def _live_nodes(labels: Mapping[str, str]) -> list[Mapping[str, float]]:
    """Return the resources of every node that is there and has the labels."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if labels.items() <= node.get("Labels", {}).items()]


def _node_groups() -> list[tuple[Mapping[str, float], int]]:
    """Return the kinds of nodes that the autoscaler keeps, each with the most there may be; none without one.

    Ray has no public way to ask for what the autoscaler wrote down. Labels of groups are not among it.
    """
    try:
        config = ray._private.state.state.get_cluster_config()
    except Exception:  # an older or newer Ray: then the nodes that are there count
        return []
    groups = config.node_group_configs if config is not None else ()
    return [(dict(group.resources), UNLIMITED if group.max_count < 0 else group.max_count) for group in groups]
