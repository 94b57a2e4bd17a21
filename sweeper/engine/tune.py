"""One Ray Tune run over a pool of lanes.

Tune's part is small and replaceable: it keeps as many Trainable actors as there are lanes, asks for the next trial
when one is free, and carries each step's report to the driver. What is asked and when a trial stops is the
`Conductor`'s to say; no metric, scheduler or checkpoint of Tune is used.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
from ray import tune
from ray.tune.search import Searcher

from sweeper.core.errors import RunFailedError
from sweeper.core.trial import Segment, TrialState
from sweeper.engine.exchange import NOBODY, find_exchange
from sweeper.engine.lanes import Lanes
from sweeper.engine.messages import (
    Assignment,
    Dead,
    Failed,
    Leave,
    Measured,
    Moved,
    NextEpoch,
    Start,
    Started,
    StepReport,
    Test,
    Tested,
)

logger = logging.getLogger("sweeper")

ARRIVAL_SECONDS = 20.0  # the most a Trainable waits for its siblings before its first step
START_SECONDS = 900.0  # loading a large model from a cold disk
BROKEN_RUNS = 5  # Tune runs that may lose an actor before the sweep gives up


class Conductor(Protocol):
    """What a Tune run serves. All methods are called in the driver's main thread."""

    def next(self) -> Assignment | Literal["wait", "done"]:
        """Return the next assignment; ``wait``: none before a running one ends; ``done``: none any more."""
        ...

    def take(self, report: StepReport) -> bool:
        """Record one step's report; True ends the assignment."""
        ...

    def lost(self, assignment: Assignment) -> None:
        """Take back an assignment whose Trainable died or was stopped before its end; it will be asked again."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether everything should stop now (a signal, an exhausted time budget)."""
        ...


class Sequel:
    """One conductor made of several, each of which begins when the one before it is done.

    So a single Tune run serves all phases of a study: a run of its own would cost each phase seconds for new actors.

    Parameters
    ----------
    parts:
        Makes each conductor when the one before it has nothing left; what it raises ends the whole.
    """

    def __init__(self, parts: Iterator[Conductor]) -> None:
        self._parts = parts
        self._current: Conductor | None = next(parts, None)

    def next(self) -> Assignment | Literal["wait", "done"]:
        """Return the next assignment of the first conductor that has one."""
        while self._current is not None:
            answer = self._current.next()
            if answer != "done" or self._current.stopping:
                return answer
            self._current = next(self._parts, None)
        return "done"

    def take(self, report: StepReport) -> bool:
        """Record a report; it belongs to the current conductor, for none is left before its work has ended."""
        assert self._current is not None, f"a report of {report.trial_id} came after the end"
        return self._current.take(report)

    def lost(self, assignment: Assignment) -> None:
        """Give an assignment back to the current conductor."""
        if self._current is not None:
            self._current.lost(assignment)

    @property
    def stopping(self) -> bool:
        """Whether everything should stop now."""
        return self._current is not None and self._current.stopping


