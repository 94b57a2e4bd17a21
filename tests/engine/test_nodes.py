"""Nodes that run out of memory, are to be taken back, or lose their raylet; and a worker that gets SIGTERM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.testing.leaks import no_leaks

pytestmark = [pytest.mark.ray, pytest.mark.fault]
PROGRAM = Path(__file__).parents[1] / "nodefaults.py"


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """What became of the trials of `nodefaults.py`, which leaves nothing behind on this machine."""
    if os.geteuid():
        pytest.skip("a memory limit of a node's own needs root")
    folder = tmp_path_factory.mktemp("nodes")
    mark = {"SWEEPER_NODES": str(os.getpid())}
    with no_leaks(mark=f"SWEEPER_NODES={os.getpid()}"):
        command = [sys.executable, str(PROGRAM), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | mark, timeout=280)
        if "mount namespaces need root" in done.stderr:
            pytest.skip("a memory limit of a node's own needs the right to mount")
        assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def of(story, fault):
    """The retries and the starts of the trial that a fault struck."""
    trial = story["victims"][fault]
    return story["retries"][trial], story["starts"][trial]


def test_no_fault_of_a_node_costs_or_doubles_a_trial(story):
    assert list(story["victims"]) == ["memory", "sigterm", "drain", "raylet"]
    assert set(story["ends"].values()) == {1}
    assert len(story["ends"]) == 14
    assert story["failed"] == []


def test_a_lane_that_the_memory_monitor_ended_costs_a_retry_that_says_so(story):
    retries, starts = of(story, "memory")
    assert len(retries) == 1
    assert "memory" in retries[0]
    assert len(starts) == 2


def test_a_worker_that_gets_sigterm_costs_a_retry(story):
    retries, starts = of(story, "sigterm")
    assert len(retries) == 1
    assert "the lane's worker group died" in retries[0]
    assert len(starts) == 2


def test_a_trial_leaves_a_node_that_is_to_be_taken_back_with_what_it_has_and_no_retry(story):
    retries, starts = of(story, "drain")
    assert retries == []
    (first, _), (second, epoch) = starts
    assert (first, epoch > 0) == ("plain", True)
    assert second != "plain"
    assert not story["alive"]["plain"], "Ray ends a drained node that has nothing left to do"


def test_a_node_whose_raylet_is_killed_costs_its_trial_a_retry_elsewhere(story):
    retries, starts = of(story, "raylet")
    assert len(retries) == 1
    assert [node for node, _ in starts] == ["watched", "added"]
    assert story["alive"] == {"head": True, "plain": False, "watched": False, "added": True, "last": True}


def test_nothing_of_the_lanes_stays_on_the_cluster(story):
    assert story["left"] == []
