"""Scoring a model on a split: sharded over the workers without padding or doubling any example."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sweeper.core.errors import InfeasibleError
from sweeper.models.load import Pretrained
from sweeper.tasks.base import Batch, Examples, Predictions, Task, Writing
from sweeper.train import parallel
from sweeper.train.activation_cache import Serving, uncached
from sweeper.train.memory import is_out_of_memory
from sweeper.train.options import TrainOptions
from sweeper.train.sharding import is_sharded

THRESHOLD_FILE = "decision.json"


def evaluate(
    module: torch.nn.Module, task: Task, examples: Examples, options: TrainOptions, serve: Serving = uncached
) -> tuple[float, NDArray[np.float32]]:
    """Return the mean loss per example and the predictions (N, K) in row order.

    Parameters
    ----------
    serve:
        How batches get past frozen blocks.

    Raises
    ------
    InfeasibleError
        On every worker, when one of them cannot hold even a single example.
    """
    order = np.argsort(examples.lengths, kind="stable")
    most = min(options.eval_batch_size, getattr(task, "max_eval_examples", options.eval_batch_size))
    batches = [order[i : i + most] for i in range(0, len(order), most)]
    mine = batches[parallel.rank() :: parallel.world_size()][::-1]  # a stack: the shortest on top
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32], float]] = []
    module.eval()
    exhausted = False
    lockstep = is_sharded(module)
    writer = task if isinstance(task, Writing) and task.writes else None
    if writer is not None and lockstep:
        raise InfeasibleError("task.max_new_tokens: a model that is shared out (training.strategy: fsdp) cannot write")
    fewer = len(mine) < -(-len(batches) // parallel.world_size())  # by one, which a sharded model must make up for
    while mine and not exhausted:
        rows = mine.pop()
        try:
            values, loss = _forward(module, task, examples.batch(rows), options, serve(rows))
            if writer is not None:
                with options.autocast():
                    texts = writer.write(module, examples, rows, torch.device(options.device))
                values = np.concatenate([values, texts], axis=1)
            parts.append((rows, values, loss))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or lockstep:
                raise
            exhausted = len(rows) == 1
            mine.extend(np.array_split(rows, 2)[::-1])
    if lockstep and fewer:
        _forward(module, task, examples.batch(batches[0]), options, uncached(batches[0]))
    if parallel.any_worker(exhausted):
        raise InfeasibleError("out of memory when evaluating one example")
    gathered = [part for parts in parallel.gather(parts) for part in parts]
    widest = max(values.shape[1] for _, values, _ in gathered)  # they differ where the model writes texts
    predictions = np.full((len(order), widest, *gathered[0][1].shape[2:]), -1, dtype=np.float32)
    for rows, values, _ in gathered:
        predictions[rows, : values.shape[1]] = values
    return sum(loss for _, _, loss in gathered) / len(order), predictions


def _forward(
    module: torch.nn.Module,
    task: Task,
    batch: Batch,
    options: TrainOptions,
    served: AbstractContextManager[None],
) -> tuple[NDArray[np.float32], float]:
    """Return predictions (B, K) and the summed loss of one batch."""
    # Not inference mode: models may keep what they compute for training.
    with torch.no_grad(), options.autocast(), served:
        outputs = module(**{name: tensor.to(options.device) for name, tensor in batch.inputs.items()})
    loss = task.loss(outputs, batch.targets.to(options.device)).double().sum().item()
    return task.predict(outputs, batch.targets.to(options.device)).cpu().numpy(), loss


def predict(model: Pretrained, weights: Path, task: Task, examples: Examples, options: TrainOptions) -> Predictions:
    """Predict a split with weights, and the threshold, that `TrainingRun.save_best` wrote."""
    module = model.load_weights(weights).to(options.device)
    _, probabilities = evaluate(module, task, examples, options)
    threshold = read_threshold(weights)
    return Predictions(
        example_ids=examples.example_ids,
        targets=examples.targets,
        decisions=task.decide(probabilities, threshold),
        probabilities=probabilities[:, : task.num_kept] if isinstance(task, Writing) else probabilities,
        scores=task.score(examples.targets, probabilities, threshold),
        threshold=threshold,
        labels=task.head.labels,
    )


def write_threshold(folder: Path, threshold: float | None) -> None:
    """Keep the decision threshold beside the weights; nothing is written where there is none."""
    if threshold is not None:
        (folder / THRESHOLD_FILE).write_text(json.dumps({"threshold": threshold}) + "\n")


def read_threshold(folder: Path) -> float | None:
    """Read what `write_threshold` wrote."""
    path = folder / THRESHOLD_FILE
    return float(json.loads(path.read_text())["threshold"]) if path.is_file() else None
