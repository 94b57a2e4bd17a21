"""How many lanes fit: live nodes, what the autoscaler may add, labels and placement; and the tail of a study."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from sweeper.core.errors import InputError
from sweeper.core.trial import TrialKind, TrialState
from sweeper.engine import cluster
from sweeper.engine.cluster import Capacity, capacity, lane_count, worker_resources
from sweeper.engine.exchange import Exchange
from sweeper.engine.lanes import LaneShape
from sweeper.workflows.tail import Tail, work_left

GPU = LaneShape(num_workers=1, resources_per_worker={"CPU": 1, "GPU": 1})


@pytest.fixture
def nodes(monkeypatch):
    """A head without CPUs, one GPU node, and an autoscaler that may have eight."""

    def plant(live, groups=()):
        listed = [{"Alive": True, "Resources": r, "Labels": labels} for r, labels in live]
        config = SimpleNamespace(
            node_group_configs=[SimpleNamespace(resources=r, max_count=most) for r, most in groups]
        )
        monkeypatch.setattr(cluster.ray, "nodes", lambda: listed)
        state = SimpleNamespace(get_cluster_config=lambda: config if groups else None)
        monkeypatch.setattr(cluster.ray._private.state, "state", state)

    return plant


def test_lanes_come_from_live_nodes_and_from_those_the_autoscaler_may_add(nodes):
    nodes([({"CPU": 0}, {}), ({"CPU": 8, "GPU": 1}, {})], [({"CPU": 8, "GPU": 1}, 8), ({"CPU": 4}, 2)])
    assert capacity(GPU) == Capacity(now=1, later=8)
    assert lane_count(GPU, "auto") == 8
    assert lane_count(GPU, "auto", work=3) == 3, "upscaling is asked for in proportion to the work left"
    assert lane_count(GPU, 2) == 2
    assert worker_resources("auto", 1) == {"CPU": 1.0, "GPU": 1.0}


def test_a_cluster_that_is_still_empty_takes_a_study(nodes):
    nodes([({"CPU": 0}, {})], [({"CPU": 8, "GPU": 4}, -1)])
    assert capacity(GPU).now == 0
    assert lane_count(GPU, "auto", work=50) == 50
    nodes([({"CPU": 0}, {})])
    with pytest.raises(InputError, match="one lane of 1 worker"):
        lane_count(GPU, "auto")


def test_only_nodes_with_the_labels_count(nodes):
    nodes([({"CPU": 4, "GPU": 2}, {"accelerator": "l4", "x": "y"}), ({"CPU": 4, "GPU": 4}, {"accelerator": "a100"})])
    shape = LaneShape(num_workers=1, resources_per_worker={"GPU": 1}, node_labels={"accelerator": "l4"})
    assert lane_count(shape, "auto") == 2
    missing = LaneShape(num_workers=1, resources_per_worker={"GPU": 1}, node_labels={"accelerator": "h100"})
    with pytest.raises(InputError, match=r"nodes with labels .*h100"):
        lane_count(missing, "auto")


def test_workers_of_one_lane_lie_over_nodes_unless_they_must_not(nodes):
    nodes([({"CPU": 3}, {}), ({"CPU": 3}, {})])
    two = {"num_workers": 2, "resources_per_worker": {"CPU": 1}}
    assert lane_count(LaneShape(**two), "auto") == 3
    assert lane_count(LaneShape(**two, placement="STRICT_PACK"), "auto") == 2


def record(kind, *, is_final):
    state = TrialState.COMPLETE if is_final else TrialState.RUNNING
    return SimpleNamespace(spec=SimpleNamespace(kind=kind), state=state)


def test_work_left_counts_what_was_not_asked_yet_and_the_confirmation():
    budget = SimpleNamespace(num_trials=10)
    plan = SimpleNamespace(models=("a", "b"), budget=budget, confirmation_seeds=(1, 3, 5))
    trials = {str(i): record(TrialKind.SEARCH, is_final=i < 4) for i in range(6)}
    assert work_left(plan, SimpleNamespace(frozen=None, trials=trials)) == 20 - 4 + 2 * 2 * 3
    trials = {str(i): record(TrialKind.CONFIRM, is_final=i < 9) for i in range(12)}
    assert work_left(plan, SimpleNamespace(frozen=list(trials), trials=trials)) == 3


def test_the_tail_tells_the_lanes_how_many_can_still_be_used():
    kept = []
    pool = SimpleNamespace(count=4, keep=kept.append)
    left = iter([6, 5, 3])
    conductor = SimpleNamespace(take=lambda report: report == "ended", stopping=False)
    tail = Tail(conductor, pool, lambda: next(left))
    assert [tail.take("epoch"), tail.take("ended"), tail.take("epoch")] == [False, True, False]
    assert kept == [5, 3]


async def _retired(keep):
    exchange = Exchange()
    for name in ("a", "b", "c"):
        await exchange.join(name, 0, 1, None, None)
    await exchange.join("half", 0, 2, None, None)  # its second worker waits for a node
    await exchange.acquire()
    told = await exchange.retire(keep)
    again = await exchange.retire(keep)
    await exchange.reclaim()
    return told, again, len(exchange._free)


def test_only_idle_lanes_are_let_go_and_only_once():
    assert asyncio.run(_retired(2)) == (1, 0, 2)
    assert asyncio.run(_retired(1)) == (2, 0, 1)
    assert asyncio.run(_retired(0)) == (2, 0, 1), "the third is held by a trial"


async def _late():
    exchange = Exchange()
    await exchange.dismiss()
    await exchange.join("late", 0, 1, None, None)
    return await exchange.next_command("late", 0)


def test_a_lane_that_gets_its_node_after_the_end_is_told_to_end():
    assert asyncio.run(_late()) is None
