"""Statistics of comparisons: pure functions over arrays, each with its source."""

from sweeper.stats.curves import Lead, expected_best, expected_selected, leads, tuning_curve_band
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
    welch_interval,
)
from sweeper.stats.power import (
    equivalence,
    fewest_pairs,
    minimum_detectable_effect,
    pairs_needed,
    power,
    undecided_effect,
)
from sweeper.stats.resampling import McNemar, example_bootstrap, mcnemar, stratified_bootstrap
from sweeper.stats.verdicts import Verdict, seeds_needed, verdicts

__all__ = [
    "Interval",
    "Lead",
    "McNemar",
    "PairedResult",
    "Verdict",
    "equivalence",
    "example_bootstrap",
    "expected_best",
    "expected_selected",
    "fewest_pairs",
    "holm",
    "interquartile_mean",
    "leads",
    "mcnemar",
    "mean_interval",
    "minimum_detectable_effect",
    "overtuning",
    "paired_bootstrap",
    "paired_permutation",
    "pairs_needed",
    "power",
    "probability_of_improvement",
    "seeds_needed",
    "stratified_bootstrap",
    "tuning_curve_band",
    "undecided_effect",
    "verdicts",
    "welch_interval",
]
