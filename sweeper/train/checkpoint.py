"""A trial's full state between two epochs, as safetensors and JSON: no pickle.

Random states need no place in it: data order and dropout of an epoch depend on (seed, epoch, rank) alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sweeper.core.trial import Measurement
from sweeper.train.sharding import like, whole

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a trial needs to go on.

    ``asked`` is the trial's seed, budget and hyperparameters, which a resumed trial must share. ``optimizer`` holds
    each parameter's moments under ``NAME/KEY``; ``best`` the best epoch's weights and ``threshold`` its
    threshold.
    """

    asked: Mapping[str, Any]
    weights: State
    best: State
    optimizer: State
    measurements: Sequence[Measurement]
    micro_batch_size: int | None
    threshold: float | None = None


def save_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Write a snapshot into an existing folder."""
    for name, state in (("weights", snapshot.weights), ("best", snapshot.best), ("optimizer", snapshot.optimizer)):
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / f"{name}.safetensors")
    facts = {
        "asked": snapshot.asked,
        "measurements": [asdict(m) for m in snapshot.measurements],
        "micro_batch_size": snapshot.micro_batch_size,
        "threshold": snapshot.threshold,
    }
    (folder / "state.json").write_text(json.dumps(facts))


def load_snapshot(folder: Path) -> Snapshot:
    """Read a snapshot."""
    facts = json.loads((folder / "state.json").read_text())
    return Snapshot(
        asked=facts["asked"],
        weights=load_file(folder / "weights.safetensors"),
        best=load_file(folder / "best.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        measurements=[Measurement(**m) for m in facts["measurements"]],
        micro_batch_size=facts["micro_batch_size"],
        threshold=facts["threshold"],
    )


def copy_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the module's weights, copied to main memory, each tensor with memory of its own (as safetensors asks)."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the moments by parameter name; of a sharded module whole, and on every worker at once."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{key}": whole(value.detach()).cpu()
        for parameter, moments in optimizer.state.items()
        for key, value in moments.items()
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, state: State) -> None:
    """Put saved moments back."""
    parameters = dict(module.named_parameters())
    for path, value in state.items():
        name, _, key = path.rpartition("/")
        parameter = parameters[name]
        on_cpu = key == "step" and not any(group.get("fused") for group in optimizer.param_groups)
        optimizer.state[parameter][key] = value.clone() if on_cpu else like(value, parameter)


def carry_state(
    old: torch.optim.Optimizer, old_module: nn.Module, new: torch.optim.Optimizer, new_module: nn.Module
) -> None:
    """Give the optimizer of a sharded module the moments of another's, by the names of parameters that both train."""
    trained = {id(parameter) for group in new.param_groups for parameter in group["params"]}
    names = {name for name, parameter in new_module.named_parameters() if id(parameter) in trained}
    state = optimizer_state(old, old_module)
    kept = {path: value for path, value in state.items() if path.rpartition("/")[0] in names}
    restore_optimizer(new, new_module, kept)
