"""What a W&B run holds, as plain values: the same for live tracking and for a replay."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sweeper.core.trial import TrialState
from sweeper.track.base import (
    StudyInfo,
    StudyReport,
    TrackedTrial,
    study_rows,
    trial_config,
    trial_rows,
    trial_summary,
    trial_tags,
)

CONTENT_KEY = "sweeper/content"
"""Summary key of the digest of all that a run holds: the only cursor there is, kept where W&B keeps its own data."""


@dataclass(frozen=True, kw_only=True)
class WandbOptions:
    """How to reach W&B. None: W&B's own environment variables decide."""

    project: str | None = None
    entity: str | None = None
    host: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The best configuration of a model as an artifact: its content is ``params`` alone, so that one is one version."""

    name: str
    model: str
    params: Mapping[str, Any]
    found_by: str


@dataclass(frozen=True, kw_only=True)
class RunContent:
    """All that a run is to hold. Two contents with one digest are the same run."""

    run_id: str
    name: str
    job_type: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    rows: Mapping[int, Mapping[str, Any]]
    summary: Mapping[str, Any]
    began: float = 0.0
    """When it started, in seconds since the epoch; no part of the digest."""
    exit_code: int = 0
    is_final: bool = True
    logs: Sequence[Configuration] = ()
    """Configurations that this run brought forth; W&B draws lineage from these and the next."""
    uses: Sequence[Configuration] = ()
    """Configurations that this run was given."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else decides whether the run is up to date."""

    @property
    def digest(self) -> str:
        """Hash of everything in it."""
        parts = [self.name, self.job_type, self.tags, self.config, sorted(self.rows.items()), self.summary, self.extra]
        parts.append([[asdict(one) for one in side] for side in (self.logs, self.uses)])
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def trial_content(study: StudyInfo, trial: TrackedTrial, options: WandbOptions) -> RunContent:
    """Return what a trial's run holds by now."""
    spec, state = trial.record.spec, trial.record.state
    bad = not state.is_final or state.has_failed
    configuration = _configuration(study, trial)
    return RunContent(
        run_id=study.run_id(spec.trial_id),
        name=spec.trial_id,
        job_type=trial.job_type,
        tags=tuple(dict.fromkeys([*trial_tags(study, trial), *options.tags])),
        config=trial_config(study, trial),
        rows=trial_rows(trial),
        summary=trial_summary(study, trial),
        began=trial.record.started_at or time.time(),
        exit_code=1 if bad else 0,
        is_final=state.is_final,
        logs=configuration if trial.is_best else (),
        uses=() if trial.is_best else configuration,
    )


def study_content(study: StudyInfo, report: StudyReport, options: WandbOptions) -> RunContent:
    """Return what the study's own run holds."""
    rows = study_rows(study, report)
    states = [t.record.state for t in report.trials if t.job_type == "trial"]
    summary: dict[str, Any] = {f"num_{state.value.lower()}": states.count(state) for state in TrialState}
    summary["device_seconds"] = sum(t.record.device_seconds for t in report.trials)
    for entry in report.leaderboard:
        for config in ("tuned", "default"):
            if entry.get(config, {}).get("mean") is not None:
                summary[f"{config}/{entry['model']}"] = entry[config]["mean"]
        summary[f"rank/{entry['model']}"] = entry["rank"]
    files = {
        model: sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*"))
        for model, folder in report.best.items()
    }
    return RunContent(
        run_id=study.run_id("study"),
        name=study.name,
        job_type="report",
        tags=("study", *options.tags),
        config={**study.config, "models": dict(study.models)},
        rows=rows,
        summary=summary,
        uses=tuple(one for trial in report.trials if trial.is_best for one in _configuration(study, trial)),
        extra={"leaderboard": list(report.leaderboard), "best": files},
    )


def study_tables(report: StudyReport) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return columns and lines of the tables, by name."""
    board = [
        [
            entry["rank"],
            entry["model"],
            *(entry["tuned"].get(key) for key in ("mean", "ci_low", "ci_high")),
            entry["default"].get("mean"),
            entry["num_trials"],
            entry["device_seconds"],
            json.dumps(entry["best_params"]),
        ]
        for entry in report.leaderboard
    ]
    names = ["rank", "model", "tuned", "tuned_ci_low", "tuned_ci_high", "default"]
    names += ["num_trials", "device_seconds", "best_params"]
    keys = ["other", "verdict", "difference", "ci_low", "ci_high", "p_value", "unit", "more_seeds"]
    verdicts = [[e["model"], *(v.get(key) for key in keys)] for e in report.leaderboard for v in e["verdicts"]]
    search = [t.record for t in report.trials if t.job_type == "trial"]
    params = sorted({name for record in search for name in record.spec.params})
    trials = [
        [r.spec.trial_id, r.spec.model, r.state.value, r.value, r.device_seconds]
        + [_text(r.spec.params.get(name)) for name in params]
        for r in search
    ]
    columns = ["trial_id", "model", "state", "value", "device_seconds", *params]
    return {"leaderboard": (names, board), "verdicts": (["model", *keys], verdicts), "trials": (columns, trials)}


def searched(report: StudyReport) -> tuple[list[str], set[str]]:
    """Return the hyperparameters that took more than one value, and those of them to be drawn on a log scale."""
    values: dict[str, list[Any]] = {}
    for record in (t.record for t in report.trials if t.job_type == "trial"):
        for name, value in record.spec.params.items():
            values.setdefault(name, []).append(value)
    varied = sorted(name for name, taken in values.items() if len({str(value) for value in taken}) > 1)
    return varied, {name for name in varied if _spans_decades(values[name])}


def _spans_decades(values: Sequence[Any]) -> bool:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) >= 100 * min(numbers)


def model_metadata(report: StudyReport, model: str) -> dict[str, Any]:
    """Return what an artifact of a model's best configuration says of itself: scores and lineage."""
    entry = next((entry for entry in report.leaderboard if entry["model"] == model), {})
    found_by = (t.found_by for t in report.trials if t.is_best and t.record.spec.model == model)
    metadata = {
        "model": model,
        "params": entry.get("best_params"),
        "tuned": entry.get("tuned"),
        "found_by": next(found_by, None),
        "confirmed_by": [t.record.spec.trial_id for t in report.trials if _confirms(t, model)],
    }
    plain: dict[str, Any] = _plain(metadata)
    return plain


def _text(value: Any) -> str | None:
    """A column of a table has one type; a hyperparameter may have several."""
    return None if value is None else str(value)


def _confirms(trial: TrackedTrial, model: str) -> bool:
    return trial.job_type == "confirm" and trial.record.spec.model == model and trial.record.spec.config == "tuned"


def _configuration(study: StudyInfo, trial: TrackedTrial) -> tuple[Configuration, ...]:
    """Return the best configuration that a run brought forth or was given; empty for all other runs."""
    if trial.found_by is None:
        return ()
    spec = trial.record.spec
    name = f"{study.name}-{spec.model}-config"
    return (Configuration(name=name, model=spec.model, params=dict(spec.params), found_by=trial.found_by),)


def _plain(value: Any) -> Any:
    """Return ``value`` with floats that JSON cannot say as None: artifact metadata must be plain JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
