"""Values that others published, or that their own test suites demand, each with its source."""

from __future__ import annotations

import json

import numpy as np
import pytest
from opda.nonparametric import EmpiricalDistribution

from sweeper import stats
from sweeper.workflows.importing import import_results

# README of opda 0.8.0 (Lourie et al. 2024): accuracies of two random searches.
BASELINE = [
    *(0.7440, 0.7710, 0.8774, 0.8924, 0.8074, 0.7173, 0.7890, 0.7449, 0.8278, 0.7951, 0.7216, 0.8069, 0.7849, 0.8332),
    *(0.7702, 0.7364, 0.7306, 0.8272, 0.8555, 0.8801, 0.8046, 0.7496, 0.7950, 0.7012, 0.7097, 0.7017, 0.8720, 0.7758),
    *(0.7038, 0.8567, 0.7086, 0.7487),
]
MODEL = [
    *(0.8420, 0.9292, 0.8172, 0.8264, 0.8851, 0.8765, 0.8824, 0.9221, 0.9456, 0.7533, 0.8141, 0.9061, 0.8986, 0.8287),
    *(0.8645, 0.8495, 0.8134, 0.8456, 0.9034, 0.7861, 0.8336, 0.9036, 0.7796, 0.9449, 0.8216, 0.7520, 0.9089, 0.7890),
    *(0.9198, 0.9428, 0.8140, 0.7734),
]
MEDIAN_BEST = [0.8456, 0.9034, 0.9089, 0.9198, 0.9221]  # printed there for MODEL at 1 to 5 search iterations

# rliable's tests/rliable/metrics_test.py: runs x tasks.
X = np.array([[1, 2], [2, 2], [1, 1], [2, 1]])
Y = np.array([[1, 1], [2, 2], [3, 3]])


@pytest.mark.parametrize("method", ["ks", "exact"])
def test_the_median_best_score_is_the_one_printed_in_opdas_readme(method):
    assert stats.tuning_curve_band(MODEL, 0.8, range(1, 6), method)[1].tolist() == MEDIAN_BEST


@pytest.mark.parametrize("scores", [BASELINE, MODEL, [0.0, 0.0, 50.0, -25.0, 100.0]])  # the last from opda's own tests
def test_v_and_u_equal_opdas(scores):
    n = np.arange(1, len(scores) + 1)
    theirs = EmpiricalDistribution(scores)
    assert stats.expected_best(scores, n) == pytest.approx(theirs.v_tuning_curve(n), abs=1e-9)
    assert stats.expected_best(scores, n, "u") == pytest.approx(theirs.u_tuning_curve(n), abs=1e-9)


def test_an_import_of_opdas_two_searches_gives_their_curves_and_names_who_leads(tmp_path):
    rows = ["model,val_accuracy", *(f"baseline,{v}" for v in BASELINE), *(f"model,{v}" for v in MODEL)]
    (tmp_path / "trials.csv").write_text("\n".join(rows))
    import_results(str(tmp_path / "trials.csv"), "csv", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "report" / "tuning_curves.json").read_text())
    assert found["models"]["model"]["band"]["median"][:5] == MEDIAN_BEST
    theirs = EmpiricalDistribution(BASELINE).v_tuning_curve(np.arange(1, 33))
    assert found["models"]["baseline"]["expected_best"]["v"] == pytest.approx(theirs, abs=1e-9)
    assert found["leads"] == [{"model": "model", "first": 1, "last": 32}]


def test_aggregates_equal_rliables_test_cases():
    assert [stats.interquartile_mean(scores) for scores in (X, Y)] == [1.5, 2]
    assert stats.probability_of_improvement(X, Y) == pytest.approx(1 / 3)
    many = np.arange(5 * 16).reshape(5, 16)  # tests/library_test.py
    assert stats.interquartile_mean(many) == 39.5
    assert stats.probability_of_improvement(many, np.flip(many, axis=0)) == 0.5


def test_holm_equals_deep_significances_test_cases_made_monotone():
    """deepsig/tests/test_correction.py multiplies by 5, 4, ...; Holm (1979) also lets no value fall below its forerunner."""
    rising = np.array([0.002, 0.01, 0.03, 0.11, 0.19])
    for p_values in (np.full(5, 0.07), rising):
        theirs = p_values * np.arange(5, 0, -1)
        assert stats.holm(p_values) == pytest.approx(np.maximum.accumulate(theirs))
    assert stats.holm(np.full(4, 1 - 1e-4)) == pytest.approx(np.ones(4), abs=0.01)
    assert stats.holm([0.3]) == pytest.approx([0.3])


def test_the_permutation_test_gives_fishers_value_for_darwins_plants():
    """Fisher 1935, The Design of Experiments, section 21: 1,726 of 2**15 sign changes reach the sum of 314 eighths of an inch."""
    differences = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert stats.paired_permutation(differences, np.zeros(15)) == pytest.approx(1726 / 2**15)
