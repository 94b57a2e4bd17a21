"""Hidden states of frozen blocks, computed once and shared by all trials, epochs and lanes of a machine.

Where an unfreezing stage trains blocks b and above, blocks 1 to b - 1 are frozen and run in evaluation mode: for an
unaugmented example the input of block b never changes. An `ActivationStore` keeps these states per split as
memory-mapped ``.npy`` files; a `FrozenPrefix` runs a model on them. States were computed in other batches than those
they serve, so results equal the uncached ones up to the last digits of floating point, not bit for bit; a few examples
of every use go both ways and are compared, and a difference means no cache.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sweeper.models.blocks import BlockLayout
from sweeper.tasks.base import Examples
from sweeper.train.activation_store import STORED, ActivationStore
from sweeper.train.frozen_prefix import FrozenPrefix, Outline

__all__ = ["ActivationStore", "Prefix", "Serving", "cached_prefix", "is_worth_it", "uncached"]

logger = logging.getLogger("sweeper")

Serving = Callable[[NDArray[np.int64]], AbstractContextManager[None]]
"""Given the rows of a batch: a context in which the model runs on their stored states."""

CHECK_ROWS = 4
_BUILD_BATCH = 64
_PROBE_ROWS = 16  # once a process and boundary; more than the few sizes that a model's own constants have
_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


def uncached(rows: NDArray[np.int64]) -> AbstractContextManager[None]:  # noqa: ARG001
    """Serve nothing: the model runs all of its blocks."""
    return nullcontext()


def is_worth_it(num_rows: int, num_epochs: int, boundary: int, num_blocks: int) -> bool:
    """Whether states spare more blocks than their check runs, for blocks that all cost alike.

    Filling the store is not counted: it takes what it spares in one epoch, once for all trials. Nothing is timed: a
    trial that is resumed must decide as before.

    Parameters
    ----------
    num_rows:
        Examples of both splits.
    num_epochs:
        How long the blocks stay frozen.
    """
    frozen = boundary - 1
    return num_rows * num_epochs * frozen > 2 * CHECK_ROWS * (2 * num_blocks - frozen)


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The frozen blocks of a live model, and how it runs.

    Parameters
    ----------
    key:
        Names the weights and the encoding of the examples.
    boundary:
        The lowest trainable group.
    autocast:
        The context of forward passes.
    """

    module: nn.Module
    layout: BlockLayout
    boundary: int
    key: str
    device: torch.device
    precision: str
    autocast: Callable[[], AbstractContextManager[Any]]

    def name(self, *more: str) -> str:
        """Return a file name for what depends on all of this and ``more``."""
        parts = (self.key, *more, self.boundary, self.precision, self.device.type, torch.__version__, "1")
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