class LaneTrainable(tune.Trainable):
    """Borrows a lane and asks it for the next epoch; holds no model, no data, no torch."""

    def setup(self, config: dict[str, Any]) -> None:
        """Connect to the exchange and take the first assignment."""
        self._exchange = find_exchange(config["exchange"])
        self._lane: str | None = None
        self._holder = NOBODY
        self._arrived = False
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Drop the trial that ended and take the next: the actor stays."""
        self._leave(snapshot=False)
        self._config = new_config
        self._assignment: Assignment = new_config["assignment"]
        self._attempt = self._assignment.attempt
        self._deaths, self._epochs = self._assignment.deaths, self._assignment.epochs
        return True

    def step(self) -> dict[str, Any]:
        """Return one `StepReport`; a lane that dies or must go is no error of the trial, it goes on elsewhere."""
        if not self._arrived:
            who, expected = self.trial_id, self._config["expected"]
            ray.get(self._exchange.arrive.remote(self._config["run"], who, expected, ARRIVAL_SECONDS))
            self._arrived = True
        retries: list[str] = []
        started: Started | None = None
        while True:
            if self._lane is None:
                group = self._config["group_of"].get(self._assignment.trial.model, "")
                self._lane = ray.get(self._exchange.acquire.remote(group))
                if not self._assignment.is_test:
                    reply = self._call(Start(self._segment()))
                    if isinstance(reply, Started):
                        started = reply
                    elif isinstance(reply, Failed):
                        return self._report(retries, started, reply)
            if self._lane is not None:
                is_test = self._assignment.is_test
                reply = self._call(Test(self._assignment.trial) if is_test else NextEpoch())
                if isinstance(reply, Measured | Tested | Failed):
                    self._notice_progress(reply)
                    return self._report(retries, started, reply)
            self._attempt += 1
            if isinstance(reply, Moved):
                continue
            assert isinstance(reply, Dead), f"a lane answered {reply!r} to a command that does not call for it"
            retries.append(reply.reason)
            self._deaths += 1
            if self._deaths > self._config["max_retries"]:
                reason = f"the lane died {self._deaths} times in a row under this trial, last: {reply.reason}"
                return self._report(retries, started, Failed(state=TrialState.FAIL, reason=reason))

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # noqa: ARG002 - Tune's signature
        """Tune insists on one at a trial's end; ours are written by the lanes."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load, see `save_checkpoint`."""

    def cleanup(self) -> None:
        """Save what an interrupted trial has and give the lane back."""
        self._leave(snapshot=True)

    def _notice_progress(self, reply: Measured | Tested | Failed) -> None:
        """A new epoch shows that the trial is not what kills its lanes."""
        if isinstance(reply, Measured) and reply.measurement.epoch > self._epochs:
            self._epochs, self._deaths = reply.measurement.epoch, 0

    def _segment(self) -> Segment:
        given = self._assignment
        return Segment(trial=given.trial, attempt=self._attempt, snapshot_at=given.snapshot_at)

    def _call(self, command: Start | NextEpoch | Test | Leave) -> Any:
        seconds = START_SECONDS if isinstance(command, Start) else self._config["epoch_timeout_seconds"]
        if isinstance(command, Start | Test):
            self._holder = (self._assignment.trial.trial_id, uuid.uuid4().hex)
        reply = ray.get(self._exchange.call.remote(self._lane, command, seconds, self._holder))
        if isinstance(reply, Dead | Moved):
            self._lane = None
        return reply

    def _leave(self, *, snapshot: bool) -> None:
        if self._lane is not None and not isinstance(self._call(Leave(snapshot)), Dead):
            ray.get(self._exchange.release.remote(self._lane, self._holder))
        self._lane = None

    def _report(
        self, retries: list[str], started: Started | None, outcome: Measured | Tested | Failed
    ) -> dict[str, Any]:
        if isinstance(outcome, Failed) and not outcome.lane_is_sound:
            self._lane = None  # the exchange has ended it; the driver starts it anew
        return {
            "report": StepReport(
                trial_id=self._assignment.trial.trial_id,
                attempt=self._attempt,
                retries=tuple(retries),
                started=started,
                outcome=outcome,
            )
        }


