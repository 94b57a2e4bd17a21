"""MLflow (extra ``mlflow``): a parent run for the study, a nested run a trial. Loaded on first use.

MLflow gives out its own run ids, so a run is found again by its tag ``sweeper.run_id``. What the store holds of a
metric says which epochs are missing: a row is written in one batch, so it is there whole or not at all.
"""

from __future__ import annotations

import os
from typing import Any

from sweeper.core.trial import TrialState
from sweeper.track.base import (
    StudyInfo,
    StudyReport,
    TrackedTrial,
    TrackingError,
    study_rows,
    trial_config,
    trial_rows,
    trial_summary,
    trial_tags,
)

_RUN_ID = "sweeper.run_id"


class MlflowTracker:
    """A `Tracker` for MLflow.

    Parameters
    ----------
    tracking_uri:
        None: ``MLFLOW_TRACKING_URI``, or a SQLite file ``mlflow.db`` in the result folder.
    experiment:
        None: the study's name.
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None) -> None:
        self._uri = tracking_uri
        self._experiment_name = experiment
        self._study: StudyInfo | None = None
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[str, str] = {}
        self._metric: Any = None

    def open_study(self, study: StudyInfo) -> None:
        """Open the store and find the runs it holds already."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise TrackingError(f"mlflow cannot be imported: {error}; install the extra mlflow") from None
        self._study, self._metric = study, Metric
        uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{study.root / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        name = self._experiment_name or study.name
        known = self._client.get_experiment_by_name(name)
        artifacts = (study.root / "mlartifacts").as_uri()
        location = artifacts if uri.startswith("sqlite:") else None
        self._experiment = known.experiment_id if known else self._client.create_experiment(name, location)
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`sweeper.study` = '{study.key}'", page_token=token
            )
            self._runs |= {run.data.tags[_RUN_ID]: run.info.run_id for run in page}
            token = page.token
            if not token:
                return

    def update_trial(self, trial: TrackedTrial) -> None:
        """Write what the store does not hold yet."""
        assert self._study is not None, "open_study comes first"
        state = trial.record.state
        if state is TrialState.WAITING:
            return
        spec = trial.record.spec
        run = self._run(spec.trial_id)
        tags = {f"sweeper.{key}": str(value) for key, value in trial_config(self._study, trial)["trial"].items()}
        tags |= {"sweeper.tags": ",".join(trial_tags(self._study, trial)), "sweeper.job_type": trial.job_type}
        self._bring(run, trial_rows(trial), {k: str(v) for k, v in spec.params.items()}, tags)
        summary = trial_summary(self._study, trial)
        if state.is_final:
            numbers = {f"summary/{k}": float(v) for k, v in summary.items() if isinstance(v, int | float)}
            self._bring(run, {0: numbers}, {}, {"sweeper.state": state.value, "sweeper.reason": trial.record.reason})
            bad = state.has_failed
            self._client.set_terminated(run, "FAILED" if bad else "FINISHED")

    def update_study(self, report: StudyReport) -> None:
        """Write the tuning curves and attach the report."""
        assert self._study is not None, "open_study comes first"
        run = self._run("study")
        self._bring(run, study_rows(self._study, report), {}, {})
        if report.page is not None and report.page.is_file():
            self._client.log_artifact(run, str(report.page), "report")
        self._client.set_terminated(run)

    def close(self) -> str:
        """Nothing is held back."""
        return ""

    def _run(self, name: str) -> str:
        assert self._study is not None, "open_study comes first"
        key = self._study.run_id(name)
        if key not in self._runs:
            tags = {_RUN_ID: key, "sweeper.study": self._study.key}
            if name != "study":
                tags["mlflow.parentRunId"] = self._run("study")
            title = self._study.name if name == "study" else name
            self._runs[key] = self._client.create_run(self._experiment, tags=tags, run_name=title).info.run_id
        return self._runs[key]

    def _bring(self, run: str, rows: dict[int, dict[str, float]], params: dict[str, str], tags: dict[str, str]) -> None:
        """Write rows, parameters and tags that are missing."""
        from mlflow.entities import Param, RunTag

        data = self._client.get_run(run).data
        names = {name for row in rows.values() for name in row} - {"epoch", "trials_ended"}
        held = {name: self._steps(run, name) if name in data.metrics else set() for name in names}
        for step, row in sorted(rows.items()):
            missing = [name for name in row if name in names and step not in held[name]]
            if missing:
                metrics = [self._metric(name, row[name], 0, step) for name in missing]
                self._client.log_batch(run, metrics=metrics)
        new_params = [Param(k, v[:6000]) for k, v in params.items() if k not in data.params]
        new_tags = [RunTag(k, v[:5000]) for k, v in tags.items() if data.tags.get(k) != v[:5000]]
        if new_params or new_tags:
            self._client.log_batch(run, params=new_params, tags=new_tags)

    def _steps(self, run: str, name: str) -> set[int]:
        return {metric.step for metric in self._client.get_metric_history(run, name)}
