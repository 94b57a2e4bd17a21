from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from sweeper.core.space import Categorical, Float, Int, SearchSpace
from sweeper.search import surrogate
from sweeper.search.encoding import Encoder
from sweeper.search.process import Prior, negative_log_posterior
from sweeper.search.surrogate import Observed, Surrogate, startup

SPACE = SearchSpace(
    parameters=(
        Float(name="learning_rate", low=1e-5, high=1e-1, log=True),
        Categorical(name="unfreezing", choices=("full", "last_blocks", "gradual")),
        Int(name="num_unfrozen_blocks", low=1, high=7, step=3, when={"unfreezing": ("last_blocks",)}),
        Int(name="batch_size", low=8, high=64, log=True),
        Categorical(name="optimizer", choices=("adamw",)),
    ),
    default={"learning_rate": 1e-3, "unfreezing": "full", "batch_size": 16, "optimizer": "adamw"},
)
NUM = len(SPACE.parameters)
UNIT = st.floats(0, 1, exclude_max=True)


def loss(params, epoch):
    """Best at a rate of 1e-2 with the last blocks; all trials improve alike with the epochs."""
    at = (math.log10(params["learning_rate"]) + 2) ** 2 + (params["unfreezing"] != "last_blocks")
    return at + 2 / epoch


def configurations(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Encoder(SPACE).decode(row.tolist()) for row in rng.random((count, NUM))]


def problem(observed, running=(), max_epochs=9, **more):
    return Surrogate(space=SPACE, observed=observed, running=running, max_epochs=max_epochs, **more)


def test_it_finds_the_best_region_from_curves_most_of_which_were_stopped():
    """Every second trial was stopped after one of nine epochs: its loss is two higher than it would have become."""
    known = [
        Observed(params, {e: loss(params, e) for e in range(1, 10 if index % 2 else 2)})
        for index, params in enumerate(configurations(16))
    ]
    found = [problem(known).suggest(seed).params for seed in range(8)]
    good = [p for p in found if p["unfreezing"] == "last_blocks" and abs(math.log10(p["learning_rate"]) + 2) < 0.7]
    assert len(good) >= 6


def test_it_keeps_away_from_where_trials_fail_and_reads_no_score_from_them():
    """All trials at high rates fail, although the scores rise towards them."""
    limit = -2.6
    known = [
        Observed(p, {1: -math.log10(p["learning_rate"])}, failed=False)
        if math.log10(p["learning_rate"]) < limit
        else Observed(p, {}, failed=True)
        for p in configurations(40)
    ]
    found = [problem(known, max_epochs=1).suggest(seed).params for seed in range(10)]
    rates = [math.log10(p["learning_rate"]) for p in found]
    assert sum(rate < limit + 0.1 for rate in rates) >= 8
    assert np.median(rates) > limit - 0.3  # it goes as far as it may


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.dictionaries(st.integers(1, 4), st.floats(allow_nan=False, allow_infinity=False), min_size=1),
        ),
        min_size=4,
        max_size=12,
    ),
    st.integers(0, 100),
)
def test_whatever_was_measured_a_suggestion_lies_in_the_space(history, seed):
    known = [Observed(p, dict(h), failed) for p, (failed, h) in zip(configurations(len(history)), history, strict=True)]
    if all(o.failed for o in known):
        known.append(Observed(SPACE.default, {1: 0.0}))
    found = problem(known, [SPACE.default], 4).suggest(seed)
    assert ("num_unfrozen_blocks" in found.params) == (found.params["unfreezing"] == "last_blocks")
    assert all(SPACE[name].contains(value) for name, value in found.params.items())
    assert np.isfinite(found.theta).all()


def test_what_was_suggested_before_is_not_suggested_again():
    known = [Observed(p, {1: loss(p, 1)}) for p in configurations(8)]
    first = problem(known).suggest(1).params
    assert problem(known, is_new=lambda params: params != first).suggest(1).params != first
    assert problem(known, is_new=lambda params: False).suggest(1).params is None


