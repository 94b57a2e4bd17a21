"""Tuning curves: the best score expected from n trials, and exact bands around it.

Valid for independent draws only. For TPE or pruned searches they describe the trials at hand, not the search method.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln


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
    rank = np.arange(1, count + 1)
    if estimator == "v":
        weights = (rank / count) ** n[:, None] - ((rank - 1) / count) ** n[:, None]
    else:
        with np.errstate(invalid="ignore"):
            log = _log_choose(rank - 1, n[:, None] - 1) - _log_choose(np.array(count), n[:, None])
        weights = np.where(rank >= n[:, None], np.exp(log), 0.0)
    result: NDArray[np.float64] = weights @ ordered
    return result


def tuning_curve_band(
    scores: ArrayLike, confidence: float, budgets: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return lower, middle and upper curve of the median best score, exact for independent draws.

    From a confidence band of the empirical distribution (Lourie et al. 2024, arXiv 2311.09480; package opda): the
    band's lower distribution gives the upper curve.

    Parameters
    ----------
    scores:
        (N,) finite scores, more is better.
    confidence:
        Between 0 and 1.
    budgets:
        (M,) numbers of draws; None: 1 to N.
    """
    from opda.nonparametric import EmpiricalDistribution

    values = _finite(scores)
    n = np.arange(1, len(values) + 1) if budgets is None else np.asarray(budgets)
    low, middle, high = EmpiricalDistribution.confidence_bands(values, confidence)
    return high.quantile_tuning_curve(n), middle.quantile_tuning_curve(n), low.quantile_tuning_curve(n)


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("scores must be at least one finite number")
    return values


def _log_choose(n: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.float64]:
    valid = np.maximum(n - k, 0)
    result: NDArray[np.float64] = gammaln(n + 1) - gammaln(k + 1) - gammaln(valid + 1)
    return result
