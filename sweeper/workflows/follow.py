"""The tracking process: reads the ledger as it grows and tells the trackers. ``python -m sweeper.workflows.follow``.

It is a child of the driver and shares nothing with it but the result folder: the driver spends no time on tracking and
cannot be failed by it. It ends when the driver ends (end of its standard input, or another parent), however that died.
When W&B fails online, the process replaces itself by a fresh one with W&B offline: the client may be stuck or dead.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NoReturn

from sweeper.core.objective import Objective
from sweeper.core.selection import best_trial
from sweeper.core.trial import TrialKind
from sweeper.search.schedulers import make_stopping
from sweeper.spec.study import TRACKERS, SchedulerSpec, TrackingSpec
from sweeper.store.ledger import Event, LedgerTail
from sweeper.store.manifest import Manifest, read_manifest
from sweeper.store.paths import ResultPaths, replace_file
from sweeper.store.state import StudyState
from sweeper.track.base import StudyInfo, StudyReport, TrackedTrial, Tracker
from sweeper.track.mlflow import MlflowTracker
from sweeper.track.tensorboard import TensorBoardTracker
from sweeper.track.wandb import WandbTracker, effective_mode, redact
from sweeper.track.wandb_content import WandbOptions

logger = logging.getLogger("sweeper.tracking")

POLL_SECONDS = 0.5
CALL_SECONDS = 120.0
"""A call to a tracker that takes longer is stuck: W&B's own limits are far below."""


@dataclass
class Order:
    """What the driver asks for; travels as JSON on the command line.

    Parameters
    ----------
    tracking:
        The study file's section; no key is in it.
    wandb_failed:
        Why W&B is offline although it was asked to be online.
    finish:
        Go to the end of the ledger, hand over the report, and end.
    deadline:
        `time.monotonic` by which all must have ended; None: as long as it takes.
    """

    root: str
    tracking: dict[str, Any]
    wandb_failed: str = ""
    finish: bool = False
    deadline: float | None = None


@dataclass
class Outcome:
    """What the driver is told: lines for the user, and failures among them."""

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def study_info(manifest: Manifest, first: Sequence[Event], root: Path) -> StudyInfo:
    """Return what trackers know from the start. ``first`` holds the events up to the first ``study_opened``.

    The key is made of the ledger's own beginning: it survives a resume with accepted changes, and the same plan run
    again in another folder gets another one.
    """
    content = manifest.content
    objective = Objective(**content["objective"])
    born = f"{manifest.name}/{first[-1].payload['plan_hash']}/{first[0].t}"
    search = content.get("search", {})
    scheduler = SchedulerSpec(**search["scheduler"]) if "scheduler" in search else SchedulerSpec(type="none")
    stopping = make_stopping(scheduler, objective, int(search.get("max_epochs", 1)))
    models = {m["name"]: {"checkpoint": m.get("checkpoint"), "weights": m.get("weights")} for m in content["models"]}
    source = manifest.data.get("source", {})
    paths = {split: Path(str(source[split])) for split in ("train", "validation", "test") if split in source}
    return StudyInfo(
        name=manifest.name,
        key=hashlib.sha256(born.encode()).hexdigest(),
        objective=objective,
        config={
            "study": {"name": manifest.name, "seed": content.get("seed"), "search": search},
            "task": content.get("task", {}),
            "objective": {"metric": objective.metric, "goal": objective.goal},
            "fingerprints": {
                "data": manifest.data.get("fingerprint"),
                "plan": first[-1].payload["plan_hash"],
                "code": manifest.code,
            },
            "versions": dict(manifest.versions),
        },
        models=models,
        rungs=tuple(stopping.rungs),
        data_paths={split: path for split, path in paths.items() if path.is_absolute() and path.exists()},
        root=root,
    )


def make_trackers(order: Order) -> tuple[list[Tracker], list[str]]:
    """Return the trackers that the study asks for, and why some of them cannot be made."""
    spec = TrackingSpec.model_validate(order.tracking)
    trackers: list[Tracker] = []
    if spec.wandb is not None:
        mode = effective_mode(spec.wandb.mode, os.environ)
        if mode != "disabled":
            options = WandbOptions(
                project=spec.wandb.project,
                entity=spec.wandb.entity,
                host=spec.wandb.host,
                tags=tuple(spec.wandb.tags or filter(None, os.environ.get("WANDB_TAGS", "").split(","))),
                notes=spec.wandb.notes,
            )
            trackers.append(WandbTracker(options, "offline" if order.wandb_failed else mode))
    if spec.tensorboard:
        trackers.append(TensorBoardTracker())
    if spec.mlflow is not None:
        trackers.append(MlflowTracker(spec.mlflow.tracking_uri, spec.mlflow.experiment))
    failures = []
    for name, settings in spec.plugins.items():
        try:
            trackers.append(_plugin(name, settings))
        except Exception as error:  # someone else's code: the other trackers go on
            failures.append(redact(f"{name}: {type(error).__name__}: {error}"))
    return trackers, failures


