"""Scoring a model on a split: sharded over the workers without padding or doubling any example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sweeper.models.load import Pretrained
from sweeper.tasks.base import Examples, Predictions, Task
from sweeper.train import parallel


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How training runs on this hardware; the same for all models of a study.

    Parameters
    ----------
    device:
        ``cpu`` or ``cuda``.
    precision:
        ``fp32``, or ``bf16`` for autocast with fp32 weights.
    micro_batch_size:
        Most examples a worker holds at once; gradients accumulate up to the asked batch size. None: all of it.
    eval_batch_size:
        Examples of an evaluation batch.
    balance:
        ``none``, ``class-weights`` or ``sampler``.
    """

    device: str = "cpu"
    precision: str = "fp32"
    micro_batch_size: int | None = None
    eval_batch_size: int = 256
    balance: str = "none"

    def autocast(self) -> Any:
        """Return the context in which forward passes run."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


def evaluate(
    module: torch.nn.Module, task: Task, examples: Examples, options: TrainOptions
) -> tuple[float, NDArray[np.float32]]:
    """Return the mean loss per example and the predictions (N, K) in row order."""
    order = np.argsort(examples.lengths, kind="stable")
    batches = [order[i : i + options.eval_batch_size] for i in range(0, len(order), options.eval_batch_size)]
    mine = batches[parallel.rank() :: parallel.world_size()]
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32], float]] = []
    module.eval()
    with torch.inference_mode():
        for rows in mine:
            batch = examples.batch(rows)
            inputs = {name: tensor.to(options.device) for name, tensor in batch.inputs.items()}
            with options.autocast():
                outputs = module(**inputs)
            loss = task.loss(outputs, batch.targets.to(options.device)).double().sum().item()
            parts.append((rows, task.predict(outputs).cpu().numpy(), loss))
    gathered = [part for parts in parallel.gather(parts) for part in parts]
    predictions = np.empty((len(order), *gathered[0][1].shape[1:]), dtype=np.float32)
    for rows, values, _ in gathered:
        predictions[rows] = values
    return sum(loss for _, _, loss in gathered) / len(order), predictions


def predict(model: Pretrained, weights: Path, task: Task, examples: Examples, options: TrainOptions) -> Predictions:
    """Predict a split with weights that `TrainingRun.save_best` wrote."""
    module = model.load_weights(weights).to(options.device)
    _, probabilities = evaluate(module, task, examples, options)
    return Predictions(example_ids=examples.example_ids, targets=examples.targets, probabilities=probabilities)
