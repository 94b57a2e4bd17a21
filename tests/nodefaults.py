"""Faults of nodes on one small cluster, as a program of its own: a process can be connected to one Ray only.

    python tests/nodefaults.py FOLDER

A head without CPUs and two nodes with a lane each serve trials that do nothing. Under the trials that happen to lie
there, one after the other: a node's memory monitor ends a lane (the node sees a control group that this program
writes), a lane's worker gets SIGTERM, a node is to be taken back (a third has joined), a node's raylet is killed.
Prints, as JSON, what became of the trials and what was left on the cluster.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sweeper.engine.environment import no_way_out, prepare

HEALTH = {"initial_delay_ms": 1000, "period_ms": 500, "timeout_ms": 1500, "failure_threshold": 3}
os.environ |= {f"RAY_health_check_{name}": str(value) for name, value in HEALTH.items()}
prepare(own_ray=False)

import lanework
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from sweeper.engine.cluster import connection
from sweeper.engine.lanes import NOTICE_SECONDS, LaneGroup, Lanes, LaneShape
from sweeper.engine.messages import Failed, Leave, Left, Start
from sweeper.engine.tune import run_assignments
from sweeper.testing.leaks import take_inventory

TRIALS = 14
GIGABYTE = 1 << 30
CONTROL_GROUPS = "/sys/fs/cgroup"
LOW, HIGH = GIGABYTE, 8 * GIGABYTE - 1


def permit(folder, trial_id, pid):
    """The file that lets a process go on with a trial: what a fault strikes must not end before the fault does."""
    return folder / f"{trial_id}-{pid}.permit"


class Saving(lanework.Worker):
    """A worker that saves its epoch when told to, and goes on from there; after an epoch it waits for the permit to go on."""

    folder = Path(sys.argv[-1])

    def handle(self, command):
        match command:
            case Start(segment):
                started = super().handle(command)
                self.begun = False
                saved = self.folder / segment.trial.trial_id
                self.epoch = int(saved.read_text()) if saved.exists() else 0
                node = ray.get_runtime_context().get_node_id()
                return replace(started, from_epoch=self.epoch, effective={"pid": os.getpid(), "node": node})
            case Leave(True):
                (self.folder / self.trial.trial_id).write_text(str(self.epoch))
                return Left()
        return super().handle(command)

    def next_epoch(self):
        time.sleep(0.3)
        while self.begun and not permit(self.folder, self.trial.trial_id, os.getpid()).exists():
            time.sleep(0.05)
        self.begun = True  # the driver hears of a start with the first epoch
        return super().next_epoch()


class MemoryGroup:
    """A control group, as Ray's memory monitor reads one, in a mount namespace of what is started with it."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        (folder / "memory.max").write_text(f"{8 * GIGABYTE}\n")
        (folder / "memory.stat").write_text("anon 0\nshmem 0\ninactive_file 0\nactive_file 0\n")
        self.use(LOW)

    def use(self, num_bytes):
        (self.folder / "memory.current").write_text(f"{num_bytes}\n")

    def start(self, action):
        """Start processes that see the control group; what is started later sees the machine's again."""
        new_mounts()
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "--bind", str(self.folder), CONTROL_GROUPS], check=True)
        try:
            return action()
        finally:
            new_mounts()
            subprocess.run(["umount", CONTROL_GROUPS], check=True)


def new_mounts():
    """Give this thread, and what it starts from now on, a mount namespace of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):  # CLONE_NEWNS
        raise PermissionError(ctypes.get_errno(), "mount namespaces need root")


class Faults:
    """Does to the trials what is to be done, each under the next trial that begins where it can be done."""

    def __init__(self, cluster, nodes, group, folder):
        self.cluster, self.nodes, self.group, self.folder = cluster, nodes, group, folder
        self.waiting = ["memory", "sigterm", "drain", "raylet"]
        self.victims = {}
        self.starts = {}

    def __call__(self, report):
        if report.started is None:
            return
        node, pid = report.started.effective["node"], report.started.effective["pid"]
        first = report.trial_id not in self.starts
        self.starts.setdefault(report.trial_id, []).append([node, report.started.from_epoch])
        if self.waiting and first and self.can_strike(node):
            fault = self.waiting.pop(0)
            self.victims[fault] = report.trial_id
            if fault == "drain":  # the only one that leaves the trial a minute to go on
                permit(self.folder, report.trial_id, pid).touch()
            getattr(self, fault)(node, pid)
        else:
            permit(self.folder, report.trial_id, pid).touch()

    def can_strike(self, node):
        """Whether the next fault can strike there: one node has the memory group and is lost, the other is drained."""
        where = {"memory": "watched", "drain": "plain", "raylet": "watched"}.get(self.waiting[0])
        return where is None or node == self.nodes[where].node_id

    def memory(self, node, pid):
        self.group.use(HIGH)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.group.use(LOW)

    def sigterm(self, node, pid):
        os.kill(pid, signal.SIGTERM)

    def drain(self, node, pid):
        self.nodes["added"] = self.cluster.add_node(num_cpus=1)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + 60) * 1000)
        accepted, why = GcsClient(address=self.cluster.address).drain_node(node, reason, "spot", deadline)
        assert accepted, why
        time.sleep(2.5 * NOTICE_SECONDS)

    def raylet(self, node, pid):
        self.nodes["watched"].kill_raylet()


@contextmanager
def started_cluster(group):
    """Yield a cluster and its nodes by name: ``plain``, and ``watched`` whose memory is what ``group`` says."""
    with no_way_out():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        plain = cluster.add_node(num_cpus=1)
        watched = group.start(lambda: cluster.add_node(num_cpus=1))
    try:
        yield cluster, {"plain": plain, "watched": watched}
    finally:
        cluster.shutdown()


def main():
    folder = Path(sys.argv[-1])
    group = MemoryGroup(folder / "group")
    began = time.monotonic()
    with started_cluster(group) as (cluster, nodes), connection(cluster.address):
        faults = Faults(cluster, nodes, group, folder)
        conductor = lanework.Conductor(*[{}] * TRIALS, on_report=faults)
        before = take_inventory()
        shape = LaneShape(num_workers=1, resources_per_worker={"CPU": 1})
        with Lanes([LaneGroup(shape=shape, count=2, make_worker=Saving)], folder) as lanes:
            run_assignments(lanes, conductor, scratch=folder, max_retries=2, epoch_timeout_seconds=30)
            # One lane was enough to end; the other one asks for a node, which only the end of a driver takes back.
            nodes["last"] = cluster.add_node(num_cpus=1)
            deadline = time.monotonic() + 30
            while ray.get(lanes._exchange.num_lanes.remote()) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
        deadline = time.monotonic() + 20
        while (left := take_inventory().since(before)) and time.monotonic() < deadline:
            time.sleep(0.2)
        names = {node.node_id: name for name, node in nodes.items()}
        alive = {names.get(node["NodeID"], "head"): node["Alive"] for node in ray.nodes()}
    print(
        json.dumps(
            {
                "victims": faults.victims,
                "retries": conductor.retries,
                "starts": {t: [[names[n], epoch] for n, epoch in found] for t, found in faults.starts.items()},
                "ends": {trial: len(ends) for trial, ends in conductor.ended.items()},
                "failed": [t for t, ends in conductor.ended.items() if isinstance(ends[0], Failed)],
                "alive": alive,
                "left": left,
                "seconds": time.monotonic() - began,
            }
        )
    )


if __name__ == "__main__":
    main()
