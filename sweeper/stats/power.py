"""How many pairs a claim needs: power, the smallest effect that can be found, equivalence.

Effects are in units of the standard deviation of the paired differences (Cohen's d of pairs).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

_MOST_PAIRS = 100_000


def power(effect: float, num_pairs: int, alpha: float = 0.05) -> float:
    """Return the probability that a two-sided paired t test of ``num_pairs`` pairs finds ``effect``.

    By the noncentral t distribution (Cohen 1988). The exact sign-flip test has nearly the same power where it can
    reach ``alpha`` at all, and none below that (its smallest p value is 2 ** (1 - num_pairs)).

    Parameters
    ----------
    effect:
        True mean difference divided by the standard deviation of the differences.
    num_pairs:
        At least 2.
    alpha:
        Two-sided level.

    Raises
    ------
    ValueError
        When there are fewer than 2 pairs or alpha lies outside (0, 1).
    """
    if num_pairs < 2 or not 0 < alpha < 1:
        raise ValueError(f"need at least 2 pairs and alpha between 0 and 1, got {num_pairs} and {alpha}")
    freedom, shift = num_pairs - 1, abs(effect) * np.sqrt(num_pairs)
    if shift > 37:  # beyond it scipy's noncentral t loses its digits, and the power is 1
        return 1.0
    # scipy.special computes the same as scipy.stats at a hundredth of the cost.
    critical = float(special.stdtrit(freedom, 1 - alpha / 2))
    return float(1 - special.nctdtr(freedom, shift, critical)) + _lower_tail(freedom, float(shift), critical)


def minimum_detectable_effect(num_pairs: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest effect that ``num_pairs`` pairs find with probability ``power``; infinite where none is.

    The inverse of `power` in its effect. Infinite for fewer than 2 pairs and where the exact sign-flip test cannot
    reach ``alpha``.
    """
    if num_pairs < fewest_pairs(alpha):
        return float("inf")
    return float(optimize.brentq(lambda effect: _power(effect, num_pairs, alpha) - power, 1e-9, 100.0))


def pairs_needed(effect: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return the fewest pairs that find ``effect`` with probability ``power``, None where over 100,000.

    At least as many as the exact sign-flip test needs to reach ``alpha``.
    """
    low, high = fewest_pairs(alpha), _MOST_PAIRS
    if np.isinf(effect):
        return low
    if effect == 0 or _power(effect, high, alpha) < power:
        return None
    while low < high:
        middle = (low + high) // 2
        if _power(effect, middle, alpha) >= power:
            high = middle
        else:
            low = middle + 1
    return low


def undecided_effect(effect: float, num_pairs: int, alpha: float = 0.05) -> float:
    """Return the effect whose undecided t tests have a median size of what was observed; 0 where none is that small.

    A median-unbiased estimate, conditional on the test not having reached ``alpha`` (the idea of Zhong and Prentice
    2008, Biostatistics 9, turned from significant to undecided results). As the observed effect nears the test's
    threshold it grows without bound; from there on it is infinite.

    Parameters
    ----------
    effect:
        Observed mean difference divided by the observed standard deviation of the differences; its sign is ignored.
    num_pairs:
        At least 2.
    alpha:
        Two-sided level that was not reached.
    """
    freedom, observed = num_pairs - 1, abs(effect) * np.sqrt(num_pairs)
    critical = float(special.stdtrit(freedom, 1 - alpha / 2))

    def inside(bound: float, shift: float) -> float:
        return float(special.nctdtr(freedom, shift, bound)) - _lower_tail(freedom, shift, bound)

    def excess(shift: float) -> float:
        return inside(observed, shift) / inside(critical, shift) - 0.5

    most = 12.0 * critical
    while inside(critical, most) < 1e-6:  # where nearly every test decides, digits are lost
        most *= 0.8
    if observed >= critical or excess(most) > 0:
        return float("inf")
    if excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, most, xtol=1e-6, rtol=1e-6) / np.sqrt(num_pairs))


def _lower_tail(freedom: int, shift: float, bound: float) -> float:
    """Return the probability that noncentral t lies below ``-bound``; 0 where it is too small for scipy."""
    tail = float(special.nctdtr(freedom, shift, -bound))
    return 0.0 if math.isnan(tail) else tail


def fewest_pairs(alpha: float = 0.05) -> int:
    """Return the fewest pairs with which the exact two-sided sign-flip test can reach ``alpha``."""
    return max(2, int(np.ceil(1 - np.log2(alpha))))


def equivalence(a: ArrayLike, b: ArrayLike, delta: float) -> float:
    """Return the p value of two one-sided paired t tests: small where the mean of a - b lies within ``delta``.

    Parameters
    ----------
    a, b:
        (N,) paired scores.
    delta:
        Half-width of the region that counts as equal, in units of the scores, above 0.

    Returns
    -------
    float
        The larger of the two one-sided p values (Schuirmann 1987); 1 for fewer than two pairs.

    Raises
    ------
    ValueError
        When delta is not above 0.
    """
    if not delta > 0:
        raise ValueError(f"delta must be above 0, got {delta}")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    count = len(differences)
    if count < 2:
        return 1.0
    mean, error = float(differences.mean()), float(stats.sem(differences))
    if error == 0:
        return 0.0 if abs(mean) < delta else 1.0
    return float(stats.t.sf((delta - abs(mean)) / error, count - 1))


_power = power