class _Unsaved:
    """Tune pickles whatever it is given, for a restore that never happens: the ledger is the truth."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Asker(_Unsaved, Searcher):
    """Tune's searcher: hands out the conductor's assignments, never more than there are lanes."""

    def __init__(self, conductor: Conductor, lanes: Lanes, config: dict[str, Any]) -> None:
        super().__init__()
        self._conductor = conductor
        self._lanes = lanes
        self._config = config
        self.under_way: dict[str, Assignment] = {}
        self.error: BaseException | None = None  # Tune would wrap it in text; `_tune_run` raises it as it was
        self.lost_actor = False  # that Tune run ends, and a fresh one takes over on the same lanes

    def set_max_concurrency(self, max_concurrent: int) -> bool:  # noqa: ARG002 - Tune's signature
        """Accept any limit: counting is done here: Tune's own limiter counts differently."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return a Tune configuration that carries an assignment."""
        if len(self.under_way) >= self._lanes.count:
            return None
        try:
            answer = self._conductor.next()
        except BaseException as error:
            self.error = error
            return str(Searcher.FINISHED)
        if isinstance(answer, str):
            return str(Searcher.FINISHED) if answer == "done" else None
        self.under_way[trial_id] = answer
        return self._config | {"assignment": answer}

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,  # noqa: ARG002 - Tune's signature
        error: bool = False,
    ) -> None:
        """Free the slot; an assignment that had not ended goes back to the conductor. An error is a dead actor.

        A callback of Tune would be told too; but where one is given, Tune counts which of its own integrations it is,
        and imports wandb for that into the driver.
        """
        assignment = self.under_way.pop(trial_id, None)
        self.lost_actor = self.lost_actor or error
        if assignment is not None and error:
            self._conductor.lost(assignment)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save, see `_Unsaved`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, see `_Unsaved`."""


class _Ears(_Unsaved, tune.Stopper):
    """Tune's stopper: the one place where reports reach the driver; Tune asks it first about every result."""

    def __init__(self, conductor: Conductor, lanes: Lanes, asker: _Asker) -> None:
        self._conductor = conductor
        self._lanes = lanes
        self._asker = asker

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Take a report; True stops the Tune trial."""
        report = result.get("report")
        if report is None:
            return True
        try:
            ended = self._conductor.take(report)
        except BaseException as error:
            self._asker.error = error
            return True
        if ended:
            self._asker.under_way.pop(trial_id, None)
            self._lanes.finish(report.trial_id)
        return ended

    def stop_all(self) -> bool:
        """Whether the Tune run ends as a whole."""
        broken = self._asker.lost_actor or self._asker.error is not None or self._lanes.failure is not None
        return broken or self._conductor.stopping


def run_assignments(
    lanes: Lanes,
    conductor: Conductor,
    *,
    scratch: Path,
    max_retries: int,
    epoch_timeout_seconds: float,
    on_restart: Callable[[str], None] = logger.warning,
) -> None:
    """Serve ``conductor`` with ``lanes`` until it has nothing left, or stops.

    Parameters
    ----------
    lanes:
        The pool, entered.
    conductor:
        What to run and when to stop.
    scratch:
        Folder for Tune's own files.
    max_retries:
        Lane deaths in a row, without a new epoch in between, that one trial survives.
    epoch_timeout_seconds:
        A lane silent for longer on one command is ended and started anew.
    on_restart:
        Told why a Tune run had to be started afresh.

    Raises
    ------
    RunFailedError
        When lanes or Tune actors die again and again.
    """
    for _ in range(BROKEN_RUNS):
        if not _tune_run(lanes, conductor, scratch, max_retries, epoch_timeout_seconds):
            return
        on_restart("a Tune actor died; a fresh Tune run goes on over the same lanes")
    raise RunFailedError(f"Tune actors died in {BROKEN_RUNS} runs in a row; see the Ray logs of the driver's node")


def _tune_run(
    lanes: Lanes, conductor: Conductor, scratch: Path, max_retries: int, epoch_timeout_seconds: float
) -> bool:
    """Run Tune once; True when it lost an actor and must be started afresh."""
    run = f"tune-{uuid.uuid4().hex[:12]}"
    config = {
        "exchange": lanes.exchange_name,
        "run": run,
        "expected": lanes.count,
        "group_of": lanes.group_of,
        "max_retries": max_retries,
        "epoch_timeout_seconds": epoch_timeout_seconds,
    }
    asker = _Asker(conductor, lanes, config)
    tuner = tune.Tuner(
        # A sliver of the head node, not of a CPU: an exact-fit cluster keeps its CPUs for the lanes, and thin
        # actors stay off nodes that may be taken away.
        tune.with_resources(LaneTrainable, {"node:__internal_head__": 0.001}),
        tune_config=tune.TuneConfig(
            search_alg=asker, num_samples=-1, max_concurrent_trials=lanes.count, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=run,
            storage_path=str(scratch / "ray"),
            stop=_Ears(conductor, lanes, asker),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        if lanes.failure is None:
            raise
        raise RunFailedError(lanes.failure) from error
    finally:
        for assignment in asker.under_way.values():
            conductor.lost(assignment)
        lanes.reclaim()
    if asker.error is not None:
        raise asker.error
    if lanes.failure is not None:
        raise RunFailedError(lanes.failure)
    return asker.lost_actor and not conductor.stopping
