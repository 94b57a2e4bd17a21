"""What a tracker is: someone who is told, again and again, everything known about a study.

The protocol is level-triggered. A tracker is never told "an epoch was added" but "this is the trial, as far as it is
known". It logs what its service does not hold yet. So a lost message cannot exist, a replay of the whole ledger is the
same call as live tracking, and telling a tracker something twice changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sweeper.core.objective import Objective
from sweeper.core.selection import best_measurement
from sweeper.core.trial import TrialKind, TrialRecord, TrialState


class TrackingError(Exception):
    """A tracker cannot go on. It is dropped or replaced by its offline mode; the sweep never sees it."""


@dataclass(frozen=True, kw_only=True)
class StudyInfo:
    """What a tracker knows of a study from its first moment on.

    Parameters
    ----------
    key:
        Names this study and no other, also not the same plan run again elsewhere; unchanged by resume.
    config:
        Task, fingerprints, versions, budget: nested, JSON only.
    models:
        By name: checkpoint and fingerprint of the weights.
    rungs:
        Epochs at which early stopping decides, ascending; empty without it.
    data_paths:
        Files and folders the splits came from, by split, where they are files.
    root:
        The result folder.
    """

    name: str
    key: str
    objective: Objective
    config: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    rungs: Sequence[int] = ()
    data_paths: Mapping[str, Path] = field(default_factory=dict)
    root: Path

    def run_id(self, trial_id: str) -> str:
        """Return the id of a trial's run: 16 hexadecimal digits, the same on every replay."""
        return hashlib.sha256(f"{self.key}/{trial_id}".encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class TrackedTrial:
    """A trial with everything known by now.

    Parameters
    ----------
    test:
        A confirmation run's metrics on the test split.
    found_by:
        The search trial whose configuration was confirmed, once that is known: on that trial itself, and on the
        confirmation runs of the tuned configuration.
    is_new:
        It was asked for after `Tracker.open_study`: no earlier process can have told a service of it.
    """

    record: TrialRecord
    test: Mapping[str, float] | None = None
    found_by: str | None = None
    is_new: bool = False

    @property
    def job_type(self) -> str:
        """``trial`` or ``confirm``."""
        return "confirm" if self.record.spec.kind is TrialKind.CONFIRM else "trial"

    @property
    def is_best(self) -> bool:
        """Whether it is the search trial whose configuration was confirmed."""
        return self.found_by == self.record.spec.trial_id


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """The study as a whole, told when a session ends.

    Parameters
    ----------
    trials:
        All trials in the order in which they ended; those that have not ended come last.
    leaderboard:
        The entries of ``leaderboard.json``; empty before the confirmation.
    page:
        The HTML report, None while there is none.
    best:
        By model: the folder with ``config.yaml`` and, once confirmed, ``checkpoint/``.
    """

    trials: Sequence[TrackedTrial]
    leaderboard: Sequence[Mapping[str, Any]] = ()
    page: Path | None = None
    best: Mapping[str, Path] = field(default_factory=dict)


class Tracker(Protocol):
    """A place where a study is followed. Every method may raise anything: the caller drops the tracker then.

    The order of calls is ``open_study``, any number of ``update_trial``, at most one ``update_study``, ``close``. A
    process may be killed between any two, and a new one begins again with ``open_study``: what the service holds in the
    end must be the same, every epoch once.
    """

    def open_study(self, study: StudyInfo) -> None:
        """Begin; trials follow."""
        ...

    def update_trial(self, trial: TrackedTrial) -> None:
        """Take a trial as known by now; a state that the tracker has seen already changes nothing."""
        ...

    def update_study(self, report: StudyReport) -> None:
        """Take tables, report and best configurations."""
        ...

    def close(self) -> str:
        """Hand over what is still held back, and return a line for the user (``""``: nothing to say)."""
        ...


def trial_config(study: StudyInfo, trial: TrackedTrial) -> dict[str, Any]:
    """Return a trial's nested configuration, the same for every tracker."""
    spec = trial.record.spec
    return {
        **study.config,
        "params": dict(spec.params),
        "effective": dict(trial.record.effective),
        "model": {"name": spec.model, **study.models.get(spec.model, {})},
        "trial": {
            "id": spec.trial_id,
            "number": spec.number,
            "kind": spec.kind.value,
            "config": spec.config,
            "seed": spec.seed,
            "split_seed": spec.split_seed,
            "max_epochs": spec.max_epochs,
            "found_by": trial.found_by,
        },
    }


def trial_rows(trial: TrackedTrial) -> dict[int, dict[str, float]]:
    """Return what was measured, by epoch."""
    return {
        m.epoch: {
            "epoch": m.epoch,
            "train_loss": m.train_loss,
            "validation_loss": m.validation_loss,
            "elapsed_seconds": m.elapsed_seconds,
            **m.metrics,
        }
        for m in trial.record.measurements
    }


def trial_summary(study: StudyInfo, trial: TrackedTrial) -> dict[str, Any]:
    """Return a trial's end figures: state, best values by validation, costs, test score of a confirmation run."""
    record = trial.record
    best = best_measurement(record.measurements, study.objective)
    summary: dict[str, Any] = {
        "state": record.state.value,
        "pruned": record.state is TrialState.PRUNED,
        "epochs": len(record.measurements),
        "num_retries": record.num_retries,
        "elapsed_seconds": record.elapsed_seconds,
        "device_seconds": record.device_seconds,
    }
    if record.value is not None:
        summary["value"] = record.value
    if best is not None:
        summary |= {"best_epoch": best.epoch, "best/validation_loss": best.validation_loss}
        summary |= {f"best/{name}": value for name, value in best.metrics.items()}
    if record.reason:
        summary["reason"] = record.reason
    if record.started_at is not None and record.finished_at is not None:
        summary["waiting_seconds"] = max(0.0, record.finished_at - record.started_at - record.elapsed_seconds)
    if trial.test is not None:
        summary |= {f"test/{name}": value for name, value in trial.test.items()}
    return summary


def trial_tags(study: StudyInfo, trial: TrackedTrial) -> list[str]:
    """Return model, state, number of rungs passed; ``default`` for trial 0, ``best`` for a model's winner."""
    record = trial.record
    spec = record.spec
    tags = [spec.model, record.state.value]
    reached = max((m.epoch for m in record.measurements), default=0)
    passed = [rung for rung in study.rungs if rung <= reached]
    if trial.job_type == "confirm":
        tags.append(spec.config)
    else:
        tags.append(f"rung-{len(passed)}")
        if spec.number == 0:
            tags.append("default")
        if trial.is_best:
            tags.append("best")
    return tags


def study_rows(study: StudyInfo, report: StudyReport) -> dict[int, dict[str, float]]:
    """Return the tuning curves: after each ended search trial, the best value of every model so far."""
    rows: dict[int, dict[str, float]] = {}
    best: dict[str, float] = {}
    ended = [t.record for t in report.trials if t.job_type == "trial" and t.record.state.is_final]
    for count, record in enumerate(ended, start=1):
        model = record.spec.model
        if record.value is not None and (model not in best or study.objective.better(record.value, best[model])):
            best[model] = record.value
        rows[count] = {"trials_ended": count, **{f"best/{name}": value for name, value in best.items()}}
    return rows


def tuning_curves(study: StudyInfo, report: StudyReport) -> dict[str, list[float | None]]:
    """Return for each model its best value after each of its own search trials; None before the first value."""
    curves: dict[str, list[float | None]] = {}
    for record in (t.record for t in report.trials if t.job_type == "trial" and t.record.state.is_final):
        curve = curves.setdefault(record.spec.model, [])
        best = curve[-1] if curve else None
        is_better = record.value is not None and (best is None or study.objective.better(record.value, best))
        curve.append(record.value if is_better else best)
    return curves
