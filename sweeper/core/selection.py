"""Which epoch and which trial counts as best: validation only, with a documented tie-break."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sweeper.core.objective import Objective
from sweeper.core.trial import Measurement, TrialRecord, TrialState


def best_measurement(measurements: Sequence[Measurement], objective: Objective) -> Measurement | None:
    """Return the best epoch; ties go to the lower validation loss, then to the earlier epoch."""
    return min(
        measurements,
        key=lambda m: (objective.loss(m.metrics[objective.metric]), m.validation_loss, m.epoch),
        default=None,
    )


def best_trial(trials: Iterable[TrialRecord], objective: Objective) -> TrialRecord | None:
    """Return the best COMPLETE trial; ties go to the lower validation loss at the best epoch, then the lower number."""

    def key(trial: TrialRecord) -> tuple[float, float, int]:
        best = best_measurement(trial.measurements, objective)
        assert best is not None, "a COMPLETE trial has measurements"
        assert trial.value is not None, "a COMPLETE trial has a value"
        return objective.loss(trial.value), best.validation_loss, trial.spec.number

    return min((trial for trial in trials if trial.state is TrialState.COMPLETE), key=key, default=None)
