"""Files of hidden states, shared by all trials and lanes of a machine."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

logger = logging.getLogger("sweeper")

STORED: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.bfloat16: np.dtype(np.uint16)}
"""What states are kept as. NumPy has no bfloat16: its bits are kept as they are."""


@dataclass(frozen=True, kw_only=True)
class ActivationStore:
    """Files of hidden states in a folder, the least recently used of which make room for new ones.

    Parameters
    ----------
    folder:
        Where they lie; local to the machine, or shared.
    limit_bytes:
        Most bytes that all files together may take; larger splits are not cached.
    learnt:
        By model and boundary: what a process found out about the blocks whose states it keeps; see `activation_cache`.
    uses:
        How often each file was put to use in this process.
    """

    folder: Path
    limit_bytes: int
    learnt: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    uses: Counter[str] = field(default_factory=Counter, compare=False, repr=False)

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
        stored = STORED[dtype]
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
