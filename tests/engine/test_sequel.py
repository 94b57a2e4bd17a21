"""Several phases served by one run: each conductor begins when the one before it is done."""

from __future__ import annotations

import pytest

from sweeper.core.errors import RunFailedError
from sweeper.core.trial import TrialSpec
from sweeper.engine.messages import Assignment, StepReport
from sweeper.engine.tune import Sequel


class Phase:
    """Hands out its trials one by one, waits for them, and is done."""

    def __init__(self, name, count, log):
        self.waiting = [
            TrialSpec(trial_id=f"{name}{i}", number=i, model="m", params={}, seed=i, max_epochs=1) for i in range(count)
        ]
        self.running = set()
        self.log = log
        self.stopping = False

    def next(self):
        if not self.waiting:
            return "wait" if self.running else "done"
        trial = self.waiting.pop(0)
        self.running.add(trial.trial_id)
        return Assignment(trial)

    def take(self, report):
        self.running.remove(report.trial_id)
        self.log.append(report.trial_id)
        return True

    def lost(self, assignment):
        self.running.remove(assignment.trial.trial_id)
        self.waiting.append(assignment.trial)


def report(assignment):
    return StepReport(trial_id=assignment.trial.trial_id, attempt=0, outcome=None)


def test_a_phase_is_made_when_the_one_before_has_ended():
    log, made = [], []

    def phases():
        for name, count in (("a", 2), ("b", 0), ("c", 1)):
            made.append(name)
            yield Phase(name, count, log)

    sequel = Sequel(phases())
    first, second = sequel.next(), sequel.next()
    assert sequel.next() == "wait"
    assert made == ["a"]
    sequel.take(report(first))
    sequel.lost(second)
    again = sequel.next()
    assert again.trial.trial_id == "a1"
    sequel.take(report(again))
    last = sequel.next()
    assert (last.trial.trial_id, made) == ("c0", ["a", "b", "c"])
    sequel.take(report(last))
    assert sequel.next() == "done"
    assert sequel.next() == "done"
    assert log == ["a0", "a1", "c0"]


def test_a_stop_makes_no_further_phase():
    phase = Phase("a", 1, [])

    def phases():
        yield phase
        raise AssertionError("made although everything stops")

    sequel = Sequel(phases())
    sequel.take(report(sequel.next()))
    phase.stopping = True
    assert sequel.stopping
    assert sequel.next() == "done"


def test_what_making_a_phase_raises_ends_the_whole():
    def phases():
        yield Phase("a", 0, [])
        raise RunFailedError("nothing to confirm")

    with pytest.raises(RunFailedError, match="nothing to confirm"):
        Sequel(phases()).next()
