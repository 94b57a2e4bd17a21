"""Hidden states of frozen blocks, computed once and shared by all trials, epochs and lanes of a machine.

Where an unfreezing stage trains blocks b and above, blocks 1 to b - 1 are frozen and run in evaluation mode: for an
unaugmented example the input of block b never changes. `ActivationStore` keeps these states per split as memory-mapped
``.npy`` files; `FrozenPrefix` runs a model on them, with its frozen blocks replaced by stand-ins of the right shape.
States were computed in other batches than those they serve, so results equal the uncached ones up to the last digits
of floating point, not bit for bit; a first batch of every use is compared, and a difference means no cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sweeper.models.blocks import BlockLayout
from sweeper.tasks.base import Examples

logger = logging.getLogger("sweeper")

Serving = Callable[[NDArray[np.int64]], AbstractContextManager[None]]
"""Given the rows of a batch: a context in which the model runs on their stored states."""

_BUILD_BATCH = 64
_CHECK_ROWS = 16
_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
_STORED: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.bfloat16: np.dtype(np.uint16)}
"""NumPy has no bfloat16: its bits are kept as they are."""


class _AtBoundaryError(Exception):
    """The forward pass came to the boundary; what follows is not needed."""


def uncached(rows: NDArray[np.int64]) -> AbstractContextManager[None]:  # noqa: ARG001
    """Serve nothing: the model runs all of its blocks."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class ActivationStore:
    """Files of hidden states in a folder, the least recently used of which make room for new ones.

    Parameters
    ----------
    folder:
        Where they lie; local to the machine, or shared.
    limit_bytes:
        Most bytes that all files together may take; larger splits are not cached.
    """

    folder: Path
    limit_bytes: int

    def states(
        self, key: str, num_rows: int, row_shape: tuple[int, ...], dtype: torch.dtype, fill: Callable[[Any], None]
    ) -> NDArray[Any] | None:
        """Return the array kept under ``key``, built by ``fill`` where it is missing; None where there is no room.

        Parameters
        ----------
        key:
            Safe as a file name; names everything that the states depend on.
        num_rows, row_shape, dtype:
            The array's shape, (num_rows, *row_shape), and what its bits mean.
        fill:
            Writes every row of the writable array it is given.
        """
        path = self.folder / f"{key}.npy"
        stored = _STORED[dtype]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when its holder dies
                if not path.exists():
                    size = num_rows * int(np.prod(row_shape)) * stored.itemsize
                    if not self._make_room(size):
                        logger.warning("the activation cache has no room for %d bytes: frozen blocks are run", size)
                        return None
                    self._build(path, (num_rows, *row_shape), stored, fill)
                os.utime(path)
                states: NDArray[Any] = np.load(path, mmap_mode="r")
                return states
        except OSError as error:
            logger.warning("the activation cache failed (%s): frozen blocks are run", error)
            return None

    def _make_room(self, size: int) -> bool:
        """Remove what is oldest until ``size`` more bytes fit. Who has a file mapped keeps it."""
        for leftover in self.folder.glob("*.partial"):  # we hold the lock: its writer is dead
            leftover.unlink()
        files = sorted(self.folder.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)
        total = sum(path.stat().st_size for path in files)
        while files and total + size > self.limit_bytes:
            total -= files[0].stat().st_size
            files.pop(0).unlink()
        return total + size <= self.limit_bytes and size < 0.9 * shutil.disk_usage(self.folder).free

    @staticmethod
    def _build(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Callable[[Any], None]) -> None:
        """Fill a file under a temporary name, then move it into place; whole or not at all."""
        partial = path.with_suffix(".partial")
        try:
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
            with partial.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)  # a full disk is an error, not SIGBUS
                fill(array)
                array.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()


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
    skip_embeddings:
        Whether the embeddings are left out too; some models read theirs again further up.
    """

    def __init__(self, module: nn.Module, layout: BlockLayout, boundary: int, *, skip_embeddings: bool) -> None:
        self._module = module
        self._blocks = [module.get_submodule(name) for name in layout.blocks]
        self._boundary = boundary
        below = self._blocks[: boundary - 1]
        self._skipped = [*(_embeddings(module, layout) if skip_embeddings else []), *below]
        self._templates: list[Any] = []

    def probe(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run a batch without the cache up to the boundary, and note the outputs of what will be skipped.

        Returns
        -------
        torch.Tensor
            The states at the boundary, (B, ...).
        """
        outputs: dict[int, list[Any]] = {id(part): [] for part in self._skipped}
        handles = [
            part.register_forward_hook(lambda part, _, output: outputs[id(part)].append(output))
            for part in self._skipped
        ]
        try:
            states = self.states(inputs)
        finally:
            for handle in handles:
                handle.remove()
        self._skipped = [part for part in self._skipped if len(outputs[id(part)]) == 1]
        lead = _lead(inputs)
        self._templates = [_template(outputs[id(part)][0], lead) for part in self._skipped]
        return states

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
    def on(self, states: torch.Tensor) -> Iterator[None]:
        """Run the model on given states, (B, ...), at the boundary; what lies below does nothing."""

        def stand_in(template: Any, *, last: bool) -> Callable[..., Any]:
            return lambda *_, **__: _fill(template, states, keep=last)

        def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        inner = self._boundary <= len(self._blocks)
        handle = self._blocks[self._boundary - 1].register_forward_pre_hook(enter, with_kwargs=True) if inner else None
        try:
            for part, template in zip(self._skipped, self._templates, strict=True):
                part.forward = stand_in(template, last=not inner and part is self._blocks[-1])
            yield
        finally:
            if handle is not None:
                handle.remove()
            for part in self._skipped:
                part.__dict__.pop("forward", None)


