"""Tuning curves: the best score expected from n trials, and exact bands around it.

Valid for independent draws only. For TPE or pruned searches they describe the trials at hand, not the search method.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, gammaln, xlogy

BandMethod = Literal["ld_highest_density", "ld_equal_tailed", "ks", "dkw", "exact"]
_BLOCK = 2_000_000  # weights held at once
_DENSE = 1_000  # scores beyond which equal-tailed intervals, nearly the same by then, spare seconds


@dataclass(frozen=True)
class Lead:
    """Budgets from ``first`` to ``last``, both included, in which ``model`` has the best curve."""

    model: str
    first: int
    last: int


def expected_best(scores: ArrayLike, budgets: ArrayLike, estimator: Literal["v", "u"] = "v") -> NDArray[np.float64]:
    """Return the expected maximum of n draws for each n of ``budgets``.

    Parameters
    ----------
    scores:
        (N,) finite scores, more is better.
    budgets:
        (M,) numbers of draws, at least 1; for ``u`` at most N.
    estimator:
        ``v``: biased, low variance (Dodge et al. 2019, arXiv 1909.03004); ``u``: unbiased, higher variance (Tang et al.
        2020, arXiv 2004.13705).

    Raises
    ------
    ValueError
        When the scores are empty or not finite, or a budget is out of range.
    """
    ordered = np.sort(_finite(scores))
    n = np.atleast_1d(np.asarray(budgets, dtype=np.int64))
    count = len(ordered)
    if n.min() < 1 or (estimator == "u" and n.max() > count):
        raise ValueError(f"budgets must lie between 1 and {count}, got {n.min()} to {n.max()}")
    rows = max(1, _BLOCK // count)
    blocks = [_weights(count, n[at : at + rows], estimator) @ ordered for at in range(0, len(n), rows)]
    return np.concatenate(blocks)


def expected_selected(validation: ArrayLike, test: ArrayLike, budgets: ArrayLike) -> NDArray[np.float64]:
    """Return the expected test score of the draw with the best validation score among n, for each n of ``budgets``.

    The weights of V (Dodge et al. 2019), applied to the test scores in the order of validation; draws that tie on
    validation share their weight.

    Parameters
    ----------
    validation, test:
        (N,) finite scores of the same draws, more is better.
    budgets:
        (M,) numbers of draws, at least 1.

    Raises
    ------
    ValueError
        When the two differ in length, are empty or not finite, or a budget is below 1.
    """
    chosen, scores = _finite(validation), _finite(test)
    n = np.atleast_1d(np.asarray(budgets, dtype=np.int64))
    if len(chosen) != len(scores) or n.min() < 1:
        raise ValueError(f"need as many test as validation scores and budgets from 1, got {len(chosen)}, {len(scores)}")
    _, group = np.unique(chosen, return_inverse=True)
    by_rank = (np.bincount(group, weights=scores) / np.bincount(group))[np.sort(group)]
    rows = max(1, _BLOCK // len(chosen))
    blocks = [_weights(len(chosen), n[at : at + rows], "v") @ by_rank for at in range(0, len(n), rows)]
    return np.concatenate(blocks)


def leads(curves: Mapping[str, ArrayLike], budgets: ArrayLike) -> list[Lead]:
    """Return which curve is best over which budgets; where one lead follows another, the curves cross.

    Parameters
    ----------
    curves:
        By model: (M,) values, more is better. Exact ties stay with the model that led before, at first with the first.
    budgets:
        (M,) increasing budgets that all curves share.
    """
    n = np.asarray(budgets, dtype=np.int64)
    names = list(curves)
    values = np.array([np.asarray(curves[name], dtype=np.float64) for name in names])
    found: list[Lead] = []
    for column, budget in enumerate(n.tolist()):
        best = names[int(np.argmax(values[:, column]))]
        if found and values[names.index(found[-1].model), column] == values[:, column].max():
            best = found[-1].model
        if found and found[-1].model == best:
            found[-1] = Lead(best, found[-1].first, budget)
        else:
            found.append(Lead(best, budget, budget))
    return found


def tuning_curve_band(
    scores: ArrayLike,
    confidence: float,
    budgets: ArrayLike | None = None,
    method: BandMethod = "exact",
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return lower, middle and upper curve of the median best score, exact for independent draws.

    From a confidence band of the empirical distribution (Lourie et al. 2024, arXiv 2311.09480; package opda): the
    band's lower distribution gives the upper curve. It holds for all budgets at once; its ends may be infinite.

    Parameters
    ----------
    scores:
        (N,) finite scores, more is better.
    confidence:
        Between 0 and 1.
    budgets:
        (M,) numbers of draws; None: 1 to N.
    method:
        opda's methods, or ``exact``: opda's highest-density band (beyond 1,000 scores the equal-tailed one), its level
        calculated rather than drawn: opda's own calibration by 100,000 draws takes 3 s for 32 scores and 37 s for 500.
    """
    values = np.sort(_finite(scores))
    n = np.arange(1, len(values) + 1) if budgets is None else np.asarray(budgets)
    if method != "exact" and len(values) > 1:  # opda has no highest-density interval of a single draw
        from opda.nonparametric import EmpiricalDistribution

        with warnings.catch_warnings():  # of ties: with them the band holds at least its level
            warnings.filterwarnings("ignore", "Duplicates detected", RuntimeWarning)
            low, middle, high = EmpiricalDistribution.confidence_bands(values, confidence, method=method, n_jobs=1)
        return high.quantile_tuning_curve(n), middle.quantile_tuning_curve(n), low.quantile_tuning_curve(n)
    count = len(values)
    lowest, highest = _bounds(count, _level(_calibrated(count), confidence))
    highest = np.append(highest, 1.0)
    level = 0.5 ** (1 / n)
    padded = np.concatenate([[-np.inf], values, [np.inf]])
    lower = padded[np.searchsorted(highest, level)]
    middle = values[np.minimum(np.searchsorted(np.arange(1, count + 1) / count, level - 1e-12), count - 1)]
    upper = padded[1 + np.searchsorted(lowest, level)]
    return lower, middle, upper