def _plugin(name: str, settings: Mapping[str, Any]) -> Tracker:
    """Make a tracker of another package: an entry point, or ``package.module:Class``."""
    entries = entry_points(group=TRACKERS, name=name)
    entry = next(iter(entries)) if entries else EntryPoint(name, name, TRACKERS)
    tracker: Tracker = entry.load()(**settings)
    return tracker


class Follower:
    """Folds the ledger and keeps the trackers up to date; a tracker that raises is dropped and its failure noted.

    Parameters
    ----------
    on_failure:
        Told of a tracker's failure before it is dropped; may not return.
    """

    def __init__(self, root: Path, trackers: Sequence[Tracker], on_failure: Any = None) -> None:
        self.paths = ResultPaths(root)
        self.failures: list[str] = []
        self.busy: tuple[float, Tracker] | None = None
        self._tail = LedgerTail(self.paths)
        self._state = StudyState()
        self._trackers = list(trackers)
        self._on_failure = on_failure
        self._first: list[Event] = []
        self._study: StudyInfo | None = None
        self._ended: dict[str, None] = {}
        self._new: set[str] = set()
        self._winners: dict[str, str] = {}

    def pump(self) -> bool:
        """Take the events that are new; return whether there were any."""
        events = self._tail.poll()
        if self._study is not None:
            self._new.update(event.payload["trial_id"] for event in events if event.kind == "trial_asked")
        changed: dict[str, None] = {}
        for event in events:
            self._state.apply(event)
            if "trial_id" in event.payload:
                changed[event.payload["trial_id"]] = None
            if event.kind == "trial_ended":
                self._ended[event.payload["trial_id"]] = None
            if event.kind == "confirmation_frozen" and self._study is not None and not self._winners:
                self._winners = self._best_trials(self._study.objective)
                changed = {**dict.fromkeys(self._winners.values()), **changed}  # before their confirmations
            if self._study is None:
                self._first.append(event)
                if event.kind == "study_opened":
                    self._study = study_info(read_manifest(self.paths), self._first, self.paths.root)
                    self._tell("open_study", self._study)
        if self._study is None:
            return bool(events)
        for trial_id in changed:
            self._tell("update_trial", self._trial(trial_id))
        return bool(events)

    def finish(self) -> list[str]:
        """Hand over the report, close the trackers, and return their lines for the user."""
        if self._study is None:
            return []
        self._tell("update_study", self._report())
        return [line for line in self._tell("close") if line]

    def _trial(self, trial_id: str) -> TrackedTrial:
        result, record = self._state.tested.get(trial_id), self._state.trials[trial_id]
        winner = self._winners.get(record.spec.model)
        is_tuned = record.spec.kind is TrialKind.CONFIRM and record.spec.config == "tuned"
        return TrackedTrial(
            record=record,
            test=None if result is None else result.metrics,
            found_by=winner if is_tuned or trial_id == winner else None,
            is_new=trial_id in self._new,
        )

    def _best_trials(self, objective: Objective) -> dict[str, str]:
        """Return the trial with the best configuration by model: the rule by which the confirmation chose it."""
        search = [record for record in self._state.trials.values() if record.spec.kind is TrialKind.SEARCH]
        found = {}
        for model in dict.fromkeys(record.spec.model for record in search):
            best = best_trial((record for record in search if record.spec.model == model), objective)
            if best is not None:
                found[model] = best.spec.trial_id
        return found

    def _report(self) -> StudyReport:
        order = [*self._ended, *(trial_id for trial_id in self._state.trials if trial_id not in self._ended)]
        trials = [self._trial(trial_id) for trial_id in order]
        board = self.paths.report / "leaderboard.json"
        page = self.paths.report / "index.html"
        is_done = self._state.frozen is not None and board.is_file()
        models = dict.fromkeys(t.record.spec.model for t in trials if t.record.spec.kind is TrialKind.SEARCH)
        best = {model: self.paths.best(model) for model in models if self.paths.best(model).is_dir()}
        return StudyReport(
            trials=trials,
            leaderboard=json.loads(board.read_text()) if is_done else [],
            page=page if is_done and page.is_file() else None,
            best=best if is_done else {},
        )

    def _tell(self, method: str, *arguments: Any) -> list[Any]:
        answers = []
        for tracker in list(self._trackers):
            self.busy = (time.monotonic(), tracker)
            try:
                answers.append(getattr(tracker, method)(*arguments))
            except Exception as error:
                text = redact(f"{type(tracker).__name__}: {error}")
                logger.exception("a tracker failed")
                self._trackers.remove(tracker)
                if self._on_failure is not None:
                    self._on_failure(tracker, text)
                self.failures.append(text)
            finally:
                self.busy = None
        return answers


