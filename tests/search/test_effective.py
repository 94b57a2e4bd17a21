from __future__ import annotations

from sweeper.core.space import Categorical, Float, Int, SearchSpace
from sweeper.search.effective import effective_key, untried


def same(one, other, max_epochs=8):
    return effective_key(one, max_epochs) == effective_key(other, max_epochs)


def test_what_does_nothing_makes_no_difference():
    assert same({"learning_rate": 1e-3, "momentum": 0.5}, {"learning_rate": 1e-3})
    assert not same({"optimizer": "sgd", "momentum": 0.5}, {"optimizer": "sgd", "momentum": 0.6})
    assert same({"label_smoothing": 0.0, "cutmix_alpha": 0.0}, {})
    assert same({"unfreezing": "head_only", "layer_decay": 0.7}, {"unfreezing": "head_only"})
    assert not same({"layer_decay": 0.7}, {})
    assert same({"patience": 7}, {"patience": None})
    assert not same({"patience": 6}, {"patience": None})
    assert same({"unfreezing": "gradual", "epochs_per_stage": 8}, {"unfreezing": "head_only"})


def test_shares_become_the_epochs_that_training_makes_of_them():
    first = {"unfreezing": "head_then_full", "head_fraction": 0.24}
    assert same(first, first | {"head_fraction": 0.26})
    assert not same(first, first | {"head_fraction": 0.4})
    assert same(first | {"head_learning_rate": 2e-5}, first), "it follows the learning rate"
    assert same(first, {"unfreezing": "full"}, max_epochs=1)


def test_names_of_others_keep_their_meaning():
    assert not same({"momentum": 0.5, "num_layers": 2}, {"momentum": 0.6, "num_layers": 2})
    assert same({"x": 0.1234561}, {"x": 0.1234564})


def test_a_finite_space_is_tried_to_the_last_configuration():
    space = SearchSpace(
        parameters=(
            Categorical(name="unfreezing", choices=("full", "last_blocks")),
            Int(name="num_unfrozen_blocks", low=1, high=4, when={"unfreezing": ("last_blocks",)}),
            Categorical(name="momentum", choices=(0.8, 0.9)),
        ),
        default={"unfreezing": "full", "momentum": 0.9},
    )
    seen = set()
    while (params := untried(space, seen, 8, seed=len(seen))) is not None:
        key = effective_key(params, 8)
        assert key not in seen
        seen.add(key)
    assert len(seen) == 5, "momentum does nothing without sgd"


def test_real_numbers_may_still_have_few_effects():
    share = SearchSpace(parameters=(Float(name="head_fraction", low=0.1, high=0.5),), default={"head_fraction": 0.2})
    assert untried(share, {effective_key({}, 8)}, 8, seed=0) is None
