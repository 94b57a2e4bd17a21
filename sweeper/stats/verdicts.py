"""What may be said of two models: one beats the other, they tie, or more seeds are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from sweeper.stats.estimates import holm, paired_bootstrap, paired_permutation

_POWER = 0.8
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Verdict:
    """A comparison of one model with another over paired seeds.

    ``verdict`` is ``beats``, ``loses to``, ``ties with`` or ``undecided against``; ``difference`` is positive where the
    first is better; ``p_value`` is adjusted (Holm); ``more_seeds`` is about how many further seeds a claim would need.
    """

    other: str
    verdict: str
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    unit: str
    more_seeds: int | None


def verdicts(
    scores: Mapping[str, ArrayLike], *, maximize: bool = True, delta: float | None = None, alpha: float = 0.05
) -> dict[str, list[Verdict]]:
    """Compare every pair of models.

    Parameters
    ----------
    scores:
        By model: (N,) test scores, one per seed, the same seeds in the same order for all.
    maximize:
        Whether more is better.
    delta:
        Differences within it count as a tie, where the interval lies inside; None: ties are not claimed.
    alpha:
        Family-wise error rate over all pairs.
    """
    sign = 1.0 if maximize else -1.0
    values = {name: sign * np.asarray(score, dtype=np.float64) for name, score in scores.items()}
    pairs = list(combinations(values, 2))
    adjusted = holm([paired_permutation(values[a], values[b]) for a, b in pairs])
    found: dict[str, list[Verdict]] = {name: [] for name in values}
    for (a, b), p_value in zip(pairs, adjusted, strict=True):
        found[a].append(_verdict(b, values[a], values[b], float(p_value), len(pairs), delta, alpha))
        found[b].append(_verdict(a, values[b], values[a], float(p_value), len(pairs), delta, alpha))
    return found


def seeds_needed(a: ArrayLike, b: ArrayLike, alpha: float = 0.05, power: float = _POWER) -> int | None:
    """Return about how many paired seeds in all would show the observed difference, None where over 1,000.

    By the normal approximation to the paired test (N = ((z(1 - alpha/2) + z(power)) / d) ** 2 with Cohen's d of the
    pairs), and at least as many as the exact sign-flip test needs to reach alpha.
    """
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    mean = abs(float(differences.mean()))
    fewest = int(np.ceil(1 - np.log2(alpha)))
    if mean == 0:
        return None
    if spread == 0:
        return fewest
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    count = max(fewest, int(np.ceil((z * spread / mean) ** 2)))
    return count if count <= _MOST_SEEDS else None


def _verdict(
    other: str,
    mine: np.ndarray,
    theirs: np.ndarray,
    p_value: float,
    num_pairs: int,
    delta: float | None,
    alpha: float,
) -> Verdict:
    result = paired_bootstrap(mine, theirs)
    more = None
    if p_value <= alpha and result.difference != 0:
        word = "beats" if result.difference > 0 else "loses to"
    elif delta is not None and -delta <= result.ci_low and result.ci_high <= delta:
        word = "ties with"
    else:
        word = "undecided against"
        needed = seeds_needed(mine, theirs, alpha / num_pairs)
        more = max(1, needed - len(mine)) if needed is not None else None
    return Verdict(
        other, word, result.difference, result.ci_low, result.ci_high, p_value, unit="seeds", more_seeds=more
    )