def test_a_large_history_costs_no_more_than_a_middling_one(monkeypatch):
    fitted = []
    fit = surrogate.Process.fit.__func__

    def counting(cls, points, *rest):
        fitted.append(len(points))
        return fit(cls, points, *rest)

    monkeypatch.setattr(surrogate.Process, "fit", classmethod(counting))
    known = [
        Observed(p, {e: loss(p, e) for e in range(1, 2 + index % 9)}, failed=index % 7 == 0)
        for index, p in enumerate(configurations(500))
    ]
    problem(known).suggest(0)
    assert max(fitted) <= surrogate.MAX_OBSERVATIONS


@given(st.lists(UNIT, min_size=NUM, max_size=NUM))
def test_a_configuration_survives_the_way_to_its_unit_row_and_back(row):
    encoder = Encoder(SPACE)
    params = encoder.decode(row)
    again = encoder.decode(encoder.units([params])[0].tolist())
    assert again.pop("learning_rate") == pytest.approx(params.pop("learning_rate"))
    assert again == params


@given(st.lists(UNIT, min_size=NUM, max_size=NUM), UNIT)
def test_what_is_not_active_changes_no_feature(row, other):
    encoder = Encoder(SPACE)
    changed = [*row[:2], other, *row[3:]]
    same = np.array_equal(*encoder.features(np.array([row, changed])))
    inactive = "num_unfrozen_blocks" not in encoder.decode(row)
    assert same == (inactive or encoder.decode(row) == encoder.decode(changed))


def test_an_inactive_parameter_is_equally_far_from_all_its_values():
    encoder = Encoder(SPACE)
    base = {"learning_rate": 1e-3, "batch_size": 16, "optimizer": "adamw"}
    active = [base | {"unfreezing": "last_blocks", "num_unfrozen_blocks": n} for n in (1, 4, 7)]
    far = encoder.features(encoder.units([base | {"unfreezing": "full"}, *active]))
    assert np.linalg.norm(far[1:] - far[0], axis=1) == pytest.approx([math.sqrt(1.5)] * 3)
    assert np.linalg.norm(far[3] - far[1]) == pytest.approx(1.0)  # the ends of the range, as for any number


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_neighbours_are_configurations_near_by(seed):
    encoder = Encoder(SPACE)
    rng = np.random.default_rng(seed)
    units = encoder.units(configurations(5, seed))
    moved = encoder.neighbours(units, 20, rng, 0.1)
    assert moved.shape == (100, NUM)
    assert ((moved >= 0) & (moved < 1)).all()
    steps = np.abs(moved[:, 0] - np.repeat(units[:, 0], 20))
    assert np.median(steps) < 0.1


def test_the_first_suggestions_cover_every_range_evenly():
    found = [startup(SPACE, index, 5) for index in range(8)]
    eighths = sorted(int((math.log10(p["learning_rate"]) + 5) * 2) for p in found)
    assert eighths == list(range(8))
    assert {p["unfreezing"] for p in found} == {"full", "last_blocks", "gradual"}
    assert found != [startup(SPACE, index, 6) for index in range(8)]


def test_the_gradient_of_the_fit_is_that_of_its_loss():
    rng = np.random.default_rng(1)
    points, groups = rng.random((25, 4)), [0, 1, 1, 2]
    prior = Prior([-0.5, -0.5, 0.4, 0.0, -4.0], [1.0] * 5, groups)
    values = np.sin(4 * points[:, 0]) + 0.1 * rng.standard_normal(25)
    theta = prior.mean + 0.3 * rng.standard_normal(5)
    found = check_grad(
        lambda t: negative_log_posterior(t, points, values, prior)[0],
        lambda t: negative_log_posterior(t, points, values, prior)[1],
        theta,
    )
    assert found == pytest.approx(0, abs=1e-4)
