"""Low-rank adapters as asked for; `sweeper.models.adapters` puts them into models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What is put beside the blocks.

    Parameters
    ----------
    rank:
        Inner size of the matrices, 1 or more.
    alpha:
        Their product counts ``alpha / rank``.
    dropout:
        Of the adapters' input, [0, 1).
    num_blocks:
        How many blocks from the top get adapters; None: all.
    """

    rank: int
    alpha: float
    dropout: float
    num_blocks: int | None = None