class Process:
    """The life of the tracking process around a `Follower`."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.outcome = Outcome()
        self._parent = os.getppid()
        self._asked_to_finish = threading.Event()
        if order.finish:
            self._asked_to_finish.set()
        self._ending = threading.Lock()
        trackers, failures = make_trackers(order)
        self._follower = Follower(Path(order.root), trackers, self._replace_by_offline)
        self._follower.failures += failures

    def run(self) -> NoReturn:
        """Follow until the driver asks to finish or is gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            while True:
                asked = self._asked_to_finish.is_set()
                if not self._follower.pump():
                    if asked:
                        break
                    self._asked_to_finish.wait(POLL_SECONDS)
            self.outcome.lines += self._follower.finish()
        except Exception as error:  # the ledger is damaged, the disk is gone: the sweep has its own ways to say so
            logger.exception("tracking ended early")
            self.outcome.failures.append(redact(f"tracking ended early: {error}"))
        self._end()

    def _end(self) -> NoReturn:
        """Tell the driver how it went, and go without asking any client's exit hooks."""
        with self._ending:
            self.outcome.failures += self._follower.failures
            if self.order.wandb_failed:
                self.outcome.failures.insert(0, f"{self.order.wandb_failed}; W&B went on offline")
            text = json.dumps(vars(self.outcome))
            try:
                replace_file(outcome_path(self._follower.paths), lambda partial: partial.write_text(text))
            except OSError:
                logger.exception("the outcome could not be written")
            _end_children()
            os._exit(0)

    def _replace_by_offline(self, tracker: Tracker, reason: str) -> None:
        """Begin anew with W&B offline when it was W&B online that failed; else return."""
        if not isinstance(tracker, WandbTracker) or not tracker.is_online:
            return
        with self._ending:
            logger.warning("%s; going on offline", reason)
            order = Order(**{**vars(self.order), "wandb_failed": reason, "finish": self._asked_to_finish.is_set()})
            _end_children()
            os.execv(sys.executable, command(order))  # noqa: S606 - the same program, no shell

    def _listen(self) -> None:
        """Take the driver's one message; the end of the pipe without it is the driver's death.

        Raw reads: a buffer would be lost when this process replaces itself.
        """
        while not self.order.finish:
            line = _read_line(0)
            if not line:
                self._orphaned()
            word, _, seconds = line.partition(" ")
            if word == "finish":
                self.order.deadline = time.monotonic() + float(seconds) if seconds.strip() else None
                self.order.finish = True
                self._asked_to_finish.set()
        if not _read_line(0):
            self._orphaned()

    def _watch(self) -> None:
        """Notice the driver's death, a stuck client, and that time is up."""
        while True:
            time.sleep(0.25)
            if os.getppid() != self._parent:
                self._orphaned()
            now, busy = time.monotonic(), self._follower.busy
            late = self.order.deadline is not None and now > self.order.deadline
            # half of the time left to the end belongs to the offline files, should the server be too slow
            begun = self._half_time()
            if busy is not None and (now - busy[0] > self._call_limit() or (begun is not None and now > begun)):
                self._replace_by_offline(busy[1], f"{type(busy[1]).__name__}: no answer in time")
                late = late or now - busy[0] > self._call_limit()
            if late:
                self.outcome.failures.append("tracking did not end in time")
                self._end()

    def _call_limit(self) -> float:
        return CALL_SECONDS if self.order.deadline is not None or not self.order.finish else 3600.0

    def _half_time(self) -> float | None:
        deadline = self.order.deadline
        if deadline is None:
            return None
        self._finish_began = getattr(self, "_finish_began", time.monotonic())
        return self._finish_began + (deadline - self._finish_began) / 2

    def _orphaned(self) -> NoReturn:
        _end_children()
        os._exit(1)


def outcome_path(paths: ResultPaths) -> Path:
    """Return the file in which the tracking process says how it went."""
    return paths.scratch / "tracking.json"


def command(order: Order) -> list[str]:
    """Return the command that starts the tracking process."""
    return [sys.executable, "-m", "sweeper.workflows.follow", json.dumps(vars(order))]


def _read_line(descriptor: int) -> str:
    """Read one line byte by byte; empty at the end."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return ""
        line += byte
    return line.decode()


def _end_children() -> None:
    """Kill this process's own children (``wandb-core``): they might outlive it, or wait for a server."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            try:
                os.kill(int(stat.parent.name), signal.SIGKILL)
            except OSError:
                continue


class _Redacting(logging.Formatter):
    """Keeps keys out of the log, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _step_back() -> None:
    """Let training come first: below the driver, and where Linux shares cores out by session, below its session."""
    os.nice(10)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the tracking process."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(asctime)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    fields: Mapping[str, Any] = json.loads(arguments[0])
    if not fields.get("wandb_failed"):  # else it has been done
        _step_back()
    try:
        process = Process(Order(**fields))
    except Exception as error:  # a tracker that cannot even be made
        path = outcome_path(ResultPaths(Path(fields["root"])))
        path.write_text(json.dumps({"lines": [], "failures": [redact(str(error))]}))
        os._exit(1)
    process.run()


if __name__ == "__main__":
    main(sys.argv[1:])
