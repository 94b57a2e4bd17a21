"""Running one confirmation again from what a result folder saved, and saying how close it comes."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import special

from sweeper.core.errors import InputError, Problem
from sweeper.core.selection import best_measurement
from sweeper.core.trial import Measurement, Segment, TrialRecord, TrialState
from sweeper.engine.messages import Leave, Measured, NextEpoch, Start
from sweeper.engine.worker_config import WorkerConfig
from sweeper.plan.plan import differences
from sweeper.spec.load import load_study
from sweeper.store.ledger import Ledger
from sweeper.store.manifest import read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState
from sweeper.workflows.confirm import export_run
from sweeper.workflows.manifest import versions
from sweeper.workflows.study import Study, provisional, settle, train_options

Verdict = Literal["identical", "within seed noise", "different"]
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came of running a confirmation again.

    Parameters
    ----------
    trial_id, model, seed:
        Which run.
    verdict:
        ``identical``: every loss and metric of every epoch, to the last digit. ``within seed noise``: the best
        validation score lies where another seed's would with 95% probability (Student's t prediction interval from
        the recorded seeds). Else ``different``.
    recorded, again:
        Best validation score of the objective's metric, then and now.
    low, high:
        That interval; None with fewer than two recorded seeds.
    num_identical_epochs, num_epochs:
        Epochs that are equal to the last digit, and all.
    changes:
        Versions that differ from those of the study, which may be why.
    """

    trial_id: str
    model: str
    seed: int
    verdict: Verdict
    metric: str
    recorded: float
    again: float
    low: float | None
    high: float | None
    num_identical_epochs: int
    num_epochs: int
    changes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the result for a terminal."""
        lines = [
            f"{self.trial_id} (seed {self.seed}): {self.verdict}",
            (
                f"best validation {self.metric}: recorded {self.recorded:.6f}, again {self.again:.6f}; "
                f"{self.num_identical_epochs} of {self.num_epochs} epochs are equal to the last digit"
            ),
        ]
        if self.low is not None:
            lines.append(f"another seed would lie between {self.low:.6f} and {self.high:.6f} (95%)")
        return "\n".join(lines + [f"differs from the study: {change}" for change in self.changes])


def reproduce(root: Path, model: str | None = None) -> Reproduction:
    """Train one tuned confirmation run again, here and without Ray, and compare it with what was recorded.

    The run is the one whose weights ``best/MODEL`` holds. Nothing in the folder is changed; the test split stays
    sealed: losses that are equal to the last digit mean equal weights, and these give equal test scores.

    Parameters
    ----------
    model:
        Its name; None: the first of the study that was confirmed.

    Raises
    ------
    InputError
        When the folder holds no confirmed run of the model, or data or weights are no longer those of the study.
    """
    paths = ResultPaths(root)
    state = StudyState.replay(Ledger.read(paths))
    spec = load_study(paths.study)
    with tempfile.TemporaryDirectory(prefix="sweeper-reproduce-") as folder:
        with provisional(spec.model_copy(update={"storage_path": folder})) as draft:
            _refuse_other_inputs(draft, paths)
            record = _chosen(draft, state, model, paths)
            study = settle(draft)
        measurements = _train(study, record)
    return _compare(study, state, record, measurements, _changes(paths))


def _refuse_other_inputs(study: Study, paths: ResultPaths) -> None:
    recorded = read_manifest(paths).content
    wanted = ("data_fingerprint", "models", "task", "training")
    found = differences({k: recorded.get(k) for k in wanted}, {k: study.plan.content.get(k) for k in wanted})
    found = [change for change in found if ".checkpoint:" not in change]  # where it lies does not matter, its hash does
    if found:
        rule, remedy = "data, weights and training must be those of the study", "restore them"
        raise InputError([Problem(str(paths.root), rule, change, remedy) for change in found[:10]])


def _chosen(study: Study, state: StudyState, model: str | None, paths: ResultPaths) -> TrialRecord:
    names = [model] if model is not None else [entry.name for entry in study.spec.models]
    found = (export_run(study, state, name) for name in names)
    record = next((run for run in found if run is not None), None)
    if record is None:
        known = ", ".join(entry.name for entry in study.spec.models)
        rule, remedy = "must hold a confirmed run of the model", f"name one of {known}, or run the study to its end"
        raise InputError(Problem(str(paths.root), rule, model or "none", remedy))
    return record


def _train(study: Study, record: TrialRecord) -> list[Measurement]:
    """Train the run in this process, as a lane's worker does."""
    import torch

    training = study.spec.training
    asked = training.fixed_resources
    wants_gpu = training.resources_per_worker == "auto" or training.is_packed or asked.get("GPU", 0) > 0
    uses_gpu = torch.cuda.is_available() and wants_gpu
    cpus = max(1, int(asked.get("CPU", 1)))
    worker = WorkerConfig(
        spec=study.spec, paths=study.paths, options=train_options(study, uses_gpu=uses_gpu), cpus=cpus
    ).start()
    worker.handle(Start(Segment(trial=record.spec)))
    measurements: list[Measurement] = []
    while len(measurements) < record.spec.max_epochs:
        reply = worker.handle(NextEpoch())
        assert isinstance(reply, Measured), f"training answered {reply!r}"
        measurements.append(reply.measurement)
    worker.handle(Leave())
    return measurements


def _compare(
    study: Study, state: StudyState, record: TrialRecord, measurements: list[Measurement], changes: list[str]
) -> Reproduction:
    objective = study.objective
    before, now = (best_measurement(found, objective) for found in (record.measurements, measurements))
    assert before is not None
    assert now is not None
    recorded, again = before.metrics[objective.metric], now.metrics[objective.metric]
    same = sum(_scores(a) == _scores(b) for a, b in zip(record.measurements, measurements, strict=False))
    low, high = _interval(study, state, record)
    verdict: Verdict = "different"
    if same == len(record.measurements) == len(measurements):
        verdict = "identical"
    elif low is not None and high is not None and low <= again <= high:
        verdict = "within seed noise"
    return Reproduction(
        trial_id=record.spec.trial_id,
        model=record.spec.model,
        seed=record.spec.seed,
        verdict=verdict,
        metric=objective.metric,
        recorded=recorded,
        again=again,
        low=low,
        high=high,
        num_identical_epochs=same,
        num_epochs=len(measurements),
        changes=changes,
    )


def _scores(measurement: Measurement) -> str:
    """Return everything that was measured but the time, so that NaN equals NaN."""
    return json.dumps([measurement.train_loss, measurement.validation_loss, dict(measurement.metrics)], sort_keys=True)


def _interval(study: Study, state: StudyState, record: TrialRecord) -> tuple[float | None, float | None]:
    """Return where another seed's best validation score would lie."""
    values = []
    for trial_id in state.frozen or ():
        other = state.trials[trial_id]
        mine = (other.spec.model, other.spec.config) == (record.spec.model, record.spec.config)
        if mine and other.state is TrialState.COMPLETE:
            best = best_measurement(other.measurements, study.objective)
            assert best is not None
            values.append(best.metrics[study.objective.metric])
    if len(values) < 2:
        return None, None
    reach = special.stdtrit(len(values) - 1, (1 + _LEVEL) / 2) * math.sqrt(1 + 1 / len(values))
    half = float(reach * np.std(values, ddof=1))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _changes(paths: ResultPaths) -> list[str]:
    return differences({"versions": read_manifest(paths).versions}, {"versions": versions()})
