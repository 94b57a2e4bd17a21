"""How much of a GPU's memory training takes at most: measured on the largest batch of the longest examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sweeper.core.trial import TrialSpec
from sweeper.models.load import Pretrained
from sweeper.tasks.base import Batch, Examples, Task
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions


class DeviceMemory(Protocol):
    """The memory of a device, as this process sees it."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        ...

    def reset(self) -> None:
        """Give back what is not in use, and measure anew."""
        ...

    def peak_bytes(self) -> int:
        """What the allocator held at most since `reset`."""
        ...

    def context_bytes(self) -> int:
        """What is in use beside the allocator: the driver's context and kernels, and any other process."""
        ...


class CudaMemory:
    """The memory of this process's GPU."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return int(torch.cuda.mem_get_info()[1])

    def reset(self) -> None:
        """Give back what is not in use, and measure anew."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """What the allocator reserved, which is more than what tensors took."""
        return int(torch.cuda.max_memory_reserved())

    def context_bytes(self) -> int:
        """What is in use and not the allocator's."""
        free, total = torch.cuda.mem_get_info()
        return max(0, int(total - free) - int(torch.cuda.memory_reserved()))


def allocator_share(share: float, context_bytes: int, total_bytes: int) -> float:
    """Return the part of a device that a process's allocator may hold, where the process may take ``share`` of it."""
    return max(0.01, share - context_bytes / total_bytes)


class _Longest:
    """The ``count`` longest examples of a split; see `sweeper.tasks.base.Examples`."""

    def __init__(self, examples: Examples, count: int) -> None:
        self._examples = examples
        self._rows = np.argsort(examples.lengths, kind="stable")[::-1][:count]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self._examples.lengths[self._rows]

    @property
    def targets(self) -> NDArray[Any]:
        chosen: NDArray[Any] = self._examples.targets[self._rows]
        return chosen

    @property
    def example_ids(self) -> Sequence[str]:
        names = self._examples.example_ids
        return [names[row] for row in self._rows]

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        return self._examples.batch(self._rows[indices])


def peak_bytes(
    task: Task,
    model: Pretrained,
    data: TrainData,
    params: Mapping[str, Any],
    options: TrainOptions,
    memory: DeviceMemory,
) -> int:
    """Train one step and evaluate one batch, both of the longest examples; return what that took of the device.

    Parameters
    ----------
    params:
        The hungriest configuration. Its learning rate does not matter: nothing is kept.
    """
    size = min(int(params["batch_size"]), len(data.train))
    longest = TrainData(
        train=_Longest(data.train, size), validation=_Longest(data.validation, options.eval_batch_size), key=data.key
    )
    asked = {**params, "batch_size": size, "learning_rate": 0.0}
    trial = TrialSpec(trial_id="probe", number=0, model=model.info.name, params=asked, seed=0, max_epochs=1)
    memory.reset()
    run = train(trial, task, model, longest, options)
    next(run)
    run.close()
    return memory.peak_bytes()
