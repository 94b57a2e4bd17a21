"""Remedies for class imbalance, applied to train only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def class_weights(targets: NDArray[Any], num_classes: int) -> NDArray[np.float64]:
    """Return N / (K n_c) for each class (King and Zeng 2001; scikit-learn's ``balanced``), (K,).

    A class without training examples gets weight 1: no example would carry it.
    """
    counts = np.bincount(targets, minlength=num_classes)
    present = np.count_nonzero(counts)
    weights = np.ones(num_classes)
    weights[counts > 0] = len(targets) / (present * counts[counts > 0])
    return weights
