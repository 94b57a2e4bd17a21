"""A trial's hyperparameters as typed settings: the one table of names, ranges and defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self

from sweeper.core.errors import InfeasibleError
from sweeper.core.space import Params

UNFREEZING = ("full", "head_only", "last_blocks", "gradual", "head_then_full")
LR_SCHEDULES = ("linear", "cosine", "slanted_triangular", "constant")
OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a trial may set; names are Hugging Face's where it has one.

    A dropout of None leaves the checkpoint's own rates. ``batch_size`` is the effective (global) one.
    """

    learning_rate: float = 2e-5
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    lr_scheduler_type: str = "linear"
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"
    momentum: float = 0.9
    dropout: float | None = None
    attention_dropout: float | None = None
    drop_path: float | None = None
    label_smoothing: float = 0.0
    layer_decay: float = 1.0
    unfreezing: str = "full"
    num_unfrozen_blocks: int = 1
    epochs_per_stage: int = 1
    head_fraction: float = 0.25
    head_learning_rate: float | None = None

    @classmethod
    def from_params(cls, params: Params) -> Self:
        """Check names, types and ranges.

        Raises
        ------
        InfeasibleError
            Naming the parameter, the rule and the value.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(params) - known)
        if unknown:
            raise InfeasibleError(f"{unknown[0]}: no such hyperparameter; known are {', '.join(sorted(known))}")
        settings = cls(**params)  # type: ignore[arg-type]
        settings._check()
        return settings

    def _check(self) -> None:
        for name, low, high in (
            ("learning_rate", 0, 100),
            ("weight_decay", 0, 10),
            ("warmup_ratio", 0, 1),
            ("max_grad_norm", 0, math.inf),
            ("momentum", 0, 1),
            ("dropout", 0, 0.99),
            ("attention_dropout", 0, 0.99),
            ("drop_path", 0, 0.99),
            ("label_smoothing", 0, 0.99),
            ("layer_decay", 0, 1),
            ("head_fraction", 0, 1),
            ("head_learning_rate", 0, 100),
        ):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and low <= value <= high):
                raise InfeasibleError(f"{name}: must be a number from {low} to {high}, got {value!r}")
        for name in ("batch_size", "num_unfrozen_blocks", "epochs_per_stage"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InfeasibleError(f"{name}: must be a whole number of at least 1, got {value!r}")
        for name, choices in (
            ("unfreezing", UNFREEZING),
            ("lr_scheduler_type", LR_SCHEDULES),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in choices:
                raise InfeasibleError(f"{name}: must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    @property
    def dropouts(self) -> dict[str, float]:
        """The dropouts that are set, by kind."""
        kinds = ("dropout", "attention_dropout", "drop_path")
        return {kind: rate for kind in kinds if (rate := getattr(self, kind)) is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
