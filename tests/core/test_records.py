from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from sweeper.core.errors import ChangedWorldError, InputError, Problem
from sweeper.core.objective import Objective
from sweeper.core.seeds import confirmation_seed, derive_seed, search_seed
from sweeper.core.selection import best_trial
from sweeper.core.space import Categorical, Float, SearchSpace
from sweeper.core.trial import Measurement, TrialRecord, TrialSpec, TrialState


@given(st.integers(0, 2**31), st.text(), st.integers(0, 10_000), st.integers(0, 10_000))
def test_confirmation_seeds_are_never_search_seeds(seed, model, number, index):
    assert search_seed(seed, model, number) != confirmation_seed(seed, index)
    assert 0 <= confirmation_seed(seed, index) < 2**31


def test_seeds_depend_on_types_and_borders_of_their_parts():
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
    assert derive_seed(1) != derive_seed("1")


def test_a_problem_is_one_line_whatever_the_value_holds():
    problem = Problem("study.yaml:1:1 name", "must be safe", "a\nb\r\n" + "x" * 500, "rename it")
    assert "\n" not in str(problem)
    assert len(str(problem)) < 250


def test_input_errors_cross_process_borders_whole():
    error = ChangedWorldError([Problem("a", "b"), Problem("c", "d")])
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, InputError)
    assert copy.problems == error.problems


def _trial(number, value, validation_loss, state=TrialState.COMPLETE):
    spec = TrialSpec(trial_id=f"t{number}", number=number, model="m", params={}, seed=0, max_epochs=1)
    measured = Measurement(
        epoch=1, train_loss=0.0, validation_loss=validation_loss, metrics={"acc": value}, elapsed_seconds=0.0
    )
    return TrialRecord(spec=spec, state=state, value=value, measurements=(measured,))


def test_ties_go_to_the_lower_validation_loss_then_to_the_earlier_trial():
    objective = Objective("acc", "maximize")
    trials = [_trial(0, 0.5, 0.3), _trial(1, 0.9, 0.2), _trial(2, 0.9, 0.1), _trial(3, 0.9, 0.1)]
    assert best_trial(trials, objective).spec.number == 2


def test_pruned_trials_are_never_the_best():
    assert best_trial([_trial(0, 0.9, 0.1, TrialState.PRUNED)], Objective("acc", "maximize")) is None


def test_inactive_parameters_are_removed_and_chains_of_conditions_hold():
    space = SearchSpace(
        parameters=(
            Categorical(name="a", choices=("x", "y")),
            Categorical(name="b", choices=(1, 2), when={"a": ("x",)}),
            Float(name="c", low=0, high=1, when={"b": (2,)}),
        ),
        default={"a": "y"},
    )
    assert space.active({"a": "y", "b": 2, "c": 0.5}) == {"a": "y"}
    assert space.active({"c": 0.5, "b": 2, "a": "x"}) == {"a": "x", "b": 2, "c": 0.5}


def test_boundary_flags_use_the_parameters_own_scale():
    rate = Float(name="r", low=1e-6, high=1e-2, log=True)
    assert rate.boundary(9e-3) == "high"
    assert rate.boundary(1.2e-6) == "low"
    assert rate.boundary(1e-4) is None
