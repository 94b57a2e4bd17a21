"""Connecting to Ray, and how many lanes fit. Whoever was connected before is left as they were."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray

from sweeper.core.errors import InputError, Problem
from sweeper.engine import environment
from sweeper.engine.lanes import LaneShape
from sweeper.engine.node_types import node_types

logger = logging.getLogger("sweeper")


class Connection:
    """A connection to Ray that comes up in a thread, while the driver does something else; a context manager.

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

    def __init__(self, address: str | None = None, *, num_cpus: int | None = None) -> None:
        self._address = address
        self._num_cpus = num_cpus
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._closing = threading.Event()
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Begin to connect, unless this process is connected already."""
        if self._thread is None and not ray.is_initialized():
            self._thread = threading.Thread(target=self._keep, name="ray-connection", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return once connected; raise what Ray raised where that failed."""
        self.begin()
        if self._thread is not None:
            self._ready.wait()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._ready.wait()
            ray.shutdown()
            self._closing.set()
            self._thread.join()

    def _keep(self) -> None:
        """Connect, and stay: Ray's processes end with the thread that started them (PR_SET_PDEATHSIG)."""
        try:
            try:
                self._connect()
            except Exception as error:
                # Ray gives its own processes half a minute, which a machine full of other work, our imports among it,
                # may not leave them. By now the imports are done.
                logger.warning("Ray did not start (%s); trying once more", " ".join(str(error).split())[:100])
                ray.shutdown()
                self._connect()
        except BaseException as error:  # raised again by whoever waits
            self._error = error
        self._ready.set()
        self._closing.wait()

    def _connect(self) -> None:
        if self._address is not None:
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            with environment.no_way_out(), environment.on_loopback():
                ray.init(
                    address="local",  # never the cluster whose address an earlier Ray left in the temporary folder
                    num_cpus=self._num_cpus or len(os.sched_getaffinity(0)),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                )


@contextmanager
def connection(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block; see `Connection`."""
    with Connection(address, num_cpus=num_cpus) as made:
        made.wait()
        yield


@dataclass(frozen=True)
class Capacity:
    """Lanes that fit: on the nodes that are there, and with those that the autoscaler may still add."""

    now: int
    later: int


def worker_resources(
    asked: Mapping[str, float] | str, num_workers: int, labels: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Return the resources of one worker; ``auto``: a GPU where the cluster has one for each worker, else a core.

    Parameters
    ----------
    labels:
        Of the nodes that count.
    """
    if not isinstance(asked, str):
        return dict(asked)
    nodes = _live_nodes(labels or {})
    gpus = sum(node.get("GPU", 0) for node in nodes)
    if not (labels and nodes):  # labels of node types may not be known: nodes that have them know better
        gpus = max(gpus, sum(resources.get("GPU", 0) * most for resources, most in _to_come(labels or {})))
    return {"CPU": 1.0, "GPU": 1.0} if gpus >= num_workers else {"CPU": 1.0}


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
    return Capacity(now=now, later=max(now, lanes(_to_come(shape.node_labels))))


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


def lane_counts(
    shapes: Mapping[str, LaneShape], asked: int | str, work: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return how many lanes of each group to keep: shared out in turn, as many as fit beside each other.

    Nodes that an autoscaler may still add serve each group alike: how it will divide them is not known before.

    Parameters
    ----------
    shapes:
        By group.
    work:
        Trials that are left at most, by group; None: any number.

    Raises
    ------
    InputError
        When a group gets no lane.
    """
    left: dict[str, int | None] = dict.fromkeys(shapes) if work is None else {group: work[group] for group in shapes}
    if len(shapes) == 1:
        return {group: lane_count(shape, asked, left[group]) for group, shape in shapes.items()}
    most = {group: lane_count(shape, "auto", left[group]) for group, shape in shapes.items()}
    total = sum(most.values()) if isinstance(asked, str) else asked
    nodes = [(node.get("Labels", {}), dict(node["Resources"])) for node in _nodes_alive()]
    grows = {group for group, shape in shapes.items() if capacity(shape).later > capacity(shape).now}
    counts = share_lanes(shapes, most, total, nodes, grows)
    if missing := [group for group, count in counts.items() if not count]:
        raise InputError(
            Problem(
                "models node_labels",
                "each set of labels must have a lane of its own, beside those of the others",
                f"{total} lanes asked or possible, none left for {', '.join(map(repr, missing))}",
                "raise search.max_concurrent_trials, lower resources_per_worker, or add nodes",
            )
        )
    return counts


def share_lanes(
    shapes: Mapping[str, LaneShape],
    most: Mapping[str, int],
    total: int,
    nodes: Sequence[tuple[Mapping[str, str], dict[str, float]]],
    grows: Collection[str] = (),
) -> dict[str, int]:
    """Give each group a lane in turn until ``total`` are given or none fits any more.

    The group that can lie on the fewest nodes goes first, and a worker takes the node that the fewest groups can use:
    whoever is free to lie anywhere leaves the others theirs.

    Parameters
    ----------
    nodes:
        Labels and free resources of each; the resources are used up.
    grows:
        Groups for which nodes may still come: they get lanes without one.
    """
    fits = {group: [s.node_labels.items() <= labels.items() for labels, _ in nodes] for group, s in shapes.items()}
    rivals = [sum(fits[group][i] for group in shapes) for i in range(len(nodes))]
    order = sorted(shapes, key=lambda group: sum(fits[group]))
    counts, open_groups = dict.fromkeys(shapes, 0), list(order)
    while open_groups and sum(counts.values()) < total:
        for group in list(open_groups):
            near = sorted((i for i in range(len(nodes)) if fits[group][i]), key=lambda i: rivals[i])
            full = sum(counts.values()) >= total or counts[group] >= most[group]
            if not full and (_take(shapes[group], [nodes[i][1] for i in near]) or group in grows):
                counts[group] += 1
            else:
                open_groups.remove(group)
    return counts


def _take(shape: LaneShape, nodes: Sequence[dict[str, float]]) -> bool:
    """Take a lane's resources from the first nodes that have them; False, and nothing taken, where they do not fit."""
    needs = {name: amount for name, amount in shape.resources_per_worker.items() if amount > 0}
    free = [
        min((int(node.get(name, 0) / amount + 1e-9) for name, amount in needs.items()), default=0) for node in nodes
    ]
    left, taken = shape.num_workers, [0] * len(nodes)
    for index, workers in enumerate(free):
        if shape.placement == "STRICT_PACK" and workers < shape.num_workers:
            continue
        taken[index] = min(workers, left)
        left -= taken[index]
    if left:
        return False
    for node, workers in zip(nodes, taken, strict=True):
        for name, amount in needs.items():
            if workers:
                node[name] = node.get(name, 0) - amount * workers
    return True


def _nodes_alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _live_nodes(labels: Mapping[str, str]) -> list[Mapping[str, float]]:
    """Return the resources of every node that is there and has the labels."""
    return [node["Resources"] for node in _nodes_alive() if labels.items() <= node.get("Labels", {}).items()]


def _to_come(labels: Mapping[str, str]) -> list[tuple[Mapping[str, float], int]]:
    """Return the resources of the nodes that an autoscaler may have with these labels, each kind with its limit."""
    return [(each.resources, each.max_workers) for each in node_types() if each.may_have(labels)]
