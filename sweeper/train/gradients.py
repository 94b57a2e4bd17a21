"""The gradients of one global batch, in micro-batches and shared out over the workers of a lane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sweeper.core.errors import InfeasibleError
from sweeper.core.seeds import derive_seed
from sweeper.tasks.base import Batch, Examples, LossOptions, Packing, Task
from sweeper.train import parallel
from sweeper.train.activation_cache import Serving, uncached
from sweeper.train.augment import Augmentation, Draws
from sweeper.train.memory import is_out_of_memory
from sweeper.train.options import TrainOptions


@dataclass(kw_only=True)
class Gradients:
    """Computes a trial's gradients, batch by batch.

    Parameters
    ----------
    seed:
        The trial's; of augmentation.
    loss_options:
        How the trial changes the loss.
    is_sharded:
        Whether the model is shared out over the workers.
    micro_batch_size:
        Most examples that a worker holds at once; halved whenever memory runs out. None: its part of the batch.
    module:
        What is run: the model, wrapped for its workers. Set anew at every unfreezing stage, as is ``serve``.
    serve:
        How batches get past frozen blocks.
    """

    task: Task
    examples: Examples
    options: TrainOptions
    augmentation: Augmentation
    loss_options: LossOptions
    seed: int
    is_sharded: bool
    micro_batch_size: int | None
    module: Any = None
    serve: Serving = uncached

    def __post_init__(self) -> None:
        self._measure = self.options.measure
        self._device = torch.device(self.options.device)

    def add(self, rows: NDArray[np.int64], epoch: int, index: int) -> torch.Tensor:
        """Add the gradients of an epoch's batch ``index``, and return the summed loss of this worker's part of it.

        Out of memory halves the micro-batch and begins the batch again.

        Raises
        ------
        InfeasibleError
            When not even one example fits.
        """
        draws = self._draws(len(rows), epoch, index)
        most = -(-len(rows) // parallel.world_size())
        while (losses := self._gradients(rows, draws)) is None:
            held = min(self.micro_batch_size or most, most)
            if held == 1:
                raise InfeasibleError("out of memory with a micro-batch of one example")
            self.micro_batch_size = held // 2
            self.module.zero_grad(set_to_none=True)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        return losses

    def _draws(self, count: int, epoch: int, index: int) -> Draws | None:
        if self.augmentation.is_off:
            return None
        return self.augmentation.draw(count, derive_seed(self.seed, "augmentation"), epoch, index)

    def _gradients(self, rows: NDArray[np.int64], draws: Draws | None) -> torch.Tensor | None:
        """Accumulate this worker's part of a batch's gradients; return its summed loss, None when out of memory.

        The loss is the mean over the global batch, so neither the number of workers nor of micro-batches changes it.
        All workers agree on having memory enough before the last backward pass, which reduces the gradients.
        """
        world = parallel.world_size()
        mine = np.array_split(np.arange(len(rows)), world)[parallel.rank()]
        share = world / len(rows) if len(mine) else 0.0  # DDP averages over workers
        mine = mine if len(mine) else np.arange(1)  # a worker without a part still joins the others' reduction
        *first, (last, weight) = self._parts(mine, -(-len(rows) // world))
        losses = torch.zeros((), dtype=torch.float64, device=self._device)
        reduced = False
        try:
            with parallel.without_reduction(self.module):
                for part, counts in first:
                    loss = self._loss(rows, part, draws) * counts
                    losses += loss.detach()
                    self._backward(loss * share)
            loss = self._loss(rows, last, draws) * weight
            losses += loss.detach()
            if parallel.any_worker(False):
                return None
            reduced = True
            self._backward(loss * share)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or (world > 1 and (reduced or self.is_sharded)):
                raise  # amid a reduction the others cannot be told: the lane is given up
            parallel.any_worker(True)
            return None
        return losses if share else torch.zeros_like(losses)

    def _parts(self, mine: NDArray[np.int64], most: int) -> list[tuple[NDArray[np.int64], float]]:
        """Cut this worker's examples, ``most`` on any worker, into micro-batches, each with what it counts.

        Sharded workers take as many forward passes as each other, if need be with one that counts nothing.
        """
        micro = self.micro_batch_size or most
        if not self.is_sharded:
            return [(mine[i : i + micro], 1.0) for i in range(0, len(mine), micro)]
        count = -(-most // micro)
        parts = [(part, 1.0) for part in np.array_split(mine, count) if len(part)]
        return [(mine[:1], 0.0)] * (count - len(parts)) + parts

    def _backward(self, loss: torch.Tensor) -> None:
        with self._measure("backward"):
            loss.backward()  # type: ignore[no-untyped-call]

    def _loss(self, rows: NDArray[np.int64], at: NDArray[np.int64], draws: Draws | None) -> Any:
        """Return the summed loss of a batch's examples at positions ``at``, a tensor of one element."""
        batch = self._augmented(rows, at, draws)
        if draws is None or not self.augmentation.mixes:
            return self._losses(self._forward(batch, rows[at]), batch.targets).sum()
        partners = self._augmented(rows, draws.partners[at], draws)
        mixed, share = self.augmentation.mix(batch, partners, draws)
        outputs = self._forward(mixed, rows[at])
        losses = share * self._losses(outputs, batch.targets) + (1 - share) * self._losses(outputs, partners.targets)
        return losses.sum()

    def _augmented(self, rows: NDArray[np.int64], at: NDArray[np.int64], draws: Draws | None) -> Batch:
        with self._measure("data"):
            batch = self._batch(rows[at])
        return batch if draws is None else self.augmentation.apply(batch, draws, at)

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        """Gather examples, packed where that was asked for; states of frozen blocks are stored an example a row."""
        if self.options.packing and self.serve is uncached and isinstance(self.task, Packing):
            return self.task.packed(self.examples, rows)
        return self.examples.batch(rows)

    def _forward(self, batch: Batch, rows: NDArray[np.int64]) -> Any:
        with self._measure("forward"), self.options.autocast(), self.serve(rows):
            return self.module(**{name: tensor.to(self._device) for name, tensor in batch.inputs.items()})

    def _losses(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        return self.task.loss(outputs, targets.to(self._device), self.loss_options)
