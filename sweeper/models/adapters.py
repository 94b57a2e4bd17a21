"""LoRA: blocks that stay as they are, with small trainable matrices beside their layers, through peft.

Hu et al. 2021, arXiv 2106.09685; on every linear layer of a block, as Dettmers et al. 2023 (arXiv 2305.14314) found
best. What is saved is a plain checkpoint with the adapters merged into it, so nothing that reads one needs peft.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from sweeper.core.errors import InfeasibleError
from sweeper.core.lora import Lora
from sweeper.models.blocks import BlockLayout

ADAPTER = "default"  # peft's own name of the only adapter
FOLDER = "adapter"


def attach(module: Any, layout: BlockLayout, asked: Lora, seed: int) -> BlockLayout:
    """Put adapters into a module, drawn from ``seed``, and return its layout: of a block only they may train.

    The module gives the same outputs as before, for adapters begin at nothing. Names of adapted layers' own weights
    change (``query.weight`` becomes ``query.base_layer.weight``); they are in no group and never train.

    Raises
    ------
    InfeasibleError
        When there are fewer blocks than asked, or nothing in them that an adapter fits.
    """
    from peft import LoraConfig, inject_adapter_in_model

    count = layout.num_blocks if asked.num_blocks is None else asked.num_blocks
    if count > layout.num_blocks:
        raise InfeasibleError(f"num_adapted_blocks: the model has {layout.num_blocks} blocks, got {count}")
    targets = _targets(module, layout.blocks[layout.num_blocks - count :])
    if not targets:
        raise InfeasibleError(f"unfreezing: the blocks of {type(module).__name__} have no layer that LoRA fits")
    config = LoraConfig(
        r=asked.rank,
        lora_alpha=asked.alpha,  # type: ignore[arg-type]  # peft divides it by the rank as it is
        lora_dropout=asked.dropout,
        target_modules=targets,
        fan_in_fan_out=isinstance(module.get_submodule(targets[0]), Conv1D),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module)
    return _layout(module, layout)


def read(module: nn.Module) -> dict[str, Any]:
    """Read the live adapters back (JSON): each value a number, or a list where layers disagree; empty without any."""
    layers = _layers(module)
    if not layers:
        return {}
    found: dict[str, set[float]] = {"rank": set(), "alpha": set(), "dropout": set()}
    for layer in layers.values():
        found["rank"] |= {int(layer.r[ADAPTER]), int(layer.lora_A[ADAPTER].weight.shape[0])}
        found["alpha"].add(float(layer.scaling[ADAPTER] * layer.r[ADAPTER]))
        found["dropout"].add(float(getattr(layer.lora_dropout[ADAPTER], "p", 0.0)))
    values = {key: next(iter(some)) if len(some) == 1 else sorted(some) for key, some in found.items()}
    return {**values, "num_layers": len(layers)}


def merged(module: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights ``state`` of an adapted module as those of the plain model, adapters merged into them."""
    device = next(module.parameters()).device
    whole = copy.deepcopy(module.to("cpu"))  # not a second one on a device that the first may fill
    module.to(device)
    whole.load_state_dict(state)
    for layer in _layers(whole).values():
        layer.merge()
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in whole.state_dict().items() if not _is_own(name)
    }


def save_adapter(module: Any, state: Mapping[str, torch.Tensor], layout: BlockLayout, base: str, folder: Path) -> None:
    """Write the adapters of ``state``, and the head that trained with them, as `peft.PeftModel` reads them.

    Nothing is written of a model with batch norm: its statistics move in training, and peft has no place for them.

    Parameters
    ----------
    layout:
        Of the adapted module.
    base:
        The checkpoint that they belong to: a folder or a hub id.
    """
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        return
    heads = sorted({name.rpartition(".")[0] for name in layout.groups[-1]}) if trains_head(module) else []
    config = copy.deepcopy(module.peft_config[ADAPTER])
    config.base_model_name_or_path, config.modules_to_save, config.inference_mode = base, heads or None, True
    folder.mkdir()
    config.save_pretrained(str(folder))
    chosen = [name for name in state if _is_own(name) or (heads and name in layout.groups[-1])]
    named = {f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": state[name].contiguous() for name in chosen}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def trains_head(module: Any) -> bool:
    """Whether a model's head is trained beside its adapters: those over a vocabulary stay as they were pretrained."""
    return module.get_output_embeddings() is None


def _targets(module: nn.Module, blocks: tuple[str, ...]) -> list[str]:
    """Return the names of all linear layers in blocks, of blocks without any those of ungrouped convolutions."""
    inside = [
        (name, part)
        for block in blocks
        for name, part in module.get_submodule(block).named_modules(prefix=block)
        if isinstance(part, nn.Linear | Conv1D | nn.Conv2d)
    ]
    linear = [name for name, part in inside if isinstance(part, nn.Linear | Conv1D)]
    return linear or [name for name, part in inside if isinstance(part, nn.Conv2d) and part.groups == 1]


def _layout(module: nn.Module, layout: BlockLayout) -> BlockLayout:
    names = [name for name, _ in module.named_parameters()]
    groups = [
        tuple(name for name in names if _is_own(name) and name.startswith(f"{block}.")) for block in layout.blocks
    ]
    return BlockLayout(layout.blocks, (layout.groups[0], *groups, layout.groups[-1]), layout.modules)


def _layers(module: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in module.named_modules() if hasattr(part, "lora_A")}


def _is_own(name: str) -> bool:
    """Whether a weight is an adapter's."""
    return ".lora_" in name
