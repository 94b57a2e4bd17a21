"""Models larger than one device: parameters, gradients and moments shared out over a lane's workers (FSDP2).

The plain module stays whole in main memory; what trains is a sharded copy of it, made anew at every unfreezing stage
and brought home after every epoch. So weights, snapshots and exports know nothing of sharding. Workers of a sharded
model take every forward pass together: those with less to do repeat an example that does not count.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sweeper.core.errors import InfeasibleError
from sweeper.models.blocks import BlockLayout


def shard(module: nn.Module, layout: BlockLayout, device: torch.device) -> Any:
    """Return a copy of a module whose blocks are sharded one by one, and the rest together.

    Whether parameters train is taken over as it stands.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    sharded = copy.deepcopy(module)
    for name in layout.blocks:
        fully_shard(sharded.get_submodule(name), mesh=mesh)
    # The root would stay whole after a forward pass, and its parameters be others than the optimizer's.
    fully_shard(sharded, mesh=mesh, reshard_after_forward=True)
    return sharded


def bring_home(sharded: nn.Module, module: nn.Module) -> None:
    """Copy the sharded weights and buffers into the plain module, on every worker; one tensor at a time."""
    home = module.state_dict()
    with torch.no_grad():
        for name, tensor in sharded.state_dict().items():
            home[name].copy_(whole(tensor))


def is_sharded(module: nn.Module) -> bool:
    """Whether the workers must take every forward pass of a module together."""
    return isinstance(module, FSDPModule)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with all its shards; every worker must ask. Others come back as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Share a whole tensor out as a parameter is, where it is; every worker must hold it."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device, copy=True)


@contextmanager
def without_reduction(module: Any) -> Iterator[None]:
    """Let backward passes keep their gradients to themselves inside the block."""
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def checkpoint_activations(module: Any) -> None:
    """Let a transformers model compute its blocks again in the backward pass instead of keeping their states.

    Raises
    ------
    InfeasibleError
        When the model's code does not provide for it.
    """
    if not getattr(module, "supports_gradient_checkpointing", False):
        raise InfeasibleError(f"training.gradient_checkpointing: {type(module).__name__} does not provide for it")
    module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
