"""How much effort each model gets. The same for all models of a study (promise 1)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Effort per model; the device-hours and the wall-clock limit are optional and bind beside the trials.

    Parameters
    ----------
    num_trials:
        Search trials for each model, at least 1; trial 0 is the default configuration.
    max_epochs:
        Epochs of a trial that is never stopped, at least 1; learning-rate schedules span exactly these.
    device_hours_per_model:
        Upper limit of device-hours (workers x hours) for search and confirmation of one model; trials are begun as long
        as the rest suffices for the end of those that were begun.
    time_budget_seconds:
        Upper limit of wall-clock seconds for the whole study, kept in the same way.
    """

    num_trials: int
    max_epochs: int
    device_hours_per_model: float | None = None
    time_budget_seconds: float | None = None
