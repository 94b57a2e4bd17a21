"""Search, promotion and replay on simulated lanes: real conductors, searchers, rungs and ledger; no training."""

from __future__ import annotations

import math
import random

import pytest

from sweeper.core.budget import Budget
from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, Float, Int, SearchSpace
from sweeper.core.trial import Measurement, TrialState
from sweeper.plan.plan import ModelPlan, StudyPlan
from sweeper.spec.study import SchedulerSpec, SearchSpec
from sweeper.store.state import StudyState
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import resumed_search
from sweeper.workflows.simulate import MemoryLedger, SimulatedLanes

OBJECTIVE = Objective("acc", "maximize")
SPACE = SearchSpace(
    parameters=(
        Float(name="learning_rate", low=1e-5, high=1e-1, log=True),
        Categorical(name="unfreezing", choices=("full", "gradual")),
        Int(name="epochs_per_stage", low=1, high=2, when={"unfreezing": ("gradual",)}),
        Float(name="warmup_ratio", low=0.0, high=0.5),
    ),
    default={"learning_rate": 1e-3, "unfreezing": "full", "warmup_ratio": 0.1},
)
EPOCHS = 9


def curve(trial):
    rng = random.Random(trial.seed)
    best = 0.9 - 0.1 * (math.log10(trial.params.get("learning_rate", 1e-3)) + 3) ** 2 + rng.gauss(0, 0.02)
    for epoch in range(1, trial.max_epochs + 1):
        value = best * (1 - math.exp(-epoch / 2)) + rng.gauss(0, 0.01)
        yield Measurement(
            epoch=epoch, train_loss=1.0, validation_loss=1 - value, metrics={"acc": value}, elapsed_seconds=epoch
        )


class SimulatedTime(Book):
    """A book whose wall clock is that of the simulated lanes."""

    @property
    def session_seconds(self):
        return self.simulated.clock


def search(
    kind,
    events=(),
    *,
    trials=12,
    lanes=1,
    space=SPACE,
    sampler="random",
    models=("a", "b"),
    epochs=EPOCHS,
    room=None,
    device_hours=None,
    seconds=None,
    **scheduler,
):
    scheduler = scheduler or {"grace_fraction": 0.12, "reduction_factor": 2}
    spec = SearchSpec(
        num_trials=trials, max_epochs=epochs, sampler=sampler, scheduler=SchedulerSpec(type=kind, **scheduler)
    )
    plan = StudyPlan(
        name="s",
        seed=0,
        models=tuple(ModelPlan(name=name, checkpoint="", weights="", space=space) for name in models),
        budget=Budget(
            num_trials=trials, max_epochs=epochs, device_hours_per_model=device_hours, time_budget_seconds=seconds
        ),
        confirmation_seeds=(),
        content={},
    )
    ledger = MemoryLedger(events)
    state = StudyState.replay(ledger.events())
    simulated = SimulatedLanes(curve, lanes)
    book = SimulatedTime(ledger, state, OBJECTIVE, 1)
    book.simulated = simulated
    simulated.serve(resumed_search(book, plan, spec, lambda: False, lanes, room))
    return list(ledger.events()), state, simulated


def outcome(state):
    return [(r.spec, r.state, r.value, r.reason, r.measurements) for r in state.trials.values()]


@pytest.mark.parametrize("kind", ["none", "median", "asha", "asha-promotion", "hyperband"])
def test_every_trial_ends_and_every_model_gets_the_same_number(kind):
    for lanes in (1, 3):
        _, state, _ = search(kind, lanes=lanes)
        assert all(record.state in (TrialState.COMPLETE, TrialState.PRUNED) for record in state.trials.values())
        assert not state.paused
        assert [record.spec.model for record in state.trials.values()].count("a") == len(state.trials) / 2 == 12
        assert state.trials["a-t0000"].state is TrialState.COMPLETE, "the default is never stopped"
        assert sum(r.state is TrialState.COMPLETE for r in state.trials.values() if r.spec.model == "b") >= 2


