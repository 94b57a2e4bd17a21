"""What a budget would have found: searches over recorded curves."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest

from sweeper.cli import main
from sweeper.core.budget import Budget
from sweeper.core.errors import InputError
from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, Float, SearchSpace
from sweeper.core.trial import Measurement
from sweeper.plan.plan import ModelPlan, StudyPlan
from sweeper.spec.space import space_as_dict
from sweeper.spec.study import SchedulerSpec, SearchSpec
from sweeper.store.manifest import Manifest, write_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState
from sweeper.store.tables import write_tables
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import resumed_search
from sweeper.workflows.replay import replay
from sweeper.workflows.simulate import MemoryLedger, SimulatedLanes

OBJECTIVE = Objective("accuracy", "maximize")
EPOCHS = 8
SPACE = SearchSpace(
    parameters=(
        Float(name="learning_rate", low=1e-5, high=1e-1, log=True),
        Categorical(name="batch_size", choices=(16, 32)),
    ),
    default={"learning_rate": 1e-5, "batch_size": 16},
)


def curve(trial):
    best = 0.9 - 0.1 * (math.log10(trial.params["learning_rate"]) + 3) ** 2
    for epoch in range(1, EPOCHS + 1):
        value = best * (1 - math.exp(-epoch / 2))
        metrics = {"accuracy": value}
        yield Measurement(
            epoch=epoch, train_loss=1.0, validation_loss=1.0, metrics=metrics, elapsed_seconds=epoch * 30.0
        )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study that was searched with early stopping, at random."""
    paths = ResultPaths(tmp_path_factory.mktemp("recorded") / "demo")
    paths.root.mkdir()
    spec = SearchSpec(num_trials=40, max_epochs=EPOCHS, sampler="random")
    models = (ModelPlan(name="a", checkpoint="c", weights="w", space=SPACE),)
    content = {
        "objective": {"metric": "accuracy", "goal": "maximize"},
        "models": [{"name": "a", "space": space_as_dict(SPACE)}],
        "search": spec.model_dump(mode="json"),
    }
    budget = Budget(num_trials=40, max_epochs=EPOCHS)
    plan = StudyPlan(name="demo", seed=0, models=models, budget=budget, confirmation_seeds=(), content=content)
    book = Book(MemoryLedger(), StudyState(), OBJECTIVE, 1)
    SimulatedLanes(curve).serve(resumed_search(book, plan, spec, lambda: False, 1))
    write_tables(paths, book.state, OBJECTIVE)
    manifest = {"name": "demo", "plan_hash": "h", "content": content, "versions": {}, "data": {}, "seeds": {}}
    write_manifest(paths, Manifest(**manifest, created_at=""))
    paths.study.write_text(
        "schema: 1\nname: demo\ntask: {type: text-classification, data: {train: x.csv}}\n"
        "models: [{name: a, checkpoint: x/y}]\nsearch: {num_trials: 40, max_epochs: 8, sampler: random}\n"
    )
    return paths.root


def test_a_larger_budget_finds_more_and_takes_longer(results):
    report = replay(results, SearchSpec(num_trials=16, max_epochs=EPOCHS, sampler="random"), num_lanes=2, repeats=3)
    rows = report.found["a"]
    assert [row.num_trials for row in rows] == [1, 2, 4, 8, 16]
    assert all(later.best >= earlier.best for earlier, later in pairwise(rows))
    assert all(later.seconds >= earlier.seconds for earlier, later in pairwise(rows))
    assert rows[-1].low <= rows[-1].best <= rows[-1].high
    default = [measurement.metrics["accuracy"] for measurement in curve(SimpleNamespace(params=SPACE.default))]
    assert rows[0].best == pytest.approx(default[-1]), "a recorded configuration measures what it did"
    assert report.recorded["a"]["reliability"] > 0.8


def test_stopping_saves_epochs_and_lanes_save_time(results):
    def last(kind, lanes):
        search = SearchSpec(num_trials=16, max_epochs=EPOCHS, sampler="random", scheduler=SchedulerSpec(type=kind))
        return replay(results, search, lanes, repeats=2).found["a"][-1]

    full = last("none", 1)
    assert full.epochs == 16 * EPOCHS
    assert full.seconds == pytest.approx(16 * EPOCHS * 30)
    assert last("asha-promotion", 1).epochs < full.epochs / 1.4
    assert last("none", 4).seconds == pytest.approx(full.seconds / 4)


def test_another_length_of_training_is_refused(results):
    with pytest.raises(InputError, match="curves of one length say nothing of another, got 4, recorded 8"):
        replay(results, SearchSpec(num_trials=4, max_epochs=4), 1)


def test_the_command_needs_no_study_file(results, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "search.num_trials=4", "--replay", str(results), "--repeats", "2", "--json"])
    assert ended.value.code in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert [row["num_trials"] for row in found["found"]["a"]] == [1, 2, 4]
    assert found["num_lanes"] == 2
