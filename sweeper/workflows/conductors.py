"""What the lanes are given to do: search, confirmation and test, each as a `Conductor` of the engine.

A conductor decides on the driver what runs next and when a trial ends, and writes every fact into the book first.
Rebuilt from the ledger it goes on exactly where it was.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sweeper.core.errors import RunFailedError
from sweeper.core.seeds import search_seed
from sweeper.core.trial import Decision, Measurement, TrialKind, TrialRecord, TrialSpec, TrialState
from sweeper.engine.messages import Assignment, Failed, Measured, StepReport, Tested
from sweeper.plan.plan import StudyPlan
from sweeper.search.samplers import ModelSearch
from sweeper.search.schedulers import EarlyStopping, Promotion, make_stopping, settled_after
from sweeper.spec.study import SearchSpec
from sweeper.workflows.book import Book

HOPELESS_AFTER = 5  # trials of a model that all failed before the model is given up
MARGIN = 1.15  # what is to come is reserved this much more time than measured epochs suggest


Room = Callable[[str, Sequence[str]], bool]
"""Says whether a lane is left for a model, beside trials of other models that are under way."""


class _Conductor:
    """What search and confirmation share: trials under way, and the way from a report to the ledger."""

    def __init__(self, book: Book, interrupted: Callable[[], bool], room: Room | None = None) -> None:
        self._book = book
        self._interrupted = interrupted
        self._room = room
        self._again: deque[Assignment] = deque()
        self._running: dict[str, Assignment] = {}

    @property
    def stopping(self) -> bool:
        """Whether the user or the system asked the run to stop."""
        return self._interrupted()

    def next(self) -> Assignment | Literal["wait", "done"]:
        """Return unfinished trials first, then new ones; only such that a lane may take now."""
        with self._book.together():
            assignment = next((again for again in self._again if self._fits(again.trial.model)), None)
            if assignment is not None:
                self._again.remove(assignment)
            else:
                assignment = self._new()
        if assignment is None:
            return "wait" if self._running else "done"
        self._running[assignment.trial.trial_id] = assignment
        return assignment

    def _fits(self, model: str) -> bool:
        """Whether a lane that serves ``model`` may be free."""
        return self._room is None or self._room(model, [running.trial.model for running in self._running.values()])

    def lost(self, assignment: Assignment) -> None:
        """Ask an assignment again that had not ended."""
        trial_id = assignment.trial.trial_id
        if self._running.pop(trial_id, None) is not None:
            self._again.append(self._assign(assignment.trial, assignment))

    def _assign(self, trial: TrialSpec, like: Assignment | None = None, attempt: int = 0) -> Assignment:
        """Return an assignment that knows the trial's past; ``like``: one more attempt at that one.

        Only lanes that died under the trial count against it, never the end of a session: a driver that is killed again
        and again uses up no trial's retries.
        """
        record = self._book.state.trials[trial.trial_id]
        given = Assignment(trial, attempt) if like is None else replace(like, attempt=like.attempt + 1)
        return replace(given, deaths=record.num_deaths, epochs=len(record.measurements))

    def take(self, report: StepReport) -> bool:
        """Record a report; True when its trial leaves the lane, ended or paused."""
        trial = self._running[report.trial_id].trial
        if isinstance(report.outcome, Failed) and report.outcome.is_of_storage:
            raise RunFailedError(f"{report.outcome.reason}; what is done is kept: mend the storage, then resume")
        with self._book.together():
            ended = self._written(trial, report)
        if ended:
            del self._running[trial.trial_id]
        return ended

    def _written(self, trial: TrialSpec, report: StepReport) -> bool:
        for reason in report.retries:
            self._book.write("retry", trial_id=trial.trial_id, attempt=report.attempt, reason=reason)
        if report.started is not None:
            self._book.started(trial.trial_id, report.attempt, report.started)
        # A snapshot may know epochs that never reached the ledger, and decisions that were not written any more.
        past = report.started.measurements if report.started is not None else ()
        outcomes = [*(Measured(measurement) for measurement in past), report.outcome]
        return any(self._outcome(trial, report.attempt, outcome) for outcome in outcomes)

    def _outcome(self, trial: TrialSpec, attempt: int, outcome: Measured | Tested | Failed) -> bool:
        if isinstance(outcome, Failed):
            self._end(trial, outcome.state, outcome.reason, outcome.trace)
            return True
        assert isinstance(outcome, Measured), f"training answered {outcome!r}"
        self._measured(trial, attempt, outcome.measurement)
        if outcome.measurement.epoch >= trial.max_epochs:
            self._end(trial, TrialState.COMPLETE)
            return True
        return self._leaves(trial, outcome.measurement)

    def _new(self) -> Assignment | None:
        """Decide on a new trial; None when there is none to start now."""
        return None

    def _measured(self, trial: TrialSpec, attempt: int, measurement: Measurement) -> None:
        self._book.measured(trial.trial_id, attempt, measurement)

    def _leaves(self, trial: TrialSpec, measurement: Measurement) -> bool:  # noqa: ARG002
        """Whether a trial leaves its lane before its full budget; what becomes of it is written down then."""
        return False

    def _end(self, trial: TrialSpec, state: TrialState, reason: str = "", trace: str = "") -> None:
        self._book.ended(trial.trial_id, state, reason, trace)


@dataclass
class _Tally:
    """What a model's search has come to; kept up to date, so that no decision has to look at all trials.

    Parameters
    ----------
    asked:
        Trials that were begun.
    epochs, seconds:
        Trained so far, lane-seconds.
    ended:
        Trials that ended, and among them those that failed or could not run, with their reasons.
    paused:
        Epochs at which trials wait, by trial, in the order in which they came.
    """

    asked: int = 0
    epochs: int = 0
    seconds: float = 0.0
    ended: int = 0
    failures: list[str] = field(default_factory=list)
    paused: dict[str, int] = field(default_factory=dict)

    @property
    def all_failed(self) -> int:
        """How many trials ended, where all of them failed; else 0."""
        return self.ended if self.ended == len(self.failures) else 0

    def seconds_for(self, epochs: float) -> float:
        """Lane-seconds that so many epochs will take, from those measured so far."""
        return MARGIN * epochs * self.seconds / self.epochs if self.epochs else 0.0

    def measured(self, before: Sequence[Measurement], measurement: Measurement) -> None:
        """Count an epoch; ``before`` are the trial's measurements without it."""
        self.epochs += 1
        self.seconds += measurement.elapsed_seconds - (before[-1].elapsed_seconds if before else 0.0)

    def end(self, record: TrialRecord) -> None:
        """Count a trial that ended."""
        self.ended += 1
        if record.state.has_failed:
            self.failures.append(record.reason)


class SearchConductor(_Conductor):
    """Search: models take turns, each with its own sampler and rungs, all with the same budget.

    Parameters
    ----------
    book:
        Ledger and state; trials that it holds as unfinished are asked first, unless they wait at a rung.
    plan:
        Budget, models and seeds.
    searches, stoppings:
        Per model, already told of all that the book holds.
    interrupted:
        Whether to stop now.
    num_lanes:
        For the time that confirmation will need.
    spent_seconds:
        Wall-clock seconds that earlier sessions of this study used.
    room:
        Where not every lane serves every model.
    """

    def __init__(
        self,
        book: Book,
        plan: StudyPlan,
        searches: Mapping[str, ModelSearch],
        stoppings: Mapping[str, EarlyStopping],
        interrupted: Callable[[], bool],
        *,
        num_lanes: int,
        spent_seconds: float = 0.0,
        room: Room | None = None,
    ) -> None:
        super().__init__(book, interrupted, room)
        self._plan = plan
        self._searches = searches
        self._stoppings = stoppings
        self._num_lanes = num_lanes
        self._spent_seconds = spent_seconds
        self._tallies = {model.name: _Tally() for model in plan.models}
        for record in book.state.trials.values():
            if record.spec.kind is TrialKind.SEARCH:
                tally = self._tallies[record.spec.model]
                tally.asked += 1
                for index, measurement in enumerate(record.measurements):
                    tally.measured(record.measurements[:index], measurement)
                if record.state.is_final:
                    tally.end(record)
                elif record.spec.trial_id not in book.state.paused:
                    self._again.append(self._assignment(record.spec, record.num_retries + 1))
        for trial_id, epoch in book.state.paused.items():
            self._tallies[book.state.trials[trial_id].spec.model].paused[trial_id] = epoch

    def _assignment(self, trial: TrialSpec, attempt: int = 0) -> Assignment:
        stopping = self._stoppings[trial.model]
        given = self._assign(trial, attempt=attempt)
        return replace(given, snapshot_at=stopping.rungs) if stopping.pauses else given

    def _new(self) -> Assignment | None:
        """Let a paused trial go on that has earned it; else ask the model with the fewest trials so far.

        Ties go to the study file's order.
        """
        open_models = [name for name in self._tallies if self._closed(name) is None]
        for name in open_models:
            if self._fits(name) and (promoted := self._promoted(name)) is not None:
                return promoted
        while growing := [name for name in open_models if self._grows(name) and self._fits(name)]:
            model = min(growing, key=lambda name: self._tallies[name].asked)
            if (trial := self._ask(model)) is not None:
                return self._assignment(trial)
        for name in self._tallies:
            if name in open_models and not self._fits(name):
                continue  # its lanes are busy with other models
            is_idle = not any(running.trial.model == name for running in self._running.values())
            if name in open_models:
                promoted = self._promoted(name, last=not self._finishing(name), idle=is_idle)
                if promoted is not None:
                    return promoted
            if is_idle:
                self._end_paused(name)
        self._give_up_if_hopeless()
        return None

    def _ask(self, model: str) -> TrialSpec | None:
        """Begin a new trial; None when the space holds no configuration that was not tried."""
        number = self._tallies[model].asked
        asked = self._searches[model].ask(number)
        if asked is None:
            reason = f"all {number} different configurations of the space were tried"
            self._book.write("search_ended", model=model, reason=reason)
            return None
        trial = TrialSpec(
            trial_id=f"{model}-t{number:04d}",
            number=number,
            model=model,
            params=asked.params,
            seed=search_seed(self._plan.seed, model, number),
            max_epochs=self._plan.budget.max_epochs,
        )
        self._book.asked(trial, asked.attributes)
        self._tallies[model].asked += 1
        return trial

    def _promoted(self, model: str, *, last: bool = False, idle: bool = False) -> Assignment | None:
        """Let the waiting trial go on that has earned it; None where none has."""
        while (promotion := self._stoppings[model].promote(last=last, idle=idle)) is not None:
            # A death may tear the pause off the measurement before it: such a trial is asked for again anyway.
            if promotion.trial_id in self._book.state.paused:
                record = self._book.promoted(promotion.trial_id, promotion.epoch)
                del self._tallies[model].paused[promotion.trial_id]
                return self._assignment(record.spec, record.num_retries)
        return None

    def _end_paused(self, model: str) -> None:
        """End the trials that wait in vain: nothing is under way that could still lift them."""
        for trial_id, epoch in list(self._tallies[model].paused.items()):
            reason = self._closed(model) or f"early stopping: not promoted from epoch {epoch}"
            self._end(self._book.state.trials[trial_id].spec, TrialState.PRUNED, reason)

    def _measured(self, trial: TrialSpec, attempt: int, measurement: Measurement) -> None:
        before = self._book.state.trials[trial.trial_id].measurements
        if self._book.measured(trial.trial_id, attempt, measurement):
            self._tallies[trial.model].measured(before, measurement)

    def _leaves(self, trial: TrialSpec, measurement: Measurement) -> bool:
        decision = _decide(self._stoppings[trial.model], self._book, trial, measurement)
        closed = self._closed(trial.model)
        if decision is Decision.STOP:
            self._end(trial, TrialState.PRUNED, f"early stopping after epoch {measurement.epoch}")
        elif closed is not None:
            self._end(trial, TrialState.PRUNED, closed)
        elif decision is Decision.PAUSE:
            self._tallies[trial.model].paused[trial.trial_id] = measurement.epoch
            self._searches[trial.model].pause(self._book.paused(trial.trial_id, measurement.epoch))
        return decision is not Decision.CONTINUE or closed is not None

    def _end(self, trial: TrialSpec, state: TrialState, reason: str = "", trace: str = "") -> None:
        record = self._book.ended(trial.trial_id, state, reason, trace)
        self._tallies[trial.model].end(record)
        self._tallies[trial.model].paused.pop(trial.trial_id, None)
        self._searches[trial.model].tell(record)
        self._stoppings[trial.model].ended(trial.trial_id, failed=record.state.has_failed)

    # -- limits --------------------------------------------------------------------------------------------

    def _grows(self, model: str) -> bool:
        """Whether the search of a model may begin further trials."""
        spent = self._tallies[model].asked >= self._plan.budget.num_trials
        ended = self._hopeless(model) or model in self._book.state.search_ends
        return not spent and not ended and not self._finishing(model)

    def _closed(self, model: str) -> str | None:
        """Say which limit ends the search of ``model`` now, or None. Each keeps time for confirmation."""
        if self._seconds_left() <= 0:
            return "time_budget_seconds is used up"
        if self._device_seconds_left(model) <= 0:
            return "device_hours_per_model is used up"
        return None

    def _finishing(self, model: str) -> bool:
        """Whether one more trial of ``model`` would leave too little time for the end of those that were begun.

        A trial that is cut off by a limit has cost its epochs and cannot be chosen. The time of the clock must also
        be enough for a trial from its first epoch to its last, and is the same for all models.
        """
        left, device_left = self._seconds_left(), self._device_seconds_left(model)
        if device_left < math.inf and self._end_seconds(model) >= device_left:
            return True
        if left == math.inf:
            return False
        together = sum(self._end_seconds(name) for name in self._tallies) / self._num_lanes
        return max(together, *(self._training_seconds(name) for name in self._tallies)) >= left

    def _seconds_left(self) -> float:
        """Return how long the search may go on by the clock; infinite where nothing limits it."""
        limit = self._plan.budget.time_budget_seconds
        if limit is None:
            return math.inf
        reserve = sum(self._confirmation_seconds(name) for name in self._tallies) / self._num_lanes
        return limit - self._spent_seconds - self._book.session_seconds - reserve

    def _device_seconds_left(self, model: str) -> float:
        """Return how many lane-seconds the search of ``model`` may take yet; infinite where nothing limits it."""
        hours = self._plan.budget.device_hours_per_model
        if hours is None:
            return math.inf
        return hours * 3600 / self._book.num_workers - self._tallies[model].seconds - self._confirmation_seconds(model)

    def _confirmation_seconds(self, model: str) -> float:
        """Lane-seconds that confirming ``model`` will take, from the epochs measured so far."""
        return self._training_seconds(model) * 2 * len(self._plan.confirmation_seeds)

    def _training_seconds(self, model: str) -> float:
        """Lane-seconds of a trial that runs to its end."""
        return self._tallies[model].seconds_for(self._plan.budget.max_epochs)

    def _end_seconds(self, model: str) -> float:
        """Lane-seconds in which the trials of ``model`` that were begun, and one more, would come to their end."""
        max_epochs = self._plan.budget.max_epochs
        running = [self._book.state.trials[name] for name, run in self._running.items() if run.trial.model == model]
        under_way = [(len(record.measurements), _judged_after(record, max_epochs)) for record in running]
        epochs = self._stoppings[model].epochs_left([*under_way, (0, 0.0)], max_epochs)
        return self._tallies[model].seconds_for(epochs)

    def _hopeless(self, model: str) -> bool:
        """Whether so many trials ended badly, and none well, that a model is given up: or all that its space holds."""
        tally = self._tallies[model]
        most = tally.asked if model in self._book.state.search_ends else self._plan.budget.num_trials
        return tally.all_failed >= min(HOPELESS_AFTER, most)

    def _give_up_if_hopeless(self) -> None:
        if not self._running and all(self._hopeless(model) for model in self._tallies):
            reasons = [reason for tally in self._tallies.values() for reason in tally.failures]
            common = max(set(reasons), key=reasons.count)
            raise RunFailedError(f"every trial of every model failed ({len(reasons)} of them); most often: {common}")


def _judged_after(record: TrialRecord, max_epochs: int) -> float:
    """Return the epoch after which rungs judge a trial; the default is never judged."""
    if record.spec.number == 0:
        return math.inf
    return settled_after(record.spec.params, record.effective, max_epochs)


def _decide(stopping: EarlyStopping, book: Book, trial: TrialSpec, measurement: Measurement) -> Decision:
    """Ask early stopping, once the trial's values can be compared with those of others."""
    effective = book.state.trials[trial.trial_id].effective
    if measurement.epoch <= settled_after(trial.params, effective, trial.max_epochs):
        return Decision.CONTINUE
    value = measurement.metrics[book.objective.metric]
    return stopping.decide(trial.trial_id, measurement.epoch, value, protected=trial.number == 0)


def resumed_search(
    book: Book,
    plan: StudyPlan,
    spec: SearchSpec,
    interrupted: Callable[[], bool],
    num_lanes: int,
    room: Room | None = None,
) -> SearchConductor:
    """Build the conductor of a search that knows all that the book holds: searchers and rungs are replayed."""
    records = [r for r in book.state.trials.values() if r.spec.kind is TrialKind.SEARCH]
    searches, stoppings = {}, {}
    for model in plan.models:
        searches[model.name] = ModelSearch(
            model=model.name,
            space=model.space,
            objective=book.objective,
            study_seed=plan.seed,
            sampler=spec.sampler,
            max_epochs=spec.max_epochs,
            points=model.points,
            ahead=num_lanes > 1,
        )
        mine = [r for r in records if r.spec.model == model.name]
        searches[model.name].replay(mine, book.state.attributes, book.state.log)
        stoppings[model.name] = make_stopping(spec.scheduler, book.objective, spec.max_epochs)
    for trial_id, step in book.state.course:
        trial = book.state.trials[trial_id].spec
        if trial.kind is TrialKind.SEARCH:
            if isinstance(step, Measurement):
                _decide(stoppings[trial.model], book, trial, step)
            elif isinstance(step, TrialState):
                stoppings[trial.model].ended(trial_id, failed=step.has_failed)
            else:
                stoppings[trial.model].promoted(Promotion(trial_id, step))
    spent = book.state.spent_seconds
    return SearchConductor(
        book, plan, searches, stoppings, interrupted, num_lanes=num_lanes, spent_seconds=spent, room=room
    )


class ConfirmConductor(_Conductor):
    """Confirmation: a fixed list of runs, trained to their full budget exactly as search trains."""

    def __init__(
        self, book: Book, trials: Sequence[TrialSpec], interrupted: Callable[[], bool], room: Room | None = None
    ) -> None:
        super().__init__(book, interrupted, room)
        for trial in trials:
            record = book.state.trials.get(trial.trial_id)
            if record is None:
                book.asked(trial, {})
                self._again.append(self._assign(trial))
            elif not record.state.is_final:
                self._again.append(self._assign(record.spec, attempt=record.num_retries + 1))


class TestConductor(_Conductor):
    """The sealed test split: every confirmed run is scored on it once."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(
        self, book: Book, trials: Sequence[TrialSpec], interrupted: Callable[[], bool], room: Room | None = None
    ) -> None:
        super().__init__(book, interrupted, room)
        self._again.extend(
            Assignment(trial, is_test=True) for trial in trials if trial.trial_id not in book.state.tested
        )

    def _outcome(self, trial: TrialSpec, attempt: int, outcome: Measured | Tested | Failed) -> bool:  # noqa: ARG002
        if isinstance(outcome, Tested):
            self._book.write(
                "tested",
                trial_id=trial.trial_id,
                metrics=dict(outcome.metrics),
                num_examples=outcome.num_examples,
                elapsed_seconds=outcome.elapsed_seconds,
                **({"cost": dict(outcome.cost)} if outcome.cost else {}),
                **({"baseline": dict(outcome.baseline)} if outcome.baseline else {}),
                **({"retention": dict(outcome.retention)} if outcome.retention else {}),
            )
        else:
            assert isinstance(outcome, Failed), f"testing answered {outcome!r}"
            self._book.write("note", text=f"{trial.trial_id} could not be tested: {outcome.reason}")
        return True
