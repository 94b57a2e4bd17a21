"""Events of one report are durable at once, heard of afterwards; and snapshots go when their trial has ended."""

from __future__ import annotations

import os

import pytest
import simulated

from sweeper.core.errors import RunFailedError, is_of_storage
from sweeper.core.objective import Objective
from sweeper.core.trial import TrialSpec, TrialState
from sweeper.engine.messages import Measured, Started, StepReport
from sweeper.store.ledger import Ledger
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import ConfirmConductor
from sweeper.workflows.tidy import Tidy

TRIAL = TrialSpec(trial_id="m-t0000", number=0, model="m", params={}, seed=1, max_epochs=1)
WHOLE = StepReport(
    trial_id=TRIAL.trial_id,
    attempt=1,
    retries=("killed",),
    started=Started(node="n", from_epoch=0),
    outcome=Measured(next(simulated.curve(TRIAL))),
)
KINDS = ["retry", "segment_started", "measurement", "trial_ended"]


class Ear:
    """A listener that looks at what is durable when it hears of an event."""

    def __init__(self, paths):
        self.paths = paths
        self.heard = []

    def on_event(self, event):
        durable = [found.kind for found in Ledger.read(self.paths)]
        self.heard.append((event["kind"], event["kind"] in durable))


def begin(ledger, paths):
    ear = Ear(paths)
    book = Book(ledger, StudyState.replay(ledger.events()), Objective("accuracy", "maximize"), 1, [ear])
    conductor = ConfirmConductor(book, [TRIAL], lambda: False)
    conductor.next()
    return book, conductor, ear


def test_what_one_report_comes_to_is_one_write_and_is_heard_of_afterwards(tmp_path, monkeypatch):
    paths = ResultPaths(tmp_path)
    with Ledger.open(paths) as ledger:
        book, conductor, ear = begin(ledger, paths)
        synced = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda number: synced.append(number) or fsync(number))
        assert conductor.take(WHOLE)
        assert len(synced) == 1
        assert ear.heard[-4:] == [(kind, True) for kind in KINDS]
        assert book.state.trials[TRIAL.trial_id].state is TrialState.COMPLETE
    assert [event.kind for event in Ledger.read(paths)][-4:] == KINDS


def test_a_write_that_fails_leaves_nothing_of_its_report_anywhere(tmp_path, monkeypatch):
    paths = ResultPaths(tmp_path)
    with Ledger.open(paths) as ledger:
        book, conductor, ear = begin(ledger, paths)
        heard = list(ear.heard)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space") as caught:
                conductor.take(WHOLE)
        assert is_of_storage(caught.value)
        assert book.state.trials[TRIAL.trial_id].measurements == ()
        assert ear.heard == heard
        book.write("note", text="the disk was mended")
    events = Ledger.read(paths)
    assert [event.kind for event in events] == ["ledger_created", "trial_asked", "note"]
    assert StudyState.replay(events).trials == book.state.trials


def test_what_was_decided_before_an_error_is_kept(tmp_path):
    paths = ResultPaths(tmp_path)
    with Ledger.open(paths) as ledger:
        book, _, _ = begin(ledger, paths)

        def decide():
            with book.together():
                book.write("note", text="before")
                raise RunFailedError("everything failed")

        with pytest.raises(RunFailedError):
            decide()
        assert book.state.notes == ["before"]
    assert Ledger.read(paths)[-1].payload == {"text": "before"}


def test_snapshots_go_when_their_trial_has_ended_and_others_stay(tmp_path):
    paths = ResultPaths(tmp_path)
    for trial_id in (TRIAL.trial_id, "waits-at-a-rung"):
        (paths.snapshots(trial_id) / "e00001-a0").mkdir(parents=True)
    with Ledger.open(paths) as ledger:
        with Tidy(paths) as tidy:
            book = Book(ledger, StudyState(), Objective("accuracy", "maximize"), 1, [tidy])
            book.asked(TRIAL, {})
            book.ended(TRIAL.trial_id, TrialState.PRUNED, "early stopping")
            tidy._thread.submit(int).result()
        assert [path.name for path in paths.snapshots_root.iterdir()] == ["waits-at-a-rung"]
