"""What every task must do. Subclass `TaskConformance` and give it a task, a model and two small splits.

class TestMine(TaskConformance):
    @pytest.fixture(scope="class")
    def case(self, tmp_path_factory): return make_case(study, tmp_path_factory.mktemp("case"), checkpoint)
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sweeper.core.errors import InfeasibleError
from sweeper.core.trial import TrialSpec
from sweeper.data.prepare import prepare
from sweeper.models.load import Pretrained, load
from sweeper.spec.space import HYPERPARAMETERS
from sweeper.spec.study import ModelSpec, TaskSpec
from sweeper.tasks.base import Examples, Task
from sweeper.tasks.registry import make_task, needs
from sweeper.train.evaluate import evaluate, predict
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class TaskCase:
    """A task at work: a model with its preprocessor, and two raw splits with the columns of ``data.prepare``.

    ``params`` are hyperparameters under which a few epochs lower the training loss.
    """

    task: Task
    model: Pretrained
    train: pa.Table
    validation: pa.Table
    params: Mapping[str, Any] = field(default_factory=dict)


def make_case(spec: TaskSpec, folder: Path, checkpoint: Path, **params: Any) -> TaskCase:
    """Prepare a study's data in ``folder`` and load a checkpoint with the task's head."""
    data = prepare(spec, seed=0, folder=folder / "prepared", **needs(spec))
    task = make_task(spec, data.facts)
    model = load(ModelSpec(name="model", checkpoint=str(checkpoint)), task.head)
    return TaskCase(task=task, model=model, train=data.train(), validation=data.validation(), params=params)


class TaskConformance(ABC):
    """The suite; every method is one claim about a task."""

    @abstractmethod
    def case(self) -> TaskCase:
        """Return the case; a pytest fixture of class scope in a subclass."""

    def test_an_instance_is_plain_data(self, case: TaskCase) -> None:
        """It travels to workers, and means the same there."""
        twin: Task = pickle.loads(pickle.dumps(case.task))  # noqa: S301 - our own bytes
        assert twin.type == case.task.type
        assert twin.objective == case.task.objective
        assert twin.cache_key() == case.task.cache_key()
        assert twin.head == case.task.head

    def test_the_objective_is_a_documented_metric(self, case: TaskCase) -> None:
        """The default goal is the metric's own, and each metric says what it is."""
        metrics = case.task.metrics
        assert case.task.objective.metric in metrics
        assert all(name == metric.name and len(metric.doc) > 10 for name, metric in metrics.items())
        assert {metric.goal for metric in metrics.values()} <= {"maximize", "minimize"}

    def test_encoding_repeats_and_keeps_every_row_in_order(self, case: TaskCase) -> None:
        """Caches are built from it, and predictions are named by its rows."""
        first = case.task.encode(case.train, case.model.preprocessor)
        again = case.task.encode(case.train, case.model.preprocessor)
        assert first.equals(again)
        examples = case.task.open(first, case.model.preprocessor)
        names = case.train.column("example_id").to_pylist()
        assert len(examples) == len(names) == len(examples.targets) == len(examples.lengths)
        assert list(examples.example_ids) == names
        assert examples.lengths.min() >= 1

    def test_an_example_stands_for_itself(self, case: TaskCase) -> None:
        """Neither its loss nor its prediction depends on what else is in the batch."""
        examples, module = _opened(case, case.validation), case.model.instantiate(0, {}).eval()
        rows = np.arange(min(4, len(examples)))
        losses, kept = _forward(case, module, examples, rows)
        assert losses.shape == (len(rows),)
        assert losses.dtype == kept.dtype == torch.float32
        assert len(kept) == len(rows)
        for row in rows:
            loss, alone = _forward(case, module, examples, rows[[row]])
            assert torch.allclose(loss[0], losses[row], rtol=1e-3, atol=1e-4)
            assert torch.allclose(alone[0], kept[row], rtol=1e-3, atol=1e-3)

    def test_the_loss_reaches_the_head(self, case: TaskCase) -> None:
        """Every trainable head weight gets a finite gradient, and some are not zero."""
        examples, module = _opened(case, case.train), case.model.instantiate(0, {}).eval()
        batch = examples.batch(np.arange(min(4, len(examples))))
        loss: Any = case.task.loss(module(**batch.inputs), batch.targets).sum()
        loss.backward()
        parameters = dict(module.named_parameters())
        found = [parameters[name].grad for name in case.model.layout.groups[-1]]
        grads = [grad for grad in found if grad is not None]
        assert grads
        assert all(torch.isfinite(grad).all() for grad in grads)
        assert any(grad.abs().max() > 0 for grad in grads)

    def test_every_metric_is_finite_whatever_the_split(self, case: TaskCase) -> None:
        """Of a whole split and of a single example; a decision stands for each example."""
        examples = _opened(case, case.validation)
        _, kept = evaluate(case.model.instantiate(0, {}), case.task, examples, TrainOptions())
        for count in (len(examples), 1):
            targets = examples.targets[:count]
            threshold = case.task.choose_threshold(targets, kept[:count])
            scores = case.task.score(targets, kept[:count], threshold)
            assert scores.keys() == case.task.metrics.keys()
            assert np.isfinite(list(scores.values())).all()
            assert len(case.task.decide(kept[:count], threshold)) == count

    def test_the_trivial_answer_is_scored_by_the_same_metrics(self, case: TaskCase) -> None:
        """It is learnt from the training targets; what it has no answer for is left out."""
        own, other = _opened(case, case.train).targets, _opened(case, case.validation).targets
        scores = case.task.baseline(own, other)
        assert scores
        assert scores.keys() <= case.task.metrics.keys()
        assert np.isfinite(list(scores.values())).all()

    def test_what_does_nothing_is_refused(self, case: TaskCase) -> None:
        """A hyperparameter that the task cannot act on fails its trial by name."""
        data = TrainData(train=_opened(case, case.train), validation=_opened(case, case.validation))
        for name, reason in case.task.not_applicable.items():
            assert name in HYPERPARAMETERS
            value: Any = "sampler" if name == "balance" else 0.1
            try:
                train(_trial({**case.params, name: value}), case.task, case.model, data, TrainOptions())
            except InfeasibleError as error:
                assert name in str(error)  # noqa: PT017 - a suite for users needs no pytest
                assert reason in str(error)  # noqa: PT017
            else:
                raise AssertionError(f"{name} was accepted, although {reason}")

    def test_training_lowers_the_loss_and_saved_weights_score_the_same(self, case: TaskCase, tmp_path: Path) -> None:
        """The whole way: train, keep the best epoch, load it as a user would, score it."""
        data = TrainData(train=_opened(case, case.train), validation=_opened(case, case.validation))
        run = train(_trial(case.params, max_epochs=4), case.task, case.model, data, TrainOptions())
        measured = list(run)
        assert measured[-1].train_loss < measured[0].train_loss
        run.save_best(tmp_path)
        found = predict(case.model, tmp_path, case.task, data.validation, TrainOptions())
        name, sign = case.task.objective.metric, -1 if case.task.objective.goal == "maximize" else 1
        best = min(sign * m.metrics[name] for m in measured)
        assert abs(sign * found.scores[name] - best) <= 1e-4 * max(1.0, abs(best))


def _opened(case: TaskCase, table: pa.Table) -> Examples:
    return case.task.open(case.task.encode(table, case.model.preprocessor), case.model.preprocessor)


def _trial(params: Mapping[str, Any], max_epochs: int = 1) -> TrialSpec:
    known: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 8, "warmup_ratio": 0.0, **params}
    return TrialSpec(trial_id="conformance", number=0, model="model", params=known, seed=0, max_epochs=max_epochs)


def _forward(case: TaskCase, module: Any, examples: Examples, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch = examples.batch(rows)
    with torch.no_grad():
        outputs = module(**batch.inputs)
        return case.task.loss(outputs, batch.targets), case.task.predict(outputs, batch.targets)
