"""Stratified, group-aware splits with a fixed seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def split_off(
    labels: NDArray[Any], share: float, seed: int, groups: NDArray[Any] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into the rest and a share, alike in their classes.

    Parameters
    ----------
    labels:
        (N,) class of each row. A class with a single row stays in the rest.
    share:
        Of the rows, between 0 and 1.
    groups:
        (N,) rows of one group are never split over the two sides; the share is then met as nearly as groups allow.

    Returns
    -------
    tuple of arrays
        Row numbers of the rest and of the share, both ascending.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

    everything = np.arange(len(labels))
    if groups is not None:
        folds = max(2, round(1 / share)) if share <= 0.5 else 2
        splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
        rest, chosen = next(splitter.split(everything, labels, groups))
        return np.sort(rest), np.sort(chosen)
    values, counts = np.unique(labels, return_counts=True)
    lonely = np.isin(labels, values[counts < 2])
    able = everything[~lonely]
    count = max(1, round(share * len(able)))
    if len(able) == 0:
        return everything, able
    stratify = count >= len(values[counts >= 2]) and len(able) - count >= len(values[counts >= 2])
    if stratify:
        splitter = StratifiedShuffleSplit(n_splits=1, test_size=count, random_state=seed)
        _, chosen = next(splitter.split(able, labels[able]))
    else:
        chosen = np.random.default_rng(seed).permutation(len(able))[:count]
    chosen = np.sort(able[chosen])
    return np.setdiff1d(everything, chosen), chosen


def subset(labels: NDArray[Any], count: int, seed: int) -> NDArray[np.int64]:
    """Return ``count`` row numbers, alike in their classes, ascending; all rows when there are no more."""
    if count >= len(labels):
        return np.arange(len(labels))
    _, chosen = split_off(labels, count / len(labels), seed)
    return chosen
