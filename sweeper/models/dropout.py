"""Dropout that really drops, in every family, without touching the names of the weights.

``dropout`` sets every hidden and classifier dropout; where nothing drops before the head, one is put there.
``attention_dropout`` sets the dropout of attention probabilities. ``drop_path`` sets stochastic depth (Huang et al.
2016, arXiv 1603.09382), growing linearly up to it at the last block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sweeper.core.errors import InfeasibleError

_ATTENTION_PROJECTIONS = ("query", "query_proj", "q_lin", "q_proj", "c_attn")


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch of whole examples (B, ...) in training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` (B, ...), or zeros for a share ``p`` of the examples and the rest scaled up."""
        if not self.training or self.p == 0:
            return x
        keep = x.new_empty((x.shape[0], *(1,) * (x.dim() - 1))).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)


class _DropBefore:
    """A forward pre-hook that drops a module's first input; a class, so that copies of a model carry it along."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (nn.functional.dropout(inputs[0], self.p, module.training), *inputs[1:])


def apply_dropouts(model: Any, head: str, rates: Mapping[str, float]) -> None:
    """Set the dropouts named in ``rates`` (``dropout``, ``attention_dropout``, ``drop_path``), each in [0, 1).

    Parameters
    ----------
    model:
        A transformers model; changed in place.
    head:
        Dotted name of the module that maps features to outputs.

    Raises
    ------
    InfeasibleError
        When the architecture has no such dropout.
    """
    if "dropout" in rates:
        _set_hidden(model, head, rates["dropout"])
    if "attention_dropout" in rates:
        _set_attention(model, rates["attention_dropout"])
    if "drop_path" in rates:
        _set_drop_path(model, rates["drop_path"])


def read_dropouts(model: Any, head: str) -> dict[str, list[float]]:
    """Return the distinct rates that are live in the model, by kind; ``drop_path`` holds its largest only."""
    found: dict[str, set[float]] = {"dropout": set(), "attention_dropout": set(), "drop_path": set()}
    found["dropout"].update(module.p for module in _hidden(model))
    found["dropout"].update(module.dropout for module in _hidden_numbers(model))
    found["dropout"].update(hook.p for hook in _head_hooks(model.get_submodule(head)))
    for module, name in _attention(model):
        value = getattr(module, name)
        found["attention_dropout"].add(value.p if isinstance(value, nn.Dropout) else value)
    paths = [parent.drop_path for parent in _drop_paths(model)]
    if paths:  # an nn.Identity stands where the checkpoint's own rate is 0
        found["drop_path"].add(max(getattr(path, "p", getattr(path, "drop_prob", None)) or 0.0 for path in paths))
    return {kind: sorted(values) for kind, values in found.items() if values}


def _set_hidden(model: Any, head: str, p: float) -> None:
    for module in _hidden(model):
        module.p = p
    numbers = _hidden_numbers(model)
    for module in numbers:
        module.dropout = p
    if numbers:  # what reaches the head has gone through them
        return
    body = f"{model.base_model_prefix}."
    in_head = any(isinstance(m, nn.Dropout) and not name.startswith(body) for name, m in model.named_modules())
    if not in_head:
        model.get_submodule(head).register_forward_pre_hook(_DropBefore(p))


def _set_attention(model: Any, p: float) -> None:
    places = list(_attention(model))
    if not places:
        raise InfeasibleError(f"attention_dropout: {type(model).__name__} has no attention dropout")
    for module, name in places:
        value = getattr(module, name)
        if isinstance(value, nn.Dropout):
            value.p = p
        else:
            setattr(module, name, p)


def _set_drop_path(model: Any, p: float) -> None:
    parents = _drop_paths(model)
    if not parents:
        raise InfeasibleError(f"drop_path: {type(model).__name__} has no stochastic depth")
    last = len(parents) - 1
    for index, parent in enumerate(parents):
        parent.drop_path = DropPath(p * index / last if last else p)


def _drop_paths(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(getattr(module, "drop_path", None), nn.Module)]


def _hidden(model: Any) -> list[nn.Dropout]:
    attention = {id(getattr(module, name)) for module, name in _attention(model)}
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and id(module) not in attention and ".lora_dropout." not in name
    ]


def _hidden_numbers(model: Any) -> list[Any]:
    """Return the modules that keep the dropout of hidden states as a plain number, as DETR and OPT do."""
    attention = {id(module) for module, _ in _attention(model)}
    return [m for m in model.modules() if isinstance(getattr(m, "dropout", None), float) and id(m) not in attention]


def _attention(model: Any) -> list[tuple[nn.Module, str]]:
    """Return the places that hold the dropout of attention probabilities: a module or a plain number."""
    return [
        (module, name)
        for module in model.modules()
        if any(hasattr(module, projection) for projection in _ATTENTION_PROJECTIONS)
        for name in ("dropout", "attention_dropout", "attn_dropout")
        if isinstance(getattr(module, name, None), nn.Dropout | float | int)
    ]


def _head_hooks(head: nn.Module) -> list[_DropBefore]:
    return [hook for hook in head._forward_pre_hooks.values() if isinstance(hook, _DropBefore)]
