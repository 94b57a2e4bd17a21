"""What was asked is what runs: settings are read back from the live optimizer, loader and model, and compared."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from sweeper.core.errors import MismatchError
from sweeper.models.blocks import BlockLayout
from sweeper.models.load import Pretrained
from sweeper.train.settings import Settings
from sweeper.train.unfreezing import Stage


def read_stage(optimizer: torch.optim.Optimizer, module: nn.Module, layout: BlockLayout) -> dict[str, Any]:
    """Read one stage's settings from the live objects (JSON)."""
    parameters = dict(module.named_parameters())
    trainable = [
        group for group, names in enumerate(layout.groups) if any(parameters[name].requires_grad for name in names)
    ]
    frozen_within = [name for group in trainable for name in layout.groups[group] if not parameters[name].requires_grad]
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        rates.setdefault(str(group["group"]), float(group["peak"]))
    return {
        "optimizer": type(optimizer).__name__.lower(),
        "learning_rates": rates,
        "weight_decay": max(float(group["weight_decay"]) for group in optimizer.param_groups),
        "trainable_groups": trainable,
        "frozen_within": frozen_within,
        "num_trainable_parameters": sum(p.numel() for p in parameters.values() if p.requires_grad),
        "in_optimizer": sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
    }


def check_stage(live: dict[str, Any], settings: Settings, stage: Stage) -> None:
    """Compare a stage as it runs with the stage as it was asked.

    Raises
    ------
    MismatchError
        Naming the first difference.
    """
    asked = {str(group): rate for group, rate in stage.rates.items()}
    for group, rate in asked.items():
        if group in live["learning_rates"] and not math.isclose(live["learning_rates"][group], rate, rel_tol=1e-9):
            raise MismatchError(f"learning_rate of group {group}: asked {rate}, runs {live['learning_rates'][group]}")
    _same("trainable groups", sorted(stage.rates), live["trainable_groups"])
    _same("frozen parameters in trainable groups", [], live["frozen_within"])
    _same("parameters in the optimizer", live["num_trainable_parameters"], live["in_optimizer"])
    _same("optimizer", settings.optimizer, live["optimizer"])
    if not math.isclose(settings.weight_decay, live["weight_decay"], rel_tol=1e-9, abs_tol=1e-12):
        raise MismatchError(f"weight_decay: asked {settings.weight_decay}, runs {live['weight_decay']}")


def check_model(model: Pretrained, module: nn.Module, settings: Settings) -> dict[str, list[float]]:
    """Compare the live dropout rates with those asked and return them.

    Raises
    ------
    MismatchError
        Naming the first difference.
    """
    live = model.dropouts(module)
    for kind, rate in settings.dropouts.items():
        if any(not math.isclose(value, rate, rel_tol=1e-9, abs_tol=1e-12) for value in live.get(kind, [math.nan])):
            raise MismatchError(f"{kind}: asked {rate}, runs {live.get(kind)}")
    return live


def check_batch_size(asked: int, live: int) -> None:
    """Compare the loader's batch size with the one asked.

    Raises
    ------
    MismatchError
        When they differ.
    """
    _same("batch_size", asked, live)


def _same(what: str, asked: Any, live: Any) -> None:
    if asked != live:
        raise MismatchError(f"{what}: asked {asked}, runs {live}")
