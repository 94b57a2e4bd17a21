"""Resampling of runs and of test examples; McNemar's test for paired predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sweeper.stats.estimates import Interval, PairedResult, interquartile_mean

_RESAMPLES = 2_000
_MOST_ROWS = 10_000
_BLOCK = 4_000_000  # resampled scores held at once


@dataclass(frozen=True)
class McNemar:
    """How often only one of two models is right on an example, and the exact two-sided p value."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Compare two models' answers to the same examples (McNemar 1947, exact binomial form).

    Parameters
    ----------
    correct_a, correct_b:
        (N,) whether each model is right on each example.

    Raises
    ------
    ValueError
        When the lengths differ.
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"both must be vectors of the same examples, got {a.shape} and {b.shape}")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    differing = only_a + only_b
    return McNemar(only_a, only_b, float(stats.binomtest(only_a, differing, 0.5).pvalue) if differing else 1.0)


def example_bootstrap(a: ArrayLike, b: ArrayLike, confidence: float = 0.95, seed: int = 0) -> PairedResult:
    """Return the mean of a - b with its percentile interval under resampling of the test examples.

    The unit is the example: the trained models are held fixed, so the interval says what another test set of this
    size could have shown, and nothing of other seeds.

    Parameters
    ----------
    a, b:
        (N,) scores of the same examples (such as 1 for right, 0 for wrong), or (seeds, N): then each example's mean
        over the seeds.

    Raises
    ------
    ValueError
        When the examples differ in number or there is none.
    """
    x = np.atleast_2d(np.asarray(a, dtype=np.float64)).mean(axis=0)
    y = np.atleast_2d(np.asarray(b, dtype=np.float64)).mean(axis=0)
    if x.shape != y.shape or not len(x):
        raise ValueError(f"both must score the same examples, got {x.shape} and {y.shape}")
    means = _resampled_means(x - y, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return PairedResult(float((x - y).mean()), float(low), float(high))


def stratified_bootstrap(
    scores: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] = interquartile_mean,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a statistic of runs x tasks with its percentile interval; runs are resampled within each task.

    Agarwal et al. 2021 (rliable), whose default statistic is the interquartile mean.

    Parameters
    ----------
    scores:
        (runs, tasks); NaN where a task has fewer runs.
    statistic:
        From (runs, tasks) to a number.

    Raises
    ------
    ValueError
        When it is not a matrix or a task has no run.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).any(axis=0).all():
        raise ValueError(f"need a matrix of runs x tasks with a run for every task, got shape {values.shape}")
    tasks = [column[np.isfinite(column)] for column in values.T]
    common = int(np.lcm.reduce([len(task) for task in tasks]))
    if common > _MOST_ROWS:
        raise ValueError("the numbers of runs of the tasks have no small common multiple; drop some runs")
    rng = np.random.default_rng(seed)
    resamples = ([task[rng.integers(len(task), size=len(task))] for task in tasks] for _ in range(_RESAMPLES))
    drawn = [statistic(_matrix(resample, common)) for resample in resamples]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(_matrix(tasks, common))), float(low), float(high))


def _matrix(tasks: list[NDArray[np.float64]], rows: int) -> NDArray[np.float64]:
    """Return (rows, tasks), each task's runs repeated, so that tasks with fewer runs weigh the same."""
    return np.stack([np.tile(task, rows // len(task)) for task in tasks], axis=1)


def _resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    rows = max(1, _BLOCK // len(values))
    sizes = [min(rows, _RESAMPLES - at) for at in range(0, _RESAMPLES, rows)]
    return np.concatenate([values[rng.integers(len(values), size=(size, len(values)))].mean(axis=1) for size in sizes])
