"""TensorBoard event files: a folder a trial, with scalars by epoch and the configuration as hyperparameters.

Written with ``tensorboardX``, which comes with Ray Tune; nothing is asked of a server. Event files cannot be edited, so
a trial's folder is written whole, when the trial has ended, under a temporary name; one that is right is left alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from sweeper.core.trial import TrialState
from sweeper.track.base import (
    StudyInfo,
    StudyReport,
    TrackedTrial,
    TrackingError,
    study_rows,
    trial_rows,
    trial_summary,
)

_DIGEST = "sweeper-content"
"""A file in each folder with the digest of what was written."""


class TensorBoardTracker:
    """A `Tracker` that writes into ``RESULTS/tensorboard``."""

    def __init__(self) -> None:
        self._study: StudyInfo | None = None
        self._writer: Any = None
        self._hparams: Any = None
        self._held: dict[str, TrackedTrial] = {}

    @property
    def folder(self) -> Path:
        """Where the event files go."""
        assert self._study is not None, "open_study comes first"
        return self._study.root / "tensorboard"

    def open_study(self, study: StudyInfo) -> None:
        """Load the writer."""
        try:
            from tensorboardX import SummaryWriter
            from tensorboardX.summary import hparams
        except ImportError as error:
            raise TrackingError(f"tensorboardX cannot be imported: {error}") from None
        self._study, self._writer, self._hparams = study, SummaryWriter, hparams
        self.folder.mkdir(parents=True, exist_ok=True)

    def update_trial(self, trial: TrackedTrial) -> None:
        """Write a trial that has ended; a confirmation run once it was tested."""
        spec, state = trial.record.spec, trial.record.state
        awaits_test = trial.job_type == "confirm" and state is TrialState.COMPLETE and trial.test is None
        if state is TrialState.WAITING:
            return
        if not state.is_final or awaits_test:
            self._held[spec.trial_id] = trial
            return
        self._held.pop(spec.trial_id, None)
        self._write_trial(trial)

    def update_study(self, report: StudyReport) -> None:
        """Write the tuning curves."""
        assert self._study is not None, "open_study comes first"
        self._write("study", study_rows(self._study, report), {}, {})

    def close(self) -> str:
        """Write what has not ended as far as it is known."""
        for trial in self._held.values():
            self._write_trial(trial)
        self._held.clear()
        return ""

    def _write_trial(self, trial: TrackedTrial) -> None:
        assert self._study is not None, "open_study comes first"
        params = {name: _hyperparameter(value) for name, value in trial.record.spec.params.items()}
        params |= {"model": trial.record.spec.model, "state": trial.record.state.value}
        summary = trial_summary(self._study, trial)
        numbers = {f"summary/{k}": float(v) for k, v in summary.items() if isinstance(v, int | float)}
        self._write(trial.record.spec.trial_id, trial_rows(trial), params, numbers)

    def _write(
        self, name: str, rows: dict[int, dict[str, float]], params: dict[str, Any], summary: dict[str, float]
    ) -> None:
        home = self.folder / name
        text = json.dumps([sorted(rows.items()), params, summary], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            if (home / _DIGEST).read_text() == digest:
                return
        except OSError:
            pass
        partial = home.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with self._writer(str(partial)) as writer:
            for step, row in sorted(rows.items()):
                for key, value in row.items():
                    if key not in ("epoch", "trials_ended") and math.isfinite(value):
                        writer.add_scalar(key, value, step)
            if params:
                # not by add_hparams: it opens a second writer, which would write into the same file
                for part in self._hparams(params, summary):
                    writer.file_writer.add_summary(part)
                for key, value in summary.items():
                    if math.isfinite(value):
                        writer.add_scalar(key, value, max(rows, default=0))
        (partial / _DIGEST).write_text(digest)
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)


def _hyperparameter(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
