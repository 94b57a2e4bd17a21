"""``Trainer.hyperparameter_search`` with the Optuna backend, model by model: WORK.json FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
from common import Work, arguments_of

optuna.logging.set_verbosity(optuna.logging.ERROR)


def main() -> None:
    work, folder = Work(sys.argv[1]), Path(sys.argv[2])
    for name in work.checkpoints:
        search(work, name, folder)


def search(work: Work, name: str, folder: Path) -> None:
    """Run the trials of one model."""
    by_index = {trial["index"]: trial for trial in work.trials if trial["model"] == name}

    def chosen(trial: Any) -> dict[str, Any]:
        return by_index[trial.suggest_categorical("index", list(by_index))]

    def model_init(trial: Any) -> Any:  # comes before the space, and once without a trial
        return work.model(next(iter(by_index.values())) if trial is None else chosen(trial))

    def space(trial: Any) -> dict[str, Any]:
        return arguments_of(chosen(trial), len(trainer.train_dataset), work.max_epochs)

    trainer = work.trainer(name, folder, model_init=model_init)
    trainer.hyperparameter_search(
        space,
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=len(by_index),
        direction="maximize",
        backend="optuna",
        pruner=optuna.pruners.NopPruner(),
        sampler=optuna.samplers.GridSampler({"index": list(by_index)}, seed=0),
    )


if __name__ == "__main__":
    main()
