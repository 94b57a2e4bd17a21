"""What tuning changed: tuned against default for each model, and whether the ranking flips between the two."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from sweeper.report.source import Source
from sweeper.stats import holm, mean_interval, paired_permutation

ALPHA = 0.05


@dataclass(frozen=True)
class Effect:
    """Tuned minus default over the seeds that both finished; positive where tuning is better, whatever the goal.

    ``p_value`` is of the exact sign-flip test, Holm-adjusted over the models; ``same`` says that the default itself won
    the search, so that there is nothing to compare.
    """

    model: str
    tuned: float
    default: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    p_value: float
    num_seeds: int
    same: bool

    @property
    def words(self) -> str:
        """What may be said."""
        if self.same:
            return "the default won the search"
        if self.p_value > ALPHA:
            return "not established"
        return "tuning helps" if self.difference > 0 else "tuning hurts"


def tuning_effects(source: Source) -> list[Effect]:
    """Return an effect for each model that was confirmed in both configurations."""
    found: list[dict[str, Any]] = []
    for model in source.models:
        tuned, default = (source.scores.get((model, config, "test"), {}) for config in ("tuned", "default"))
        seeds = [seed for seed in tuned if seed in default]
        if not seeds:
            continue
        a, b = (np.array([scores[seed] for seed in seeds]) for scores in (tuned, default))
        interval = mean_interval(source.sign * (a - b))
        found.append(
            {
                "model": model,
                "tuned": float(a.mean()),
                "default": float(b.mean()),
                "difference": interval.mean,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "p_value": paired_permutation(a, b),
                "num_seeds": len(seeds),
                "same": _default_won(source, model),
            }
        )
    tested = [effect for effect in found if not effect["same"]]
    for effect, p_value in zip(tested, holm([effect["p_value"] for effect in tested]), strict=True):
        effect["p_value"] = float(p_value)
    return [Effect(**effect) for effect in found]


def flips(source: Source) -> list[str]:
    """Say whether the models' order differs between default and tuned, and whether either order is established."""
    means = {}
    for config in ("default", "tuned"):
        scores = {m: source.scores.get((m, config, "test"), {}) for m in source.models}
        means[config] = {m: source.sign * float(np.mean(list(s.values()))) for m, s in scores.items() if s}
    both = [model for model in source.models if all(model in found for found in means.values())]
    if len(both) < 2:
        return []
    lines = []
    for a, b in combinations(both, 2):
        by_default, tuned = (means[config][a] - means[config][b] for config in ("default", "tuned"))
        if by_default * tuned < 0:
            first, second = (a, b) if tuned > 0 else (b, a)
            states = [_established(source, first, second, config) for config in ("default", "tuned")]
            lines.append(
                f"The ranking flips: at their defaults {second} is ahead of {first} ({states[0]}), tuned {first} is "
                f"ahead "
                f"({states[1]})."
            )
    return lines or ["The models stand in the same order tuned as at their defaults."]


def _established(source: Source, a: str, b: str, config: str) -> str:
    mine, theirs = (source.scores[model, config, "test"] for model in (a, b))
    seeds = [seed for seed in mine if seed in theirs]
    p_value = paired_permutation([mine[s] for s in seeds], [theirs[s] for s in seeds]) if seeds else 1.0
    return f"{'established' if p_value <= ALPHA else 'not established'}, p = {p_value:.2g} unadjusted"


def _default_won(source: Source, model: str) -> bool:
    best = source.best(model)
    default = next((trial for trial in source.of(model) if trial["number"] == 0), None)
    return best is not None and default is not None and json.loads(best["params"]) == json.loads(default["params"])
