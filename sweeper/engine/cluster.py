"""Connecting to Ray, and how many lanes fit. Whoever was connected before is left as they were."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from sweeper.core.errors import InputError, Problem
from sweeper.engine import environment
from sweeper.engine.lanes import LaneShape

logger = logging.getLogger("sweeper")


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
        with environment.no_way_out():
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


def worker_resources(asked: Mapping[str, float] | str, num_workers: int) -> dict[str, float]:
    """Return the resources of one worker; ``auto``: a GPU where the cluster has one for each worker, else a core."""
    if not isinstance(asked, str):
        return dict(asked)
    totals: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {"CPU": 1.0, "GPU": 1.0} if totals.get("GPU", 0) >= num_workers else {"CPU": 1.0}


def lane_count(shape: LaneShape, asked: int | str) -> int:
    """Return how many lanes fit the live cluster, at most ``asked`` unless that is ``auto``.

    Workers of one lane may lie on several nodes; each worker lies on one.

    Raises
    ------
    InputError
        When not even one lane fits.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    needs = {name: amount for name, amount in shape.resources_per_worker.items() if amount > 0}
    workers = sum(min(int(node.get(name, 0) / amount + 1e-9) for name, amount in needs.items()) for node in nodes)
    lanes = workers // shape.num_workers
    if lanes == 0:
        have = {name: sum(node.get(name, 0) for node in nodes) for name in needs}
        raise InputError(
            Problem(
                "training",
                f"one lane of {shape.num_workers} worker(s) x {needs} must fit the cluster",
                str(have),
                "lower num_workers or resources_per_worker, or add nodes",
            )
        )
    if isinstance(asked, str):
        return lanes
    if asked > lanes:
        logger.warning("max_concurrent_trials: %d asked, %d fit the cluster", asked, lanes)
    return min(asked, lanes)
