"""Weights & Biases: a run per trial, a run for the study. wandb is imported here alone, and not before it is used.

What was measured with the real client 0.31 decides the shape of this module:

- ``wandb sync`` appends: a run file synced on top of a run that holds part of it doubles the epochs. So a run is
  written offline only when no server can know it (there is no ``run-*-ID`` folder), once, whole, when its trial has
  ended. A run that was cut off while online is completed by asking the server what it has: `sweeper track`.
- Online, ``resume="allow"`` tells where the history ends, and the step of a row is its epoch: rows below are not sent
  again.
- ``finish`` returns without an error when the server refused the data (401, 403, 404): only the client's log tells.
- A bad answer can kill ``wandb-core``, and with it every later call: whoever drives this tracker begins a new process,
  offline, when it raises.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.core.trial import TrialKind, TrialState
from sweeper.track.base import StudyInfo, StudyReport, TrackedTrial, TrackingError
from sweeper.track.wandb_content import (
    CONTENT_KEY,
    RunContent,
    WandbOptions,
    study_content,
    trial_content,
)
from sweeper.track.wandb_files import RunFile, read_run_file, run_files, run_states
from sweeper.track.wandb_report import log_artifacts, log_lineage, media
from sweeper.track.wandb_upload import Uploader
from sweeper.track.wandb_workspace import WorkspaceSaver
from sweeper.track.wandb_writer import Common, remove_partial, write_run_file

MODES = ("online", "offline", "disabled", "shared")
INIT_SECONDS = 15.0
"""W&B's own default, 90 s, would hold up everything behind a dead server."""
FINISH_SECONDS = 15.0
"""Time to upload what is left of one run; long enough for a few retries."""
STUDY_FINISH_SECONDS = 600.0
"""The study's run carries checkpoints; whoever waits sets a shorter limit."""

YOUNG_SECONDS = 10.0
"""A trial that ends before it is this old is told to a server as a whole; others from their first epoch on."""

_BEGAN = "began"
"""A file beside the run file from the moment a row may be sent; the run file itself is written late."""

_KEY = re.compile(r"\b(?:local-)?[0-9a-f]{40}\b|wandb_v\d_\w+|(?<=://)[^\s/@]+(?=@)", re.IGNORECASE)


