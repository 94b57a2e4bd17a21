"""Planted faults: a sound cluster's facts, with one thing wrong at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeper.clusters.collect import questions, this_machine
from sweeper.clusters.doctor import ClusterFacts, NodeFacts, diagnose

PACKAGES = {"fairsweep": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cu128", "transformers": "5.23.0", "numpy": "2.4.6"}


def node(host, **changes):
    found = {
        "host": host,
        "is_head": host == "head",
        "python": "3.11.9",
        "packages": PACKAGES,
        "torch": {"version": "2.13.0+cu128", "cuda": "12.8", "devices": 1},
        "gpus": ({"name": "NVIDIA L4", "memory_bytes": 24 * 10**9},),
        "driver": "570.1",
        "driver_cuda": "12.8",
        "ray_gpus": 1.0,
        "auth_mode": "token",
        "token_digest": "d1",
        "storage": {"error": "", "name": f"{host}-1", "free_bytes": 10**12},
        "sees": ("head-1", "a-1", "b-1"),
        "disk_free_bytes": 10**11,
        "shared_memory_bytes": 8 * 10**9,
        "reach": {"wandb": "", "hub": ""},
        "connect": {"head (node manager)": ""},
        "clock_offset_seconds": 0.1,
    }
    return NodeFacts(**found | changes)


def cluster(changed=None, **of_node):
    nodes = tuple(node(host, **(of_node if host == changed else {})) for host in ("head", "a", "b"))
    return ClusterFacts(nodes=nodes, here=node("laptop"), tools={"dashboard": ""}, storage="/mnt/results")


def other(**versions):
    return {**PACKAGES, **versions}


FAULTS = {
    "ray version skew": (cluster("a", packages=other(ray="2.59.0")), "versions", "ray 2.59.0, the head has 2.60.0"),
    "sweeper missing": (cluster("b", packages=other(fairsweep=None)), "versions", "sweeper is missing"),
    "torch version skew": (cluster("b", packages=other(torch="2.12.1")), "versions", "torch 2.12.1 against"),
    "python skew": (cluster("a", python="3.12.1"), "python", "Python 3.12.1"),
    "wrong token": (cluster("b", token_digest="d2"), "authentication", "another token"),
    "token mode on some": (cluster("b", auth_mode=""), "authentication", "modes differ"),
    "no token": (cluster("a", token_digest=None), "authentication", "token mode without a token"),
    "read-only storage": (
        cluster("b", storage={"error": "OSError: [Errno 30] Read-only file system", "name": "b-1", "free_bytes": None}),
        "storage",
        "not writable",
    ),
    "own disk in the place of shared storage": (cluster("b", sees=("b-1",)), "storage", "shows 1 of 3 nodes' files"),
    "missing dashboard": (
        replace(
            cluster(), tools={"dashboard": "http://h:8265: ConnectionError: refused; start the head with its dashboard"}
        ),
        "dashboard",
        "refused",
    ),
    "torchvision for another torch": (
        cluster("a", packages=other(torchvision="0.25.0")),
        "torchvision",
        "torchvision 0.25.0 beside torch 2.13.0",
    ),
    "torchvision that does not load": (
        cluster(
            "a",
            packages=other(torchvision="0.28.0"),
            torch={
                "version": "2.13.0",
                "cuda": "12.8",
                "devices": 1,
                "torchvision_error": "RuntimeError: operator torchvision::nms does not exist",
            },
        ),
        "torchvision",
        "nms",
    ),
    "CPU build of torch on GPUs": (
        cluster("a", torch={"version": "2.13.0+cpu", "cuda": None, "devices": 0}),
        "torch",
        "is a CPU build",
    ),
    "driver too old": (cluster("a", driver_cuda="11.8"), "torch", "built for CUDA 12.8"),
    "GPU that torch does not see": (
        cluster("a", torch={"version": "2.13.0", "cuda": "12.8", "devices": 0}),
        "gpus",
        "torch 0",
    ),
    "clock skew": (cluster("b", clock_offset_seconds=-300.0), "clocks", "300.0 s behind"),
    "full disk": (cluster("b", disk_free_bytes=10**9), "disk", "1.0 GB free"),
    "small shared memory": (cluster("b", shared_memory_bytes=64 * 10**6), "shared memory", "64 MB"),
    "closed port": (
        cluster("b", connect={"head (node manager)": "TimeoutError: timed out"}),
        "ports",
        "cannot connect to head",
    ),
    "hub out of reach": (
        replace(cluster("b", reach={"hub": "URLError: unreachable"}), wants=frozenset({"hub"})),
        "hub",
        "out of reach",
    ),
    "W&B out of reach": (cluster("b", reach={"wandb": "URLError: unreachable"}), "wandb", "out of reach"),
    "a node that does not answer": (cluster("b", problem="gave no answer within 180 s"), "nodes", "no answer"),
}
WARNINGS = {"small shared memory", "W&B out of reach"}


def test_a_sound_cluster_has_no_findings():
    diagnosis = diagnose(cluster())
    assert {finding.level for finding in diagnosis.findings} == {"fine"}
    assert diagnosis.exit_code == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_with_its_place_and_remedy(fault):
    facts, check, found = FAULTS[fault]
    diagnosis = diagnose(facts)
    bad = [finding for finding in diagnosis.findings if finding.level != "fine"]
    assert [finding.check for finding in bad] == [check], bad
    assert found in bad[0].found
    assert bad[0].remedy
    assert diagnosis.exit_code == (0 if fault in WARNINGS else 2)
    assert str(bad[0]) in diagnosis.as_text()


def test_servers_are_not_even_asked_in_offline_mode(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert this_machine({**questions(None), "torch": False}).reach == {}
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "refused" in this_machine({**questions(None), "torch": False}).reach["wandb"]


def test_a_launching_machine_with_other_versions_is_a_warning():
    facts = replace(cluster(), here=node("laptop", packages=other(ray="2.59.0")))
    diagnosis = diagnose(facts)
    assert [f.level for f in diagnosis.findings if f.where == "laptop"] == ["warning"]
    assert diagnosis.exit_code == 0


def test_this_machine_gives_facts_and_its_token_is_not_among_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted-token")
    facts = this_machine({**questions(str(tmp_path), network=False), "torch": False})
    assert facts.storage is not None
    assert facts.storage["error"] == ""
    assert facts.packages["ray"]
    assert facts.token_digest
    assert "planted-token" not in repr(facts)
    assert not list(tmp_path.iterdir()), "the probe is removed"


def test_storage_that_cannot_be_written_is_a_fact(tmp_path):
    (tmp_path / "file").write_text("")
    facts = this_machine({**questions(str(tmp_path / "file"), network=False), "torch": False})
    assert "Error" in facts.storage["error"]
    assert diagnose(ClusterFacts(nodes=(facts,), storage=str(tmp_path / "file"))).exit_code == 2
