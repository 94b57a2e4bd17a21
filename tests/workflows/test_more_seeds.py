"""Seeds added to a finished study, with curves in the place of lanes."""

from __future__ import annotations

from contextlib import suppress

import pytest
import tiny

import sweeper
from sweeper.core.trial import Measurement
from sweeper.store.ledger import Ledger
from sweeper.store.manifest import read_manifest
from sweeper.store.state import StudyState
from sweeper.workflows.book import Book
from sweeper.workflows.confirm import export_run, more_runs
from sweeper.workflows.execute import carry_out, freeze
from sweeper.workflows.manifest import open_manifest
from sweeper.workflows.simulate import SimulatedLanes
from sweeper.workflows.study import provisional, settle


def curve(trial):
    for epoch in range(1, trial.max_epochs + 1):
        value = (trial.seed % 997) / 2000 + epoch / 100
        yield Measurement(
            epoch=epoch, train_loss=1.0, validation_loss=1.0, metrics={"accuracy": value}, elapsed_seconds=epoch
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("more")
    path = tiny.write_study(folder, tiny.save_checkpoints(folder / "models"), num_trials=2, max_epochs=2)
    with provisional(sweeper.load_study(path)) as proposed:
        return settle(proposed)


def session(study, more_seeds=0, stop_after=None):
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
