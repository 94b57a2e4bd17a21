"""``Trainer.hyperparameter_search`` with the Ray backend, model by model, a core per trial: WORK.json FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(RAY_AIR_NEW_OUTPUT="0", RAY_USAGE_STATS_ENABLED="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1")

import ray
from common import Work, arguments_of
from ray import tune


def main() -> None:
    work, folder = Work(sys.argv[1]), Path(sys.argv[2])
    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    for name in work.checkpoints:
        search(work, name, folder)
    ray.shutdown()


def search(work: Work, name: str, folder: Path) -> None:
    """Run the trials of one model."""
    by_index = {trial["index"]: trial for trial in work.trials if trial["model"] == name}

    def model_init(trial: Any) -> Any:
        return work.model(by_index[trial["index"] if trial is not None else next(iter(by_index))])

    trainer = work.trainer(name, folder, model_init=model_init)
    own = {i: arguments_of(trial, len(trainer.train_dataset), work.max_epochs) for i, trial in by_index.items()}

    def choose(key: str) -> Any:
        return tune.sample_from(lambda config: own[config["index"]][key])

    def space(_: Any) -> dict[str, Any]:
        return {"index": tune.grid_search(list(own)), **{key: choose(key) for key in next(iter(own.values()))}}

    trainer.hyperparameter_search(
        space,
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=1,
        direction="maximize",
        backend="ray",
        resources_per_trial={"cpu": 1, "gpu": int(work.device == "cuda")},
        storage_path=str(folder / "ray"),
        name=name,
        verbose=0,
    )


if __name__ == "__main__":
    main()
