from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from sweeper.core.space import Categorical, Float, Int, SearchSpace
from sweeper.search.surrogate import Encoder, Observed, _loss, suggest

SPACE = SearchSpace(
    parameters=(
        Float(name="learning_rate", low=1e-5, high=1e-1, log=True),
        Categorical(name="unfreezing", choices=("full", "last_blocks")),
        Int(name="num_unfrozen_blocks", low=1, high=7, step=3, when={"unfreezing": ("last_blocks",)}),
        Categorical(name="optimizer", choices=("adamw",)),
    ),
    default={"learning_rate": 1e-3, "unfreezing": "full", "optimizer": "adamw"},
)


def loss(params, epoch):
    """Best at a rate of 1e-2 with the last blocks; all trials improve alike with the epochs."""
    at = (math.log10(params["learning_rate"]) + 2) ** 2 + (params["unfreezing"] == "full")
    return at + 2 / epoch


def configurations(count):
    rng = np.random.default_rng(0)
    return [Encoder(SPACE).decode(row.tolist()) for row in rng.random((count, 4))]


def test_it_finds_the_best_region_from_curves_most_of_which_were_stopped():
    """Every second trial was stopped after one of nine epochs: its loss is two higher than it would have become."""
    known = [
        Observed(params, {e: loss(params, e) for e in range(1, 10 if index % 2 else 2)})
        for index, params in enumerate(configurations(16))
    ]
    found = [suggest(SPACE, known, [], 9, seed)[0] for seed in range(8)]
    good = [p for p in found if p["unfreezing"] == "last_blocks" and abs(math.log10(p["learning_rate"]) + 2) < 0.7]
    assert len(good) >= 6


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.dictionaries(st.integers(1, 4), st.floats(-1e30, 1e30), min_size=1)),
        min_size=4,
        max_size=12,
    ),
    st.integers(0, 100),
)
def test_whatever_was_measured_a_suggestion_lies_in_the_space(history, seed):
    known = [Observed(p, dict(h), failed) for p, (failed, h) in zip(configurations(len(history)), history, strict=True)]
    if all(o.failed for o in known):
        known.append(Observed(SPACE.default, {1: 0.0}))
    params, theta = suggest(SPACE, known, [SPACE.default], 4, seed)
    assert ("num_unfrozen_blocks" in params) == (params["unfreezing"] == "last_blocks")
    assert all(SPACE[name].contains(value) for name, value in params.items())
    assert np.isfinite(theta).all()


def test_the_gradient_of_the_fit_is_that_of_its_loss():
    rng = np.random.default_rng(1)
    points, prior, width = rng.random((25, 3)), np.array([-0.5, -0.5, 0.4, 0.0, -4.0]), np.ones(5)
    values = np.sin(4 * points[:, 0]) + 0.1 * rng.standard_normal(25)
    theta = prior + 0.3 * rng.standard_normal(5)
    found = check_grad(
        lambda t: _loss(t, points, values, prior, width)[0], lambda t: _loss(t, points, values, prior, width)[1], theta
    )
    assert found == pytest.approx(0, abs=1e-4)