def effective_mode(asked: str | None, environment: Mapping[str, str]) -> str:
    """Return the mode: the study file's, else that of W&B's own environment variables, else ``online``."""
    if asked is not None:
        return asked
    if environment.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = environment.get("WANDB_MODE", "").lower()
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    return mode if mode in MODES else "online"


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return ``text`` without anything that is, or looks like, a W&B key or the credentials of an address."""
    secret = environment.get("WANDB_API_KEY", "")
    if len(secret) >= 8:
        text = text.replace(secret, "[key]")
    return _KEY.sub("[key]", text)


_ONE_RUN = (
    "WANDB_SERVICE",  # of another process's client: ours would join it
    "WANDB_RUN_ID",
    "WANDB_NAME",
    "WANDB_RUN_GROUP",
    "WANDB_JOB_TYPE",
    "WANDB_RESUME",
    "WANDB_SWEEP_ID",
    "WANDB_SWEEP_PARAM_PATH",
    "WANDB_CONFIG_PATHS",
)
"""Environment variables that describe the one run of a process; here a process has many."""


def prepare_environment(folder: Path) -> None:
    """Close W&B's side doors in this process: no error reports, no files in the user's home. What is set wins."""
    for name in _ONE_RUN:
        os.environ.pop(name, None)
    defaults = {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "WANDB_DATA_DIR": str(folder / ".data"),
        "WANDB_CACHE_DIR": str(folder / ".cache"),
        "WANDB_ARTIFACT_DIR": str(folder / ".artifacts"),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


class WandbTracker:
    """A `Tracker` for W&B. Use it in a process of its own: it sets environment variables and starts ``wandb-core``.

    Parameters
    ----------
    options:
        Project, entity, host, tags, notes.
    mode:
        ``online``, ``shared`` or ``offline``.
    """

    def __init__(self, options: WandbOptions, mode: str) -> None:
        if mode not in ("online", "shared", "offline"):
            raise TrackingError(f"W&B mode must be online, shared or offline, got {mode}")
        self._options = options
        self._mode = mode
        self._study: StudyInfo | None = None
        self._wandb: Any = None
        self._common: Common
        self._files: dict[str, list[RunFile]] = {}
        self._open: dict[str, _OpenRun] = {}
        self._done: dict[str, str] = {}
        self._held: dict[str, TrackedTrial] = {}
        self._uploader: Uploader | None = None
        self._workspace: WorkspaceSaver | None = None
        self._fatal = False

    @property
    def is_online(self) -> bool:
        """Whether a server is talked to."""
        return self._mode != "offline"

    @property
    def folder(self) -> Path:
        """Where W&B's files go."""
        assert self._study is not None, "open_study comes first"
        return self._study.root / "wandb"

    def open_study(self, study: StudyInfo) -> None:
        """Load the client and look at what is on disk; nothing is sent."""
        self._study = study
        self.folder.mkdir(parents=True, exist_ok=True)
        prepare_environment(self.folder)
        if self._options.host is not None:
            os.environ["WANDB_BASE_URL"] = self._options.host
        try:
            import wandb
        except ImportError as error:
            raise TrackingError(f"wandb cannot be imported: {error}") from None
        self._wandb = wandb
        wandb.setup(self._settings())  # once: given to every run again, they would be half the cost of a run
        objective, settings = study.objective, wandb.setup().settings
        self._common = Common(
            group=study.name,
            project=self._options.project or settings.project or "uncategorized",
            entity=self._options.entity or settings.entity or "",
            notes=self._options.notes or settings.run_notes or "",
            metric=objective.metric,
            goal="max" if objective.goal == "maximize" else "min",
        )
        remove_partial(self.folder)
        for home in self.folder.glob("run-*"):
            if not (home / _BEGAN).exists():
                shutil.rmtree(home, ignore_errors=True)  # a server was asked and never answered: it has no rows
        for file in run_files(self.folder):
            self._files.setdefault(file.run_id, []).append(_light(file))

    def update_trial(self, trial: TrackedTrial) -> None:
        """Online: send what is new, at once or when a short trial has ended. Offline: write it once it has ended."""
        record = trial.record
        if record.state is TrialState.WAITING:
            return
        self._raise_if_refused()
        if self._may_wait(trial):
            self._held[record.spec.trial_id] = trial
        else:
            self._held.pop(record.spec.trial_id, None)
            self._put(self._trial_content(trial), is_new=trial.is_new)

    def _may_wait(self, trial: TrackedTrial) -> bool:
        """Whether the trial will soon be known as a whole, and then costs less than now."""
        record = trial.record
        is_open = not record.state.is_final
        awaits_test = record.spec.kind is TrialKind.CONFIRM and record.state is TrialState.COMPLETE and not trial.test
        if not self.is_online:
            return is_open or awaits_test
        assert self._study is not None, "open_study comes first"
        run_id = self._study.run_id(record.spec.trial_id)
        if self._mode != "online" or not trial.is_new or run_id in self._open or run_id in self._done:
            return False
        return awaits_test or (is_open and time.time() - (record.started_at or 0.0) < YOUNG_SECONDS)

    def update_study(self, report: StudyReport) -> None:
        """Log tuning curves, leaderboard, verdicts, the HTML report and the artifacts to the study's own run."""
        assert self._study is not None, "open_study comes first"
        self._raise_if_refused()
        content = study_content(self._study, report, self._options)
        self._put(content, report)

    def close(self) -> str:
        """End the runs that are open and say what is left to upload."""
        for trial in self._held.values():
            self._put(self._trial_content(trial), is_new=trial.is_new)
        self._held.clear()
        for run_id in list(self._open):
            self._finish(run_id, exit_code=1)
        if self._uploader is not None:
            self._uploader.wait()
        if self._workspace is not None:
            self._workspace.wait()
        self._raise_if_refused()
        return self._message()

    def _trial_content(self, trial: TrackedTrial) -> RunContent:
        assert self._study is not None, "open_study comes first"
        return trial_content(self._study, trial, self._options)

    # -- putting it there ----------------------------------------------------------------------------------

    def _put(self, content: RunContent, report: StudyReport | None = None, *, is_new: bool = False) -> None:
        """Bring one run up to date; ``is_new``: no server can know it from before this process."""
        digest, run_id = content.digest, content.run_id
        if self._done.get(run_id) == digest:
            return
        files = self._files.get(run_id, [])
        if self._is_settled(files, digest):
            self._done[run_id] = digest
            return
        known: set[int] = set()
        if not self.is_online:
            for file in [file for file in files if not file.synced]:
                shutil.rmtree(file.path.parent, ignore_errors=True)
                files.remove(file)
            known = _steps(files)
        if report is None and not (content.logs or content.uses):  # no media, no artifacts: no client is needed
            is_whole = is_new and content.is_final and self._mode == "online" and not files
            if not self.is_online or (is_whole and run_id not in self._open):
                self._write(content, known)
                return
        open_run = self._open.get(run_id) or self._begin(content, known)
        self._log(open_run, content)
        if not content.is_final:
            if not self.is_online:
                self._summarise(open_run, content)
                self._finish(run_id, content.exit_code)
            return
        if report is not None:
            self._log_report(open_run, content, report)
        if open_run.run.summary.get(CONTENT_KEY) != digest:
            log_lineage(self._wandb, open_run.run, content)
        self._summarise(open_run, content)
        self._finish(run_id, content.exit_code, digest)
        if not self.is_online:
            self._remember(Path(open_run.run.dir).parent / f"run-{run_id}.wandb", content)

    def _is_settled(self, files: Sequence[RunFile], digest: str) -> bool:
        """Whether nothing can be added to a run from here."""
        current = [file for file in files if file.finished and file.summary.get(CONTENT_KEY) == digest]
        if any(file.synced or not (file.online or self.is_online) for file in current):
            return True
        # offline, when the server may hold a part of it: only asking it can tell which
        return not self.is_online and any(file.online for file in files)

    def _settings(self) -> Any:
        """Return what is the same for every run: no side effects on this machine, bounded waits."""
        settings = self._wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            disable_job_creation=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            stop_on_fatal_error=True,
            stop_fn=lambda: self._stop_requested(),  # a plain function: W&B copies its settings in depth
            max_end_of_run_history_metrics=0,
            max_end_of_run_summary_metrics=0,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_viewer=True,
            x_save_requirements=False,
            x_file_stream_retry_wait_min_seconds=0.5,
            x_file_stream_retry_wait_max_seconds=5,
            x_graphql_retry_wait_min_seconds=0.5,
            x_graphql_retry_wait_max_seconds=5,
        )
        if self._mode == "shared":
            settings.x_primary, settings.x_label = True, "sweeper"
        return settings

    def _begin(self, content: RunContent, known: set[int]) -> _OpenRun:
        """Start or resume a run."""
        assert self._study is not None, "open_study comes first"
        if self._uploader is not None:
            self._uploader.wait()  # else the server might be asked for a run of which a part is under way
        is_study = content.job_type == "report"
        settings = self._wandb.Settings(finish_timeout=STUDY_FINISH_SECONDS) if is_study else None
        if self._mode == "shared":
            known |= _steps(self._files.get(content.run_id, []))
        try:
            run = self._wandb.init(
                project=self._options.project,
                entity=self._options.entity,
                id=content.run_id,
                name=content.name,
                group=self._study.name,
                job_type=content.job_type,
                tags=list(content.tags),
                notes=self._options.notes,
                config=dict(content.config),
                allow_val_change=True,
                reinit="create_new",
                resume="allow" if self._mode == "online" else None,
                mode=self._mode,
                dir=str(self._study.root),
                settings=settings,
            )
        except Exception as error:
            raise TrackingError(redact(f"W&B could not begin run {content.name}: {_first_line(error)}")) from None
        (Path(run.dir).parent / _BEGAN).touch()
        step = "trials_ended" if is_study else "epoch"
        run.define_metric(step)
        run.define_metric("*", step_metric=step)
        if not is_study:
            run.define_metric(self._common.metric, step_metric=step, summary=self._common.goal)
        known |= set(range(int(run.starting_step))) if self._mode == "online" else set()
        open_run = self._open[content.run_id] = _OpenRun(run, known, content.tags, content.config)
        return open_run

    def _log(self, open_run: _OpenRun, content: RunContent) -> None:
        """Send the rows that are not there yet, and what else has changed."""
        for step, row in sorted(content.rows.items()):
            if step not in open_run.steps:
                self._log_row(open_run, step, row)
        if open_run.tags != content.tags:
            open_run.run.tags = open_run.tags = content.tags
        if open_run.config != content.config:
            open_run.run.config.update(dict(content.config), allow_val_change=True)
            open_run.config = content.config

    def _write(self, content: RunContent, known: set[int]) -> None:
        """Write a whole run; online it is then uploaded."""
        path = write_run_file(self.folder, content, self._common, known=known, online=self.is_online)
        self._remember(path, content)
        if self.is_online:
            (path.parent / _BEGAN).touch()
            self._uploader = self._uploader or Uploader(self._wandb)
            self._uploader.add(path)

    def _remember(self, path: Path, content: RunContent) -> None:
        """Know a file that this process wrote, as if it had been there before: its run may change once more."""
        file = RunFile(path, content.run_id, online=self.is_online, finished=True)
        file.rows, file.summary = [{"_step": step} for step in content.rows], {CONTENT_KEY: content.digest}
        self._files.setdefault(content.run_id, []).append(file)
        self._done[content.run_id] = content.digest

    def _log_row(self, open_run: _OpenRun, step: int, row: Mapping[str, Any]) -> None:
        if self._mode == "shared":
            open_run.run.log(dict(row))
        else:
            open_run.run.log(dict(row), step=step, commit=True)
        open_run.steps.add(step)

    def _summarise(self, open_run: _OpenRun, content: RunContent) -> None:
        last = content.rows[max(content.rows)] if content.rows else {}
        values = {**last, **content.summary, CONTENT_KEY: content.digest}
        if self._study is not None:
            values.pop(self._study.objective.metric, None)  # W&B keeps its best value under that name
        open_run.run.summary.update(values)

    def _finish(self, run_id: str, exit_code: int, digest: str | None = None) -> None:
        """End a run; with ``digest``: it now holds all of this content."""
        open_run = self._open.pop(run_id)
        home = Path(open_run.run.dir).parent
        try:
            open_run.run.finish(exit_code=exit_code)
        except Exception as error:
            raise TrackingError(redact(f"W&B did not take the rest of a run: {_first_line(error)}")) from None
        if self.is_online:
            refusal = _refusal(home)
            if refusal:
                raise TrackingError(redact(f"W&B refused data: {refusal}"))
        else:
            _await_whole_file(home)
        if digest is None:
            return
        self._done[run_id] = digest
        if self.is_online:
            for file in [*self._files.get(run_id, []), *(RunFile(path) for path in home.glob("run-*.wandb"))]:
                file.mark_synced()

    def _stop_requested(self) -> None:
        """Take W&B's wish to stop (a button, or data refused for good): by default it would interrupt the process."""
        self._fatal = True

    def _raise_if_refused(self) -> None:
        if self._uploader is not None:
            self._uploader.check()
        if self._fatal and self.is_online:
            for open_run in self._open.values():
                refusal = _refusal(Path(open_run.run.dir).parent)
                if refusal:
                    raise TrackingError(redact(f"W&B refused data: {refusal}"))
            self._fatal = False  # the button: a run's process cannot be stopped from there

    def _message(self) -> str:
        """Say what is not on a server yet, and the command that brings it there."""
        assert self._study is not None, "open_study comes first"
        found = run_states(self.folder)
        offline = {f.run_id for f in found if not f.online and not f.synced}
        synced = {f.run_id for f in found if f.synced}
        cut = {f.run_id for f in found if f.online} - synced - offline
        lines = []
        if offline:
            lines.append(f"{len(offline)} W&B runs are offline; upload them with: wandb sync {self.folder}")
        if cut:
            lines.append(f"{len(cut)} W&B runs are incomplete; complete them with: sweeper track {self._study.root}")
        return "; ".join(lines)

    # -- the study's run -----------------------------------------------------------------------------------

    def _log_report(self, open_run: _OpenRun, content: RunContent, report: StudyReport) -> None:
        """Log tables, page and artifacts, unless the run holds just these already."""
        assert self._study is not None, "open_study comes first"
        if not report.leaderboard or open_run.run.summary.get(CONTENT_KEY) == content.digest:
            return
        row = {"trials_ended": len(content.rows), **media(self._wandb, self._study, report)}
        self._log_row(open_run, max(open_run.steps, default=0) + 1, row)
        log_artifacts(self._wandb, open_run.run, self._study, report)
        if self.is_online:
            self._workspace = WorkspaceSaver(self._study, report, open_run.run.entity, open_run.run.project)


