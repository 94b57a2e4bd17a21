"""A lane's worker and a conductor without training, for tests of the engine."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sweeper.core.errors import TrialError
from sweeper.core.trial import Measurement, TrialSpec
from sweeper.engine.messages import Assignment, Failed, Leave, Left, Measured, NextEpoch, Start, Started

EPOCHS = 3


class Worker:
    """Counts epochs; a trial's seed tells it to misbehave."""

    def handle(self, command):
        match command:
            case Start(segment):
                self.trial, self.epoch = segment.trial, 0
                return Started(node="here", from_epoch=0, effective={"pid": os.getpid()})
            case NextEpoch():
                return self.next_epoch()
            case Leave():
                return Left()

    def next_epoch(self):
        self.epoch += 1
        match self.trial.params.get("dropout"):
            case "error":
                raise ValueError("a bug of the task")
            case "diverged":
                raise TrialError("the loss is not finite")
            case "hang" if not Path(self.trial.params["lr_scheduler_type"]).exists():
                Path(self.trial.params["lr_scheduler_type"]).touch()
                time.sleep(600)
            case "die":
                os.kill(os.getpid(), 9)
        return Measured(
            Measurement(
                epoch=self.epoch, train_loss=1.0, validation_loss=1.0, metrics={"acc": 1.0}, elapsed_seconds=0.0
            )
        )


class Conductor:
    """Hands out trials and remembers how each ended."""

    stopping = False

    def __init__(self, *params, on_report=lambda report: None, attempt=0):
        self.attempt = attempt
        self.waiting = [
            TrialSpec(trial_id=f"t{i:03d}", number=i, model="m", params=p, seed=0, max_epochs=EPOCHS)
            for i, p in enumerate(params)
        ]
        self.running = set()
        self.ended = {}
        self.retries = {}
        self.on_report = on_report
        self.pids = set()

    def next(self):
        if not self.waiting:
            return "wait" if self.running else "done"
        trial = self.waiting.pop(0)
        self.running.add(trial.trial_id)
        return Assignment(trial, self.attempt)

    def lost(self, assignment):
        if assignment.trial.trial_id in self.running:
            self.running.discard(assignment.trial.trial_id)
            self.waiting.insert(0, assignment.trial)

    def take(self, report):
        self.retries.setdefault(report.trial_id, []).extend(report.retries)
        if report.started:
            self.pids.add(report.started.effective["pid"])
        self.on_report(report)
        outcome = report.outcome
        if isinstance(outcome, Failed) or outcome.measurement.epoch == EPOCHS:
            self.running.discard(report.trial_id)
            self.ended.setdefault(report.trial_id, []).append(outcome)
            return True
        return False


class Remembers(Worker):
    """A worker that remembers what it was told."""

    def __init__(self):
        self.told = []

    def handle(self, command):
        self.told.append(command)
        return super().handle(command)
