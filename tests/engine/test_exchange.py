"""The exchange without Ray: lanes whose node is to be taken back, lanes that die, and workers that lose each other."""

from __future__ import annotations

import asyncio
from unittest.mock import MagicMock

import lanework
import pytest
from ray.exceptions import RayError

from sweeper.core.errors import is_of_peers
from sweeper.core.trial import Segment, TrialSpec, TrialState
from sweeper.engine import exchange as exchanges
from sweeper.engine import lanes
from sweeper.engine.exchange import Exchange, Joining
from sweeper.engine.lanes import LaneGroup, Lanes, LaneShape, _guarded, _why
from sweeper.engine.messages import Dead, Failed, Leave, Measured, Moved, NextEpoch, Start, Started, Test

TRIAL = TrialSpec(trial_id="t", number=0, model="m", params={}, seed=0, max_epochs=9)
LOST = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:12672: Connection reset by peer"
)


class Fails:
    """A worker that raises."""

    def __init__(self, error):
        self.error = error

    def handle(self, command):
        raise self.error


class Lane:
    """The workers of one lane, as coroutines."""

    def __init__(self, exchange, name, *nodes, workers=None):
        self.exchange, self.name, self.nodes = exchange, name, nodes
        self.workers = workers or [lanework.Remembers() for _ in nodes]
        self.tasks = []

    async def stand(self):
        for rank, node in enumerate(self.nodes):
            me = Joining(actor=None, placement_group=f"group of {self.name}", node=node)
            await self.exchange.join(self.name, rank, len(self.nodes), me)
        self.tasks = [asyncio.create_task(self.serve(rank)) for rank in range(len(self.nodes))]
        return self

    async def serve(self, rank):
        while (item := await self.exchange.next_command(self.name, rank)) is not None:
            token, command = item
            reply = _guarded(self.workers[rank], command, len(self.nodes))
            await self.exchange.reply(self.name, rank, token, reply)

    async def has_ended(self):
        done, _ = await asyncio.wait(self.tasks, timeout=1)
        return len(done) == len(self.tasks)


@pytest.fixture
def killed(monkeypatch):
    """The lanes that the exchange ended by force."""
    found = []
    monkeypatch.setattr(exchanges.ray, "kill", found.append)
    return found


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(), 10))


async def begin(exchange, lane):
    return await exchange.call(lane, Start(Segment(trial=TRIAL)), 5)


def test_a_trial_is_saved_and_moves_before_its_node_is_taken_back():
    async def scenario():
        exchange = Exchange()
        going = await Lane(exchange, "going", "spot").stand()
        staying = await Lane(exchange, "staying", "safe").stand()
        assert await exchange.acquire() == "going"
        assert isinstance(await begin(exchange, "going"), Started)
        under_way = asyncio.create_task(exchange.call("going", NextEpoch(), 5))
        await asyncio.sleep(0)
        assert await exchange.vacate(["spot"]) == 1
        assert isinstance(await under_way, Measured), "the epoch under way counts"
        assert await exchange.call("going", NextEpoch(), 5) == Moved()
        assert going.workers[0].told[-1] == Leave(snapshot=True)
        assert await going.has_ended()
        assert await exchange.acquire() == "staying"
        assert isinstance(await begin(exchange, "staying"), Started)
        assert isinstance(await exchange.call("staying", NextEpoch(), 5), Measured)
        assert await exchange.vacate(["spot"]) == 0, "each is told once"
        assert not any(task.done() for task in staying.tasks)

    run(scenario)


@pytest.mark.parametrize("command", [Start(Segment(trial=TRIAL)), Test(TRIAL)])
def test_nothing_begins_on_a_node_that_is_to_be_taken_back(command):
    async def scenario():
        exchange = Exchange()
        lane = await Lane(exchange, "lane", "safe", "spot").stand()
        assert await exchange.acquire() == "lane"
        assert await exchange.vacate(["spot"]) == 1
        assert await exchange.call("lane", command, 5) == Moved()
        assert await lane.has_ended()
        assert not lane.workers[0].told

    run(scenario)


def test_idle_lanes_and_those_of_a_broken_run_end_at_once_on_such_a_node():
    async def scenario():
        exchange = Exchange()
        idle = await Lane(exchange, "idle", "spot").stand()
        await exchange.vacate(["spot"])
        assert await idle.has_ended()
        held = await Lane(exchange, "held", "spot").stand()
        assert await exchange.acquire() == "held"
        await exchange.vacate(["spot"])
        await exchange.reclaim()
        assert await held.has_ended()
        given_back = await Lane(exchange, "given back", "spot").stand()
        assert await exchange.acquire() == "given back"
        await exchange.vacate(["spot"])
        await exchange.release("given back")
        assert await given_back.has_ended()
        assert not exchange._free

    run(scenario)


def test_a_lane_that_was_ended_by_force_is_nobodys_any_more(killed):
    async def scenario():
        exchange = Exchange()
        lane = Lane(exchange, "lane", "node", workers=[Hangs()])
        await lane.stand()
        lane.tasks[0].cancel()  # its host was cut off
        assert await exchange.acquire() == "lane"
        assert isinstance(await exchange.call("lane", NextEpoch(), 0.01), Dead)
        await exchange.release("lane")
        await exchange.reclaim()
        assert not exchange._free
        assert len(killed) == 1

    run(scenario)


