"""Small models made on the spot: what examples and benchmarks share when they pretrain one in a minute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

SETTLED = 20  # last steps whose mean loss is reported


def begin() -> None:
    """One thread, a fixed seed, and no talk from transformers."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    torch.manual_seed(0)


def descend(
    model: PreTrainedModel,
    batch_loss: Callable[[], torch.Tensor],
    steps: int,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
) -> float:
    """Train in place by AdamW under a one-cycle schedule and return the mean loss of the last steps.

    Parameters
    ----------
    batch_loss:
        Draws a batch and returns its loss, a scalar with a gradient.
    steps:
        Updates, at least 1.
    learning_rate:
        The schedule's peak.
    max_grad_norm:
        Gradients are scaled down to this norm; infinity leaves them as they are.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    losses = []
    model.train()
    for _ in range(steps):
        loss = batch_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-SETTLED:]) / len(losses[-SETTLED:])
