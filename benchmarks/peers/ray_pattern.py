"""Ray's documented pattern: a Tune driver function that builds a TorchTrainer per trial: WORK.json FOLDER.

After Ray's guide "Hyperparameter Tuning with Ray Tune" (Train V2), with the Hugging Face Trainer inside, as its guide
"Get Started with Hugging Face Transformers" has it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(RAY_AIR_NEW_OUTPUT="0", RAY_USAGE_STATS_ENABLED="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1")

import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback


def train(config: dict[str, Any]) -> None:
    """Train one trial in a Ray Train worker."""
    import transformers as hf
    from common import Work
    from ray.train.huggingface.transformers import prepare_trainer

    class Report(hf.TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: Any = None, **__: Any) -> None:
            ray.train.report({"accuracy": metrics["eval_accuracy"]})

    work = Work(config["work"])
    trial = work.trials[config["index"]]
    trainer = work.trainer(trial["model"], Path(config["folder"]), trial, model=work.model(trial))
    trainer.add_callback(Report())
    prepare_trainer(trainer).train()


def main() -> None:
    path, folder = sys.argv[1], sys.argv[2]
    from common import Work

    on_gpu = Work(path).device == "cuda"
    resources = {"CPU": 1, "GPU": 1} if on_gpu else {"CPU": 1}

    def driver(config: dict[str, Any]) -> None:
        TorchTrainer(
            train,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=1, use_gpu=on_gpu, resources_per_worker=resources),
            run_config=RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=f"{folder}/ray",
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    space = {"index": tune.grid_search(list(range(len(Work(path).trials)))), "work": path, "folder": folder}
    tune.Tuner(
        tune.with_resources(driver, {"node:__internal_head__": 0.001}),
        param_space=space,
        tune_config=tune.TuneConfig(max_concurrent_trials=os.cpu_count()),
        run_config=tune.RunConfig(storage_path=f"{folder}/ray", name="tune", verbose=0),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
