"""How many lanes fit: live nodes, what the autoscaler may add, labels and placement; and the tail of a study."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from sweeper.core.errors import InputError
from sweeper.core.node_types import NODE_TYPES
from sweeper.core.trial import TrialKind, TrialState
from sweeper.engine import cluster
from sweeper.engine.cluster import Capacity, capacity, lane_count, lane_counts, worker_resources
from sweeper.engine.exchange import Exchange, Joining
from sweeper.engine.lanes import LaneShape
from sweeper.workflows.tail import Tail, work_left

GPU = LaneShape(num_workers=1, resources_per_worker={"CPU": 1, "GPU": 1})


@pytest.fixture
def nodes(monkeypatch):
    """A head without CPUs, one GPU node, and an autoscaler that may have eight."""

    def plant(live, groups=()):
        listed = [{"Alive": True, "Resources": r, "Labels": labels} for r, labels in live]
        config = SimpleNamespace(
            node_group_configs=[SimpleNamespace(name="g", resources=r, max_count=most) for r, most in groups]
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


def test_nodes_that_a_driver_is_told_of_count_with_their_labels(nodes, monkeypatch, tmp_path):
    nodes([({"CPU": 0}, {})])
    told = {"l4": {"resources": {"CPU": 8, "GPU": 2}, "max_workers": 3, "labels": {"kind": "l4"}}}
    monkeypatch.setenv(NODE_TYPES, json.dumps(told))
    assert lane_count(GPU, "auto") == 6
    assert lane_count(shapes(l4={"kind": "l4"})["l4"], "auto") == 6
    assert worker_resources("auto", 1, {"kind": "h100"}) == {"CPU": 1.0}
    with pytest.raises(InputError, match=r"nodes with labels .*h100"):
        lane_count(shapes(h100={"kind": "h100"})["h100"], "auto")
    told["head"] = {"resources": {"CPU": 64, "GPU": 64}}
    config = tmp_path / "ray_bootstrap_config.yaml"
    config.write_text(json.dumps({"max_workers": 2, "head_node_type": "head", "available_node_types": told}))
    monkeypatch.setenv(NODE_TYPES, str(config))
    assert lane_count(GPU, "auto") == 4, "not more than the whole cluster may have, and no lane on the head"


@pytest.mark.parametrize("told", ['{"gpu": {"max_workers": 1}}', "{", "/no/such/file.yaml"])
def test_node_types_that_cannot_be_read_are_an_error(told, nodes, monkeypatch):
    nodes([({"CPU": 8, "GPU": 1}, {})])
    monkeypatch.setenv(NODE_TYPES, told)
    with pytest.raises(InputError, match="SWEEPER_NODE_TYPES: must be Ray's available_node_types as JSON"):
        lane_count(GPU, "auto")


def test_only_nodes_with_the_labels_count(nodes):
    nodes([({"CPU": 4, "GPU": 2}, {"accelerator": "l4", "x": "y"}), ({"CPU": 4, "GPU": 4}, {"accelerator": "a100"})])
    shape = LaneShape(num_workers=1, resources_per_worker={"GPU": 1}, node_labels={"accelerator": "l4"})
    assert lane_count(shape, "auto") == 2
    missing = LaneShape(num_workers=1, resources_per_worker={"GPU": 1}, node_labels={"accelerator": "h100"})
    with pytest.raises(InputError, match=r"nodes with labels .*h100"):
        lane_count(missing, "auto")


def shapes(**labels):
    needs = {"num_workers": 1, "resources_per_worker": {"CPU": 1, "GPU": 1}}
    return {name: LaneShape(**needs, node_labels=asked) for name, asked in labels.items()}


def test_gpus_of_other_nodes_are_none_for_nodes_with_labels(nodes):
    nodes([({"CPU": 4}, {"kind": "plain"}), ({"CPU": 4, "GPU": 1}, {})], [({"CPU": 8, "GPU": 8}, 2)])
    assert worker_resources("auto", 1, {"kind": "plain"}) == {"CPU": 1.0}
    assert worker_resources("auto", 1, {"kind": "yet to come"}) == {"CPU": 1.0, "GPU": 1.0}
    assert worker_resources("auto", 1) == {"CPU": 1.0, "GPU": 1.0}


def test_models_with_labels_of_their_own_get_lanes_beside_each_other(nodes):
    l4, a100 = {"ray.io/accelerator-type": "L4"}, {"ray.io/accelerator-type": "A100"}
    nodes([({"CPU": 8, "GPU": 4}, l4), ({"CPU": 8, "GPU": 2}, a100)])
    assert lane_counts(shapes(small=l4, large=a100), "auto") == {"small": 4, "large": 2}
    assert lane_counts(shapes(any={}, large=a100), "auto") == {"any": 4, "large": 2}, "who can lie anywhere gives way"
    assert lane_counts(shapes(any={}), "auto") == {"any": 6}
    assert lane_counts(shapes(any={}, large=a100), 3) == {"any": 1, "large": 2}
    assert lane_counts(shapes(any={}, large=a100), "auto", {"any": 9, "large": 1}) == {"any": 5, "large": 1}
    with pytest.raises(InputError, match="node_labels: each set of labels must have a lane"):
        lane_counts(shapes(any={}, large=a100), 1)
    with pytest.raises(InputError, match=r"nodes with labels .*H100"):
        lane_counts(shapes(any={}, huge={"ray.io/accelerator-type": "H100"}), "auto")


def test_nodes_that_may_still_come_serve_every_group(nodes):
    nodes([({"CPU": 8, "GPU": 1}, {})], [({"CPU": 8, "GPU": 1}, 4)])
    assert lane_counts(shapes(any={}, other={"disk": "fast"}), "auto", {"any": 3, "other": 9}) == {"any": 3, "other": 4}


def test_workers_of_one_lane_lie_over_nodes_unless_they_must_not(nodes):
    nodes([({"CPU": 3}, {}), ({"CPU": 3}, {})])
    two = {"num_workers": 2, "resources_per_worker": {"CPU": 1}}
    assert lane_count(LaneShape(**two), "auto") == 3
    assert lane_count(LaneShape(**two, placement="STRICT_PACK"), "auto") == 2


def record(kind, model, *, is_final):
    state = TrialState.COMPLETE if is_final else TrialState.RUNNING
    return SimpleNamespace(spec=SimpleNamespace(kind=kind, model=model), state=state)


def test_work_left_counts_what_was_not_asked_yet_and_the_confirmation():
    budget = SimpleNamespace(num_trials=10)
    models = [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
    plan = SimpleNamespace(models=models, budget=budget, confirmation_seeds=(1, 3, 5))
    trials = {str(i): record(TrialKind.SEARCH, "ab"[i % 2], is_final=i < 4) for i in range(6)}
    assert work_left(plan, SimpleNamespace(frozen=None, trials=trials)) == {"a": 10 - 2 + 2 * 3, "b": 10 - 2 + 2 * 3}
    trials = {str(i): record(TrialKind.CONFIRM, "ab"[i % 2], is_final=i < 9) for i in range(12)}
    assert work_left(plan, SimpleNamespace(frozen=list(trials), trials=trials)) == {"a": 1, "b": 2}


def test_the_tail_tells_the_lanes_how_many_can_still_be_used():
    kept = []
    pool = SimpleNamespace(
        counts={"": 3, "big": 1}, keep=kept.append, group=lambda model: "big" if model == "c" else ""
    )
    left = iter([{"a": 3, "b": 2, "c": 1}, {"a": 2, "b": 2, "c": 1}, {"a": 1, "b": 1, "c": 1}])
    conductor = SimpleNamespace(take=lambda report: report == "ended", stopping=False)
    tail = Tail(conductor, pool, lambda: next(left))
    assert [tail.take("epoch"), tail.take("ended"), tail.take("epoch")] == [False, True, False]
    assert kept == [{"": 4, "big": 1}, {"": 2, "big": 1}]


async def _retired(keep):
    exchange = Exchange()
    for name in ("a", "b", "c"):
        await exchange.join(name, 0, 1, Joining(actor=None))
    await exchange.join("other", 0, 1, Joining(actor=None, lane_group="big"))
    await exchange.join("half", 0, 2, Joining(actor=None))  # its second worker waits for a node
    await exchange.acquire()
    told = await exchange.retire(keep)
    again = await exchange.retire(keep)
    await exchange.reclaim()
    assert await exchange.acquire("big") == "other", "lanes of another group are left alone"
    return told, again, len(exchange._free)


def test_only_idle_lanes_are_let_go_and_only_once():
    assert asyncio.run(_retired(2)) == (1, 0, 2)
    assert asyncio.run(_retired(1)) == (2, 0, 1)
    assert asyncio.run(_retired(0)) == (2, 0, 1), "the third is held by a trial"


async def _surplus():
    exchange = Exchange()
    await exchange.join("a", 0, 1, Joining(actor=None))
    await exchange.join("b", 0, 1, Joining(actor=None))
    held = [await exchange.acquire(), await exchange.acquire()]
    assert await exchange.retire(1) == 0, "trials hold both"
    await exchange.release(held[0])
    assert await exchange.next_command(held[0], 0) is None
    await exchange.release(held[1])
    assert exchange._free == [held[1]], "the last one stays"
    await exchange.join("late", 0, 1, Joining(actor=None))
    return await exchange.next_command("late", 0)


def test_a_lane_too_many_goes_as_soon_as_its_trial_leaves_it_or_it_gets_its_node():
    assert asyncio.run(asyncio.wait_for(_surplus(), 10)) is None


async def _late():
    exchange = Exchange()
    await exchange.dismiss()
    await exchange.join("late", 0, 1, Joining(actor=None))
    return await exchange.next_command("late", 0)


def test_a_lane_that_gets_its_node_after_the_end_is_told_to_end():
    assert asyncio.run(_late()) is None
