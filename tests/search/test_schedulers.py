from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.core.objective import Objective
from sweeper.core.trial import Decision
from sweeper.search.schedulers import (
    AshaPromotion,
    AshaStopping,
    Hyperband,
    MedianStopping,
    Promotion,
    make_stopping,
    settled_after,
)
from sweeper.spec.study import SchedulerSpec

OBJECTIVE = Objective("acc", "maximize")
TYPES = ["none", "median", "asha", "asha-promotion", "hyperband"]
ENDS = (None, None, None, True, False)  # most trials go on; some fail, some end


def new(kind, max_epochs=9, grace=0.3):
    return make_stopping(SchedulerSpec(type=kind, grace_fraction=grace), OBJECTIVE, max_epochs)


def test_the_rungs_begin_at_the_grace_and_grow_by_the_factor_up_to_half_of_the_budget():
    for kind in (AshaStopping, AshaPromotion, Hyperband):
        assert kind(OBJECTIVE, 27, 3, 0.1).rungs == (3, 9)
        assert kind(OBJECTIVE, 8, 3, 0.25).rungs == (2,)
        assert kind(OBJECTIVE, 12, 3, 0.1).rungs == (2, 6)
        assert kind(OBJECTIVE, 8, 3, 0.7).rungs == (6,), "asked for"
        assert kind(OBJECTIVE, 1, 3, 0.25).rungs == ()
    assert MedianStopping(OBJECTIVE, 8, 0.25).rungs == (2, 3, 4, 5, 6, 7)


def test_asha_keeps_the_best_third_and_spares_the_protected():
    asha = AshaStopping(OBJECTIVE, 9, 3, 0.3)
    assert asha.decide("a", 3, 0.5) is Decision.CONTINUE
    assert asha.decide("b", 3, 0.4) is Decision.STOP
    assert asha.decide("c", 3, 0.6) is Decision.CONTINUE
    assert asha.decide("d", 3, 0.1, protected=True) is Decision.CONTINUE
    assert asha.decide("e", 4, 0.0) is Decision.CONTINUE


def test_a_trial_waits_at_a_rung_until_it_is_the_best_and_fewer_than_a_third_have_passed():
    asha = AshaPromotion(OBJECTIVE, 9, 3, 0.3)
    assert asha.decide("default", 3, 0.1, protected=True) is Decision.CONTINUE
    assert asha.decide("a", 3, 0.5) is Decision.PAUSE
    assert asha.promote() is None
    assert asha.decide("b", 3, 0.4) is Decision.PAUSE
    assert asha.promote() == Promotion("a", 3)
    assert asha.promote() is None
    assert asha.decide("a", 3, 0.5) is Decision.CONTINUE, "told again after its promotion"
    assert [asha.decide(name, 3, value) for name, value in (("c", 0.3), ("d", 0.2))] == [Decision.PAUSE] * 2
    assert asha.decide("e", 3, 0.6) is Decision.CONTINUE, "it may pass on arrival"
    assert [asha.decide(name, 3, value) for name, value in (("f", 0.7), ("g", 0.8))] == [Decision.PAUSE] * 2, (
        "a third has"
    )
    assert asha.decide("h", 3, 0.1) is Decision.PAUSE
    assert asha.promote() == Promotion("g", 3)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=80), st.integers(2, 4))
def test_at_most_one_in_the_factor_passes_a_rung_however_much_suggestions_improve(events, factor):
    asha = AshaPromotion(OBJECTIVE, 9, factor, 0.3)
    passed = set()
    for arrived, (value, improves) in enumerate(events, 1):
        if asha.decide(str(arrived), 3, value + arrived * improves) is Decision.CONTINUE:
            passed.add(str(arrived))
        while (promotion := asha.promote()) is not None:
            assert promotion.trial_id not in passed
            passed.add(promotion.trial_id)
        assert len(passed) == arrived // factor, "no fewer either"


def test_a_search_that_ends_lets_half_of_each_rung_pass_and_at_least_its_best():
    asha = AshaPromotion(OBJECTIVE, 9, 3, 0.3)
    assert asha.decide("a", 3, 0.5) is Decision.PAUSE
    assert asha.promote(last=True) is None, "a better one may be under way"
    assert asha.promote(last=True, idle=True) == Promotion("a", 3)
    asha = AshaPromotion(OBJECTIVE, 9, 3, 0.3)
    on_arrival = [str(index) for index in range(9) if asha.decide(str(index), 3, -index) is Decision.CONTINUE]
    promoted = [asha.promote(last=True) for _ in range(5 - len(on_arrival))]
    assert promoted == [*(Promotion(str(index), 3) for index in range(4 - len(on_arrival))), None], "4 of 9 in all"


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60), st.integers(2, 4))
def test_the_epochs_that_are_left_are_those_that_the_end_of_a_search_trains(events, factor):
    asha = AshaPromotion(OBJECTIVE, 20, factor, 0.1)
    stops, values = [*asha.rungs, 20], [value for value, _ in events]

    def trained(index, since):
        """Train to where the trial pauses or ends; return the epochs it took."""
        for stop in (stop for stop in stops if stop > since):
            if stop == 20 or asha.decide(str(index), stop, values[index]) is Decision.PAUSE:
                return stop - since
        raise AssertionError

    for index, (_, is_promoted) in enumerate(events):
        trained(index, 0)
        if is_promoted and (promotion := asha.promote()) is not None:
            trained(int(promotion.trial_id), promotion.epoch)
    expected, total = asha.epochs_left([], 20), 0
    while (promotion := asha.promote(idle=True)) is not None:
        total += trained(int(promotion.trial_id), promotion.epoch)
    assert expected == total
    assert asha.epochs_left([], 20) == 0


