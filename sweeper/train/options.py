"""How training runs on this hardware. Imports no torch at the top: the driver of a study needs these, but not torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

Measure = Callable[[str], AbstractContextManager[None]]
"""Given a name: a context whose time is recorded under it, see `sweeper.train.spans`."""

_NOTHING = nullcontext()


def unmeasured(name: str) -> AbstractContextManager[None]:  # noqa: ARG001 - the signature of `Measure`
    """Record nothing."""
    return _NOTHING


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How training runs on this hardware; the same for all models of a study.

    Parameters
    ----------
    device:
        ``cpu`` or ``cuda``.
    precision:
        ``fp32``, or ``bf16`` for autocast with fp32 weights; ``auto`` only until a worker has settled it.
    micro_batch_size:
        Most examples a worker holds at once; gradients accumulate up to the asked batch size. None: all of it.
        Batch norm in training takes its statistics over what one worker holds at once, so models with it depend on
        this and on the number of workers; all others do not.
    eval_batch_size:
        Examples of an evaluation batch.
    balance:
        ``none``, ``class-weights`` or ``sampler``, unless a trial's own parameter says otherwise.
    strategy:
        With several workers: ``ddp`` holds the model on each, ``fsdp`` shares it out.
    gradient_checkpointing:
        Compute the blocks' states again in the backward pass instead of keeping them.
    packing:
        Let training examples of a batch share rows, where the task can keep them apart and no frozen block is spared.
        Batches then hold examples of all lengths.
    measure:
        Told what is being done, for a profile.
    """

    device: str = "cpu"
    precision: str = "fp32"
    micro_batch_size: int | None = None
    eval_batch_size: int = 256
    balance: str = "none"
    strategy: str = "ddp"
    gradient_checkpointing: bool = False
    packing: bool = False
    measure: Measure = field(default=unmeasured, compare=False, repr=False)

    def autocast(self) -> Any:
        """Return the context in which forward passes run."""
        import torch

        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")
