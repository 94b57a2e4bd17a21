"""Configurations as training sees them: which ones are the same, and which of a space are still to be tried."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from sweeper.core.space import Categorical, Int, Params, Scalar, SearchSpace
from sweeper.search.encoding import Encoder
from sweeper.train.settings import Settings

Key: TypeAlias = tuple[tuple[str, Scalar], ...]

SIGNIFICANT_DIGITS = 6  # two floats that agree to so many digits train alike
ENUMERATED = 4096  # spaces of no more configurations are tried to the last one
NUM_DRAWS = 1000  # random configurations of a larger space, before it counts as exhausted

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Settings)}


def effective_key(params: Params, max_epochs: int) -> Key:
    """Return a configuration as training sees it: equal for two that would train alike.

    Floats are rounded to six significant digits. Where every name is one of sweeper's hyperparameters, what is left
    out counts as its default, and what does nothing beside the others is left out.

    Parameters
    ----------
    params:
        Active parameters only.
    max_epochs:
        Full budget of a trial: shares of it become epochs.
    """
    if params.keys() <= _DEFAULTS.keys():
        params = _without_idle({**_DEFAULTS, **params}, max_epochs)
    return tuple(
        (name, float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value)
        for name, value in sorted(params.items())
    )


def _without_idle(params: dict[str, Scalar], max_epochs: int) -> dict[str, Scalar]:
    """Leave out what `sweeper.train` would not read, and turn shares and limits into what it makes of them."""
    idle: set[str] = set()
    if params["optimizer"] != "sgd":
        idle.add("momentum")
    if params["patience"] is not None and _number(params, "patience") >= max_epochs - 1:
        params["patience"] = None  # even a best first epoch leaves too few others
    if params["head_learning_rate"] is None:
        params["head_learning_rate"] = params["learning_rate"]
    if params["unfreezing"] == "gradual" and _number(params, "epochs_per_stage") >= max_epochs:
        params["unfreezing"] = "head_only"
    if params["unfreezing"] == "head_then_full":
        switch = min(max(1, round(_number(params, "head_fraction") * max_epochs)), max(1, max_epochs - 1))
        params["head_fraction"] = switch
        if switch >= max_epochs:
            params["unfreezing"] = "full"
    if params["unfreezing"] in ("head_only", "gradual"):  # the head's rate is not decayed; ULMFiT has its own decay
        idle.add("layer_decay")
    if params["lora_alpha"] is None:
        params["lora_alpha"] = 2 * _number(params, "lora_rank")
    if params["lora_learning_rate"] is None:
        params["lora_learning_rate"] = params["learning_rate"]
    for schedule, names in (
        ("last_blocks", ("num_unfrozen_blocks",)),
        ("gradual", ("epochs_per_stage",)),
        ("head_then_full", ("head_fraction", "head_learning_rate")),
        ("lora", ("lora_rank", "lora_alpha", "lora_dropout", "lora_learning_rate", "num_adapted_blocks")),
    ):
        if params["unfreezing"] != schedule:
            idle.update(names)
    return {name: value for name, value in params.items() if name not in idle}


def _number(params: Params, name: str) -> float:
    value = params[name]
    return float(value) if isinstance(value, int | float) else 0.0


def untried(space: SearchSpace, seen: Collection[Key], max_epochs: int, seed: int) -> dict[str, Scalar] | None:
    """Return a random configuration whose effective key is not among ``seen``; None when there is none left.

    A space of up to 4,096 configurations is looked through; of a larger one 1,000 are drawn.
    """
    rng = np.random.default_rng(seed)
    every = list(islice(_enumerate(space, {}, 0), ENUMERATED + 1))
    if every and len(every) <= ENUMERATED:
        left = [params for params in every if effective_key(params, max_epochs) not in seen]
        return left[int(rng.integers(len(left)))] if left else None
    encoder = Encoder(space)
    for row in rng.random((NUM_DRAWS, len(space.parameters))):
        params = encoder.decode(row.tolist())
        if effective_key(params, max_epochs) not in seen:
            return params
    return None


def _enumerate(space: SearchSpace, params: dict[str, Scalar], at: int) -> Iterator[dict[str, Scalar]]:
    """Yield every configuration; of a space with real numbers more than `ENUMERATED` stand-ins."""
    if at == len(space.parameters):
        yield params
        return
    parameter = space.parameters[at]
    if not parameter.is_active(params):
        yield from _enumerate(space, params, at + 1)
        return
    values: Collection[Scalar]
    if isinstance(parameter, Categorical):
        values = parameter.choices
    elif isinstance(parameter, Int):
        values = range(parameter.low, parameter.high + 1, parameter.step)
    else:
        values = [parameter.low] * (ENUMERATED + 1)
    for value in values:
        yield from _enumerate(space, params | {parameter.name: value}, at + 1)
