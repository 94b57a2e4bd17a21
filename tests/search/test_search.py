from __future__ import annotations

import json
import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, Float, Int, SearchSpace
from sweeper.core.trial import Measurement, TrialRecord, TrialSpec, TrialState
from sweeper.search import samplers
from sweeper.search.samplers import ModelSearch
from sweeper.search.surrogate import Surrogate

SPACE = SearchSpace(
    parameters=(
        Float(name="learning_rate", low=1e-5, high=1e-1, log=True),
        Categorical(name="unfreezing", choices=("full", "last_blocks")),
        Int(name="num_unfrozen_blocks", low=1, high=4, when={"unfreezing": ("last_blocks",)}),
        Categorical(name="batch_size", choices=(8, 16)),
    ),
    default={"learning_rate": 1e-3, "unfreezing": "full", "batch_size": 8},
)
OBJECTIVE = Objective("acc", "maximize")


def new(sampler):
    ahead = sampler == "auto, ahead"
    settings = {"space": SPACE, "objective": OBJECTIVE, "study_seed": 3, "max_epochs": 3, "ahead": ahead}
    return ModelSearch(model="m", sampler=sampler.removesuffix(", ahead"), **settings)


def record(number, params, state, value):
    """A trial that reached all of three epochs when complete, one or two when stopped, one when it failed."""
    spec = TrialSpec(trial_id=f"t{number}", number=number, model="m", params=params, seed=0, max_epochs=3)
    epochs = {TrialState.COMPLETE: 3, TrialState.PRUNED: 1 + number % 2}.get(state, 1)
    measured = tuple(
        Measurement(
            epoch=epoch, train_loss=1.0, validation_loss=1.0, metrics={"acc": value}, elapsed_seconds=float(epoch)
        )
        for epoch in range(1, epochs + 1)
    )
    final = value if state is TrialState.COMPLETE else None
    return TrialRecord(spec=spec, state=state, value=final, measurements=measured)


ENDS = st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.INFEASIBLE])
VALUES = st.one_of(st.floats(-10, 10), st.just(math.nan))


def play(search, events):
    """Ask and tell along ``events``: (state, value, trials that stay open before the end is told)."""
    records, attributes, log, waiting = [], {}, [], []
    for number, (state, value, delay) in enumerate(events):
        asked = search.ask(number)
        made = record(number, asked.params, state, value)
        records.append(made)
        attributes[made.spec.trial_id] = json.loads(json.dumps(asked.attributes))
        log.append(("asked", made.spec.trial_id, 0))
        waiting.append(made)
        while len(waiting) > delay:
            done = waiting.pop(0)
            search.tell(done)
            log.append(("ended", done.spec.trial_id, 0))
    return records, attributes, log


# Enough completed trials that every sampler models what it knows; before that all of them draw blindly.
BEGINNING = [(TrialState.COMPLETE, 0.1 * ((7 * n) % 12), 0) for n in range(12)]


SAMPLERS = ("auto", "tpe", "random", "qmc", "gp", "cmaes")
EVENTS = st.lists(st.tuples(ENDS, VALUES, st.integers(0, 3)), min_size=0, max_size=10)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "auto, ahead"])
def test_a_replayed_search_suggests_what_the_live_one_does(sampler, monkeypatch):
    monkeypatch.setattr(samplers, "AHEAD_FROM", 8)

    @settings(max_examples=3 if sampler == "gp" else 10, deadline=None)
    @given(st.booleans(), EVENTS)
    def check(begun, events):
        events = [*BEGINNING, *events] if begun else events
        live = new(sampler)
        records, attributes, log = play(live, events)
        again = new(sampler)
        again.replay(records, attributes, log)
        following = range(len(events), len(events) + 2)
        assert [again.ask(n).params for n in following] == [live.ask(n).params for n in following]

    check()


def test_a_suggestion_ahead_of_need_knows_what_was_known_when_the_one_before_was_asked(monkeypatch):
    monkeypatch.setattr(samplers, "AHEAD_FROM", 8)
    threads, suggest = [], Surrogate.suggest

    def spied(self, seed):
        threads.append(threading.current_thread().name.split("_")[0])
        return suggest(self, seed)

    monkeypatch.setattr(Surrogate, "suggest", spied)
    ahead, late, untold = new("auto, ahead"), new("auto"), []
    for number in range(15):
        while untold and number < 8:
            late.tell(untold.pop())
        params = ahead.ask(number).params
        assert late.ask(number).params == params
        while untold:
            late.tell(untold.pop())
        value = -abs(math.log10(params["learning_rate"]) + 2.5)
        untold = [record(number, params, TrialState.COMPLETE, value)]
        ahead.tell(untold[0])
    # 8, 10, 11, 12, 14 and, never asked for, 15; at once: 6 and 7 of both, and what `late` had to wait for.
    assert [threads.count(name) for name in ("suggestion", "MainThread")] == [6, 9]