@pytest.mark.parametrize("kind", ["none", "asha-promotion", "hyperband"])
def test_no_more_trials_run_at_once_than_a_model_has_lanes(kind):
    """Two lanes take ``a`` and ``c``, one takes ``b``; all three could be taken by anyone else."""
    group_of, most = {"a": "x", "b": "y", "c": "x"}, {"x": 2, "y": 1}

    def room(model, running):
        busy = [group_of[other] for other in running]
        assert busy.count("x") <= 2
        assert busy.count("y") <= 1
        return busy.count(group_of[model]) < most[group_of[model]]

    _, state, simulated = search(kind, lanes=3, models=("a", "b", "c"), room=room)
    models = [record.spec.model for record in state.trials.values()]
    assert [models.count(name) for name in "abc"] == [12, 12, 12]
    assert all(record.state.is_final for record in state.trials.values())
    assert kind != "none" or simulated.clock == 12 * EPOCHS, "no lane is idle"


@pytest.mark.parametrize("kind", ["median", "asha-promotion", "hyperband"])
def test_a_search_that_died_after_any_event_goes_on_as_if_it_had_not(kind):
    events, state, _ = search(kind, trials=7)
    assert kind != "asha-promotion" or sum(event.kind == "trial_promoted" for event in events) >= 2
    for length in range(0, len(events), 3 if kind == "asha-promotion" else 13):
        _, again, _ = search(kind, events[:length], trials=7)
        assert outcome(again) == outcome(state), f"died after event {length}"


def test_with_several_lanes_too_a_search_that_died_begins_the_trial_that_it_was_thinking_of(monkeypatch):
    monkeypatch.setattr("sweeper.search.samplers.AHEAD_FROM", 8)
    settings = {"trials": 16, "lanes": 3, "sampler": "auto", "models": ("a",)}
    events, state, _ = search("asha-promotion", **settings)
    compared = 0
    for length in range(40, len(events), 12):
        number = sum(event.kind == "trial_asked" for event in events[:length])
        if 8 <= number < 16:
            _, again, _ = search("asha-promotion", events[:length], **settings)
            name = f"a-t{number:04d}"
            assert again.trials[name].spec == state.trials[name].spec, f"died after event {length}"
            compared += 1
    assert compared >= 5


def test_a_pause_torn_off_its_measurement_by_a_death_does_no_harm():
    events, *_ = search("asha-promotion", trials=24, lanes=6)
    pauses = [at for at, event in enumerate(events) if event.kind == "trial_paused"]
    assert len(pauses) > 10
    for at in pauses:
        _, state, _ = search("asha-promotion", events[:at], trials=24, lanes=6)
        assert len(state.trials) == 48
        for record in state.trials.values():
            assert record.state in (TrialState.COMPLETE, TrialState.PRUNED), record
            assert [m.epoch for m in record.measurements] == list(range(1, len(record.measurements) + 1))


def test_a_paused_trial_frees_its_lane_and_is_not_trained_again():
    events, state, simulated = search("asha-promotion", trials=16)
    trained = sum(record.measurements[-1].elapsed_seconds for record in state.trials.values())
    assert simulated.clock == trained
    started = [event.payload for event in events if event.kind == "segment_started"]
    promoted = {event.payload["trial_id"] for event in events if event.kind == "trial_promoted"}
    assert {p["trial_id"] for p in started if p["from_epoch"] > 0} == promoted
    assert all(record.num_retries == 0 for record in state.trials.values())


