"""Several sequences in one row, kept apart: where each lies, what it may attend to, and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def first_fit(lengths: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put B sequences into rows of ``width`` tokens: first fit, longest first (11/9 of the fewest rows at most).

    Returns
    -------
    rows, begins:
        The row of each sequence and where it begins there, (B,) each.

    References
    ----------
    Johnson, Near-optimal bin packing algorithms, 1973.
    """
    assert len(lengths) == 0 or lengths.max() <= width, "sequences are cut to the width before"
    rows, begins = np.zeros_like(lengths), np.zeros_like(lengths)
    filled: list[int] = []
    for at in np.argsort(-lengths, kind="stable"):
        row = next((row for row, taken in enumerate(filled) if taken + lengths[at] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        rows[at], begins[at] = row, filled[row]
        filled[row] += int(lengths[at])
    return rows, begins


def separating_mask(owners: torch.Tensor) -> torch.Tensor:
    """Return what is added to attention scores (R, 1, L, L): 0 for earlier tokens of the same sequence, else the least.

    ``owners`` (R, L) names each token's sequence; padding is one of its own, so that no token attends to nothing.
    """
    import torch

    length = owners.shape[1]
    same = owners[:, :, None] == owners[:, None, :]
    allowed = same & torch.ones(length, length, dtype=torch.bool, device=owners.device).tril()
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(allowed.shape, device=owners.device).masked_fill_(~allowed, lowest)[:, None]


def sums_by_owner(values: torch.Tensor, owners: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sums (B,) of values (R, L) over the tokens of each of ``count`` sequences, always in one order."""
    import torch

    belongs = owners.flatten() == torch.arange(count, device=owners.device)[:, None]
    return (belongs * values.flatten()).sum(dim=1)
