"""What may be said of two models: one beats the other, they tie, or more seeds are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sweeper.stats.estimates import holm, mean_interval, paired_permutation
from sweeper.stats.power import equivalence, fewest_pairs, pairs_needed, undecided_effect

_POWER = 0.8
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Verdict:
    """A comparison of one model with another over paired seeds.

    ``verdict`` is ``beats``, ``loses to``, ``ties with`` or ``undecided against``; ``difference`` is positive where the
    first is better; ``p_value`` is adjusted (Holm); ``more_seeds`` is about how many further seeds a claim would need.
    The interval is Student's t on the paired differences, None bounds for fewer than two.
    """

    other: str
    verdict: str
    difference: float
    ci_low: float | None
    ci_high: float | None
    p_value: float
    unit: str
    more_seeds: int | None

    def claim(self, name: str, delta: float | None = None) -> str:
        """Return what may be said of ``name`` against the other: the sentence that can be quoted."""
        if self.verdict == "beats":
            return f"{name} beats {self.other}"
        if self.verdict == "loses to":
            return f"{self.other} beats {name}"
        if self.verdict == "ties with":
            return f"{name} and {self.other} tie within {delta:g}" if delta else f"{name} and {self.other} tie"
        seeds = "seed" if self.more_seeds == 1 else "seeds"
        more = f"about {self.more_seeds} more {seeds}" if self.more_seeds else "no feasible number of seeds would tell"
        return f"{name} against {self.other} is undecided: {more}"


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
        Differences within it count as a tie, claimed where two one-sided tests say so; None: ties are not claimed.
    alpha:
        Family-wise error rate over all pairs, for differences and (separately) for ties.
    """
    sign = 1.0 if maximize else -1.0
    values = {name: sign * np.asarray(score, dtype=np.float64) for name, score in scores.items()}
    pairs = list(combinations(values, 2))
    adjusted = holm([paired_permutation(values[a], values[b]) for a, b in pairs])
    equal = holm([equivalence(values[a], values[b], delta) for a, b in pairs]) if delta else np.ones(len(pairs))
    found: dict[str, list[Verdict]] = {name: [] for name in values}
    for (a, b), p_value, same in zip(pairs, adjusted, equal, strict=True):
        test = _Test(float(p_value), float(same), alpha, len(pairs), delta)
        verdict = _verdict(b, values[a] - values[b], test)
        found[a].append(verdict)
        found[b].append(_reversed(verdict, a))
    return found


def seeds_needed(a: ArrayLike, b: ArrayLike, alpha: float = 0.05, power: float = _POWER) -> int | None:
    """Return about how many paired seeds in all would show the observed difference, None where over 1,000.

    By the power of the paired t test (`pairs_needed`) at the observed effect, and at least as many as the exact
    sign-flip test needs to reach alpha.
    """
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    mean = abs(float(differences.mean()))
    if mean == 0:
        return None
    if spread == 0:
        return fewest_pairs(alpha)
    count = pairs_needed(mean / spread, alpha, power)
    return count if count is not None and count <= _MOST_SEEDS else None


@dataclass(frozen=True)
class _Test:
    """Adjusted p values of one pair (of a difference, of a tie), and what they are held against."""

    p_value: float
    p_equal: float
    alpha: float
    num_pairs: int
    delta: float | None


def _verdict(other: str, differences: NDArray[np.float64], test: _Test) -> Verdict:
    interval = mean_interval(differences)
    more = None
    if test.p_value <= test.alpha and interval.mean != 0:
        word = "beats" if interval.mean > 0 else "loses to"
    elif test.p_equal <= test.alpha:
        word = "ties with"
    else:
        word = "undecided against"
        more = _more_seeds(differences, test)
    return Verdict(other, word, interval.mean, interval.low, interval.high, test.p_value, unit="seeds", more_seeds=more)


def _reversed(verdict: Verdict, other: str) -> Verdict:
    """Return the same comparison as the other model sees it."""
    opposite = {"beats": "loses to", "loses to": "beats"}
    return replace(
        verdict,
        other=other,
        verdict=opposite.get(verdict.verdict, verdict.verdict),
        difference=-verdict.difference,
        ci_low=None if verdict.ci_high is None else -verdict.ci_high,
        ci_high=None if verdict.ci_low is None else -verdict.ci_low,
    )


def _more_seeds(differences: NDArray[np.float64], test: _Test) -> int | None:
    """Return about how many further seeds either claim, a difference or a tie, would need."""
    alpha = test.alpha / test.num_pairs
    needed = [_seeds_for_difference(differences, alpha), _seeds_for_tie(differences, test, alpha)]
    totals = [total for total in needed if total is not None]
    return max(1, min(totals) - len(differences)) if totals else None


def _seeds_for_difference(differences: NDArray[np.float64], alpha: float) -> int | None:
    """Return about how many pairs would show the difference, given that these pairs have not.

    Undecided pairs are a selection: their effect looks smaller than it is. `undecided_effect` allows for that; where
    the test could not have decided anything yet, there is no selection.
    """
    count, spread = len(differences), float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if count < fewest_pairs(alpha) or spread == 0:
        return seeds_needed(differences, np.zeros_like(differences), alpha)
    effect = undecided_effect(float(differences.mean()) / spread, count, alpha)
    needed = pairs_needed(effect, alpha, _POWER)
    return needed if needed is not None and needed <= _MOST_SEEDS else None


def _seeds_for_tie(differences: NDArray[np.float64], test: _Test, alpha: float) -> int | None:
    """Return about how many pairs would show a tie, by the normal approximation (Schuirmann's test)."""
    room = (test.delta or 0.0) - abs(float(differences.mean()))
    if room <= 0 or len(differences) < 2:
        return None
    reach = stats.norm.isf(alpha) + stats.norm.isf((1 - _POWER) / 2)
    count = max(2, int(np.ceil((reach * differences.std(ddof=1) / room) ** 2)))
    return count if count <= _MOST_SEEDS else None