class CachedPrefix:
    """A model's frozen prefix together with the stored states of one split."""

    def __init__(self, prefix: FrozenPrefix, examples: Examples, states: Any, like: torch.Tensor, ragged: bool) -> None:
        self._prefix = prefix
        self._examples = examples
        self._states = states
        self._dtype, self._device = like.dtype, like.device
        self._offsets = np.concatenate([[0], np.cumsum(examples.lengths)]) if ragged else None

    @contextmanager
    def serving(self, rows: NDArray[np.int64]) -> Iterator[None]:
        """Run the model on the states of ``rows`` instead of on its frozen blocks."""
        with self._prefix.on(self._gather(rows).to(self._device)):
            yield

    def _gather(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return states (B, ...): of texts (B, L, ...), zero where the batch is padded."""
        if self._offsets is None:
            return _tensor(self._states[rows], self._dtype)
        lengths = self._examples.lengths[rows]
        longest = self._examples.batch(rows[[int(lengths.argmax())]])
        width = longest.inputs["attention_mask"].shape[1]
        inside = np.arange(width) < lengths[:, None]
        padded = np.zeros((*inside.shape, *self._states.shape[1:]), dtype=self._states.dtype)
        padded[inside] = self._states[(self._offsets[rows][:, None] + np.arange(width))[inside]]
        return _tensor(padded, self._dtype)


def cached_prefix(
    store: ActivationStore,
    module: nn.Module,
    layout: BlockLayout,
    boundary: int,
    examples: Examples,
    key: str,
    *,
    device: torch.device,
    precision: str,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Serving:
    """Return how batches of a split are served from the store, built first where it is missing.

    Parameters
    ----------
    boundary:
        The lowest trainable group.
    key:
        Names weights and examples; boundary, precision, device and versions are added.

    Returns
    -------
    Serving
        `uncached` where there is nothing to gain, no room, or where a first batch comes out differently.
    """
    if boundary < 2:
        return uncached
    training = module.training
    module.eval()
    try:
        with autocast():
            for skip_embeddings in (True, False):
                prefix = FrozenPrefix(module, layout, boundary, skip_embeddings=skip_embeddings)
                parts = (key, boundary, precision, device.type, torch.__version__, "1")
                name = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
                try:
                    cached = _open(store, prefix, examples, name, device)
                    if cached is None or _agrees(module, cached, examples, device, precision):
                        return cached.serving if cached is not None else uncached
                except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                    logger.info("frozen blocks cannot be skipped this way: %s", error)
    finally:
        module.train(training)
    logger.warning("cached activations would change results below block %d: frozen blocks are run", boundary)
    return uncached


def _open(
    store: ActivationStore, prefix: FrozenPrefix, examples: Examples, name: str, device: torch.device
) -> CachedPrefix | None:
    """Probe the prefix with a batch, then open or build the split's states."""
    inputs = _inputs(examples, np.arange(min(_CHECK_ROWS, len(examples))), device)
    like = prefix.probe(inputs)
    if like.dtype not in _STORED:
        return None
    ragged = "input_ids" in inputs
    if ragged and like.shape[:2] != inputs["input_ids"].shape:
        return None
    lengths = examples.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    def fill(array: Any) -> None:
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), _BUILD_BATCH):
            rows = order[start : start + _BUILD_BATCH]
            values = _array(prefix.states(_inputs(examples, rows, device)))
            for row, value in zip(rows, values, strict=True):
                if ragged:
                    array[offsets[row] : offsets[row + 1]] = value[: lengths[row]]
                else:
                    array[row] = value

    rows, shape = (int(offsets[-1]), like.shape[2:]) if ragged else (len(examples), like.shape[1:])
    states = store.states(name, rows, tuple(shape), like.dtype, fill)
    return None if states is None else CachedPrefix(prefix, examples, states, like, ragged)


def _agrees(module: nn.Module, cached: CachedPrefix, examples: Examples, device: torch.device, precision: str) -> bool:
    """Whether a first batch comes out the same on stored states as through all blocks."""
    rows = np.arange(min(_CHECK_ROWS, len(examples)))
    inputs = _inputs(examples, rows, device)
    with torch.no_grad():
        plain = _tensors(module(**inputs))
        with cached.serving(rows):
            served = _tensors(module(**inputs))
    tolerance = _TOLERANCE[precision]
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


def _embeddings(module: nn.Module, layout: BlockLayout) -> list[nn.Module]:
    """Return the largest modules that lie in the embeddings' group as a whole."""
    own = set(layout.modules[0])
    found: list[nn.Module] = []

    def visit(name: str, part: nn.Module) -> None:
        leaves = [key for key, child in part.named_modules(prefix=name) if not list(child.children())]
        if leaves and all(leaf in own for leaf in leaves):
            found.append(part)
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


def _array(states: torch.Tensor) -> NDArray[Any]:
    states = states.detach().cpu()
    return (states.view(torch.uint16) if states.dtype is torch.bfloat16 else states).numpy()


def _tensor(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor
