"""Finding a model's blocks: embeddings, block 1 to n, head, for any architecture.

The blocks are the children of the repeated container that holds most parameters; where those children are stages
with repeated blocks of their own (ResNet, ConvNeXt, Swin), the inner ones count. Everything else is assigned by
watching one forward pass: what runs before the first block belongs to the embeddings, what runs between two blocks to
the lower one, what runs after the last block (final norm, pooler, classifier) to the head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sweeper.core.errors import InputError, Problem

_CONTAINERS = (nn.ModuleList, nn.Sequential)
_PROBE_TOKENS = 8
_PROBE_PIXELS = 64
_DETECTOR_PIXELS = 256  # a detector chooses its queries among the places of its feature maps: there must be enough


@dataclass(frozen=True)
class BlockLayout:
    """A model's parameters in n + 2 groups, from the input to the output.

    Parameters
    ----------
    blocks:
        Dotted names of the block modules, n of them.
    groups:
        Parameter names: embeddings, block 1, ..., block n, head. Each parameter stands in exactly one.
    modules:
        Dotted names of the modules that own those parameters or run beside them, grouped alike: what is switched to
        evaluation mode when a group is frozen.
    """

    blocks: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    modules: tuple[tuple[str, ...], ...]

    @property
    def num_blocks(self) -> int:
        """The number of blocks between embeddings and head."""
        return len(self.blocks)

    def frozen_modules(self, module: nn.Module, trained: Collection[int]) -> list[nn.Module]:
        """Return every module all of whose parts are in groups that are not ``trained``."""
        frozen = {name: group not in trained for group, names in enumerate(self.modules) for name in names}
        found: list[nn.Module] = []

        def visit(name: str, part: nn.Module) -> bool:
            parts = [visit(f"{name}.{key}" if name else key, child) for key, child in part.named_children()]
            still = all(parts) and frozen.get(name, bool(parts))
            if still:
                found.append(part)
            return still

        visit("", module)
        return found


def find_blocks(model: nn.Module, override: str | None = None, head: Collection[str] | None = None) -> BlockLayout:
    """Group all parameters of ``model`` from embeddings to head.

    Parameters
    ----------
    model:
        A transformers model with its head.
    override:
        Dotted path of the container whose children are the blocks; None: found.
    head:
        Of models whose blocks lie in several containers, one after another (detectors: backbone, encoder, decoder):
        names of the parameters that belong to the head, wherever they are used. None: all blocks lie in one.

    Raises
    ------
    InputError
        When the override names no container, or nothing repeated is found.
    """
    names = _in_turn(model, head) if head is not None and override is None else _block_names(model, override)
    position = _watch(model, names)
    count = len(names)
    groups: list[list[str]] = [[] for _ in range(count + 2)]
    modules: list[list[str]] = [[] for _ in range(count + 2)]
    known = {name for name, _ in model.named_parameters()}  # tied weights stand there once, where they are first
    for name, module in model.named_modules():
        owner = _owner(name, names)
        at = owner if owner is not None else position.get(name)
        if at is None:  # a part that is read without being called, such as relative embeddings: below everything
            at = 0
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]
        own = [key for key in own if key in known]
        if head is not None and any(key in head for key in own):
            at = len(names) + 1
        groups[at].extend(own)
        if own or not list(module.children()):
            modules[at].append(name)
    return BlockLayout(tuple(names), tuple(tuple(g) for g in groups), tuple(tuple(m) for m in modules))


def _block_names(model: nn.Module, override: str | None) -> list[str]:
    containers = dict(_repeated(model))
    if override is not None:
        try:
            chosen = model.get_submodule(override)
        except AttributeError:
            chosen = None
        if not isinstance(chosen, _CONTAINERS) or not len(chosen):
            known = ", ".join(containers) or "none found"
            remedy = f"name one of: {known}"
            raise InputError(Problem("blocks", "must be the dotted path of a list of blocks", override, remedy))
        return [f"{override}.{index}" for index in range(len(chosen))]
    if not containers:
        remedy = "name the list of blocks under `blocks`"
        raise InputError(
            Problem("blocks", "the model must have a repeated list of blocks", type(model).__name__, remedy)
        )
    name = max(containers, key=lambda key: (_size(containers[key]), -len(key)))
    blocks: list[str] = []
    for index, child in enumerate(containers[name]):
        blocks.extend(_inner(f"{name}.{index}", child))
    return blocks


def _in_turn(model: nn.Module, head: Collection[str]) -> list[str]:
    """Return the blocks of all outermost containers with at least a tenth of the largest one's parameters, as they run.

    What is called in between the blocks of a larger container belongs to those, such as what brings the levels of a
    feature pyramid together.
    """
    found = {name: part for name, part in _repeated(model) if not any(key.startswith(f"{name}.") for key in head)}
    outer = {name: p for name, p in found.items() if not any(name.startswith(f"{other}.") for other in found)}
    least = max((_size(part) for part in outer.values()), default=0) / 10
    large = sorted((name for name, part in outer.items() if _size(part) >= least), key=lambda n: -_size(outer[n]))
    called = _call_order(model, [f"{name}.{i}" for name in large for i in range(len(outer[name]))])
    spans: list[tuple[int, int]] = []
    blocks: list[tuple[int, str]] = []
    for name in large:
        times = [called[f"{name}.{i}"] for i in range(len(outer[name])) if f"{name}.{i}" in called]
        if times and not any(low < max(times) and min(times) < high for low, high in spans):
            spans.append((min(times), max(times)))
            parts = (_inner(f"{name}.{i}", child) for i, child in enumerate(outer[name]))
            blocks.extend((called[f"{name}.{i}"], block) for i, found_in in enumerate(parts) for block in found_in)
    if not blocks:
        return _block_names(model, None)
    return [block for _, block in sorted(blocks, key=lambda item: item[0])]


def _call_order(model: nn.Module, names: list[str]) -> dict[str, int]:
    """Return when each module is first called in a forward pass, counted from 0."""
    order: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            order.setdefault(name, len(order))

        return hook

    _run_probe(model, [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names])
    return order


def _inner(name: str, child: nn.Module) -> Iterator[str]:
    """Yield the blocks of a stage, or the child itself when it is a block."""
    inner = dict(_repeated(child))
    best = max(inner, key=lambda key: _size(inner[key]), default=None)
    if best is not None:
        is_layer = isinstance(child, GradientCheckpointingLayer)
        holds_layers = isinstance(next(iter(inner[best])), GradientCheckpointingLayer)
        if 2 * _size(inner[best]) > _size(child) and (holds_layers or not is_layer):
            yield from (f"{name}.{best}.{index}" for index in range(len(inner[best])))
            return
    yield name


def _repeated(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield containers whose children all are of one type and own parameters, by dotted name."""
    for name, module in model.named_modules():
        if name and isinstance(module, _CONTAINERS) and len(module):
            kinds = {type(child) for child in module}
            if len(kinds) == 1 and _size(module) and not kinds & {nn.Linear, nn.Conv2d}:
                yield name, module


