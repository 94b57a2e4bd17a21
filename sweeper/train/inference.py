"""What a trained model costs to use: parameters, size on disk, latency and throughput."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweeper.models.load import Pretrained
from sweeper.tasks.base import Examples, Task
from sweeper.train.options import TrainOptions

BATCH_SIZES = (1, 32)
_WARM_UPS = 2
_FEWEST_REPEATS = 5
_SECONDS = 1.0  # measured at most so long a batch size, once the fewest repeats are done


def inference_cost(
    model: Pretrained, weights: Path, task: Task, examples: Examples, options: TrainOptions
) -> dict[str, Any]:
    """Measure what using a confirmed model costs, on this worker alone.

    Parameters
    ----------
    weights:
        What `TrainingRun.save_best` wrote.
    examples:
        Encoded; those of median length are taken, repeated where there are too few.

    Returns
    -------
    dict
        ``num_parameters``, ``checkpoint_bytes`` (weights only), ``device``, ``num_threads``, ``precision``, and
        ``batches``: for 1 and 32 examples the ``seconds`` of the fastest of several forward passes (what else runs on
        the machine only adds to the others), with the way to the device and back but without tokenising or decoding,
        and ``examples_per_second``.
    """
    module = model.load_weights(weights).to(options.device).eval()
    cost: dict[str, Any] = {
        "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
        "checkpoint_bytes": sum(file.stat().st_size for file in weights.glob("*.safetensors")),
        "device": _device_name(options.device),
        "num_threads": torch.get_num_threads(),
        "precision": options.precision,
        "batches": [],
    }
    order = np.argsort(examples.lengths, kind="stable")
    for size in BATCH_SIZES:
        first = max(0, (len(order) - size) // 2)
        rows = np.resize(order[first : first + size], size)
        batch = examples.batch(rows)
        taken: list[float] = []
        began = time.perf_counter()
        while len(taken) < _WARM_UPS + _FEWEST_REPEATS or time.perf_counter() - began < _SECONDS:
            at = time.perf_counter()
            with torch.no_grad(), options.autocast():
                outputs = module(**{name: tensor.to(options.device) for name, tensor in batch.inputs.items()})
                task.predict(outputs, batch.targets.to(options.device)).cpu()
            taken.append(time.perf_counter() - at)
        seconds = min(taken[_WARM_UPS:])
        cost["batches"].append({"batch_size": size, "seconds": seconds, "examples_per_second": size / seconds})
    return cost


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device
