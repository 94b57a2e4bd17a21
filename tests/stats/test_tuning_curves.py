from __future__ import annotations

import numpy as np
import pytest

from sweeper import stats
from sweeper.stats.curves import coverage

DODGE = [0.6, 0.7, 0.75, 0.8, 0.9]


def test_the_selected_test_score_uses_the_weights_of_v():
    n = np.arange(1, 6)
    assert stats.expected_selected(DODGE, DODGE, n) == pytest.approx(stats.expected_best(DODGE, n))
    flipped = stats.expected_selected([2, 3, 1], [0.2, 0.1, 0.3], [1, 100])
    assert flipped == pytest.approx([0.2, 0.1], abs=1e-6)


def test_draws_that_tie_on_validation_share_their_weight():
    for test in ([0.0, 1.0], [1.0, 0.0]):
        assert stats.expected_selected([5, 5], test, [1, 7]) == pytest.approx([0.5, 0.5])


def test_leads_name_the_budgets_where_curves_cross():
    n = [1, 2, 3, 4]
    found = stats.leads({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.2, 0.2, 0.2, 0.2]}, n)
    assert found == [stats.Lead("b", 1, 2), stats.Lead("a", 3, 4)]


def test_the_exact_band_is_opdas_highest_density_one():
    scores = np.random.default_rng(3).normal(size=24)
    theirs = stats.tuning_curve_band(scores, 0.9, method="ld_highest_density")
    ours = stats.tuning_curve_band(scores, 0.9, method="exact")
    for mine, opda in zip(ours, theirs, strict=True):
        finite = np.isfinite(mine) & np.isfinite(opda)
        assert finite.sum() >= 3
        assert (np.isinf(mine) == np.isinf(opda)).mean() > 0.9
        assert np.mean(mine[finite] == opda[finite]) > 0.8, (
            "same order statistics but where opda's draws round otherwise"
        )


@pytest.mark.parametrize(
    ("count", "critical", "level"),
    [(5, 0.56328, 0.95), (10, 0.40925, 0.95), (20, 0.29408, 0.95), (20, 0.35241, 0.99), (50, 0.18841, 0.95)],
)
def test_coverage_gives_the_published_critical_values_of_kolmogorov(count, critical, level):
    """Miller 1956, Table of percentage points of Kolmogorov statistics, JASA 51: two-sided."""
    rank = np.arange(1, count + 1)
    low, high = np.clip(rank / count - critical, 0, 1), np.clip((rank - 1) / count + critical, 0, 1)
    assert coverage(low, high) == pytest.approx(level, abs=2e-5)


def test_bounds_that_no_draws_can_meet_have_no_coverage():
    assert coverage(np.array([0.5, 0.6]), np.array([0.2, 0.9])) == 0


def test_the_exact_band_covers_all_budgets_at_once():
    rng = np.random.default_rng(0)
    n = np.arange(1, 101)
    truth = 0.5 ** (1 / n)  # the median of the best of n uniform draws
    hits = 0
    for _ in range(300):
        low, middle, high = stats.tuning_curve_band(rng.random(100), 0.8, method="exact")
        assert (low <= middle).all()
        assert (middle <= high).all()
        hits += bool(((low <= truth) & (truth <= high)).all())
    assert hits / 300 >= 0.8 - 2 * np.sqrt(0.16 / 300)


def test_ten_thousand_scores_take_seconds_and_bounded_memory():
    scores = np.random.default_rng(0).random(10_000)
    n = np.unique(np.geomspace(1, 10_000, 300).astype(int))
    assert stats.expected_best(scores, n, "u")[-1] == pytest.approx(scores.max(), abs=1e-6)
    low, _, high = stats.tuning_curve_band(scores, 0.95, n, method="exact")
    assert (low <= high).all()


def test_a_single_score_has_an_unbounded_band():
    low, middle, high = stats.tuning_curve_band([0.5], 0.95)
    assert (low[0], middle[0], high[0]) == (-np.inf, 0.5, np.inf)
