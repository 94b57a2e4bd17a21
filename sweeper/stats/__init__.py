"""Statistics of comparisons: pure functions over arrays, each with its source."""

from sweeper.stats.curves import expected_best, tuning_curve_band
from sweeper.stats.estimates import (
    Interval,
    PairedResult,
    holm,
    interquartile_mean,
    mean_interval,
    overtuning,
    paired_bootstrap,
    paired_permutation,
    probability_of_improvement,
)
from sweeper.stats.verdicts import Verdict, seeds_needed, verdicts

__all__ = [
    "Interval",
    "PairedResult",
    "Verdict",
    "expected_best",
    "holm",
    "interquartile_mean",
    "mean_interval",
    "overtuning",
    "paired_bootstrap",
    "paired_permutation",
    "probability_of_improvement",
    "seeds_needed",
    "tuning_curve_band",
    "verdicts",
]
