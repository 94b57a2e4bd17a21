"""Points to begin with, and the best of an earlier study."""

from __future__ import annotations

import pytest
from results_folder import make_results

from sweeper.core.errors import InputError
from sweeper.core.space import Categorical, Float, Int, SearchSpace
from sweeper.spec.study import SearchSpec
from sweeper.workflows.starting import make_start

SPACE = SearchSpace(
    parameters=(
        Float(name="learning_rate", low=1e-5, high=1e-2, log=True),
        Categorical(name="unfreezing", choices=("full", "last_blocks")),
        Int(name="num_unfrozen_blocks", low=1, high=4, when={"unfreezing": ("last_blocks",)}),
    ),
    default={"learning_rate": 1e-3, "unfreezing": "full"},
)
SPACES = {"good": SPACE, "middling": SPACE}


def problems(**search):
    with pytest.raises(InputError) as caught:
        make_start(SearchSpec(**search), SPACES)
    return [str(problem) for problem in caught.value.problems]


def test_a_list_of_points_is_for_all_models_and_completed_by_the_default():
    point = {"unfreezing": "last_blocks", "num_unfrozen_blocks": 2}
    start = make_start(SearchSpec(points_to_evaluate=[point, {"learning_rate": 1e-4}]), SPACES)
    expected = ({"learning_rate": 1e-3, **point}, {"learning_rate": 1e-4, "unfreezing": "full"})
    assert start.points == {"good": expected, "middling": expected}
    assert start.charged == {}


def test_all_wrong_points_are_named_at_once():
    given = {"good": [{"learning_rate": 1.0, "lr": 2}, {"unfreezing": "last_blocks"}], "middling": [], "other": [{}]}
    text = "\n".join(problems(points_to_evaluate=given))
    assert "search.points_to_evaluate.good.0.learning_rate: must lie in its range (space of good), got 1.0" in text
    assert "good.0.lr: must be a parameter of the space" in text
    assert "good.1.num_unfrozen_blocks: must be given" in text
    assert "every model must get the same number of points, got good 2, middling 0" in text
    assert "search.points_to_evaluate.other: must be a model of the study" in text
    assert "must leave room in num_trials" in problems(points_to_evaluate=[{}] * 3, num_trials=3)[0]


def test_a_warm_start_takes_the_best_of_each_model_and_names_what_they_had_cost(tmp_path):
    results = str(make_results(tmp_path / "earlier"))
    start = make_start(SearchSpec(warm_start=results), SPACES)
    best, second = ({"learning_rate": rate, "unfreezing": "full"} for rate in (9.9e-3, 1e-4))
    assert start.points == {"good": (best, second), "middling": (best, second)}
    assert start.charged["models"]["good"] == {"trials": 12, "device_seconds": 24.0}
    with pytest.raises(InputError, match="must hold completed trials of every model, unknown too"):
        make_start(SearchSpec(warm_start=results), {**SPACES, "unknown": SPACE})
