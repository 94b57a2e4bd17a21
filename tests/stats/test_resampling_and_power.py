from __future__ import annotations

import numpy as np
import pytest

from sweeper import stats


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    [
        (121, 59, 0.000004),
        (70, 59, 0.378688),
        (80, 59, 0.089452),
        (30, 60, 0.00206),
        (10, 30, 0.002221),
        (10, 10, 1.0),
    ],
)
def test_mcnemar_equals_statsmodels_own_test_vectors(only_a, only_b, p_value):
    """statsmodels, stats/tests/test_nonparametric.py::test_mcnemar_exact (computed online at Vassar College)."""
    a = np.repeat([True, True, False, False], [101, only_a, only_b, 33])
    b = np.repeat([True, False, True, False], [101, only_a, only_b, 33])
    found = stats.mcnemar(a, b)
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p_value == pytest.approx(p_value, abs=1e-6)


def test_mcnemar_of_identical_answers_tells_nothing():
    assert stats.mcnemar([True, False], [True, False]).p_value == 1.0


def test_power_equals_the_published_values():
    """statsmodels' own example (33.367 pairs for d = .5 at 80%) and R's pwr.t.test(d = .2, n = 60, sig.level = .1)."""
    assert stats.pairs_needed(0.5) == 34
    assert stats.power(0.5, 33) < 0.8 < stats.power(0.5, 34)
    assert stats.power(0.2, 60, alpha=0.10) == pytest.approx(0.4555818, abs=1e-6)


def test_the_minimum_detectable_effect_is_the_inverse_of_power():
    effect = stats.minimum_detectable_effect(12, alpha=0.05, power=0.8)
    assert stats.power(effect, 12) == pytest.approx(0.8, abs=1e-6)
    assert stats.minimum_detectable_effect(5) == np.inf, "five pairs cannot reach 5% in a sign-flip test"


def test_pairs_needed_are_never_fewer_than_the_exact_test_allows():
    assert stats.pairs_needed(50.0) == stats.fewest_pairs(0.05) == 6
    assert stats.pairs_needed(0.0) is None


def test_equivalence_equals_two_t_tests_by_hand():
    """mean .001, standard error .001 * sqrt(2.5 / 5): t = (.004 - .001) / .000707 = 4.2426 with 4 degrees."""
    a = np.array([-0.001, 0.0, 0.001, 0.002, 0.003])
    assert stats.equivalence(a, np.zeros(5), 0.004) == pytest.approx(0.006618, abs=2e-5)
    assert stats.equivalence(a, np.zeros(5), 0.0005) > 0.5
    assert stats.equivalence([0.1], [0.1], 1.0) == 1.0, "one pair shows no tie"


def test_the_example_bootstrap_covers_the_difference_and_pairs_examples():
    rng = np.random.default_rng(0)
    hits = 0
    for draw in range(200):
        easy = rng.random(400)
        a, b = (rng.random(400) < 0.2 + 0.7 * easy), (rng.random(400) < 0.1 + 0.7 * easy)
        found = stats.example_bootstrap(a, b, seed=draw)
        hits += found.ci_low <= 0.1 <= found.ci_high
    assert 0.90 <= hits / 200 <= 0.99
    same = rng.random((3, 50))
    assert stats.example_bootstrap(same, same).ci_high == 0.0


def test_the_stratified_bootstrap_keeps_runs_in_their_task():
    """With constant tasks nothing varies; mixing the tasks would. IQM of rliable's test matrices: 1.5 and 2."""
    constant = np.tile([1.0, 5.0, 9.0, 20.0], (6, 1))
    found = stats.stratified_bootstrap(constant, np.mean)
    assert (found.mean, found.low, found.high) == (8.75, 8.75, 8.75)
    assert stats.interquartile_mean([[1, 2], [2, 2], [1, 1], [2, 1]]) == 1.5
    assert stats.interquartile_mean([[1, 1], [2, 2], [3, 3]]) == 2


def test_the_stratified_bootstrap_has_the_width_of_the_runs_that_exist():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 3))
    full = stats.stratified_bootstrap(scores, np.mean)
    expected = 2 * 1.96 * scores.std(axis=0).mean() / np.sqrt(40 * 3)
    assert full.high - full.low == pytest.approx(expected, rel=0.15)
    fewer = scores.copy()
    fewer[20:, 0] = np.nan
    uneven = stats.stratified_bootstrap(fewer, np.mean)
    assert uneven.mean == pytest.approx(np.nanmean(fewer, axis=0).mean())
    assert uneven.high - uneven.low > 1.05 * (full.high - full.low)
    with pytest.raises(ValueError, match="runs x tasks"):
        stats.stratified_bootstrap([1.0, 2.0])


def test_one_seed_is_no_tie_and_has_no_interval():
    found = stats.verdicts({"a": [0.9], "b": [0.9]}, delta=0.5)["a"][0]
    assert found.verdict == "undecided against"
    assert found.ci_low is None


def test_the_claim_is_a_sentence():
    a, b = np.linspace(0.9, 0.95, 7), np.linspace(0.7, 0.74, 7)
    found = stats.verdicts({"a": a, "b": b})
    assert found["a"][0].claim("a") == found["b"][0].claim("b") == "a beats b"
    rng = np.random.default_rng(0)
    close = a + rng.normal(0, 1e-4, 7)
    tie = stats.verdicts({"a": a, "b": close}, delta=0.01)["a"][0]
    assert tie.claim("a", 0.01) == "a and b tie within 0.01"
    open_ = stats.verdicts({"a": [0.9, 0.91, 0.92], "b": [0.8, 0.82, 0.81]})["a"][0]
    assert open_.claim("a") == "a against b is undecided: about 3 more seeds"


def test_the_undecided_effect_is_right_in_the_median_of_undecided_tests():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.6, 1, size=(3000, 8))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / np.sqrt(8))
    undecided = draws[np.abs(t) < 2.3646][:150]  # the two-sided 5% point of Student's t with 7 degrees of freedom
    found = [stats.undecided_effect(d.mean() / d.std(ddof=1), 8) for d in undecided]
    assert np.median(found) == pytest.approx(0.6, abs=0.15)
    assert np.median([abs(d.mean() / d.std(ddof=1)) for d in undecided]) < 0.5, "taken at face value it is too small"
    assert stats.undecided_effect(0.0, 8) == 0.0
    assert stats.undecided_effect(0.84, 8) == np.inf
