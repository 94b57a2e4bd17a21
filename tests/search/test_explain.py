from __future__ import annotations

import numpy as np
import pytest

from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, Float, Int, SearchSpace
from sweeper.search.encoding import Encoder
from sweeper.search.explain import Completed, ablation, importance
from sweeper.spec.space import space_as_dict, space_from_dict

OBJECTIVE = Objective("acc", "maximize")
SPACE = SearchSpace(
    parameters=(
        Float(name="learning_rate", low=1e-5, high=1e-1, log=True),
        Float(name="dropout", low=0.0, high=0.5),
        Categorical(name="unfreezing", choices=("full", "last_blocks")),
        Int(name="num_unfrozen_blocks", low=1, high=5, step=2, when={"unfreezing": ("last_blocks",)}),
        Categorical(name="optimizer", choices=("adamw",)),
    ),
    default={"learning_rate": 1e-5, "dropout": 0.4, "unfreezing": "full", "optimizer": "adamw"},
)


def score(params):
    off = SPACE["learning_rate"].fraction(params["learning_rate"]) - 0.7
    return 0.9 - off**2 + 0.05 * (params["unfreezing"] == "last_blocks")


@pytest.fixture(scope="module")
def trials():
    encoder = Encoder(SPACE)
    rows = np.random.default_rng(0).random((200, len(SPACE.parameters)))
    found = [encoder.decode(row.tolist()) for row in rows]
    return [Completed(params, score(params)) for params in found]


def test_what_decides_about_the_best_trials_is_most_important(trials):
    shares = importance(SPACE, trials, OBJECTIVE)
    assert next(iter(shares)) == "learning_rate"
    assert shares["learning_rate"] > 3 * shares.get("dropout", 0)
    assert sum(shares.values()) == pytest.approx(1)
    assert "optimizer" not in shares, "it has one value"
    assert importance(SPACE, trials[:49], OBJECTIVE) == {}


def test_the_path_from_default_to_best_flips_what_matters_first_and_ends_at_the_best(trials):
    default = Completed(SPACE.default, score(SPACE.default))
    best = max(trials, key=lambda trial: trial.value)
    path = ablation(SPACE, [*trials, default], default, best, OBJECTIVE)
    assert path.flips[0].name == "learning_rate"
    assert path.flips[0].gain == max(flip.gain for flip in path.flips) > 0.1
    assert {flip.name for flip in path.flips} == {"learning_rate", "dropout", "unfreezing"}
    assert path.predicted_default + sum(flip.gain for flip in path.flips) == pytest.approx(path.flips[-1].predicted)
    assert (path.measured_default, path.measured_best) == (default.value, best.value)
    assert path.reliability > 0.8
    assert "not trained" in path.words


def test_too_little_or_noise_gives_no_path(trials):
    default, best = Completed(SPACE.default, 0.1), trials[0]
    assert ablation(SPACE, trials[:40], default, best, OBJECTIVE) is None
    noise = [
        Completed(trial.params, float(value))
        for trial, value in zip(trials, np.random.default_rng(1).random(200), strict=True)
    ]
    assert ablation(SPACE, noise, default, best, OBJECTIVE) is None
    assert ablation(SPACE, trials, default, default, OBJECTIVE) is None


def test_a_space_comes_back_from_its_dictionary():
    assert space_from_dict(space_as_dict(SPACE)) == SPACE
