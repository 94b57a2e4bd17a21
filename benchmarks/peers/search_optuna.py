"""``Trainer.hyperparameter_search`` with Optuna's own sampler and pruner, model by model: WORK.json FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
from common import Work, arguments_of
from events import Events
from transformers import TrainerCallback

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Note(TrainerCallback):
    """Notes the accuracy of every evaluation."""

    def __init__(self, events: Events, model: str) -> None:
        self._events, self._model = events, model

    def on_evaluate(self, *_: Any, metrics: Any = None, **__: Any) -> None:
        self._events.add(self._model, metrics["eval_accuracy"])


def main() -> None:
    work, folder = Work(sys.argv[1]), Path(sys.argv[2])
    search = json.loads(Path(sys.argv[1]).read_text())["search"]
    events = Events(folder)
    for name in work.checkpoints:
        tune(work, name, search, folder, events)


def tune(work: Work, name: str, search: dict[str, Any], folder: Path, events: Events) -> None:
    """Search one model."""

    def chosen(trial: Any) -> dict[str, Any]:
        low, high = search["learning_rates"][name]
        params = {
            "learning_rate": trial.suggest_float("learning_rate", low, high, log=True),
            "batch_size": trial.suggest_categorical("batch_size", search["batch_sizes"]),
            "unfreezing": trial.suggest_categorical("unfreezing", search["schedules"]),
        }
        return described(name, params, trial.number)

    def model_init(trial: Any) -> Any:  # comes before the space, and once without a trial
        first = {"learning_rate": 1e-3, "batch_size": search["batch_sizes"][0], "unfreezing": search["schedules"][0]}
        return work.model(described(name, first, 0) if trial is None else chosen(trial))

    def space(trial: Any) -> dict[str, Any]:
        return arguments_of(chosen(trial), len(trainer.train_dataset), work.max_epochs)

    trainer = work.trainer(name, folder, model_init=model_init)
    trainer.add_callback(Note(events, name))
    trainer.hyperparameter_search(
        space,
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=search["num_trials"],
        direction="maximize",
        backend="optuna",
    )


def described(model: str, params: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a trial as the list of the other arms has it."""
    fixed = {"weight_decay": 0.01, "warmup_ratio": 0.1, "lr_scheduler_type": "linear", "max_grad_norm": 1.0}
    return {"index": number, "model": model, "params": {**fixed, "dropout": 0.0, **params}, "seed": 2 * number}


if __name__ == "__main__":
    main()
