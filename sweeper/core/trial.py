"""The records a sweep is made of: what a trial is asked to do, what it measured, how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sweeper.core.space import Params


class TrialState(StrEnum):
    """Where a trial stands. The last four are final."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"
    INFEASIBLE = "INFEASIBLE"

    @property
    def is_final(self) -> bool:
        """Whether the trial has ended."""
        return self not in (TrialState.WAITING, TrialState.RUNNING)

    @property
    def has_failed(self) -> bool:
        """Whether the trial ended without having trained as it was asked to."""
        return self in (TrialState.FAIL, TrialState.INFEASIBLE)


class TrialKind(StrEnum):
    """What a trial is for."""

    SEARCH = "search"
    CONFIRM = "confirm"


class Decision(StrEnum):
    """What happens to a trial after a measurement."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What one trial is asked to do. Everything random in it comes from ``seed``.

    Parameters
    ----------
    trial_id:
        Unique in the study and safe as a file name: ``bert-t0003`` or ``bert-tuned-c02``.
    number:
        Position among the model's trials of this kind, from 0; search trial 0 is the default configuration.
    model:
        The model's name in the study file.
    params:
        The active hyperparameters only.
    max_epochs:
        The full budget, which learning-rate schedules span; early stopping never shortens them.
    config:
        ``tuned`` or ``default`` for a confirmation run, empty for a search trial.
    split_seed:
        Seed of a resampled train/validation split, None for the study's own split.
    """

    trial_id: str
    number: int
    model: str
    params: Params
    seed: int
    max_epochs: int
    kind: TrialKind = TrialKind.SEARCH
    config: str = ""
    split_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One epoch's outcome.

    Parameters
    ----------
    epoch:
        Epochs completed, from 1.
    train_loss, validation_loss:
        Mean loss per example over the epoch's training batches and over the validation split.
    metrics:
        Every validation metric of the task by name.
    elapsed_seconds:
        Training and evaluation time of the trial so far, over all its attempts; lane waiting not counted.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    metrics: Mapping[str, float]
    elapsed_seconds: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of one trial on one lane: retry, resume and promotion are new segments of the same trial.

    ``snapshot_at`` are epochs after which its state is saved in any case: it may be paused there.
    """

    trial: TrialSpec
    attempt: int = 0
    snapshot_at: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial with everything known about it; rebuilt from the ledger.

    ``value`` is the validation metric of the best epoch and stays None unless the state is COMPLETE.
    ``device_seconds`` is ``elapsed_seconds`` times the lane's workers. Times are UTC seconds since the epoch.
    ``num_retries`` counts the times that it was begun again, whatever for; ``num_deaths`` the lanes that died under it
    since its last new epoch. ``effective`` holds the settings read back from the live optimizer, loader and model.
    """

    spec: TrialSpec
    state: TrialState = TrialState.WAITING
    measurements: tuple[Measurement, ...] = ()
    value: float | None = None
    best_epoch: int | None = None
    elapsed_seconds: float = 0.0
    device_seconds: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    node: str = ""
    num_retries: int = 0
    num_deaths: int = 0
    reason: str = ""
    effective: Mapping[str, Any] = field(default_factory=dict)