def _calibrated(count: int) -> int:
    """Return the number of scores to calibrate for: beyond 200 rounded up a little, which widens a band slightly.

    So studies whose models completed nearly the same number of trials share one calibration.
    """
    if count <= 200:
        return count
    step = 2 * int(10 ** (len(str(count)) - 2))
    return -(-count // step) * step


@lru_cache(maxsize=64)
def _bounds(count: int, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (N,) intervals of ``level`` of uniform draws' order statistics."""
    rank = np.arange(1, count + 1)
    if 1 < count <= _DENSE:  # a single uniform draw has no densest interval
        from opda.utils import beta_highest_density_interval

        lowest, highest = beta_highest_density_interval(rank, count - rank + 1, level)
    else:
        lowest = betaincinv(rank, count - rank + 1, (1 - level) / 2)
        highest = 1 - lowest[::-1]
    return np.asarray(lowest, dtype=np.float64), np.asarray(highest, dtype=np.float64)


@lru_cache(maxsize=64)
def _level(count: int, confidence: float) -> float:
    """Return the level of each order statistic's interval that gives all of them ``confidence`` at once."""

    def excess(log_missed: float) -> float:
        missed = max(1 - coverage(*_bounds(count, 1 - float(np.exp(log_missed)))), 1e-300)
        return float(np.log(missed / (1 - confidence)))  # nearly linear in log_missed

    highest = float(np.log(1 - confidence))  # right for one score
    lowest = highest - float(np.log(count))  # Bonferroni's
    return confidence if count == 1 else 1 - float(np.exp(brentq(excess, lowest, highest, xtol=1e-3)))


def coverage(lowest: NDArray[np.float64], highest: NDArray[np.float64]) -> float:
    """Return the probability that every order statistic of uniform draws lies between its bounds.

    The number of draws below t, as t grows, is a Poisson process given its number at 1; its probabilities are carried
    from bound to bound, and what violates a bound is dropped (Moscovich and Nadler 2017, arXiv 1503.04363).

    Parameters
    ----------
    lowest, highest:
        (N,) each, ascending, between 0 and 1; ``lowest`` below ``highest``.
    """
    count = len(lowest)
    times = np.concatenate([lowest, highest])
    order = np.argsort(times, kind="stable")
    most = np.searchsorted(lowest, times, side="left")  # draws that may have come before their lowest bound
    least = np.searchsorted(highest, times, side="right")  # draws whose highest bound is reached
    probabilities, first, before = np.ones(1), 0, 0.0  # of first, first + 1, ... draws below the bound before
    for at in order:
        probabilities = np.convolve(probabilities, _poisson(count * (times[at] - before)))
        probabilities = probabilities[least[at] - first : max(0, most[at] - first + 1)]
        first, before = int(least[at]), float(times[at])
        if not len(probabilities):
            return 0.0
    log_rest = -count * (1 - before) - (count * np.log(count) - count - gammaln(count + 1))
    return float(probabilities[0] * np.exp(log_rest))


def _poisson(mean: float) -> NDArray[np.float64]:
    """Return the probabilities of 0, 1, ... events, as far as they are not negligible."""
    events = np.arange(int(mean + 9 * np.sqrt(mean)) + 16)
    with np.errstate(divide="ignore"):
        probabilities: NDArray[np.float64] = np.exp(xlogy(events, mean) - mean - gammaln(events + 1))
    return probabilities


def _weights(count: int, n: NDArray[np.int64], estimator: Literal["v", "u"]) -> NDArray[np.float64]:
    """Return (M, N): the probability that the score of each rank is the best of n draws."""
    if estimator == "v":
        below = (np.arange(count + 1) / count) ** n[:, None]  # that all draws are of the lowest ranks
        return np.diff(below)
    rank = np.arange(1, count + 1)
    log_factorial = gammaln(np.arange(count + 1) + 1)
    others = np.maximum(rank - n[:, None], 0)  # of the lower ranks, those not drawn
    log = log_factorial[rank - 1] - log_factorial[others] - log_factorial[n - 1][:, None]
    log -= (log_factorial[count] - log_factorial[n] - log_factorial[count - n])[:, None]
    weights: NDArray[np.float64] = np.where(rank >= n[:, None], np.exp(log), 0.0)
    return weights


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("scores must be at least one finite number")
    return values
