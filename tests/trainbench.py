"""A task, a model and data, ready to train, that tests of training share."""

from __future__ import annotations

from sweeper.core.trial import TrialSpec
from sweeper.data.prepare import prepare
from sweeper.models.load import load
from sweeper.spec.study import DataSpec, ModelSpec, TaskSpec
from sweeper.tasks.registry import make_task
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions


class Bench:
    """A task, a model and data, ready to train."""

    def __init__(self, folder, checkpoint, examples=48):
        data = DataSpec(train="builtin:digits?classes=5-7", max_train_examples=examples)
        spec = TaskSpec(type="image-classification", data=data)
        prepared = prepare(spec, kind="image", seed=0, folder=folder)
        self.task = make_task(spec, prepared.classes)
        self.model = load(ModelSpec(name="m", checkpoint=str(checkpoint)), self.task.head)
        splits = {"train": prepared.train(), "validation": prepared.validation()}
        preprocessor = self.model.preprocessor
        self.data = TrainData(
            **{k: self.task.open(self.task.encode(t, preprocessor), preprocessor) for k, t in splits.items()}
        )

    def run(self, resume=None, options=None, max_epochs=4, **params):
        params = {"learning_rate": 3e-3, "batch_size": 16} | params
        trial = TrialSpec(trial_id="t", number=0, model="m", params=params, seed=5, max_epochs=max_epochs)
        return train(trial, self.task, self.model, self.data, options or TrainOptions(), resume)


def facts(measurement):
    return measurement.epoch, measurement.train_loss, measurement.validation_loss, dict(measurement.metrics)
