from __future__ import annotations

import os
import signal
import subprocess
import time

import lanework
import pytest
import ray

from sweeper.core.errors import InputError, RunFailedError
from sweeper.core.trial import TrialState
from sweeper.engine.cluster import lane_count
from sweeper.engine.lanes import LaneGroup, Lanes, LaneShape
from sweeper.engine.messages import Failed
from sweeper.engine.tune import run_assignments
from sweeper.testing.leaks import no_growth, no_leaks, take_inventory

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
ONE = LaneShape(num_workers=1, resources_per_worker={"CPU": 1})


@pytest.fixture(scope="module")
def lanes(ray_session, tmp_path_factory):
    with (
        no_leaks(),
        Lanes([LaneGroup(shape=ONE, count=2, make_worker=lanework.Worker)], tmp_path_factory.mktemp("lanes")) as pool,
    ):
        pool.wait_ready()
        yield pool


@pytest.fixture(autouse=True)
def nothing_grows(request):
    """After a fault there are as many placement groups, actors and processes as before."""
    if request.node.get_closest_marker("fault") is None:
        yield
        return
    pool = request.getfixturevalue("lanes")

    def all_lanes_live():  # the exchange still counts one that has died just now
        standing = ray.get(pool._exchange.num_lanes.remote())
        return standing == take_inventory().counts()["ray::RayTrainWorker"] == pool.count

    with no_growth(all_lanes_live):
        yield


def processes(*names):
    out = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    mine = ray_session_children()
    return [
        int(line.split()[0])
        for line in out.splitlines()
        if any(n in line for n in names) and int(line.split()[0]) in mine
    ]


def ray_session_children():
    """Every process below this one: tests end only what they started."""
    out = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in out.splitlines())
    below = set()
    for pid in parents:
        chain = pid
        while chain in parents and chain != os.getpid():
            chain = parents[chain]
        if chain == os.getpid():
            below.add(pid)
    return below


def serve(lanes, conductor, tmp_path, timeout=30.0):
    run_assignments(lanes, conductor, scratch=tmp_path, max_retries=2, epoch_timeout_seconds=timeout)
    return conductor


def all_done_once(conductor, count):
    assert len(conductor.ended) == count
    assert all(len(ends) == 1 for ends in conductor.ended.values())


def test_lanes_are_reused_by_many_trials_and_runs(lanes, tmp_path):
    first = serve(lanes, lanework.Conductor(*[{}] * 30), tmp_path)
    second = serve(lanes, lanework.Conductor(*[{}] * 4), tmp_path)
    all_done_once(first, 30)
    all_done_once(second, 4)
    assert len(first.pids | second.pids) == 2


def test_lanes_start_none_of_the_helpers_that_they_have_no_use_for(lanes):
    """Each is a process of 115 MB with seconds of imports; the coordinator asks the autoscaler for nodes besides."""
    assert len(processes("ray::TrainController")) == 2
    assert not processes("AutoscalingCoordinator", "DatasetManager", "PlacementGroupCleaner", "PreemptionWatcher")


def test_a_trial_that_fails_is_recorded_and_its_lane_goes_on(lanes, tmp_path):
    conductor = serve(lanes, lanework.Conductor({"dropout": "error"}, {"dropout": "diverged"}, {}), tmp_path)
    all_done_once(conductor, 3)
    error, diverged = conductor.ended["t000"][0], conductor.ended["t001"][0]
    assert error.state is TrialState.FAIL
    assert error.reason == "ValueError: a bug of the task"
    assert "next_epoch" in error.trace
    assert diverged.reason == "TrialError: the loss is not finite"
    assert not any(conductor.retries.values())


@pytest.mark.fault
def test_a_killed_worker_costs_a_restart_of_its_lane_and_no_trial(lanes, tmp_path):
    killed = []

    def kill(report):
        if report.started and not killed:
            killed.append(report.started.effective["pid"])
            os.kill(killed[0], signal.SIGKILL)

    conductor = serve(lanes, lanework.Conductor(*[{}] * 20, on_report=kill), tmp_path)
    all_done_once(conductor, 20)
    assert all(not isinstance(ends[0], Failed) for ends in conductor.ended.values())
    assert sum(map(len, conductor.retries.values())) >= 1


@pytest.mark.fault
@pytest.mark.parametrize("victim", ["ray::TrainController", "ray::LaneTrainable"])
def test_a_killed_controller_or_tune_actor_costs_no_trial(lanes, tmp_path, victim):
    killed = []

    def kill(report):
        if report.started and not killed and (found := processes(victim)):
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    conductor = serve(lanes, lanework.Conductor(*[{}] * 20, on_report=kill), tmp_path)
    assert killed
    all_done_once(conductor, 20)
    assert all(not isinstance(ends[0], Failed) for ends in conductor.ended.values())


@pytest.mark.fault
def test_a_hung_lane_is_ended_and_the_trial_goes_on(lanes, tmp_path):
    flag = str(tmp_path / "hung")
    trial = {"dropout": "hang", "lr_scheduler_type": flag}
    conductor = serve(lanes, lanework.Conductor(trial, {}), tmp_path, timeout=3.0)
    all_done_once(conductor, 2)
    assert "did not answer within 3 s" in conductor.retries["t000"][0]


@pytest.mark.fault
def test_a_trial_that_kills_every_lane_fails_with_the_reason(lanes, tmp_path):
    # Seven sessions that ended in the middle of it are nothing that the trial did.
    conductor = serve(lanes, lanework.Conductor({"dropout": "die"}, {}, {}, attempt=7), tmp_path)
    all_done_once(conductor, 3)
    assert "the lane died 3 times in a row under this trial" in conductor.ended["t000"][0].reason


def test_an_error_of_the_conductor_comes_out_as_it_was(lanes, tmp_path):
    def refuse(report):
        raise RunFailedError("everything failed")

    with pytest.raises(RunFailedError, match="everything failed"):
        serve(lanes, lanework.Conductor({}, {}, on_report=refuse), tmp_path)
    all_done_once(serve(lanes, lanework.Conductor({}), tmp_path), 1)


def test_the_number_of_lanes_comes_from_the_cluster():
    assert lane_count(ONE, "auto") == 2
    assert lane_count(ONE, 1) == 1
    assert lane_count(LaneShape(num_workers=2, resources_per_worker={"CPU": 1}), "auto") == 1
    with pytest.raises(InputError, match="one lane of 1 worker"):
        lane_count(LaneShape(num_workers=1, resources_per_worker={"GPU": 1}), "auto")


def test_lanes_without_work_are_let_go(lanes, tmp_path):
    """Last in this file: from here on the shared pool has one lane."""
    lanes.keep({"": 1})
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 1:
        assert time.monotonic() < deadline, "an idle lane gives its CPU back"
        time.sleep(0.1)
    all_done_once(serve(lanes, lanework.Conductor(*[{}] * 4), tmp_path), 4)