class CachedPrefix:
    """A model's frozen prefix together with the stored states of one split."""

    def __init__(
        self, prefix: FrozenPrefix, outline: Outline, examples: Examples, states: Any, device: torch.device
    ) -> None:
        self._prefix = prefix
        self._outline = outline
        self._examples = examples
        self._states = states
        self._device = device
        self._offsets = np.concatenate([[0], np.cumsum(examples.lengths)]) if outline.is_ragged else None

    @contextmanager
    def serving(self, rows: NDArray[np.int64]) -> Iterator[None]:
        """Run the model on the states of ``rows`` instead of on its frozen blocks."""
        with self._prefix.on(self._outline, self._gather(rows).to(self._device)):
            yield

    def _gather(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return states (B, ...): of texts (B, L, ...), zero where the batch is padded."""
        if self._offsets is None:
            return _tensor(self._states[rows], self._outline.dtype)
        lengths = self._examples.lengths[rows]
        longest = self._examples.batch(rows[[int(lengths.argmax())]])
        width = longest.inputs["attention_mask"].shape[1]
        inside = np.arange(width) < lengths[:, None]
        padded = np.zeros((*inside.shape, *self._states.shape[1:]), dtype=self._states.dtype)
        padded[inside] = self._states[(self._offsets[rows][:, None] + np.arange(width))[inside]]
        return _tensor(padded, self._outline.dtype)


def cached_prefix(store: ActivationStore, live: Prefix, examples: Examples, split: str) -> Serving:
    """Return how batches of a split are served from the store, built first where it is missing.

    What a prefix looks like is learnt once a process; a few examples, others every time, are compared at each use.

    Returns
    -------
    Serving
        `uncached` where there is nothing to gain, no room, or where those examples come out differently.
    """
    if live.boundary < 2:
        return uncached
    training = live.module.training
    live.module.eval()
    try:
        with live.autocast():
            for skip_embeddings in (True, False):
                learnt = live.name("embeddings skipped" if skip_embeddings else "")
                if store.learnt.get(learnt, "") is None:
                    continue
                try:
                    cached = _open(store, live, examples, split, learnt, skip_embeddings=skip_embeddings)
                    if cached is None or _agrees(live, cached, examples, store.uses[live.name(split)]):
                        store.uses[live.name(split)] += 1
                        return cached.serving if cached is not None else uncached
                except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                    logger.info("frozen blocks cannot be skipped this way: %s", error)
                if skip_embeddings:
                    store.learnt[learnt] = None
    finally:
        live.module.train(training)
    logger.warning("cached activations would change results below block %d: frozen blocks are run", live.boundary)
    return uncached


def _open(
    store: ActivationStore, live: Prefix, examples: Examples, split: str, learnt: str, *, skip_embeddings: bool
) -> CachedPrefix | None:
    """Learn what the prefix looks like, unless that is known, then open or build the split's states."""
    prefix = FrozenPrefix(live.module, live.layout, live.boundary)
    if learnt not in store.learnt:
        inputs = _inputs(examples, np.arange(min(_PROBE_ROWS, len(examples))), live.device)
        store.learnt[learnt] = prefix.outline(inputs, skip_embeddings=skip_embeddings)
    outline: Outline = store.learnt[learnt]
    if outline.dtype not in STORED:
        return None
    lengths = examples.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    def fill(array: Any) -> None:
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), _BUILD_BATCH):
            rows = order[start : start + _BUILD_BATCH]
            values = _array(prefix.states(_inputs(examples, rows, live.device)))
            for row, value in zip(rows, values, strict=True):
                if outline.is_ragged:
                    array[offsets[row] : offsets[row + 1]] = value[: lengths[row]]
                else:
                    array[row] = value

    num_rows = int(offsets[-1]) if outline.is_ragged else len(examples)
    states = store.states(live.name(split), num_rows, outline.row_shape, outline.dtype, fill)
    return None if states is None else CachedPrefix(prefix, outline, examples, states, live.device)


def _agrees(live: Prefix, cached: CachedPrefix, examples: Examples, use: int) -> bool:
    """Whether a few examples come out the same on stored states as through all blocks."""
    rows = np.unique((use * CHECK_ROWS + np.arange(CHECK_ROWS)) % len(examples))
    inputs = _inputs(examples, rows, live.device)
    with torch.no_grad():
        plain = _tensors(live.module(**inputs))
        with cached.serving(rows):
            served = _tensors(live.module(**inputs))
    tolerance = _TOLERANCE[live.precision]
    real = inputs.get("attention_mask")
    return len(plain) == len(served) and all(
        _close(a.float(), b.float(), real, tolerance) for a, b in zip(plain, served, strict=True)
    )


def _close(a: torch.Tensor, b: torch.Tensor, real: torch.Tensor | None, tolerance: float) -> bool:
    """Compare outputs in units of their own size; outputs by token only where there is a token."""
    if a.shape != b.shape:
        return False
    if real is not None and a.shape[:2] == real.shape:
        a, b = a[real.bool()], b[real.bool()]
    return bool((a - b).abs().max() <= tolerance * a.abs().max().clamp_min(1))


def _inputs(examples: Examples, rows: NDArray[np.int64], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in examples.batch(rows).inputs.items()}


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [value for value in outputs.values() if isinstance(value, torch.Tensor)]


def _array(states: torch.Tensor) -> NDArray[Any]:
    states = states.detach().cpu()
    return (states.view(torch.uint16) if states.dtype is torch.bfloat16 else states).numpy()


def _tensor(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor
