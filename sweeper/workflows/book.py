"""The study's book: the ledger with its live state, and everyone who follows it.

Every fact of a run is written here, once, before anything acts on it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from sweeper.core.objective import Objective
from sweeper.core.selection import best_measurement
from sweeper.core.trial import Measurement, TrialRecord, TrialSpec, TrialState
from sweeper.engine.messages import Started
from sweeper.store.ledger import Ledger
from sweeper.store.state import StudyState, encode_measurement, encode_spec

logger = logging.getLogger("sweeper")


class Listener(Protocol):
    """Someone who follows the ledger's events: a tracker, the live view."""

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take one event; what it raises is logged and costs the sweep nothing."""
        ...


class Book:
    """Writes events to the ledger, folds them into the state, tells the listeners.

    Parameters
    ----------
    ledger:
        Open for appending.
    state:
        What the ledger already holds.
    objective:
        Decides which epoch of a trial is its best.
    num_workers:
        Devices of a lane: device-seconds are elapsed seconds times this.
    listeners:
        Told of each event after it is on disk.
    """

    def __init__(
        self,
        ledger: Ledger,
        state: StudyState,
        objective: Objective,
        num_workers: int,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.state = state
        self.objective = objective
        self._ledger = ledger
        self.num_workers = num_workers
        self._listeners = list(listeners)
        self._untold: list[dict[str, Any]] = []
        self._is_open = True  # whether events are durable as soon as they are written
        self._opened = time.monotonic()

    @property
    def session_seconds(self) -> float:
        """Wall-clock seconds since this book was opened: clock jumps do not touch it."""
        return time.monotonic() - self._opened

    def write(self, kind: str, **payload: Any) -> None:
        """Append one event, fold it in, tell the listeners."""
        self.state.apply(self._ledger.append(kind, **payload))
        self._untold.append({"kind": kind, **payload})
        if self._is_open:
            self._tell()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make what the block writes durable at once, at its end (`Ledger.together`); the listeners hear of it then.

        For what one report comes to: within the block only the state may act on it, no lane and no listener.
        """
        if not self._is_open:
            yield
            return
        self._is_open = False
        try:
            with self._ledger.together():
                yield
        except BaseException:
            if self._untold:  # the ledger may lack them
                self._untold = []
                self.state = StudyState.replay(self._ledger.events())
            raise
        finally:
            self._is_open = True
        self._tell()

    def _tell(self) -> None:
        events, self._untold = self._untold, []
        for event in events:
            for listener in list(self._listeners):
                try:
                    listener.on_event(event)
                except Exception:
                    logger.exception("a listener failed and is no longer told of events")
                    self._listeners.remove(listener)

    # -- the life of a trial -------------------------------------------------------------------------------

    def asked(self, spec: TrialSpec, attributes: Mapping[str, Any]) -> None:
        """Record that a trial was decided on."""
        self.write("trial_asked", **encode_spec(spec), attributes=dict(attributes))

    def started(self, trial_id: str, attempt: int, started: Started) -> None:
        """Record that a segment of a trial began on a lane."""
        self.write(
            "segment_started",
            trial_id=trial_id,
            attempt=attempt,
            from_epoch=started.from_epoch,
            node=started.node,
            effective=dict(started.effective),
        )

    def measured(self, trial_id: str, attempt: int, measurement: Measurement) -> bool:
        """Record an epoch; False for one that an earlier attempt had reported, which is not counted again."""
        if any(known.epoch == measurement.epoch for known in self.state.trials[trial_id].measurements):
            return False
        self.write("measurement", trial_id=trial_id, attempt=attempt, **encode_measurement(measurement))
        return True

    def paused(self, trial_id: str, epoch: int) -> TrialRecord:
        """Record that a trial waits at a rung, and return what is known of it."""
        self.write("trial_paused", trial_id=trial_id, epoch=epoch)
        return self.state.trials[trial_id]

    def promoted(self, trial_id: str, epoch: int) -> TrialRecord:
        """Record that a waiting trial goes on, and return what is known of it."""
        self.write("trial_promoted", trial_id=trial_id, epoch=epoch)
        return self.state.trials[trial_id]

    def ended(self, trial_id: str, state: TrialState, reason: str = "", trace: str = "") -> TrialRecord:
        """Record the end of a trial and return its final record."""
        record = self.state.trials[trial_id]
        best = best_measurement(record.measurements, self.objective)
        elapsed = record.measurements[-1].elapsed_seconds if record.measurements else 0.0
        self.write(
            "trial_ended",
            trial_id=trial_id,
            state=state.value,
            value=best.metrics[self.objective.metric] if best and state is TrialState.COMPLETE else None,
            best_epoch=best.epoch if best else None,
            reason=reason,
            trace=trace[-4000:],
            elapsed_seconds=elapsed,
            device_seconds=elapsed * self.num_workers,
        )
        return self.state.trials[trial_id]
