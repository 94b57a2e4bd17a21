"""What a study optimises: a metric's name and its direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Goal = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """A validation metric and whether more or less of it is better."""

    metric: str
    goal: Goal

    def better(self, a: float, b: float) -> bool:
        """Whether score ``a`` is strictly better than score ``b``; NaN is never better."""
        return a > b if self.goal == "maximize" else a < b

    def loss(self, value: float) -> float:
        """``value`` turned so that less is better: for sorting."""
        return -value if self.goal == "maximize" else value
