"""Several workers on one trial: thin helpers over torch.distributed that do nothing with one worker."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sweeper.core.errors import MismatchError
from sweeper.train import sharding
from sweeper.train.sharding import is_sharded

T = TypeVar("T")


def world_size() -> int:
    """Return the number of workers, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this worker's rank, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap for data-parallel training. Anew at every unfreezing stage: DDP fixes the trainable set when it wraps.

    Buffers are not sent along with every forward pass: training never reads batch-norm's running statistics, and
    `share_buffers` levels them before anything does.
    """
    if world_size() == 1:
        return module
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)


def without_reduction(module: Any) -> AbstractContextManager[Any]:
    """Return a context in which a backward pass of a wrapped module keeps its gradients to itself."""
    if world_size() > 1 and is_sharded(module):
        return sharding.without_reduction(module)
    return module.no_sync() if world_size() > 1 else nullcontext()


def total(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over all workers."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def gather(value: T) -> list[T]:
    """Return every worker's object, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_worker(flag: bool) -> bool:
    """Return whether the flag is set on at least one worker; the same answer on all of them."""
    if world_size() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def share_buffers(module: nn.Module) -> None:
    """Give all workers rank 0's buffers (batch-norm statistics), so that they evaluate the same model."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def check_equal(module: nn.Module) -> None:
    """Check that all workers hold the same parameters.

    Raises
    ------
    MismatchError
        On every worker, when any differs.
    """
    if world_size() == 1:
        return
    sums = torch.stack([parameter.detach().double().sum() for parameter in module.parameters()])
    low, high = sums.clone(), sums.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise MismatchError("parameters differ between the workers of a lane")
