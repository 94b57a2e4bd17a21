"""Running out of memory: how it shows, and what follows where nothing can be halved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sweeper.core.errors import InfeasibleError
from sweeper.train import parallel


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch (GPU or CPU) or of Python gave up."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        phrase in text for phrase in ("out of memory", "can't allocate memory", "cannot allocate memory")
    )


@contextmanager
def must_fit(what: str) -> Iterator[None]:
    """Turn an allocator's error into an `InfeasibleError`: no smaller micro-batch would help.

    Not with several workers, of which others may have had enough: then the lane is given up.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if parallel.world_size() > 1 or not is_out_of_memory(error):
            raise
        raise InfeasibleError(f"out of memory: there is no room for {what}") from error
