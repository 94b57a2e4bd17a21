"""Whole studies without Ray: the real conductors, ledger and tables, with curves in the place of lanes."""

from __future__ import annotations

import tiny

import sweeper
from sweeper.core.trial import Measurement
from sweeper.store.ledger import Ledger
from sweeper.store.state import StudyState
from sweeper.store.tables import write_tables
from sweeper.workflows.book import Book
from sweeper.workflows.execute import carry_out, storage_failures
from sweeper.workflows.manifest import open_manifest
from sweeper.workflows.results import load_results
from sweeper.workflows.simulate import SimulatedLanes
from sweeper.workflows.study import provisional, settle


def curve(trial):
    """What training a trial measures: a function of its seed."""
    for epoch in range(1, trial.max_epochs + 1):
        value = (trial.seed % 997) / 2000 + epoch / 100
        yield Measurement(
            epoch=epoch, train_loss=1.0, validation_loss=1.0, metrics={"accuracy": value}, elapsed_seconds=epoch
        )


def make_study(folder, checkpoints, storage, **search):
    """A study of one model whose results go to ``storage``."""
    folder.mkdir(exist_ok=True)
    path = tiny.write_study(folder, checkpoints, models=("resnet",), **search)
    with provisional(sweeper.load_study(path, [f"storage_path={storage}"])) as proposed:
        return settle(proposed)


def session(study, opened=lambda ledger: None):
    """Do what is left of a study; ``opened`` is given the ledger first."""
    with storage_failures(study.paths.place), Ledger.open(study.paths) as ledger:
        opened(ledger)
        state = StudyState.replay(ledger.events())
        open_manifest(study)
        book = Book(ledger, state, study.objective, num_workers=1)
        book.write("study_opened", plan_hash=study.plan.plan_hash, reason="run")
        lanes = SimulatedLanes(curve, test=lambda trial: {"accuracy": trial.seed % 1000 / 1000})
        carry_out(study, book, lanes.serve, lambda: False, 1, lambda _: None)
        write_tables(study.paths, state, study.objective)


def table_rows(place):
    """The rows of a result folder's tables without what only the clock decides."""
    found = load_results(place)
    times = {"started_at", "finished_at", "num_retries"}
    tables = (found.trials, found.measurements, found.confirmations)
    return [{k: v for k, v in row.items() if k not in times} for table in tables for row in table.to_pylist()]
