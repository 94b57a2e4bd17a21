"""Estimates, intervals and tests. More is better wherever a direction matters and none is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

EXACT_PAIRS = 16  # 65,536 sign patterns are counted one by one, beyond that they are drawn
_RESAMPLES = 9_999


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; the bounds are None where there are too few values."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedResult:
    """A mean paired difference with its bootstrap interval."""

    difference: float
    ci_low: float
    ci_high: float


def mean_interval(scores: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of (N,) scores with Student's t interval, None bounds for fewer than two scores.

    With the handful of seeds of a confirmation the t interval holds its level where a bootstrap is too narrow.
    """
    values = np.asarray(scores, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None)
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(error * special.stdtrit(len(values) - 1, (1 + confidence) / 2))
    return Interval(mean, mean - half, mean + half)


def welch_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return mean(a) - mean(b) of (n,) and (m,) unpaired scores with Welch's t interval (Welch 1947).

    None bounds where one has fewer than two scores.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return Interval(difference, None, None)
    if np.ptp(x) == np.ptp(y) == 0:
        return Interval(difference, difference, difference)
    bounds = stats.ttest_ind(x, y, equal_var=False).confidence_interval(confidence)
    return Interval(difference, float(bounds.low), float(bounds.high))


def interquartile_mean(scores: ArrayLike) -> float:
    """Return the mean of the middle half: a 25% trimmed mean over all entries (Agarwal et al. 2021, rliable)."""
    return float(stats.trim_mean(np.asarray(scores, dtype=np.float64).ravel(), 0.25))


def probability_of_improvement(a: ArrayLike, b: ArrayLike) -> float:
    """Return P(a > b) + P(a = b) / 2: Mann-Whitney's U / (n m).

    Parameters
    ----------
    a, b:
        (n,) and (m,) scores, or (runs, tasks): then the mean over tasks (Agarwal et al. 2021).
    """
    x, y = np.atleast_2d(np.asarray(a, dtype=np.float64).T), np.atleast_2d(np.asarray(b, dtype=np.float64).T)
    if len(x) != len(y):
        raise ValueError(f"both must have the same tasks, got {len(x)} and {len(y)}")
    shares = [np.mean(np.sign(p[:, None] - q[None, :]) / 2 + 0.5) for p, q in zip(x, y, strict=True)]
    return float(np.mean(shares))


def paired_bootstrap(a: ArrayLike, b: ArrayLike, confidence: float = 0.95, seed: int = 0) -> PairedResult:
    """Return the mean of a - b over (N,) pairs with a BCa bootstrap interval (Efron 1987)."""
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    mean = float(differences.mean())
    if len(differences) < 2 or np.ptp(differences) == 0:
        return PairedResult(mean, mean, mean)
    result = stats.bootstrap(
        (differences,), np.mean, confidence_level=confidence, n_resamples=_RESAMPLES, rng=np.random.default_rng(seed)
    )
    low, high = result.confidence_interval
    return PairedResult(mean, float(low), float(high))


def paired_permutation(a: ArrayLike, b: ArrayLike, seed: int = 0) -> float:
    """Return the two-sided p value of the sign-flip test on (N,) pairs; exact up to 16 pairs.

    Its smallest value with N pairs is 2 ** (1 - N).
    """
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    count = len(differences)
    observed = abs(differences.sum())
    if count <= EXACT_PAIRS:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        sums = np.abs((1 - 2 * bits) @ differences)
        return float(np.mean(sums >= observed - 1e-12 * max(1.0, observed)))
    signs = np.random.default_rng(seed).choice([-1, 1], size=(_RESAMPLES, count))
    return float((1 + np.sum(np.abs(signs @ differences) >= observed - 1e-12)) / (1 + _RESAMPLES))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return Holm's adjusted p values (Holm 1979) of (N,) raw ones, in the same order."""
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    steps = np.arange(len(raw), 0, -1)
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * steps))
    return adjusted


def overtuning(
    validation: ArrayLike, test: ArrayLike, goal: Literal["minimize", "maximize"] = "minimize"
) -> tuple[float, float]:
    """Return absolute and relative overtuning at the last trial (Schneider et al. 2025, arXiv 2506.19540).

    Parameters
    ----------
    validation, test:
        (T,) scores of the trials in order.
    goal:
        Their direction.

    Returns
    -------
    tuple of float
        How much worse on test the validation incumbent is than the best earlier incumbent, and that divided by the
        progress since the first one; the latter is NaN where the progress is under .001.
    """
    sign = 1.0 if goal == "minimize" else -1.0
    val, tst = sign * np.asarray(validation, dtype=np.float64), sign * np.asarray(test, dtype=np.float64)
    incumbents = [int(np.argmin(val[: t + 1])) for t in range(len(val))]
    path = tst[incumbents]
    absolute = float(path[-1] - path.min())
    progress = float(path[0] - path.min())
    return absolute, absolute / progress if progress >= 1e-3 else float("nan")
