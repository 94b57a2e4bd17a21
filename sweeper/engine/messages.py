"""What travels between the driver, Tune's Trainables and the lanes. Plain frozen records, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sweeper.core.trial import Measurement, Segment, TrialSpec, TrialState


@dataclass(frozen=True)
class Start:
    """Command: begin or continue a trial, from its last snapshot where there is one."""

    segment: Segment


@dataclass(frozen=True)
class NextEpoch:
    """Command: train and evaluate one more epoch of the current trial."""


@dataclass(frozen=True)
class Test:
    """Command: score a confirmation run's best weights on the opened test split."""

    __test__ = False  # not a test case, whatever pytest thinks of the name
    trial: TrialSpec


@dataclass(frozen=True)
class Leave:
    """Command: drop the current trial; ``snapshot`` first saves its state for a later segment."""

    snapshot: bool = False


Command: TypeAlias = Start | NextEpoch | Test | Leave


@dataclass(frozen=True, kw_only=True)
class Started:
    """Reply to `Start`: where the trial runs, what was read back, and the epoch it goes on from.

    ``measurements`` are those of the snapshot: the driver may have died before it heard of them.
    """

    node: str
    from_epoch: int
    effective: Mapping[str, Any] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Reply to `NextEpoch`."""

    measurement: Measurement


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Reply to `Test`: the metrics on the test split.

    Of one run a model also what using it costs, and as ``baseline`` what the task's trivial answer scores, by metric.
    ``retention``, where asked for: ``metric``, and its values ``before`` and ``after`` fine-tuning.
    """

    metrics: Mapping[str, float]
    num_examples: int
    elapsed_seconds: float
    cost: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)
    retention: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """Reply to `Leave`."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The trial cannot go on; the lane can. ``reason`` is one line, ``trace`` the stack where it is of use.

    ``is_of_storage``: the trial is not to blame, a disk or store is; it stays unfinished and the run stops.
    """

    state: TrialState
    reason: str
    trace: str = ""
    lane_is_sound: bool = True
    is_of_storage: bool = False


@dataclass(frozen=True)
class Dead:
    """The lane died or fell silent before it answered; the trial goes on elsewhere."""

    reason: str


@dataclass(frozen=True)
class Moved:
    """A node of the lane is to be taken back: the trial was saved and goes on elsewhere, and nothing is to blame."""


Reply: TypeAlias = Started | Measured | Tested | Left | Failed | Dead | Moved


@dataclass(frozen=True)
class Assignment:
    """What a Tune trial is given: a segment to train, or a confirmation run to test.

    Parameters
    ----------
    attempt:
        Names the segment: one more than the last, whatever ended that one.
    deaths:
        Lanes that died under this trial since its last new epoch, in earlier sessions too.
    epochs:
        Those measured so far.
    """

    trial: TrialSpec
    attempt: int = 0
    is_test: bool = False
    snapshot_at: tuple[int, ...] = ()
    deaths: int = 0
    epochs: int = 0


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one ``step()`` of a Trainable tells the driver, in the order in which it happened."""

    trial_id: str
    attempt: int
    retries: tuple[str, ...] = ()
    started: Started | None = None
    outcome: Measured | Tested | Failed
