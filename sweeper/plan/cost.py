"""What a plan will cost, from a short measured probe per model: plain arithmetic, with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeper.plan.plan import StudyPlan


@dataclass(frozen=True)
class Probe:
    """Measured seconds of a model's epochs at its default configuration, at least one."""

    epoch_seconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Work of one model: its counts, and lane-seconds as (expected, low, high) where a probe was made."""

    model: str
    num_trials: int
    num_confirmations: int
    most_epochs: int
    expected_epochs: float
    lane_seconds: tuple[float, float, float] | None


def estimate(plan: StudyPlan, per_trial: float, probes: Mapping[str, Probe]) -> list[ModelCost]:
    """Estimate each model's work.

    Expected: what early stopping leaves on average. Low: that at the fastest probed epoch, high: no
    trial stopped at the slowest one and half again, since other configurations train longer than the default.

    Parameters
    ----------
    per_trial:
        Epochs that a trial trains on average; the default trains all of them.
    probes:
        By model; empty when nothing was measured.
    """
    budget = plan.budget
    num_confirmations = 2 * len(plan.confirmation_seeds)
    confirmation = num_confirmations * budget.max_epochs
    most = budget.num_trials * budget.max_epochs + confirmation
    expected = budget.max_epochs + (budget.num_trials - 1) * per_trial + confirmation
    costs = []
    for model in plan.models:
        seconds = None
        if model.name in probes:
            epochs = probes[model.name].epoch_seconds
            mean = sum(epochs) / len(epochs)
            seconds = (expected * mean, expected * min(epochs), 1.5 * most * max(epochs))
        costs.append(
            ModelCost(
                model=model.name,
                num_trials=budget.num_trials,
                num_confirmations=num_confirmations,
                most_epochs=most,
                expected_epochs=expected,
                lane_seconds=seconds,
            )
        )
    return costs