@dataclass
class _OpenRun:
    """A run under way: ``steps`` are in its history, here or on the server."""

    run: Any
    steps: set[int]
    tags: tuple[str, ...]
    config: Mapping[str, Any]


def _light(file: RunFile) -> RunFile:
    """Keep of a file's rows nothing but their steps."""
    file.rows = [{"_step": row["_step"], "epoch": row.get("epoch")} for row in file.rows]
    file.config = {}
    file.summary = {CONTENT_KEY: file.summary.get(CONTENT_KEY)}
    return file


def _steps(files: list[RunFile]) -> set[int]:
    return {int(row["_step"] if row.get("epoch") is None else row["epoch"]) for file in files for row in file.rows}


def _await_whole_file(home: Path) -> None:
    """Wait until the offline file of an ended run is on disk: the client may return from ``finish`` before that."""
    deadline = time.monotonic() + FINISH_SECONDS
    while not any(read_run_file(path).finished for path in home.glob("run-*.wandb")):
        if time.monotonic() > deadline:
            raise TrackingError("W&B did not write the rest of a run to its offline file")
        time.sleep(0.02)


def _refusal(home: Path) -> str:
    """Return the first reason in the client's log why data was not taken for good; retried requests are none."""
    try:
        lines = (home / "logs" / "debug-internal.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        message = str(entry.get("msg", ""))
        if str(entry.get("level", "")).startswith("ERROR") and not message.startswith("api: "):
            return _first_line(f"{message} {entry.get('error', '')}")
    return ""


def _first_line(error: object) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
