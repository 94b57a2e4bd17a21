"""Whether examples that share a row are computed as if each stood alone: asked of the live model before it trains."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from sweeper.core.errors import InfeasibleError
from sweeper.tasks.base import Batch, Examples, Packing, Task
from sweeper.train.augment import Augmentation

_COMPARED = 4  # examples: the shortest, which fit into one row
_TOLERANCE = 2e-5  # of a loss in fp32, relative: correct rows are 3e-7 apart, an untrained GPT-2 that leaks 8e-5


def check_packing(module: Any, task: Task, examples: Examples, augmentation: Augmentation) -> None:
    """Compare losses of a few examples in one row with those of each alone, in fp32 whatever trains.

    Raises
    ------
    InfeasibleError
        When the task or the augmentation knows no packing, or the model does not keep the examples of a row apart.
    """
    setting = "training.packing"
    if not isinstance(task, Packing):
        raise InfeasibleError(f"{setting}: {task.type} has nothing to pack")
    if not augmentation.is_off:
        raise InfeasibleError(f"{setting}: token_dropout hides tokens of unpacked rows; use one of the two")
    name = type(module).__name__
    if "position_ids" not in inspect.signature(module.forward).parameters:
        raise InfeasibleError(f"{setting}: {name} takes no positions; set it to false")
    rows = np.argsort(examples.lengths, kind="stable")[:_COMPARED]
    was_training = module.training
    module.eval()
    together = _losses(module, task, task.packed(examples, rows))
    alone = torch.cat([_losses(module, task, examples.batch(rows[[at]])) for at in range(len(rows))])
    module.train(was_training)
    difference = float(((together - alone).abs() / alone.abs().clamp_min(1e-6)).max())
    if not difference <= _TOLERANCE:
        rule = f"{name} does not keep the examples of a row apart"
        raise InfeasibleError(f"{setting}: {rule} (losses differ by {difference:.2%}); set it to false")


def _losses(module: Any, task: Task, batch: Batch) -> torch.Tensor:
    """Return the loss of each example (B,)."""
    device = next(module.parameters()).device  # of a model that is shared out later: main memory
    with torch.no_grad():
        outputs = module(**{name: tensor.to(device) for name, tensor in batch.inputs.items()})
    return task.loss(outputs, batch.targets.to(device)).float()
