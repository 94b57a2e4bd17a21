"""Shows that the quickstart's pretraining transfers: pretrained against random weights, at the default configuration.

    python examples/quickstart/check_transfer.py

Trains each model with sweeper's own training loop on the study's train split, once from the checkpoint and once from
random weights of the same configuration, with several seeds, and prints the validation accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from sweeper import load_study
from sweeper.core.trial import TrialSpec
from sweeper.models.load import load
from sweeper.train.loop import TrainData, TrainOptions, train
from sweeper.workflows.study import Study, provisional

HERE = Path(__file__).parent


def score(study: Study, name: str, checkpoint: str, seed: int) -> float:
    """Return the best validation accuracy of one training at the default configuration."""
    spec = next(model for model in study.spec.models if model.name == name)
    model = load(spec.model_copy(update={"checkpoint": checkpoint}), study.task.head)
    tables = {"train": study.data.train(), "validation": study.data.validation()}
    splits = {
        split: study.task.open(study.task.encode(table, model.preprocessor), model.preprocessor)
        for split, table in tables.items()
    }
    trial = TrialSpec(
        trial_id="transfer",
        number=0,
        model=name,
        params=study.spaces[name].active(study.spaces[name].default),
        seed=seed,
        max_epochs=study.spec.search.max_epochs,
    )
    run = train(trial, study.task, model, TrainData(**splits), TrainOptions())
    return max(measurement.metrics["accuracy"] for measurement in run)


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    print("model      pretrained  random   difference (mean of", arguments.seeds, "seeds)")
    with provisional(load_study(HERE / "study.yaml")) as study:
        for model in study.spec.models:
            scores = {"pretrained": [], "random": []}
            for seed in range(arguments.seeds):
                scores["pretrained"].append(score(study, model.name, model.checkpoint, seed))
                with tempfile.TemporaryDirectory() as folder:
                    torch.manual_seed(seed)
                    AutoModel.from_config(AutoConfig.from_pretrained(model.checkpoint)).save_pretrained(folder)
                    preprocessor = Path(model.checkpoint) / "preprocessor_config.json"
                    (Path(folder) / "preprocessor_config.json").write_bytes(preprocessor.read_bytes())
                    scores["random"].append(score(study, model.name, folder, seed))
            a, b = np.mean(scores["pretrained"]), np.mean(scores["random"])
            print(f"{model.name:10} {a:10.3f} {b:8.3f} {a - b:+10.3f}", flush=True)


if __name__ == "__main__":
    main()