@pytest.mark.parametrize("trials", [8, 16, 40])
def test_few_and_short_trials_still_leave_a_quarter_to_choose_among(trials):
    """The default early stopping in a typical fine-tuning study: the winner is chosen among complete trials alone."""
    default = SchedulerSpec()
    space = SearchSpace(parameters=SPACE.parameters[:1], default={"learning_rate": 1e-3})
    for epochs in range(4, 11):
        for lanes in (1, 4):
            _, state, _ = search(
                default.type,
                trials=trials,
                lanes=lanes,
                space=space,
                models=("a",),
                epochs=epochs,
                grace_fraction=default.grace_fraction,
                reduction_factor=default.reduction_factor,
            )
            complete = [r for r in state.trials.values() if r.state is TrialState.COMPLETE and r.spec.number > 0]
            assert len(complete) >= trials // 4, f"{epochs} epochs"
            best = max(
                state.trials.values(), key=lambda r: next(m.metrics["acc"] for m in r.measurements if m.epoch == 2)
            )
            assert best.state is TrialState.COMPLETE, "the best at the first rung is one of them"


def test_the_trials_that_pass_at_the_end_of_a_search_share_all_lanes():
    space = SearchSpace(parameters=SPACE.parameters[:1], default={"learning_rate": 1e-3})
    for models in (("a",), ("a", "b")):
        events, state, simulated = search(
            "asha-promotion", trials=32, lanes=8, space=space, models=models, reduction_factor=3, grace_fraction=0.12
        )
        for model in models:
            mine = [record for record in state.trials.values() if record.spec.model == model]
            complete = sum(record.state is TrialState.COMPLETE for record in mine)
            assert complete == 1 + 16, "the default and half of all"
        trained = sum(len(record.measurements) for record in state.trials.values())
        assert trained > 0.8 * 8 * simulated.clock
        assert sum(event.kind == "trial_promoted" for event in events) >= 8


@pytest.mark.parametrize("kind", ["none", "median", "asha", "asha-promotion", "hyperband"])
@pytest.mark.parametrize("limit", ["device_hours", "seconds"])
def test_a_search_that_a_limit_ends_cuts_no_trial_off(kind, limit):
    """The default early stopping at its usual rungs: what is begun is brought to the end that it would have come to."""
    space = SearchSpace(parameters=SPACE.parameters[:1], default={"learning_rate": 1e-3})
    for lanes in (1, 3):
        full = 24 * EPOCHS * (1 if limit == "device_hours" else 2 / lanes)  # seconds of 24 trials of each model
        _, state, simulated = search(
            kind,
            trials=10**6,
            lanes=lanes,
            space=space,
            reduction_factor=3,
            grace_fraction=0.12,
            **{limit: full / 3600 if limit == "device_hours" else full},
        )
        assert not any("used up" in record.reason for record in state.trials.values())
        trained = [
            sum(len(record.measurements) for record in state.trials.values() if record.spec.model == model)
            for model in "ab"
        ]
        assert sum(trained) <= 2 * 24 * EPOCHS
        assert min(trained) > 0.8 * 24 * EPOCHS, "nor is much of the limit left"
        assert limit == "device_hours" or simulated.clock <= full
        if kind == "asha-promotion":
            complete = sum(record.state is TrialState.COMPLETE for record in state.trials.values())
            assert complete >= 0.9 * len(state.trials) / 3


def test_no_trial_is_judged_before_its_warm_up_has_ended():
    _, state, _ = search("asha", trials=40)
    for record in state.trials.values():
        assert len(record.measurements) > record.spec.params["warmup_ratio"] * EPOCHS
    assert any(len(record.measurements) == 2 for record in state.trials.values())


def test_a_space_that_is_exhausted_ends_the_search_of_its_model_and_says_so():
    space = SearchSpace(parameters=(Categorical(name="batch_size", choices=(8, 16, 32)),), default={"batch_size": 16})
    for sampler in ("random", "tpe", "auto"):
        events, state, _ = search("none", space=space, sampler=sampler)
        assert len(state.trials) == 6
        assert state.search_ends == dict.fromkeys("ab", "all 3 different configurations of the space were tried")
        _, again, _ = search("none", events, space=space, sampler=sampler)
        assert outcome(again) == outcome(state)
