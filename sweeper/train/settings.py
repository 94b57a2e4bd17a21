"""A trial's hyperparameters as typed settings: the one table of names, ranges and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from sweeper.core.errors import InfeasibleError
from sweeper.core.lora import Lora
from sweeper.core.space import Params

UNFREEZING = ("full", "head_only", "last_blocks", "gradual", "head_then_full", "lora")
LR_SCHEDULES = ("linear", "cosine", "slanted_triangular", "constant")
OPTIMIZERS = ("adamw", "sgd")
BALANCES = ("none", "class-weights", "sampler")
LIMITS: Mapping[str, tuple[float, float]] = {
    "learning_rate": (0, 100),
    "weight_decay": (0, 10),
    "warmup_ratio": (0, 1),
    "max_grad_norm": (0, math.inf),
    "momentum": (0, 1),
    "dropout": (0, 0.99),
    "attention_dropout": (0, 0.99),
    "drop_path": (0, 0.99),
    "label_smoothing": (0, 0.99),
    "layer_decay": (0, 1),
    "head_fraction": (0, 1),
    "head_learning_rate": (0, 100),
    "lora_alpha": (0, 1e6),
    "lora_dropout": (0, 0.99),
    "lora_learning_rate": (0, 100),
    "focal_gamma": (0, 10),
    "random_crop": (0, 0.5),
    "horizontal_flip": (0, 1),
    "mixup_alpha": (0, 10),
    "cutmix_alpha": (0, 10),
    "token_dropout": (0, 0.9),
    "token_deletion": (0, 0.9),
}
"""What training takes: the least and the greatest value of each real number."""
LEAST: Mapping[str, int] = {
    "batch_size": 1,
    "num_unfrozen_blocks": 1,
    "epochs_per_stage": 1,
    "lora_rank": 1,
    "num_adapted_blocks": 1,
    "patience": 1,
    "num_reinitialised_blocks": 0,
}
"""The least value of each whole number."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a trial may set; names are Hugging Face's where it has one.

    A dropout of None leaves the checkpoint's own rates. ``batch_size`` is the effective (global) one. A ``balance`` of
    None follows the study's. ``patience`` counts epochs without a better validation score after which the weights stay
    as they are. ``random_crop`` is the largest shift as a share of the side; ``horizontal_flip``, ``token_dropout`` and
    ``token_deletion`` are probabilities; ``mixup_alpha`` and ``cutmix_alpha`` are Beta parameters, 0 for off.

    With ``unfreezing`` ``lora`` the blocks stay frozen and adapters beside them train: ``lora_rank``, ``lora_alpha``
    and ``lora_dropout`` are peft's (an alpha of None is twice the rank), ``lora_learning_rate`` is the adapters' own
    rate (None: ``learning_rate``), and ``num_adapted_blocks`` counts the blocks that get them from the top (None: all).
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
    lora_rank: int = 8
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_learning_rate: float | None = None
    num_adapted_blocks: int | None = None
    num_reinitialised_blocks: int = 0
    balance: str | None = None
    focal_gamma: float = 0.0
    patience: int | None = None
    random_crop: float = 0.0
    horizontal_flip: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    token_dropout: float = 0.0
    token_deletion: float = 0.0

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
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and low <= value <= high):
                raise InfeasibleError(f"{name}: must be a number from {low} to {high}, got {value!r}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if name in ("patience", "num_adapted_blocks") and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InfeasibleError(f"{name}: must be a whole number of at least {least}, got {value!r}")
        for name, choices in (
            ("unfreezing", UNFREEZING),
            ("lr_scheduler_type", LR_SCHEDULES),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in choices:
                raise InfeasibleError(f"{name}: must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.balance is not None and self.balance not in BALANCES:
            raise InfeasibleError(f"balance: must be one of {', '.join(BALANCES)}, got {self.balance!r}")
        if self.unfreezing == "lora" and self.num_reinitialised_blocks:
            rule = "blocks drawn anew must train, and beside adapters they do not"
            raise InfeasibleError(f"num_reinitialised_blocks: {rule}, got {self.num_reinitialised_blocks}")

    @property
    def lora(self) -> Lora | None:
        """The adapters that are asked for, if any."""
        if self.unfreezing != "lora":
            return None
        alpha = 2.0 * self.lora_rank if self.lora_alpha is None else float(self.lora_alpha)
        return Lora(rank=self.lora_rank, alpha=alpha, dropout=self.lora_dropout, num_blocks=self.num_adapted_blocks)

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Refuse settings that a task cannot act on, unless they are off.

        Raises
        ------
        InfeasibleError
            Naming the parameter, the reason and the value.
        """
        for name, reason in reasons.items():
            value = getattr(self, name, None)
            if value not in (None, 0, "none"):
                raise InfeasibleError(f"{name}: {reason}, got {value!r}")

    @property
    def dropouts(self) -> dict[str, float]:
        """The dropouts that are set, by kind."""
        kinds = ("dropout", "attention_dropout", "drop_path")
        return {kind: rate for kind in kinds if (rate := getattr(self, kind)) is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
