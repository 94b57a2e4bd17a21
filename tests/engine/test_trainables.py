"""Tune's actors and the exchange together without Ray: each actor in a thread, the exchange on a loop of its own.

And what becomes of a Tune run that loses an actor, by Tune's own code for that.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import Mock

import lanework
import pytest
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.search.search_generator import SearchGenerator

from sweeper.core.trial import TrialSpec
from sweeper.engine import tune
from sweeper.engine.exchange import NOBODY, Exchange, Joining
from sweeper.engine.lanes import _guarded
from sweeper.engine.messages import Assignment, Leave
from sweeper.engine.tune import LaneTrainable, run_assignments


class Handle:
    """What a handle of the exchange's actor does: calls become futures of its loop."""

    def __init__(self, exchange, loop):
        self.exchange, self.loop = exchange, loop

    def __getattr__(self, method):
        call = getattr(self.exchange, method)
        remote = lambda *arguments: asyncio.run_coroutine_threadsafe(call(*arguments), self.loop)  # noqa: E731
        return type("Method", (), {"remote": staticmethod(remote)})


@pytest.fixture
def exchange(monkeypatch):
    """The exchange as actors see it, with one lane; and that lane's worker."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    handle, worker = Handle(Exchange(), loop), lanework.Remembers()

    async def serve():
        await handle.exchange.join("lane", 0, 1, Joining(actor=None, node="node"))
        while (item := await handle.exchange.next_command("lane", 0)) is not None:
            token, command = item
            await handle.exchange.reply("lane", 0, token, _guarded(worker, command, 1))

    served = asyncio.run_coroutine_threadsafe(serve(), loop)
    monkeypatch.setattr(tune.ray, "get", lambda future: future.result(10))
    yield handle, worker
    handle.dismiss.remote().result(10)
    served.result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def config(name):
    trial = TrialSpec(trial_id=name, number=0, model="m", params={}, seed=0, max_epochs=lanework.EPOCHS)
    return {"assignment": Assignment(trial), "max_retries": 2, "epoch_timeout_seconds": 10.0, "group_of": {}}


def actor(handle, name):
    """A Tune actor with its first trial, as `setup` leaves it."""
    made = LaneTrainable.__new__(LaneTrainable)
    made._exchange, made._lane, made._holder, made._arrived = handle, None, NOBODY, True
    made.reset_config(config(name))
    return made


def steps(trainable):
    return [trainable.step()["report"].outcome.measurement.epoch for _ in range(lanework.EPOCHS)]


def test_one_lane_serves_two_actors_of_which_the_first_has_nothing_more_to_do(exchange):
    handle, worker = exchange
    first, second = actor(handle, "a"), actor(handle, "b")
    with ThreadPoolExecutor() as pool:
        assert first.step()["report"].outcome.measurement.epoch == 1
        waiting = pool.submit(steps, second)
        assert [first.step()["report"].outcome.measurement.epoch for _ in range(2)] == [2, 3]
        assert not waiting.done()
        handle.finish.remote("a").result(10)  # the driver has heard of its end
        assert waiting.result(10) == [1, 2, 3]
    handle.finish.remote("b").result(10)
    first.reset_config(config("c"))
    assert steps(first) == [1, 2, 3]
    told = len(worker.told)
    second.cleanup()
    assert len(worker.told) == told, "what an actor leaves late is no longer its own"
    first.cleanup()
    assert worker.told[-1] == Leave(snapshot=True)


def test_an_actor_goes_on_with_the_next_trial_before_or_after_the_driver_has_freed_its_lane(exchange):
    handle, _ = exchange
    one = actor(handle, "a")
    for name in "bcdefg":
        assert steps(one) == [1, 2, 3]
        if name in "bdf":
            handle.finish.remote(one._assignment.trial.trial_id).result(10)
        one.reset_config(config(name))
        handle.finish.remote("nobody").result(10)
    one.cleanup()


class OneTrial:
    """A conductor with one assignment; whoever takes a report ends it."""

    stopping = False

    def __init__(self):
        self.waiting, self.given, self.taken = [config("a")["assignment"]], 0, 0

    def next(self):
        self.given += bool(self.waiting)
        return self.waiting.pop() if self.waiting else "done"

    def take(self, report):
        self.taken += 1
        return True

    def lost(self, assignment):
        self.waiting.append(assignment)


def test_a_run_that_loses_an_actor_is_taken_over_by_a_fresh_one_without_a_callback_of_tune(monkeypatch, tmp_path):
    runs = []

    class Tuner:
        """Asks for a trial, whose actor dies in the first run and reports in the second."""

        def __init__(self, trainable, *, tune_config, run_config):
            runs.append(run_config)
            self.searcher, self.stopper = tune_config.search_alg, run_config.stop

        def fit(self):
            assert "assignment" in self.searcher.suggest("one")
            if len(runs) == 1:
                trial = Mock(trial_id="one", status=Trial.RUNNING)
                trial.should_recover.return_value = False
                controller = Mock(_search_alg=SearchGenerator(self.searcher))
                TuneController._process_trial_failure(controller, trial, RuntimeError("the actor died"))
                assert self.stopper.stop_all()
            else:
                assert self.stopper("one", {"report": Mock(trial_id="a")})
                assert not self.stopper.stop_all()

    monkeypatch.setattr(tune.tune, "Tuner", Tuner)
    lanes = SimpleNamespace(exchange_name="e", count=1, group_of={}, failure=None, reclaim=Mock(), finish=Mock())
    conductor, restarts = OneTrial(), []
    run_assignments(
        lanes, conductor, scratch=tmp_path, max_retries=0, epoch_timeout_seconds=1.0, on_restart=restarts.append
    )
    assert (len(runs), conductor.given, conductor.taken, len(restarts)) == (2, 2, 1, 1)
    assert not any(run.callbacks for run in runs), "to count whose callback one is, Tune imports wandb into the driver"
