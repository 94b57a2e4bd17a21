"""Simulated lanes: the same conductors, searchers, early stopping and ledger, driven by curves instead of training.

For tests, benchmarks, and trying a budget on recorded results. Time is simulated: trials of several lanes end in the
order in which they would have ended.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.core.trial import Measurement, TrialSpec
from sweeper.engine.messages import Assignment, Measured, Started, StepReport, Tested
from sweeper.store.ledger import Event, Ledger
from sweeper.store.paths import replace_file

if TYPE_CHECKING:  # a simulation needs no Ray
    from sweeper.engine.tune import Conductor

Curve = Callable[[TrialSpec], Iterator[Measurement]]
"""What training a trial would measure, epoch by epoch from 1; pure: the same trial gives the same curve."""


class SimulatedLanes:
    """Carries out assignments without training.

    Parameters
    ----------
    curve:
        The measurements of a trial.
    num_lanes:
        Trials at the same time, at least 1.
    test:
        Metrics of a confirmation run on the test split; where None, testing is not simulated.
    snapshots:
        A folder in which every epoch of every trial is kept before it is reported, as lanes with
        ``snapshot_seconds: 0`` do; a trial that was interrupted goes on from there.
    effective:
        What a trial would read back from its live model; where None, nothing.

    Attributes
    ----------
    clock:
        Simulated seconds since the start.
    """

    def __init__(
        self,
        curve: Curve,
        num_lanes: int = 1,
        test: Callable[[TrialSpec], Mapping[str, float]] | None = None,
        snapshots: Path | None = None,
        effective: Callable[[TrialSpec], Mapping[str, Any]] | None = None,
    ) -> None:
        self.clock = 0.0
        self._curve = curve
        self._num_lanes = num_lanes
        self._test = test
        self._snapshots = snapshots
        self._effective = effective
        self._kept: dict[str, int] = {}  # epochs after which trials may have been paused

    def serve(self, conductor: Conductor) -> None:
        """Carry out what ``conductor`` asks for until it has nothing left, or stops."""
        order = count()
        under_way: list[tuple[float, int, StepReport, Iterator[StepReport]]] = []

        def go_on(reports: Iterator[StepReport], since: float, before: float) -> None:
            report = next(reports)
            past = report.started.measurements if report.started is not None else ()
            before = past[-1].elapsed_seconds if past else before
            heapq.heappush(under_way, (since + _elapsed(report) - before, next(order), report, reports))

        while not conductor.stopping:
            while len(under_way) < self._num_lanes and not isinstance(answer := conductor.next(), str):
                go_on(self._reports(answer), self.clock, 0.0)
            if not under_way:
                return
            self.clock, _, report, reports = heapq.heappop(under_way)
            if not conductor.take(report):
                go_on(reports, self.clock, _elapsed(report))

    def _reports(self, assignment: Assignment) -> Iterator[StepReport]:
        trial = assignment.trial
        if assignment.is_test:
            assert self._test is not None, "testing is not simulated here"
            outcome = Tested(metrics=self._test(trial), num_examples=1, elapsed_seconds=0.0)
            yield StepReport(trial_id=trial.trial_id, attempt=assignment.attempt, outcome=outcome)
            return
        snapshot = self._snapshots / trial.trial_id if self._snapshots is not None else None
        epochs = self._kept.get(trial.trial_id, 0)
        if snapshot is not None and snapshot.exists():
            epochs = int(snapshot.read_text())
        curve = self._curve(trial)
        past = tuple(islice(curve, epochs))
        effective = self._effective(trial) if self._effective is not None else {}
        started: Started | None = Started(node="simulated", from_epoch=epochs, effective=effective, measurements=past)
        for measurement in curve:
            if snapshot is not None and measurement.epoch < trial.max_epochs:
                replace_file(snapshot, partial(_write, str(measurement.epoch)))
            if measurement.epoch in assignment.snapshot_at:
                self._kept[trial.trial_id] = measurement.epoch
            yield StepReport(
                trial_id=trial.trial_id,
                attempt=assignment.attempt,
                started=started,
                outcome=Measured(measurement),
            )
            started = None


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _elapsed(report: StepReport) -> float:
    outcome = report.outcome
    return outcome.measurement.elapsed_seconds if isinstance(outcome, Measured) else 0.0


class MemoryLedger(Ledger):
    """A ledger that keeps its events in memory alone: for searches that nobody will resume."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        super().__init__(_events=list(events))

    def append(self, kind: str, **payload: Any) -> Event:
        """Keep one event."""
        event = self._next(kind, payload)
        self._events.append(event)
        return event