def test_an_actor_that_died_while_it_waited_takes_no_lane():
    async def scenario():
        exchange = Exchange()
        orphan = asyncio.create_task(exchange.acquire())
        await asyncio.sleep(0)
        await exchange.reclaim()
        with pytest.raises(LookupError):
            await orphan
        waiting = asyncio.create_task(exchange.acquire())
        await Lane(exchange, "lane", "node").stand()
        assert await waiting == "lane"

    run(scenario)


def test_idle_lanes_that_leave_their_nodes_are_no_deaths(monkeypatch, tmp_path):
    shape = LaneShape(num_workers=1, resources_per_worker={"CPU": 1})
    pool = Lanes([LaneGroup(shape=shape, count=1, make_worker=lanework.Worker)], tmp_path)
    pool._exchange = MagicMock()
    monkeypatch.setattr(lanes, "START_PAUSE_SECONDS", 0)
    monkeypatch.setattr(pool, "_run_once", lambda lane, of: "its node went")
    ends = [(None, 0, True)] * 9 + [(None, 0, False)] * lanes.RESTARTS_IN_A_ROW
    monkeypatch.setattr(pool, "_ask", lambda method, *_: ends.pop(0) if method == "bury" else 1)
    pool._keep_alive(pool.groups[0])
    assert not ends
    assert len(pool.restarts) == lanes.RESTARTS_IN_A_ROW
    assert pool.failure == "a lane died 5 times in a row, last: its node went"


def test_a_group_of_lanes_that_never_stands_ends_the_wait(monkeypatch, tmp_path):
    shape = LaneShape(num_workers=1, resources_per_worker={"CPU": 1})
    groups = [
        LaneGroup(shape=shape, count=1, make_worker=lanework.Worker, name="zone=a"),
        LaneGroup(shape=shape, count=1, make_worker=lanework.Worker, name="zone=mistyped", elastic=True),
    ]
    pool = Lanes(groups, tmp_path)
    monkeypatch.setattr(pool, "_ask", lambda method, group: int(group == "zone=a"))
    pool.wait_ready()
    pool._began -= lanes.START_SECONDS + 1
    assert pool.failure is None, "a node that is yet to come takes longer"
    pool._began -= lanes.UPSCALING_SECONDS
    assert pool.failure == "no lane started within 1800 s on nodes with labels zone=mistyped"


def test_a_trial_hears_why_its_lane_died():
    async def scenario():
        exchange = Exchange()
        await exchange.join("lane", 0, 1, Joining(actor=None, placement_group="group", node="node"))
        assert await exchange.acquire() == "lane"
        waiting = asyncio.create_task(exchange.call("lane", NextEpoch(), 5))
        await asyncio.sleep(0)
        assert await exchange.bury("lane", "OutOfMemoryError: low on memory") == ("group", 0, False)
        assert await waiting == Dead("the lane's worker group died: OutOfMemoryError: low on memory")

    run(scenario)


def test_a_worker_that_lost_another_blames_no_trial_and_a_bug_on_one_worker_does(killed):
    async def scenario(error):
        exchange = Exchange()
        await Lane(exchange, "lane", "a", "b", workers=[Fails(error), Hangs()]).stand()
        return await exchange.call(await exchange.acquire(), NextEpoch(), 5)

    lost = run(lambda: scenario(RuntimeError(LOST)))
    assert isinstance(lost, Dead)
    assert lost.reason.startswith("it lost another of its workers: RuntimeError: [/pytorch")
    bug = run(lambda: scenario(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    assert isinstance(bug, Failed)
    assert bug.state is TrialState.FAIL
    assert len(killed) == 4, "either way no worker of that lane is used again"


class Hangs:
    """A worker that waits for the other one; its answer comes as late as that of a lane that was ended."""

    def handle(self, command):
        return Failed(state=TrialState.FAIL, reason="late")


def test_losing_a_worker_is_told_from_a_bug_by_the_kind_of_error():
    error = type("DistBackendError", (type("DistError", (RuntimeError,), {}),), {})
    assert is_of_peers(error("NCCL error: remote process exited"))
    assert is_of_peers(RuntimeError(LOST))
    assert not is_of_peers(RuntimeError("a bug"))
    assert not is_of_peers(ValueError(LOST))


def test_the_reason_of_a_death_is_what_ray_knows_of_the_worker_in_one_line():
    died = RuntimeError(
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tactor_id: 07\n\tpid: 5\n"
        "\tnamespace: 4c\n\tip: 127.0.0.1\nThe actor died because its node ran low on memory."
    )
    unhealthy = type("WorkerHealthCheckFailedError", (Exception,), {"health_check_failure": died})(
        "a health check failed"
    )
    error = type("WorkerGroupError", (Exception,), {"worker_failures": {1: unhealthy}})(
        "Training failed due to worker errors"
    )
    expected = "RuntimeError: The actor died unexpectedly before finishing this task. The actor died because its node ran low on memory."
    assert _why(error) == expected
    assert _why(ValueError("no lane")) == "ValueError: no lane"


def test_a_pool_whose_exchange_is_gone_says_so_in_one_line_and_closes(monkeypatch, tmp_path):
    def gone(request):
        raise RayError("the node\nis dead")

    monkeypatch.setattr(lanes.ray, "get", gone)
    monkeypatch.setattr(lanes.ray, "kill", lambda actor: None)
    shape = LaneShape(num_workers=1, resources_per_worker={"CPU": 1})
    pool = Lanes([LaneGroup(shape=shape, count=1, make_worker=lanework.Worker)], tmp_path)
    pool._exchange = MagicMock()
    expected = "Ray failed on the driver's node (RayError: the node is dead); what is done is kept: resume"
    assert pool.failure == expected
    pool.reclaim()
    pool.close()
    assert pool.failure == expected
