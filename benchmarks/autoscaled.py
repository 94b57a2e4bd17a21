"""A study on a cluster without workers: Ray's own autoscaler adds them as asked, and takes them back in the tail.

    sudo python benchmarks/autoscaled.py --json OUT.json

A head without CPUs runs in a network namespace, with Ray's autoscaler (v2) and its provider for tests, which starts
nodes as processes beside the head; token authentication is on. The configuration allows six workers. `sweeper run` is
given a study of one model with three runs left at most (a trial and two confirmations), so three nodes must be asked
for and not six; while the confirmation of the only trial trains, the nodes of the idle lanes must go; after the end
all of them. The driver learns of the node types as under `ray up`: by the cluster configuration. Needs root and ``ip``
(iproute2). Exit code 1 when any of that does not hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos import make_models, write_study
from machine import facts, publish
from three_hosts import PORT, Host, Story, Watch, bridged_folder, make_environment, name_hosts

from sweeper.core.node_types import NODE_TYPES

MOST_WORKERS = 6
IDLE_MINUTES = 0.1
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
RUN_SECONDS = 400.0
LEAVE_SECONDS = 60.0
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # Ray's FAKE_HEAD_NODE_ID
HEAD_TYPE = "ray.head.default"  # as that provider calls it
FAKE = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


def cluster_configuration(address: str) -> dict[str, Any]:
    """Return what `ray up` would be given, for Ray's provider for tests."""
    provider = {"type": "external", "module": PROVIDER, "head_node_id": HEAD_ID, "gcs_address": address}
    empty: dict[str, Any] = {"auth": {}, "docker": {}, "file_mounts": {}}
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    commands = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MOST_WORKERS}
    return {
        "cluster_name": "autoscaled",
        "max_workers": MOST_WORKERS,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            **provider,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
        **empty,
        **{name: [] for name in (*lists, *commands)},
    }


class Nodes:
    """Notes how many worker nodes there are, as it changes."""

    def __init__(self, host: Host, story: Story) -> None:
        self._host, self._story = host, story
        self.seen: list[int] = []

    def look(self) -> int:
        """Count the raylets beside the head's."""
        now = max(0, self._host.count("raylet") - 1)
        if not self.seen or now != self.seen[-1]:
            self.seen.append(now)
            self._story.tell(f"{now} worker node(s), {self._host.count('ray::RayTrainWorker')} lane(s)")
        return now

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        """Look until a process has ended."""
        deadline = time.monotonic() + RUN_SECONDS
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no end after {RUN_SECONDS:g} s; worker nodes {self.seen}")
            self.look()
            time.sleep(0.3)


def autoscaled_study(folder: Path, epochs: int, stack: ExitStack) -> dict[str, Any]:
    """Run the study; return how many nodes there were. ``stack`` removes the host."""
    name_hosts(folder)
    make_models(folder / "models")
    study = write_study(folder / "models", folder / "study", 1, 1)
    text = study.read_text().replace("  - {name: resnet, checkpoint: resnet}\n", "")
    study.write_text(text.replace("max_concurrent_trials: 1", "max_concurrent_trials: auto"))
    configuration = folder / "cluster.json"
    environment = make_environment(folder / "ray") | FAKE | {NODE_TYPES: str(configuration)}
    host = Host(1, folder, environment)
    stack.callback(host.remove)
    head = f"{host.address}:{PORT}"
    configuration.write_text(json.dumps(cluster_configuration(head)))
    story = Story()
    options = ("--include-dashboard", "false", "--autoscaling-config", str(configuration))
    host.ray("--head", "--port", str(PORT), *options, num_cpus=0)
    nodes = Nodes(host, story)
    nodes.look()
    changes = [f"search.max_epochs={epochs}", "confirm.num_seeds=1", "training.snapshot_seconds=60"]
    driver = host.start(sys.executable, "-m", "sweeper.cli", "run", str(study), f"cluster.address={head}", *changes)
    results = study.parent / "results" / "chaos"
    story.watch = Watch(results, driver)
    nodes.follow(driver)
    story.tell(f"the driver ended with code {driver.returncode}")
    during = list(nodes.seen)
    deadline = time.monotonic() + LEAVE_SECONDS
    while nodes.look() and time.monotonic() < deadline:
        time.sleep(0.3)
    table = pq.read_table(results / "trials.parquet").to_pylist()
    return {
        "exit_code": driver.returncode,
        "workers_allowed": MOST_WORKERS,
        "workers_at_most": max(during),
        "workers_when_the_driver_ended": during[-1],
        "workers_afterwards": nodes.seen[-1],
        "workers_over_time": nodes.seen,
        "trials": [row["state"] for row in table],
        "story": story.lines,
    }


def is_sound(report: dict[str, Any]) -> bool:
    """Whether as many nodes came as there was work for, and went when there was none."""
    asked = report["workers_at_most"] == 3 and report["workers_over_time"][0] == 0
    released = report["workers_when_the_driver_ended"] < 3 and report["workers_afterwards"] == 0
    return report["exit_code"] == 0 and report["trials"] == ["COMPLETE"] and asked and released


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100, help="of the trial and its confirmation")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with bridged_folder("*.log", "ray/ray/session_2*/logs/monitor.log") as folder, ExitStack() as stack:
        report = autoscaled_study(folder, options.epochs, stack) | {"machine": facts()}
    publish(report, options.json)
    return not is_sound(report)


if __name__ == "__main__":
    sys.exit(main())
