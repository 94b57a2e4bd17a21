"""Seeds added to a finished study, with curves in the place of lanes."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import tiny

import sweeper
from sweeper.core.trial import Measurement, TrialKind
from sweeper.store.ledger import Ledger
from sweeper.store.manifest import read_manifest
from sweeper.store.state import StudyState
from sweeper.store.tables import read_tables, write_predictions, write_tables
from sweeper.workflows.book import Book
from sweeper.workflows.confirm import export_run, more_runs
from sweeper.workflows.execute import carry_out, freeze
from sweeper.workflows.manifest import open_manifest
from sweeper.workflows.simulate import SimulatedLanes
from sweeper.workflows.study import Study, provisional, settle


def curve(trial):
    for epoch in range(1, trial.max_epochs + 1):
        value = 0.0 if trial.trial_id.endswith("t0000") else (trial.seed % 997) / 2000 + epoch / 100
        yield Measurement(
            epoch=epoch, train_loss=1.0, validation_loss=1.0, metrics={"accuracy": value}, elapsed_seconds=epoch
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("more")
    path = tiny.write_study(folder, tiny.save_checkpoints(folder / "models"), num_trials=2, max_epochs=2)
    with provisional(sweeper.load_study(path)) as proposed:
        return settle(proposed)


def favouring_the_default(trial):
    for measurement in curve(trial):
        chosen = trial.kind is TrialKind.CONFIRM or trial.number == 0
        yield replace(measurement, metrics={"accuracy": 0.5 if chosen else 0.1})


def session(study, more_seeds=0, stop_after=None, curve=curve):
    """Run what is left; with ``stop_after`` the lanes stop after so many runs of them."""
    served = []

    def serve(conductor):
        served.append(conductor)
        if stop_after is None or len(served) <= stop_after:
            SimulatedLanes(curve, test=lambda trial: {"accuracy": trial.seed % 1000 / 1000}).serve(conductor)
        else:
            raise KeyboardInterrupt

    with Ledger.open(study.paths) as ledger:
        state = StudyState.replay(ledger.events())
        open_manifest(study)
        book = Book(ledger, state, study.objective, num_workers=1)
        if more_seeds:
            freeze(book, more_runs(study, state, more_seeds))
        with suppress(KeyboardInterrupt):
            carry_out(study, book, serve, lambda: False, 1, lambda _: None)
        return state


def test_a_default_that_wins_is_confirmed_once_and_counts_for_both_configurations(study, tmp_path):
    spec = study.spec.model_copy(update={"storage_path": str(tmp_path)})
    study = Study(**{**vars(study), "spec": spec})
    study.paths.root.mkdir()
    state = session(study, curve=favouring_the_default)
    seeds = study.plan.confirmation_seeds
    assert len(state.frozen) == len(study.plan.models) * len(seeds), "one run a seed"
    for trial_id in state.frozen:
        write_predictions(
            study.paths.predictions_part(trial_id),
            model=state.trials[trial_id].spec.model,
            config="tuned",
            seed=state.trials[trial_id].spec.seed,
            example_ids=["a"],
            targets=np.array([0]),
            predictions=np.array([0]),
            probabilities=np.ones((1, 2), np.float32),
        )
    for _ in range(2):  # the second time from the table alone, the parts being gone
        write_tables(study.paths, state, study.objective)
        tables = read_tables(study.paths)
        shutil.rmtree(study.paths.predictions_parts, ignore_errors=True)
        runs = {(r["model"], r["config"], r["seed"], r["split"]): r for r in tables.confirmations.to_pylist()}
        for (model, config, seed, split), row in runs.items():
            assert row["value"] == runs[model, "tuned", seed, split]["value"]
            assert (row["elapsed_seconds"] > 0) == (config == "tuned"), "trained once"
        assert len(runs) == len(study.plan.models) * 2 * len(seeds) * 2
        keys = {(r["model"], r["config"], r["seed"]) for r in tables.predictions.to_pylist()}
        assert len(keys) == len(tables.predictions) == len(study.plan.models) * 2 * len(seeds)
    added = more_runs(study, state, 1)
    assert [(run.model, run.config) for run in added] == [(model.name, "tuned") for model in study.plan.models]


def test_added_seeds_repeat_nothing_choose_nothing_and_open_the_test_split_by_name(study):
    first = session(study)
    before = dict(first.trials)
    exported = export_run(study, first, "vit").spec.trial_id
    after = session(study, more_seeds=2)
    assert {trial_id: after.trials[trial_id] for trial_id in before} == before
    added = [after.trials[trial_id] for trial_id in after.freezings[1]]
    assert len(added) == 2 * 2 * 2
    for record in added:
        twin = next(
            r for r in before.values() if r.spec.config == record.spec.config and r.spec.model == record.spec.model
        )
        assert record.spec.params == twin.spec.params
        assert record.spec.seed not in {r.spec.seed for r in before.values()}
        assert record.spec.trial_id in after.tested
    assert [opening["reason"] for opening in after.test_openings] == ["confirmation", "more seeds"]
    assert export_run(study, after, "vit").spec.trial_id == exported
    seeds = read_manifest(study.paths).seeds["confirmation"]
    assert len(seeds) == len(set(seeds)) == len(study.plan.confirmation_seeds) + 2


def test_an_interrupted_addition_is_finished_by_a_resume(study):
    known = session(study)
    interrupted = session(study, more_seeds=1, stop_after=2 * len(known.freezings))
    assert len(interrupted.freezings) == len(known.freezings) + 1
    assert len(interrupted.test_openings) == len(known.freezings)
    resumed = session(study)
    assert len(resumed.test_openings) == len(resumed.freezings) == len(interrupted.freezings)
    assert set(resumed.frozen) == set(resumed.tested)
