"""What was asked is what runs: settings are read back from the live optimizer, loader and model, and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sweeper.core.errors import MismatchError
from sweeper.models import adapters
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
    groups = optimizer.param_groups
    decays = sorted({float(g["weight_decay"]) for g in groups if any(p.dim() >= 2 for p in g["params"])})
    undecayed = sorted({float(g["weight_decay"]) for g in groups if any(p.dim() < 2 for p in g["params"])})
    return {
        "optimizer": type(optimizer).__name__.lower(),
        "learning_rates": _rates(optimizer, parameters, layout),
        "weight_decay": decays[0] if len(decays) == 1 else decays,
        "weight_decay_of_biases_and_norms": undecayed[0] if len(undecayed) == 1 else undecayed,
        "momentum": groups[0].get("momentum"),
        "trainable_groups": trainable,
        "frozen_within": frozen_within,
        "num_trainable_parameters": sum(p.numel() for p in parameters.values() if p.requires_grad),
        "in_optimizer": sum(p.numel() for group in groups for p in group["params"]),
    }


def check_stage(live: dict[str, Any], settings: Settings, stage: Stage) -> None:
    """Compare a stage as it runs with the stage as it was asked.

    Raises
    ------
    MismatchError
        Naming the first difference.
    """
    _same_rates(stage, 1.0, live["learning_rates"])
    _same("trainable groups", sorted(stage.rates), live["trainable_groups"])
    _same("frozen parameters in trainable groups", [], live["frozen_within"])
    _same("parameters in the optimizer", live["num_trainable_parameters"], live["in_optimizer"])
    _same("optimizer", settings.optimizer, live["optimizer"])
    if live["weight_decay"] != []:
        _same("weight_decay", settings.weight_decay, live["weight_decay"])
    if live["weight_decay_of_biases_and_norms"] != []:
        _same("weight_decay of biases and norms", 0.0, live["weight_decay_of_biases_and_norms"])
    if live["momentum"] is not None:
        _same("momentum", settings.momentum, live["momentum"])


def check_same_stage(recorded: dict[str, Any], live: dict[str, Any]) -> None:
    """Compare a stage that begins with what was recorded of it.

    Raises
    ------
    MismatchError
        Naming the first difference.
    """
    for key, value in live.items():
        _same(f"{key} from epoch {recorded['from_epoch']}", recorded[key], value)


def check_rates(
    optimizer: torch.optim.Optimizer, module: nn.Module, layout: BlockLayout, stage: Stage, factor: float
) -> None:
    """Compare the optimizer's learning rates with the stage's peak rates times the schedule's ``factor``.

    Raises
    ------
    MismatchError
        Naming the first difference.
    """
    _same_rates(stage, factor, _rates(optimizer, dict(module.named_parameters()), layout))


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


def check_lora(module: nn.Module, settings: Settings) -> dict[str, Any]:
    """Compare the live adapters with those asked and return them; empty where none are.

    Raises
    ------
    MismatchError
        Naming the first difference.
    """
    asked, live = settings.lora, adapters.read(module)
    _same("adapters", asked is not None, bool(live))
    for key in ("rank", "alpha", "dropout") if asked is not None else ():
        if not isinstance(live[key], int | float) or not math.isclose(live[key], getattr(asked, key), rel_tol=1e-9):
            raise MismatchError(f"lora_{key}: asked {getattr(asked, key)}, runs {live[key]}")
    return live


def check_reinitialised(model: Pretrained, module: nn.Module, settings: Settings) -> int:
    """Compare the number of blocks that were drawn anew with the one asked and return it.

    Raises
    ------
    MismatchError
        When they differ.
    """
    live = model.count_reinitialised(module)
    _same("num_reinitialised_blocks", settings.num_reinitialised_blocks, live)
    return live


def check_batch_size(asked: int, live: int) -> None:
    """Compare the loader's batch size with the one asked.

    Raises
    ------
    MismatchError
        When they differ.
    """
    _same("batch_size", asked, live)


def _rates(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], layout: BlockLayout
) -> dict[str, float | list[float]]:
    """Return each block group's learning rate as it stands now; a list where its parameters disagree."""
    live = {parameter: float(group["lr"]) for group in optimizer.param_groups for parameter in group["params"]}
    found: dict[str, float | list[float]] = {}
    for group, names in enumerate(layout.groups):
        rates = sorted({live[parameters[name]] for name in names if parameters[name] in live})
        if rates:
            found[str(group)] = rates[0] if len(rates) == 1 else rates
    return found


def _same_rates(stage: Stage, factor: float, live: dict[str, float | list[float]]) -> None:
    for group, rate in stage.rates.items():
        runs = live.get(str(group))
        if not isinstance(runs, float) or not math.isclose(runs, rate * factor, rel_tol=1e-9, abs_tol=1e-15):
            raise MismatchError(f"learning_rate of group {group}: asked {rate * factor}, runs {runs}")


def _same(what: str, asked: Any, live: Any) -> None:
    if asked != live:
        raise MismatchError(f"{what}: asked {asked}, runs {live}")
