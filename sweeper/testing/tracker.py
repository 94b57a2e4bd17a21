"""What every tracker must do. Subclass `TrackerConformance`, give it a tracker and a reader of what it wrote.

class TestMine(TrackerConformance):
def make(self, root): return MyTracker(...)
def epochs(self, root): return {"bert-t0000": [1, 2], ...}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sweeper.core.objective import Objective
from sweeper.core.space import Params
from sweeper.core.trial import Measurement, TrialKind, TrialRecord, TrialSpec, TrialState
from sweeper.track.base import StudyInfo, StudyReport, TrackedTrial, Tracker

OBJECTIVE = Objective("accuracy", "maximize")


def study_info(root: Path) -> StudyInfo:
    """Return a small study of one model."""
    return StudyInfo(
        name="conformance",
        key="k" * 64,
        objective=OBJECTIVE,
        config={"task": {"type": "text-classification"}, "fingerprints": {"data": "d" * 8}},
        models={"bert": {"checkpoint": "bert", "weights": "w" * 8}},
        rungs=(1, 2),
        root=root,
    )


def life_of(number: int, last: TrialState, *, num_epochs: int = 3) -> list[TrackedTrial]:
    """Return every state of a trial from WAITING to ``last``, as a tracker is told them."""
    name = f"bert-t{number:04d}"
    params: Params = {"learning_rate": 10.0 ** -(number + 2), "unfreezing": "full", "frozen": number % 2 == 0}
    spec = TrialSpec(trial_id=name, number=number, model="bert", params=params, seed=2 * number, max_epochs=num_epochs)
    record = TrialRecord(spec=spec)
    states = [TrackedTrial(record=record)]
    record = replace(record, state=TrialState.RUNNING, started_at=100.0, node="n", effective={"learning_rate": 1e-3})
    states.append(TrackedTrial(record=record))
    for epoch in range(1, num_epochs + 1):
        record = replace(record, measurements=(*record.measurements, _measurement(epoch, number)))
        states.append(TrackedTrial(record=record))
    value = max(m.metrics["accuracy"] for m in record.measurements) if last is TrialState.COMPLETE else None
    record = replace(
        record, state=last, value=value, best_epoch=num_epochs, finished_at=130.0, elapsed_seconds=3.0, reason=""
    )
    return [*states, TrackedTrial(record=record)]


def _measurement(epoch: int, number: int) -> Measurement:
    return Measurement(
        epoch=epoch,
        train_loss=1 / epoch,
        validation_loss=1 / epoch,
        metrics={"accuracy": 0.5 + epoch / 10 + number / 100},
        elapsed_seconds=float(epoch),
    )


def confirmation(*, tested: bool) -> TrackedTrial:
    """Return a confirmation run that has ended, before or after its test."""
    trial = life_of(7, TrialState.COMPLETE)[-1].record
    spec = replace(trial.spec, trial_id="bert-tuned-c00", kind=TrialKind.CONFIRM, config="tuned", seed=1)
    return TrackedTrial(record=replace(trial, spec=spec), test={"accuracy": 0.6} if tested else None)


class TrackerConformance(ABC):
    """The checks; pytest collects them in the subclass."""

    @abstractmethod
    def make(self, root: Path) -> Tracker:
        """Return a new tracker that writes into ``root``."""

    @abstractmethod
    def epochs(self, root: Path) -> dict[str, list[int]]:
        """Return the epochs that the service holds, in order, by trial; each as often as it is there."""

    def test_every_trial_and_every_epoch_is_there_once(self, tmp_path: Path) -> None:
        """Live: every state of every trial is told."""
        lives = [life_of(0, TrialState.COMPLETE), life_of(1, TrialState.PRUNED, num_epochs=1), _failed(2)]
        self._session(tmp_path, [state for life in lives for state in life], report=True)
        assert self.epochs(tmp_path) == {"bert-t0000": [1, 2, 3], "bert-t0001": [1], "bert-t0002": [1, 2]}

    def test_telling_it_again_changes_nothing(self, tmp_path: Path) -> None:
        """A replay with final states only, in the same and in a new tracker."""
        lives = [life_of(0, TrialState.COMPLETE), life_of(1, TrialState.PRUNED, num_epochs=1)]
        self._session(tmp_path, [state for life in lives for state in life] + [life[-1] for life in lives])
        before = self.epochs(tmp_path)
        self._session(tmp_path, [life[-1] for life in lives], report=True)
        self._session(tmp_path, [life[-1] for life in lives], report=True)
        assert self.epochs(tmp_path) == before == {"bert-t0000": [1, 2, 3], "bert-t0001": [1]}

    def test_a_new_tracker_goes_on_where_one_was_closed_early(self, tmp_path: Path) -> None:
        """Every cut of a trial's life: the first session sees its beginning, the second all of it."""
        life = life_of(0, TrialState.COMPLETE)
        for cut in range(len(life)):
            root = tmp_path / str(cut)
            root.mkdir()
            self._session(root, life[:cut])
            self._session(root, life)
            assert self.epochs(root) == {"bert-t0000": [1, 2, 3]}, cut

    def test_a_new_tracker_goes_on_where_one_was_dropped(self, tmp_path: Path) -> None:
        """The first tracker is never closed."""
        life = life_of(0, TrialState.COMPLETE)
        tracker = self.make(tmp_path)
        tracker.open_study(study_info(tmp_path))
        for state in life[:4]:
            tracker.update_trial(state)
        self._session(tmp_path, life)
        assert self.epochs(tmp_path) == {"bert-t0000": [1, 2, 3]}

    def test_a_confirmation_run_is_one_run_with_its_test_score(self, tmp_path: Path) -> None:
        """It is told before and after its test, in one session or in two."""
        self._session(tmp_path, [confirmation(tested=False)])
        self._session(tmp_path, [confirmation(tested=False), confirmation(tested=True)])
        assert self.epochs(tmp_path) == {"bert-tuned-c00": [1, 2, 3]}

    def test_a_trial_that_is_found_to_be_the_best_stays_one_run(self, tmp_path: Path) -> None:
        """What makes it the best is known when all have ended, long after the trial itself was told as final."""
        life = life_of(0, TrialState.COMPLETE)
        self._session(tmp_path, [*life, replace(life[-1], found_by="bert-t0000")], report=True)
        assert self.epochs(tmp_path) == {"bert-t0000": [1, 2, 3]}

    def test_a_study_without_trials_is_fine(self, tmp_path: Path) -> None:
        """Nothing was asked yet, or only asked."""
        self._session(tmp_path, [])
        self._session(tmp_path, life_of(0, TrialState.COMPLETE)[:1], report=True)
        assert self.epochs(tmp_path) == {}

    def _session(self, root: Path, states: Sequence[TrackedTrial], *, report: bool = False) -> None:
        tracker = self.make(root)
        tracker.open_study(study_info(root))
        for state in states:
            tracker.update_trial(state)
        if report:
            last = {state.record.spec.trial_id: state for state in states}
            tracker.update_study(StudyReport(trials=list(last.values())))
        assert isinstance(tracker.close(), str)


def _failed(number: int) -> list[TrackedTrial]:
    *states, last = life_of(number, TrialState.FAIL, num_epochs=2)
    record = replace(last.record, reason="DivergedError: the loss is nan", best_epoch=None)
    return [*states, TrackedTrial(record=record)]