def test_every_fourth_suggestion_of_the_default_is_spread_whatever_was_found():
    found = []
    for sign in (1, -1):
        events = [(TrialState.COMPLETE, sign * value, 0) for _, value, _ in BEGINNING + BEGINNING]
        records, _, _ = play(new("auto"), events)
        found.append([record.spec.params for record in records])
    same = {number for number, (one, other) in enumerate(zip(*found, strict=True)) if one == other}
    assert same == {0, 1, 2, 3, 4, 5, 9, 13, 17, 21}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pruned_trials_are_never_told_as_complete_and_nothing_ended_stays_running(sampler, monkeypatch):
    """Neither to Optuna nor to the surrogate, whatever happened."""
    shown = []

    def spied(**problem):
        shown.append(list(problem["observed"]))
        return Surrogate(**problem)

    monkeypatch.setattr(samplers, "Surrogate", spied)

    @settings(max_examples=3 if sampler == "gp" else 12, deadline=None)
    @given(EVENTS)
    def check(events):
        shown.clear()
        search = new(sampler)
        records, _, log = play(search, events)
        ended = [r for r in records if ("ended", r.spec.trial_id, 0) in log]
        finite = {r.spec.number: math.isfinite(r.measurements[0].metrics["acc"]) for r in ended}
        states = [trial.state.name for trial in search.optuna_study.get_trials(deepcopy=False)]
        assert states.count("COMPLETE") == sum(r.state is TrialState.COMPLETE and finite[r.spec.number] for r in ended)
        assert states.count("PRUNED") == sum(r.state is TrialState.PRUNED and finite[r.spec.number] for r in ended)
        assert states.count("RUNNING") == len(records) - len(ended)
        for observed in shown:
            for trial, made in zip(observed, ended, strict=False):  # `ended` is in the order of telling
                reached = made.measurements[-1].epoch if finite[made.spec.number] else 0
                assert set(trial.losses) == set(range(1, reached + 1))
                assert (3 in trial.losses) <= (made.state is TrialState.COMPLETE)
                assert trial.failed == (made.state not in (TrialState.COMPLETE, TrialState.PRUNED) or not reached)

    check()


def test_the_first_suggestion_is_the_default_and_conditions_hold():
    search = new("tpe")
    assert search.ask(0).params == SPACE.default
    for number in range(1, 30):
        params = search.ask(number).params
        assert ("num_unfrozen_blocks" in params) == (params["unfreezing"] == "last_blocks")


def test_a_configuration_is_not_suggested_twice_while_others_are_left():
    space = SearchSpace(
        parameters=(Categorical(name="batch_size", choices=(8, 16, 32, 64)),), default={"batch_size": 8}
    )
    search = ModelSearch(model="m", space=space, objective=OBJECTIVE, study_seed=0, sampler="random", max_epochs=3)
    assert {search.ask(number).params["batch_size"] for number in range(4)} == {8, 16, 32, 64}
    assert search.ask(4) is None


@pytest.mark.parametrize("sampler", ["auto", "tpe", "cmaes"])
def test_points_come_after_the_default_and_what_repeats_is_passed_over(sampler):
    points = [dict(SPACE.default), {"learning_rate": 1e-2, "unfreezing": "full", "batch_size": 16}]
    settings = {"model": "m", "space": SPACE, "objective": OBJECTIVE, "study_seed": 3, "max_epochs": 3}
    live, again = (ModelSearch(**settings, sampler=sampler, points=points) for _ in range(2))
    asked = [live.ask(number) for number in range(3)]
    assert asked[1].params == points[1]
    assert asked[2].params not in points
    records = [record(number, each.params, TrialState.COMPLETE, 0.5) for number, each in enumerate(asked)]
    again.replay(
        records, {f"t{n}": each.attributes for n, each in enumerate(asked)}, [("asked", "t0", 0), ("asked", "t1", 0)]
    )
    assert again.ask(2).params == asked[2].params
