"""What has to be shown on a real Ray."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from pathlib import Path

import pytest
import ray
import tiny

import sweeper
from sweeper.clusters.collect import cluster_facts, questions
from sweeper.clusters.doctor import diagnose

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_every_node_of_a_real_ray_is_asked(tmp_path):
    facts = cluster_facts({**questions(str(tmp_path)), "torch": False})
    [node] = facts.nodes
    assert node.is_head
    assert node.problem == ""
    assert node.packages["ray"] == ray.__version__
    assert node.storage["error"] == ""
    assert len(node.sees) == 1
    assert abs(node.clock_offset_seconds) < 1
    assert set(node.connect.values()) == {""}
    assert not list(tmp_path.iterdir())
    errors = [finding for finding in diagnose(facts).findings if finding.level == "error"]
    assert [finding.check for finding in errors if finding.check != "disk"] == []


def test_nothing_of_a_local_run_listens_beyond_loopback():
    """Every listening TCP socket of the processes below this one, Ray's included."""
    beyond = {(str(at), port): pid for (at, port), pid in listening(descendants()).items() if not at.is_loopback}
    assert beyond == {}


def test_a_run_in_a_script_with_a_connection_uses_it_and_leaves_it(checkpoints, tmp_path):
    @ray.remote(num_cpus=0)
    class Counter:
        def __init__(self):
            self.count = 0

        def add(self):
            self.count += 1
            return self.count

    mine = Counter.remote()
    assert ray.get(mine.add.remote()) == 1
    before, address = ray.nodes(), ray.get_runtime_context().gcs_address
    study = tiny.write_study(tmp_path, checkpoints, models=("resnet",), num_trials=1, max_epochs=1)
    result = sweeper.run(sweeper.load_study(study, ["confirm.num_seeds=1"]))
    assert result.leaderboard[0]["model"] == "resnet"
    assert ray.is_initialized()
    assert ray.get_runtime_context().gcs_address == address
    assert [node["NodeID"] for node in ray.nodes()] == [node["NodeID"] for node in before]
    assert ray.get(mine.add.remote()) == 2, "actors of the script live on"


def descendants():
    out = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in out.splitlines())
    found = set()
    for pid in parents:
        chain = pid
        while chain in parents and chain != os.getpid():
            chain = parents[chain]
        if chain == os.getpid():
            found.add(pid)
    return found


def listening(pids):
    """Return the address of every listening TCP socket of some processes."""
    inodes = {}
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes[target[8:-1]] = pid
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                host, _, port = words[1].partition(":")
                found[address(host), int(port, 16)] = inodes[words[9]]
    assert found, "Ray listens somewhere"
    return found


def address(text):
    """Return the address of a line of /proc/net/tcp or tcp6, an IPv4 one as such."""
    data = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    found = ipaddress.ip_address(data)
    return getattr(found, "ipv4_mapped", None) or found
