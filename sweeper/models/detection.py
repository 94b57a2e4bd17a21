"""Detectors of transformers, made to fit training: boxes as one tensor in, a loss for each image out.

A detector's ``forward`` takes a list of dictionaries as labels and reduces its loss over the batch, so that an image's
loss depends on its neighbours and a batch cannot be shared out. `adapt` gives a live module a hook that turns a tensor
of boxes into that list, and a loss function that asks the family's own one for each image alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.loss import loss_for_object_detection, loss_rt_detr

AUTO_CLASS = "AutoModelForObjectDetection"
_MATCHERS: tuple[Any, ...] = (loss_for_object_detection.HungarianMatcher, loss_rt_detr.RTDetrHungarianMatcher)


def adapt(module: Any) -> None:
    """Let a detector take ``labels`` (B, M, 8) as `sweeper.tasks.boxes` lays them out, and return its loss as (B,)."""
    module.register_forward_pre_hook(_Labels(module), with_kwargs=True)
    module.loss_function = _PerImage(module.loss_function)


class _Labels:
    """A forward pre-hook that turns a tensor of boxes into the list that detectors take; a class, so that it copies."""

    def __init__(self, module: Any) -> None:
        self._takes_mask = "pixel_mask" in inspect.signature(type(module).forward).parameters

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        kwargs = dict(kwargs)
        if not self._takes_mask:
            kwargs.pop("pixel_mask", None)
        if isinstance(kwargs.get("labels"), torch.Tensor):
            kwargs["labels"] = [_as_label(boxes) for boxes in kwargs["labels"]]
        return args, kwargs


def _as_label(boxes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return classes (m,) and boxes (m, 4), centre and size in shares of the frame, of an image's boxes that count."""
    kept = boxes[(boxes[:, 0] >= 0) & (boxes[:, 1] > 0)]
    low, high, frame = kept[:, 2:4], kept[:, 4:6], kept[:, 6:8]
    return {
        "class_labels": kept[:, 0].long(),
        "boxes": torch.cat([(low + high) / 2 / frame, (high - low) / frame], dim=1),
    }


class _PerImage:
    """A loss function of transformers, asked for each image alone: (B,) in fp32 instead of one number."""

    def __init__(self, loss: Callable[..., Any]) -> None:
        self._loss = loss

    def __call__(
        self,
        logits: torch.Tensor,
        labels: Sequence[Any],
        device: Any,
        pred_boxes: torch.Tensor,
        config: Any,
        outputs_class: torch.Tensor | None = None,
        outputs_coord: torch.Tensor | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, dict[str, Any], None]:
        count = len(labels)
        if not torch.isfinite(pred_boxes).all():  # matching would raise; training says that it diverged
            return logits.float().sum() * torch.full((count,), torch.nan, device=logits.device), {}, None
        axis = _batch_axis(outputs_class, logits)
        losses = []
        with torch.autocast(logits.device.type, enabled=False), _matching_of_nothing():
            for at in range(count):
                of_layers = [
                    None if value is None else _one(value, at, axis) for value in (outputs_class, outputs_coord)
                ]
                rest = {name: _part(value, at, axis) for name, value in others.items()}
                loss, *_ = self._loss(
                    _one(logits, at, 0), [labels[at]], device, _one(pred_boxes, at, 0), config, *of_layers, **rest
                )
                losses.append(loss)
        return torch.stack(losses), {}, None


def _batch_axis(outputs_class: torch.Tensor | None, logits: torch.Tensor) -> int:
    """Return where the batch lies in what each decoder layer gave: DETR stacks layers first, RT-DETR examples first."""
    if outputs_class is None:
        return 0
    first, second = outputs_class.shape[0] == len(logits), outputs_class.shape[1] == len(logits)
    if first and second:
        return 0 if torch.equal(outputs_class[:, -1], logits) else 1
    return 0 if first else 1


def _one(value: torch.Tensor, at: int, axis: int) -> torch.Tensor:
    part = value.narrow(axis, at, 1)
    return part.float() if part.is_floating_point() else part


def _part(value: Any, at: int, axis: int) -> Any:
    """Return one image's part of whatever a family hands to its loss."""
    if isinstance(value, torch.Tensor):
        return _one(value, at, axis if value.dim() > 3 else 0)
    if isinstance(value, Mapping) and "dn_positive_idx" in value:
        return {**value, "dn_positive_idx": [value["dn_positive_idx"][at]]}
    return value


@contextmanager
def _matching_of_nothing() -> Iterator[None]:
    """Let the matchers of transformers match an image without objects; as they stand they cannot reshape no costs."""
    originals = [matcher.forward for matcher in _MATCHERS]

    def mended(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(self: Any, outputs: Any, targets: Sequence[Any]) -> Any:
            if any(len(target["boxes"]) for target in targets):
                return original(self, outputs, targets)
            none = torch.zeros(0, dtype=torch.int64)
            return [(none, none) for _ in targets]

        return forward

    try:
        for matcher, original in zip(_MATCHERS, originals, strict=True):
            matcher.forward = mended(original)
        yield
    finally:
        for matcher, original in zip(_MATCHERS, originals, strict=True):
            matcher.forward = original


def class_layers(module: Any) -> set[str]:
    """Return the names of the parameters whose shape follows the number of classes."""
    config = copy.deepcopy(module.config)
    config.num_labels = module.config.num_labels + 1
    with torch.device("meta"):
        other = dict(type(module)(config).named_parameters())
    return {name for name, value in module.named_parameters() if other[name].shape != value.shape}


def head_parameters(module: Any) -> set[str]:
    """Return the names of the parameters that make up the head: class layers, and what hangs beside the body."""
    beside = {
        id(parameter)
        for name, child in module.named_children()
        if name != module.base_model_prefix
        for parameter in child.parameters()
    }
    return class_layers(module) | {name for name, parameter in module.named_parameters() if id(parameter) in beside}


def head_name(module: Any) -> str:
    """Return the dotted name of the last layer that tells classes apart."""
    owners = {name.rpartition(".")[0] for name in class_layers(module)}
    names: list[str] = [name for name, _ in module.named_modules() if name in owners]
    return names[-1]


def draw_with_owners(module: Any, fresh: Sequence[str]) -> None:
    """Draw new layers once more the way the modules above them do: class layers of detectors begin at a rare class."""
    new = tuple(f"{name}." for name in fresh)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        parameter._is_hf_initialized = not name.startswith(new)
    owners = {".".join(name.split(".")[:depth]) for name in fresh for depth in range(name.count(".") + 1)}
    with torch.no_grad():
        for owner in sorted(owners, key=len, reverse=True):  # from the inside out, as transformers does
            module._init_weights(module.get_submodule(owner))
