from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper import stats

DODGE = [0.6, 0.7, 0.75, 0.8, 0.9]


def test_expected_best_equals_the_published_values():
    """Dodge et al. 2019 (V) and Tang et al. 2020 (U), recomputed by hand for five scores."""
    assert stats.expected_best(DODGE, range(1, 6)) == pytest.approx([0.75, 0.806, 0.834, 0.85112, 0.8628])
    assert stats.expected_best(DODGE, range(1, 6), "u") == pytest.approx([0.75, 0.82, 0.855, 0.88, 0.9])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_expected_best_grows_from_the_mean_towards_the_maximum(scores):
    curve = stats.expected_best(scores, range(1, len(scores) + 1), "u")
    assert curve[0] == pytest.approx(np.mean(scores), abs=1e-6)
    assert curve[-1] == pytest.approx(max(scores), abs=1e-6)
    assert (np.diff(curve) >= -1e-7).all()


def test_the_band_holds_the_curve():
    low, middle, high = stats.tuning_curve_band(DODGE, 0.8)
    assert (low <= middle).all()
    assert (middle <= high).all()


def test_overtuning_equals_the_worked_example():
    absolute, relative = stats.overtuning([0.30, 0.25, 0.27, 0.22, 0.20], [0.32, 0.26, 0.24, 0.25, 0.29])
    assert absolute == pytest.approx(0.04)
    assert relative == pytest.approx(0.5714, abs=1e-4)


def test_probability_of_improvement_equals_rliables_example():
    x, y = [[1, 2], [2, 2], [1, 1], [2, 1]], [[1, 1], [2, 2], [3, 3]]
    assert stats.probability_of_improvement(x, y) == pytest.approx(1 / 3)


def test_the_interquartile_mean_drops_a_quarter_at_each_end():
    assert stats.interquartile_mean([0, 1, 2, 3, 4, 5, 6, 100]) == pytest.approx(3.5)


def test_holm_equals_the_worked_example():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_six_pairs_are_the_fewest_that_reach_five_percent():
    for count in range(2, 9):
        assert stats.paired_permutation(np.arange(1, count + 1), np.zeros(count)) == pytest.approx(2.0 ** (1 - count))


def test_equal_models_are_rarely_told_apart():
    # A short form: `benchmarks/verdicts.py` has the figures of 1,000 studies.
    rng, num_studies = np.random.default_rng(0), 100
    wrong = sum(
        any(v.verdict == "beats" for items in stats.verdicts(dict(enumerate(scores))).values() for v in items)
        for scores in rng.normal(size=(num_studies, 3, 8))
    )
    assert wrong / num_studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / num_studies)


def test_few_seeds_are_undecided_and_say_how_many_more():
    found = stats.verdicts({"a": [0.9, 0.91, 0.92], "b": [0.8, 0.82, 0.81]})["a"][0]
    assert found.verdict == "undecided against"
    assert found.more_seeds >= 3


def test_a_clear_winner_is_named_in_both_directions_and_goals():
    a, b = np.linspace(0.9, 0.95, 7), np.linspace(0.7, 0.74, 7)
    assert stats.verdicts({"a": a, "b": b})["a"][0].verdict == "beats"
    assert stats.verdicts({"a": a, "b": b}, maximize=False)["a"][0].verdict == "loses to"


def test_a_tie_needs_a_margin():
    rng = np.random.default_rng(0)
    a = rng.normal(0.9, 0.01, 10)
    b = a + rng.normal(0, 0.001, 10)
    assert stats.verdicts({"a": a, "b": b}, delta=0.01)["a"][0].verdict == "ties with"