def _watch(model: nn.Module, blocks: list[str]) -> dict[str, int]:
    """Run one forward pass and note the group during which each module outside the blocks is first called."""
    position: dict[str, int] = {}
    at = 0
    handles = []

    def enter(index: int) -> Any:
        def hook(*_: Any) -> None:
            nonlocal at
            at = index

        return hook

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            position.setdefault(name, at)

        return hook

    for name, module in model.named_modules():
        if name in blocks:
            handles.append(module.register_forward_pre_hook(enter(blocks.index(name) + 1)))
            if name == blocks[-1]:
                handles.append(module.register_forward_hook(enter(len(blocks) + 1)))
        elif _owner(name, blocks) is None and not any(block.startswith(f"{name}.") for block in blocks):
            handles.append(module.register_forward_pre_hook(note(name)))
    _run_probe(model, handles)
    return position


def _run_probe(model: nn.Module, handles: list[Any]) -> None:
    """Run one forward pass with hooks, and remove them."""
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(**_probe(model))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


def _probe(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the smallest input that the model takes."""
    config: Any = model.config
    if getattr(model, "main_input_name", "") == "pixel_values":
        usual = _DETECTOR_PIXELS if hasattr(config, "num_queries") else _PROBE_PIXELS
        size = getattr(config, "image_size", None) or usual
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": torch.zeros(1, getattr(config, "num_channels", 3), height, width)}
    token = 1 if getattr(config, "pad_token_id", 0) == 0 else 0
    return {"input_ids": torch.full((1, _PROBE_TOKENS), token, dtype=torch.long)}


def _owner(name: str, blocks: list[str]) -> int | None:
    return next((i + 1 for i, block in enumerate(blocks) if name == block or name.startswith(f"{block}.")), None)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
