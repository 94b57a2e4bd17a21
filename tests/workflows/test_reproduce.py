"""A confirmation trained again, in this process and without Ray."""

from __future__ import annotations

import shutil

import pytest
import tiny

import sweeper
from sweeper.core.errors import InputError
from sweeper.core.trial import Segment
from sweeper.engine import messages
from sweeper.engine.messages import Assignment, NextEpoch, Start, StepReport
from sweeper.engine.worker_config import WorkerConfig
from sweeper.store.ledger import Ledger
from sweeper.store.state import StudyState
from sweeper.store.tables import write_tables
from sweeper.workflows.book import Book
from sweeper.workflows.execute import carry_out
from sweeper.workflows.manifest import open_manifest, record_findings
from sweeper.workflows.reproduce import reproduce
from sweeper.workflows.study import provisional, settle, train_options


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study of one tiny model, trained for real by one worker."""
    folder = tmp_path_factory.mktemp("reproduce")
    models = tiny.save_checkpoints(folder / "models")
    path = tiny.write_study(folder, models, models=("vit",), num_trials=1, max_epochs=2)
    with provisional(sweeper.load_study(path, ["confirm.num_seeds=2"])) as draft:
        study = settle(draft)
    options = train_options(study, uses_gpu=False)
    worker = WorkerConfig(spec=study.spec, paths=study.paths, options=options, cpus=1).start()

    def serve(conductor):
        while isinstance(assignment := conductor.next(), Assignment):
            trial = assignment.trial
            if assignment.is_test:
                reply = worker.handle(messages.Test(trial))
                conductor.take(StepReport(trial_id=trial.trial_id, attempt=0, outcome=reply))
                continue
            started = worker.handle(Start(Segment(trial=trial, attempt=assignment.attempt)))
            over = False
            while not over:
                reply = worker.handle(NextEpoch())
                over = conductor.take(
                    StepReport(trial_id=trial.trial_id, attempt=assignment.attempt, started=started, outcome=reply)
                )
                started = None

    with Ledger.open(study.paths) as ledger:
        state = StudyState.replay(ledger.events())
        open_manifest(study)
        book = Book(ledger, state, study.objective, num_workers=1)
        carry_out(study, book, serve, lambda: False, 1, lambda _: None)
        write_tables(study.paths, state, study.objective)
        record_findings(study, state)
    return study.paths.root


def test_a_confirmation_trained_again_is_identical_and_changes_nothing(results):
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    found = reproduce(results)
    assert found.verdict == "identical"
    assert found.num_identical_epochs == found.num_epochs == 2
    assert found.again == found.recorded
    assert found.changes == []
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()} == before


def test_a_confirmation_that_comes_out_differently_is_said_to(results, monkeypatch):
    import sweeper.workflows.reproduce as module

    train = module._train

    def other_seed(study, record):
        from dataclasses import replace

        return train(study, replace(record, spec=replace(record.spec, seed=record.spec.seed + 2)))

    monkeypatch.setattr(module, "_train", other_seed)
    found = reproduce(results, "vit")
    assert found.num_identical_epochs == 0
    assert found.verdict in ("within seed noise", "different")
    monkeypatch.setattr(module, "_interval", lambda *_: (2.0, 3.0))
    assert reproduce(results, "vit").verdict == "different"


def test_what_cannot_be_reproduced_is_named(results, tmp_path):
    with pytest.raises(InputError, match="must hold a confirmed run of the model, got bert"):
        reproduce(results, "bert")
    copy = shutil.copytree(results, tmp_path / "copy")
    manifest = (copy / "manifest.json").read_text()
    fingerprint = sweeper.load_results(copy).manifest.data["fingerprint"]
    (copy / "manifest.json").write_text(manifest.replace(fingerprint, "0" * 64))
    with pytest.raises(InputError, match="data, weights and training must be those of the study"):
        reproduce(copy)


def test_what_a_confirmed_model_costs_is_measured_once(results):
    costs = sweeper.load_results(results).manifest.costs
    assert list(costs) == ["vit"]
    assert costs["vit"]["num_parameters"] > 1000
    assert costs["vit"]["checkpoint_bytes"] > 4 * costs["vit"]["num_parameters"]
    assert [batch["batch_size"] for batch in costs["vit"]["batches"]] == [1, 32]
    assert all(batch["seconds"] > 0 for batch in costs["vit"]["batches"])
