"""Running a model on given states, with its frozen blocks replaced by stand-ins of the right shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sweeper.models.blocks import BlockLayout


class _AtBoundaryError(Exception):
    """The forward pass came to the boundary; what follows is not needed."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a batch showed of a frozen prefix; the same for every copy of a model.

    Parameters
    ----------
    skipped:
        Dotted names of the modules that need not run: frozen blocks, and embeddings where they are left out.
    templates:
        The output of each, its tensors replaced by their shapes.
    dtype, row_shape:
        The states at the boundary: what they are made of, and the shape of one example's, or of one token's.
    is_ragged:
        Whether they have a length, which differs from example to example.
    """

    skipped: tuple[str, ...]
    templates: tuple[Any, ...]
    dtype: torch.dtype
    row_shape: tuple[int, ...]
    is_ragged: bool


class FrozenPrefix:
    """The frozen blocks below a boundary, of a live model that is in evaluation mode there.

    Parameters
    ----------
    module:
        The model; it is left as it was after every use.
    layout:
        Its blocks.
    boundary:
        The lowest trainable group, 2 to n + 1: blocks 1 to ``boundary`` - 1 are frozen.
    """

    def __init__(self, module: nn.Module, layout: BlockLayout, boundary: int) -> None:
        self._module = module
        self._layout = layout
        self._blocks = [module.get_submodule(name) for name in layout.blocks]
        self._boundary = boundary

    def outline(self, inputs: dict[str, torch.Tensor], *, skip_embeddings: bool) -> Outline:
        """Run a batch up to the boundary and note what states look like there, and what the skipped modules gave.

        Parameters
        ----------
        skip_embeddings:
            Whether the embeddings are left out too; some models read theirs again further up.

        Raises
        ------
        ValueError
            When the states of texts have no row for each token.
        """
        names = [*(_embeddings(self._module, self._layout) if skip_embeddings else [])]
        names += self._layout.blocks[: self._boundary - 1]
        outputs: dict[str, list[Any]] = {name: [] for name in names}

        def noting(name: str) -> Callable[..., None]:
            return lambda _, __, output: outputs[name].append(output)

        handles = [self._module.get_submodule(name).register_forward_hook(noting(name)) for name in names]
        try:
            states = self.states(inputs)
        finally:
            for handle in handles:
                handle.remove()
        is_ragged = "input_ids" in inputs
        lead = _lead(inputs)
        if is_ragged and states.shape[:2] != lead:
            raise ValueError(f"states of shape {tuple(states.shape)} for tokens of shape {lead}")
        called = [name for name in names if len(outputs[name]) == 1]
        return Outline(
            skipped=tuple(called),
            templates=tuple(_template(outputs[name][0], lead) for name in called),
            dtype=states.dtype,
            row_shape=tuple(states.shape[2 if is_ragged else 1 :]),
            is_ragged=is_ragged,
        )

    def states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run a batch up to the boundary and return the states there, (B, ...)."""
        reached: list[torch.Tensor] = []

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            reached.append(args[0] if args else kwargs["hidden_states"])
            raise _AtBoundaryError

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            reached.append(_only_tensor(output))
            raise _AtBoundaryError

        if self._boundary <= len(self._blocks):
            handle = self._blocks[self._boundary - 1].register_forward_pre_hook(enter, with_kwargs=True)
        else:
            handle = self._blocks[-1].register_forward_hook(leave)
        try:
            with torch.no_grad():
                self._module(**inputs)
        except _AtBoundaryError:
            pass
        finally:
            handle.remove()
        return reached[0]

    @contextmanager
    def on(self, outline: Outline, states: torch.Tensor) -> Iterator[None]:
        """Run the model on given states, (B, ...), at the boundary; what lies below does nothing."""

        def stand_in(template: Any, *, last: bool) -> Callable[..., Any]:
            return lambda *_, **__: _fill(template, states, keep=last)

        def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        inner = self._boundary <= len(self._blocks)
        handle = self._blocks[self._boundary - 1].register_forward_pre_hook(enter, with_kwargs=True) if inner else None
        skipped = [self._module.get_submodule(name) for name in outline.skipped]
        try:
            for part, template in zip(skipped, outline.templates, strict=True):
                part.forward = stand_in(template, last=not inner and part is self._blocks[-1])
            yield
        finally:
            if handle is not None:
                handle.remove()
            for part in skipped:
                part.__dict__.pop("forward", None)


def _embeddings(module: nn.Module, layout: BlockLayout) -> list[str]:
    """Return the names of the largest modules that lie in the embeddings' group as a whole."""
    own = set(layout.modules[0])
    found: list[str] = []

    def visit(name: str, part: nn.Module) -> None:
        leaves = [key for key, child in part.named_modules(prefix=name) if not list(child.children())]
        if leaves and all(leaf in own for leaf in leaves):
            found.append(name)
            return
        for key, child in part.named_children():
            visit(f"{name}.{key}" if name else key, child)

    visit("", module)
    return found


def _lead(inputs: dict[str, torch.Tensor]) -> tuple[int, ...]:
    """Return the leading sizes that change from batch to batch: B for images, (B, L) for texts."""
    return tuple(inputs["input_ids"].shape) if "input_ids" in inputs else tuple(inputs["pixel_values"].shape[:1])


def _template(output: Any, lead: tuple[int, ...]) -> Any:
    """Return an output with its tensors replaced by what is needed to make one of another batch."""
    if isinstance(output, torch.Tensor):
        fixed = 0
        while fixed < min(len(lead), output.dim()) and output.shape[fixed] == lead[fixed]:
            fixed += 1
        return _Shape(fixed, tuple(output.shape[fixed:]), output.dtype)
    if isinstance(output, tuple | list):
        return type(output)(_template(value, lead) for value in output)
    return output


@dataclass(frozen=True)
class _Shape:
    """A tensor of which the first ``leading`` sizes are the batch's."""

    leading: int
    rest: tuple[int, ...]
    dtype: torch.dtype


def _fill(template: Any, states: torch.Tensor, *, keep: bool) -> Any:
    """Make an output after its template: the states themselves with ``keep``, else zeros that take no memory."""
    if isinstance(template, _Shape):
        if keep:
            return states
        zero = torch.zeros((), dtype=template.dtype, device=states.device)
        return zero.expand(*states.shape[: template.leading], *template.rest)
    if isinstance(template, tuple | list):
        return type(template)(_fill(value, states, keep=keep) for value in template)
    return template


def _only_tensor(output: Any) -> torch.Tensor:
    """Return the one tensor of a block's output.

    Raises
    ------
    ValueError
        When there are several.
    """
    found = [output] if isinstance(output, torch.Tensor) else [v for v in output if isinstance(v, torch.Tensor)]
    if len(found) != 1:
        raise ValueError(f"the last block gives {len(found)} tensors")
    return found[0]
