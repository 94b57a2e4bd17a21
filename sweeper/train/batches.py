"""The order of examples: a pure function of (seed, epoch), the same for every worker."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POOL_BATCHES = 50  # batches among which examples of like length are put together


def epoch_batches(
    lengths: NDArray[np.int64],
    batch_size: int,
    seed: int,
    epoch: int,
    weights: NDArray[np.float64] | None = None,
) -> list[NDArray[np.int64]]:
    """Return the batches of one epoch as arrays of row numbers; the last one may be smaller.

    Examples are shuffled, cut into pools of 50 batches, sorted by length within a pool and shuffled as batches, so
    that a batch holds examples of like length and padding stays small.

    Parameters
    ----------
    lengths:
        (N,) cost of each example; all equal where there is nothing to bucket.
    weights:
        (N,) sampling weights: draws N examples with replacement instead of all once.
    """
    rng = np.random.default_rng([seed, epoch])
    count = len(lengths)
    shares = None if weights is None else weights / weights.sum()
    order = rng.permutation(count) if shares is None else rng.choice(count, size=count, p=shares)
    if count and lengths.min() != lengths.max():
        pool = POOL_BATCHES * batch_size
        order = np.concatenate(
            [
                part[np.argsort(lengths[part], kind="stable")]
                for part in (order[i : i + pool] for i in range(0, count, pool))
            ]
        )
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if count and lengths.min() != lengths.max():
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Return the optimizer steps of an epoch."""
    return -(-num_examples // batch_size)
