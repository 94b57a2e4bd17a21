"""Optimizers and learning-rate schedules. Schedules are pure functions of the step over the full budget."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from sweeper.models.blocks import BlockLayout
from sweeper.train.settings import Settings
from sweeper.train.unfreezing import Stage

SLANTED_RATIO = 32  # how much lower the lowest rate is than the peak (Howard and Ruder 2018)


def schedule(kind: str, step: int, total: int, warmup_ratio: float) -> float:
    """Return the factor on the peak rate at ``step`` (0-based) of ``total``.

    Parameters
    ----------
    kind:
        ``linear`` and ``cosine``: linear warm-up over ``warmup_ratio`` of the steps, then down to 0 at ``total``;
        ``constant``: warm-up, then 1; ``slanted_triangular``: ULMFiT's, whose rise takes ``warmup_ratio`` of the steps
        and whose ends are 1/32 of the peak (Howard and Ruder 2018, arXiv 1801.06146, eq. 3).
    """
    if kind == "slanted_triangular":
        cut = max(1, math.floor(total * warmup_ratio))
        p = step / cut if step < cut else 1 - (step - cut) / max(1, total - cut)
        return (1 + p * (SLANTED_RATIO - 1)) / SLANTED_RATIO
    warmup = round(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    at = (step - warmup) / max(1, total - warmup)
    return 1 - at if kind == "linear" else 0.5 * (1 + math.cos(math.pi * at))


def make_optimizer(settings: Settings, module: nn.Module, layout: BlockLayout, stage: Stage) -> torch.optim.Optimizer:
    """Build the optimizer of a stage.

    Norms, biases and everything else of fewer than two dimensions get no weight decay. Parameters of one rate and decay
    form one group, for a group costs a small model more than its arithmetic; each carries its ``peak`` rate.
    """
    parameters = dict(module.named_parameters())
    chosen: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group, peak in sorted(stage.rates.items()):
        for name in layout.groups[group]:
            decay = settings.weight_decay if parameters[name].dim() >= 2 else 0.0
            chosen.setdefault((peak, decay), []).append(parameters[name])
    groups = [
        {"params": members, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), members in chosen.items()
    ]
    rate, momentum = settings.learning_rate, settings.momentum
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0, fused=True)
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every parameter group to ``factor`` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def carry_state(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
    """Keep the moments of parameters that both optimizers train; newly unfrozen ones start fresh."""
    trained: Iterable[torch.Tensor] = (p for group in new.param_groups for p in group["params"])
    for parameter in trained:
        if parameter in old.state:
            new.state[parameter] = old.state[parameter]