def test_trials_under_way_are_counted_to_their_next_rung_or_to_their_end():
    asha = AshaPromotion(OBJECTIVE, 9, 3, 0.3)
    assert asha.epochs_left([], 9) == 0
    assert asha.epochs_left([(1, 0), (5, 0)], 9) == (3 - 1) + (9 - 3) + (9 - 5), "the first is the only one at its rung"
    assert asha.epochs_left([(0, 0)] * 4, 9) == 4 * 3 + 6, "one in three passes"
    assert asha.epochs_left([(0, 3), (2, math.inf), (9, 0)], 9) == 9 + 7, "rungs do not judge these"
    for kind in TYPES:
        assert new(kind).epochs_left([(8, 0)], 9) == 1
    assert new("asha").epochs_left([(1, 0), (5, 0)], 9) == 8 + 4


def test_a_promoted_trial_that_fails_gives_its_place_to_the_next_and_one_that_ended_is_not_promoted():
    asha = AshaPromotion(OBJECTIVE, 9, 3, 0.3)
    asha.decide("default", 3, 0.9, protected=True)
    for name, value in (("a", 0.5), ("b", 0.4), ("c", 0.3)):
        asha.decide(name, 3, value)
    assert asha.promote() == Promotion("a", 3)
    assert asha.promote() is None
    asha.ended("a", failed=True)
    asha.ended("b", failed=False)  # a limit ended it while it waited
    assert asha.promote() == Promotion("c", 3)
    asha.ended("default", failed=True)
    assert asha.promote() is None


def test_the_median_rule_stops_what_is_worse_than_half_of_five_others():
    rule = MedianStopping(OBJECTIVE, 4, 0.5)
    for index in range(5):
        assert rule.decide(f"t{index}", 2, index / 10) is Decision.CONTINUE
    assert rule.decide("worse", 2, 0.1) is Decision.STOP
    assert rule.decide("best-counts", 1, 0.9) is Decision.CONTINUE
    assert rule.decide("best-counts", 2, 0.0) is Decision.CONTINUE
    assert rule.decide("default", 2, 0.0, protected=True) is Decision.CONTINUE


def test_hyperband_compares_within_brackets_of_its_own_shares():
    band = Hyperband(OBJECTIVE, 27, 3, 0.1)
    names = [f"m-t{index:04d}" for index in range(900)]
    stopped = {3: 0, 9: 0}
    for value, name in enumerate(names):
        for rung in band.rungs:
            if band.decide(name, rung, -float(value)) is Decision.STOP:
                stopped[rung] += 1
                break
    # 9 of 18 trials can be stopped from the first rung on, 6 from the second, 3 never: here each is worse than all
    # before, so that all but the first of a bracket stop.
    assert stopped[3] == pytest.approx(450, abs=50)
    assert stopped[9] == pytest.approx(300, abs=50)


def test_a_trial_is_not_judged_before_warm_up_and_the_last_unfreezing():
    stages = {"stages": [{"from_epoch": 0}, {"from_epoch": 3}]}
    assert settled_after({"warmup_ratio": 0.5}, {}, 8) == 4.0
    assert settled_after({"warmup_ratio": 0.0}, stages, 8) == 3.0
    assert settled_after({}, {}, 10) == 1.0, "left out: the default of the hyperparameter, .1"


@pytest.mark.parametrize("kind", TYPES)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 9), st.floats(0, 1), st.booleans(), st.sampled_from(ENDS)),
        max_size=60,
    )
)
def test_early_stopping_is_rebuilt_by_repeating_what_it_saw_and_did(kind, events):
    live, again = new(kind), new(kind)
    for t, epoch, value, promotes, end in events:
        decision = live.decide(f"t{t}", epoch, value, protected=t == 0)
        assert again.decide(f"t{t}", epoch, value, protected=t == 0) is decision
        promotion = live.promote() if promotes else None
        if promotion is not None:
            again.promoted(promotion)
        assert live.decide(f"t{t}", epoch, value / 2) is again.decide(f"t{t}", epoch, value / 2), "a second telling"
        if end is not None:
            live.ended(f"t{t}", failed=end)
            again.ended(f"t{t}", failed=end)
    assert live.promote() == again.promote()
    assert live.promote(last=True) == again.promote(last=True)
    assert live.promote(last=True, idle=True) == again.promote(last=True, idle=True)


def test_the_expected_epochs_follow_the_rungs():
    assert new("none").expected_epochs(9) == 9
    assert new("asha").expected_epochs(9) == 3 + 6 / 3
    assert new("asha-promotion").expected_epochs(9) == 3 + 6 / 2, "half pass in the end"
    assert 5 < new("hyperband").expected_epochs(9) < 9
    assert new("median").expected_epochs(9) == 6
