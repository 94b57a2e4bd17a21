"""Promotion on real training, with a lane's worker in this process: no Ray."""

from __future__ import annotations

import pytest
import tiny

import sweeper
from sweeper.core.trial import Segment, TrialState
from sweeper.engine.messages import Leave, NextEpoch, Start, StepReport
from sweeper.engine.worker_config import WorkerConfig
from sweeper.store.state import StudyState
from sweeper.train.loop import TrainOptions
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import resumed_search
from sweeper.workflows.simulate import MemoryLedger
from sweeper.workflows.study import provisional, settle


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("promotion")
    scheduler = "{type: asha-promotion, reduction_factor: 2, grace_fraction: 0.25}"
    checkpoints = tiny.save_checkpoints(folder / "models")
    path = tiny.write_study(folder, checkpoints, models=("vit",), num_trials=10, sampler="random", scheduler=scheduler)
    with provisional(sweeper.load_study(path)) as proposed:
        return settle(proposed)


def test_a_promoted_trial_goes_on_from_its_checkpoint_as_if_it_had_never_waited(study):
    worker = WorkerConfig(spec=study.spec, paths=study.paths, options=TrainOptions(), cpus=1).start()
    ledger = MemoryLedger()
    state = StudyState()
    book = Book(ledger, state, study.objective, 1)
    conductor = resumed_search(book, study.plan, study.spec.search, lambda: False, 1)
    while not isinstance(given := conductor.next(), str):
        trial = given.trial
        started = worker.handle(Start(Segment(trial=trial, attempt=given.attempt, snapshot_at=given.snapshot_at)))
        left = False
        while not left:
            outcome = worker.handle(NextEpoch())
            report = StepReport(trial_id=trial.trial_id, attempt=given.attempt, started=started, outcome=outcome)
            left, started = conductor.take(report), None
        worker.handle(Leave(snapshot=False))
    segments = [event.payload for event in ledger.events() if event.kind == "segment_started"]
    promoted = {p["trial_id"] for p in segments if p["from_epoch"] > 0}
    assert promoted == {event.payload["trial_id"] for event in ledger.events() if event.kind == "trial_promoted"}
    assert promoted
    assert {record.state for record in state.trials.values()} <= {TrialState.COMPLETE, TrialState.PRUNED}
    waited = next(record for record in state.trials.values() if record.spec.trial_id in promoted)
    again = worker.handle(Start(Segment(trial=waited.spec.__class__(**{**vars(waited.spec), "trial_id": "again"}))))
    assert again.from_epoch == 0
    for measurement in waited.measurements:
        repeated = worker.handle(NextEpoch()).measurement
        assert (repeated.epoch, repeated.metrics, repeated.train_loss, repeated.validation_loss) == (
            *(measurement.epoch, measurement.metrics, measurement.train_loss, measurement.validation_loss),
        )
