"""The state of a study as a pure fold over the ledger's events. The same code runs live and on replay.

Kinds of events: ``ledger_created, study_opened, trial_asked, segment_started, measurement, retry, trial_paused,
trial_promoted, trial_ended, search_ended, confirmation_frozen, test_opened, tested, note, change_accepted``. Unknown
kinds are an error: a newer writer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from sweeper.core.errors import InputError, Problem
from sweeper.core.trial import Measurement, TrialKind, TrialRecord, TrialSpec, TrialState
from sweeper.store.ledger import Event


@dataclass(frozen=True)
class TestResult:
    """A confirmation run's score on the test split.

    ``cost`` is what using it costs, ``baseline`` what the trivial answer scores: both of one run a model.
    ``retention``, where asked for: ``metric``, and its values ``before`` and ``after`` fine-tuning.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name
    metrics: Mapping[str, float]
    num_examples: int
    elapsed_seconds: float
    cost: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)
    retention: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class StudyState:
    """Everything known about a study.

    Parameters
    ----------
    trials:
        Search trials and confirmation runs by id, in the order in which they were asked.
    attributes:
        By search trial: what its sampler needs to be rebuilt.
    log:
        ``("asked" | "paused" | "ended", trial_id, epoch)`` in order: what a searcher was asked and told. ``epoch``
        is that of the pause, else 0.
    course:
        ``(trial_id, measurement)``, ``(trial_id, epoch)`` of a promotion, or ``(trial_id, state)`` of an end, in order:
        what early stopping saw and did.
    paused:
        Trials that wait at a rung, with its epoch.
    search_ends:
        By model: why its search ended before its trials were spent.
    freezings:
        The confirmation runs, each time their list was closed: once, and again for every addition of seeds.
    shared:
        Models whose default won the search: one set of confirmation runs, named tuned, counts for both configurations.
    tested:
        Test results by confirmation run.
    test_openings:
        One entry per opening of the test split: one a freezing, in order.
    spent_seconds:
        Seconds of all sessions up to their last event; a clock that is set does not touch them.
    """

    trials: dict[str, TrialRecord] = field(default_factory=dict)
    attributes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    log: list[tuple[str, str, int]] = field(default_factory=list)
    course: list[tuple[str, Measurement | int | TrialState]] = field(default_factory=list)
    paused: dict[str, int] = field(default_factory=dict)
    search_ends: dict[str, str] = field(default_factory=dict)
    freezings: list[list[str]] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)
    tested: dict[str, TestResult] = field(default_factory=dict)
    test_openings: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accepted_changes: list[str] = field(default_factory=list)
    _closed_seconds: float = 0.0
    _session_seconds: float = 0.0

    @property
    def spent_seconds(self) -> float:
        """See the class."""
        return self._closed_seconds + self._session_seconds

    @property
    def frozen(self) -> list[str] | None:
        """All confirmation runs; None while search goes on."""
        return [trial_id for batch in self.freezings for trial_id in batch] if self.freezings else None

    @property
    def is_finished(self) -> bool:
        """Whether every confirmation run has ended and every completed one was tested."""
        if self.frozen is None or len(self.test_openings) < len(self.freezings):
            return False
        confirmed = [self.trials[trial_id] for trial_id in self.frozen]
        return all(
            record.state.is_final and (record.state is not TrialState.COMPLETE or record.spec.trial_id in self.tested)
            for record in confirmed
        )

    @classmethod
    def replay(cls, events: Iterable[Event]) -> Self:
        """Fold ``events`` into a state."""
        state = cls()
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: Event) -> None:
        """Fold in one event.

        Raises
        ------
        InputError
            When the kind is unknown, as in the ledger of a newer version, or the event cannot follow those before.
        """
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is None:
            remedy = "use the version of sweeper that wrote it"
            raise InputError(Problem(f"ledger event {event.n}", "its kind must be known", event.kind, remedy))
        if event.kind == "study_opened":
            self._closed_seconds, self._session_seconds = self.spent_seconds, 0.0
        self._session_seconds = max(self._session_seconds, event.s)
        try:
            handler(event)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            place, rule = f"ledger event {event.n} {event.kind}", "must fit the events before it"
            remedy = "restore the ledger from a backup"
            raise InputError(Problem(place, rule, f"{type(error).__name__}: {error}", remedy)) from error

    # -- one method a kind of event ------------------------------------------------------------------------

    def _on_ledger_created(self, event: Event) -> None:
        pass

    def _on_study_opened(self, event: Event) -> None:
        pass

    def _on_trial_asked(self, event: Event) -> None:
        payload = dict(event.payload)
        attributes = payload.pop("attributes")
        spec = decode_spec(payload)
        self.trials[spec.trial_id] = TrialRecord(spec=spec)
        if spec.kind is TrialKind.SEARCH:
            self.attributes[spec.trial_id] = attributes
            self.log.append(("asked", spec.trial_id, 0))

    def _on_segment_started(self, event: Event) -> None:
        record = self.trials[event.payload["trial_id"]]
        self._update(
            record,
            state=TrialState.RUNNING,
            started_at=event.t if record.started_at is None else record.started_at,
            node=event.payload["node"],
            effective=event.payload["effective"],
            num_retries=max(record.num_retries, event.payload["attempt"]),
        )

    def _on_measurement(self, event: Event) -> None:
        payload = dict(event.payload)
        trial_id = payload.pop("trial_id")
        del payload["attempt"]
        measurement = Measurement(**payload)
        record = self.trials[trial_id]
        self._update(record, measurements=(*record.measurements, measurement), num_deaths=0)
        self.course.append((trial_id, measurement))

    def _on_trial_paused(self, event: Event) -> None:
        trial_id, epoch = event.payload["trial_id"], int(event.payload["epoch"])
        self._update(self.trials[trial_id], state=TrialState.WAITING)
        self.paused[trial_id] = epoch
        self.log.append(("paused", trial_id, epoch))

    def _on_trial_promoted(self, event: Event) -> None:
        trial_id = event.payload["trial_id"]
        self.course.append((trial_id, self.paused.pop(trial_id)))

    def _on_retry(self, event: Event) -> None:
        record = self.trials[event.payload["trial_id"]]
        attempts = max(record.num_retries, event.payload["attempt"])
        self._update(record, num_retries=attempts, num_deaths=record.num_deaths + 1)

    def _on_trial_ended(self, event: Event) -> None:
        payload = event.payload
        record = self.trials[payload["trial_id"]]
        self.paused.pop(payload["trial_id"], None)
        self._update(
            record,
            state=TrialState(payload["state"]),
            value=payload["value"],
            best_epoch=payload["best_epoch"],
            reason=payload["reason"],
            elapsed_seconds=payload["elapsed_seconds"],
            device_seconds=payload["device_seconds"],
            finished_at=event.t,
        )
        self.course.append((record.spec.trial_id, TrialState(payload["state"])))
        if record.spec.kind is TrialKind.SEARCH:
            self.log.append(("ended", record.spec.trial_id, 0))

    def _on_search_ended(self, event: Event) -> None:
        self.search_ends[event.payload["model"]] = event.payload["reason"]

    def _on_confirmation_frozen(self, event: Event) -> None:
        self.freezings.append(list(event.payload["trial_ids"]))
        self.shared.update(event.payload.get("shared", ()))

    def _on_test_opened(self, event: Event) -> None:
        self.test_openings.append({"at": event.t, **event.payload})

    def _on_tested(self, event: Event) -> None:
        payload = dict(event.payload)
        trial_id = payload.pop("trial_id")
        self.tested[trial_id] = TestResult(**payload)

    def _on_note(self, event: Event) -> None:
        self.notes.append(event.payload["text"])

    def _on_change_accepted(self, event: Event) -> None:
        self.accepted_changes.extend(event.payload["differences"])

    def _update(self, record: TrialRecord, **changes: Any) -> None:
        self.trials[record.spec.trial_id] = replace(record, **changes)


def encode_spec(spec: TrialSpec) -> dict[str, Any]:
    """Return a trial as an event's payload."""
    fields = {**vars(spec), "params": dict(spec.params), "purpose": spec.kind.value}
    del fields["kind"]  # the event's own kind stands under that name
    return fields


def decode_spec(payload: Mapping[str, Any]) -> TrialSpec:
    """Return the trial of an event's payload."""
    fields = {key: value for key, value in payload.items() if key != "purpose"}
    return TrialSpec(**fields, kind=TrialKind(payload["purpose"]))


def encode_measurement(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement as a part of an event's payload."""
    return {**vars(measurement), "metrics": dict(measurement.metrics)}
