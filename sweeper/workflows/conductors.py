"""What the lanes are given to do: search, confirmation and test, each as a `Conductor` of the engine.

A conductor decides on the driver what runs next and when a trial ends, and writes every fact into the book first.
Rebuilt from the ledger it goes on exactly where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from sweeper.core.errors import RunFailedError
from sweeper.core.seeds import search_seed
from sweeper.core.trial import Decision, Measurement, TrialKind, TrialSpec, TrialState
from sweeper.engine.messages import Assignment, Failed, Measured, StepReport, Tested
from sweeper.plan.plan import StudyPlan
from sweeper.search.samplers import ModelSearch
from sweeper.search.schedulers import EarlyStopping, make_stopping
from sweeper.spec.study import SearchSpec
from sweeper.workflows.book import Book

HOPELESS_AFTER = 5  # trials of a model that all failed before the model is given up
CONFIRMATION_MARGIN = 1.15  # confirmation is reserved this much more time than measured epochs suggest


class _Conductor:
    """What search and confirmation share: trials under way, and the way from a report to the ledger."""

    def __init__(self, book: Book, interrupted: Callable[[], bool]) -> None:
        self._book = book
        self._interrupted = interrupted
        self._again: deque[Assignment] = deque()
        self._running: dict[str, Assignment] = {}

    @property
    def stopping(self) -> bool:
        """Whether the user or the system asked the run to stop."""
        return self._interrupted()

    def next(self) -> Assignment | Literal["wait", "done"]:
        """Return unfinished trials first, then new ones."""
        assignment = self._again.popleft() if self._again else self._new()
        if assignment is None:
            return "wait" if self._running else "done"
        self._running[assignment.trial.trial_id] = assignment
        return assignment

    def lost(self, assignment: Assignment) -> None:
        """Ask an assignment again that had not ended."""
        trial_id = assignment.trial.trial_id
        if self._running.pop(trial_id, None) is not None:
            self._again.append(Assignment(assignment.trial, assignment.attempt + 1, is_test=assignment.is_test))

    def take(self, report: StepReport) -> bool:
        """Record a report; True when its trial is over."""
        trial = self._running[report.trial_id].trial
        for reason in report.retries:
            self._book.write("retry", trial_id=trial.trial_id, attempt=report.attempt, reason=reason)
        if report.started is not None:
            self._book.started(trial.trial_id, report.attempt, report.started)
        # A snapshot may know epochs that never reached the ledger, and decisions that were not written any more.
        past = report.started.measurements if report.started is not None else ()
        outcomes = [*(Measured(measurement) for measurement in past), report.outcome]
        ended = any(self._outcome(trial, report.attempt, outcome) for outcome in outcomes)
        if ended:
            del self._running[trial.trial_id]
        return ended

    def _outcome(self, trial: TrialSpec, attempt: int, outcome: Measured | Tested | Failed) -> bool:
        if isinstance(outcome, Failed):
            self._end(trial, outcome.state, outcome.reason, outcome.trace)
            return True
        assert isinstance(outcome, Measured), f"training answered {outcome!r}"
        self._book.measured(trial.trial_id, attempt, outcome.measurement)
        if outcome.measurement.epoch >= trial.max_epochs:
            self._end(trial, TrialState.COMPLETE)
            return True
        reason = self._early_end(trial, outcome.measurement)
        if reason is not None:
            self._end(trial, TrialState.PRUNED, reason)
        return reason is not None

    def _new(self) -> Assignment | None:
        """Decide on a new trial; None when there is none to start now."""
        return None

    def _early_end(self, trial: TrialSpec, measurement: Measurement) -> str | None:  # noqa: ARG002
        """Say why a trial ends before its full budget, or None."""
        return None

    def _end(self, trial: TrialSpec, state: TrialState, reason: str = "", trace: str = "") -> None:
        self._book.ended(trial.trial_id, state, reason, trace)


class SearchConductor(_Conductor):
    """Search: models take turns, each with its own sampler and rungs, all with the same budget.

    Parameters
    ----------
    book:
        Ledger and state; trials that it holds as unfinished are asked first.
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
    ) -> None:
        super().__init__(book, interrupted)
        self._plan = plan
        self._searches = searches
        self._stoppings = stoppings
        self._num_lanes = num_lanes
        self._spent_seconds = spent_seconds
        self._asked = dict.fromkeys((model.name for model in plan.models), 0)
        for record in book.state.trials.values():
            if record.spec.kind is TrialKind.SEARCH:
                self._asked[record.spec.model] += 1
                if not record.state.is_final:
                    self._again.append(Assignment(record.spec, record.num_retries + 1))

    def _new(self) -> Assignment | None:
        """Ask the model with the fewest trials so far; ties go to the study file's order."""
        open_models = [
            name
            for name, asked in self._asked.items()
            if asked < self._plan.budget.num_trials and self._closed(name) is None and not self._hopeless(name)
        ]
        if not open_models:
            self._give_up_if_hopeless()
            return None
        model = min(open_models, key=self._asked.__getitem__)
        number = self._asked[model]
        asked = self._searches[model].ask(number)
        trial = TrialSpec(
            trial_id=f"{model}-t{number:04d}",
            number=number,
            model=model,
            params=asked.params,
            seed=search_seed(self._plan.seed, model, number),
            max_epochs=self._plan.budget.max_epochs,
        )
        self._book.asked(trial, asked.attributes)
        self._asked[model] += 1
        return Assignment(trial)

    def _early_end(self, trial: TrialSpec, measurement: Measurement) -> str | None:
        value = measurement.metrics[self._book.objective.metric]
        decision = self._stoppings[trial.model].decide(
            trial.trial_id, measurement.epoch, value, protected=trial.number == 0
        )
        if decision is Decision.STOP:
            return f"early stopping after epoch {measurement.epoch}"
        return self._closed(trial.model)

    def _end(self, trial: TrialSpec, state: TrialState, reason: str = "", trace: str = "") -> None:
        self._searches[trial.model].tell(self._book.ended(trial.trial_id, state, reason, trace))

    # -- limits --------------------------------------------------------------------------------------------

    def _closed(self, model: str) -> str | None:
        """Say which limit ends the search of ``model`` now, or None. Each keeps time for confirmation."""
        budget = self._plan.budget
        if budget.time_budget_seconds is not None:
            spent = self._spent_seconds + self._book.session_seconds
            reserve = sum(self._confirmation_seconds(name) for name in self._asked) / self._num_lanes
            if spent + reserve >= budget.time_budget_seconds:
                return "time_budget_seconds is used up"
        if budget.device_hours_per_model is not None:
            records = [r for r in self._book.state.trials.values() if r.spec.model == model]
            spent = sum(r.measurements[-1].elapsed_seconds for r in records if r.measurements)
            spent, reserve = (x * self._book.num_workers for x in (spent, self._confirmation_seconds(model)))
            if spent + reserve >= budget.device_hours_per_model * 3600:
                return "device_hours_per_model is used up"
        return None

    def _confirmation_seconds(self, model: str) -> float:
        """Lane-seconds that confirming ``model`` will take, from the epochs measured so far."""
        runs = [r for r in self._book.state.trials.values() if r.spec.model == model and r.measurements]
        epochs = sum(len(r.measurements) for r in runs)
        seconds = sum(r.measurements[-1].elapsed_seconds for r in runs)
        per_epoch = seconds / epochs if epochs else 0.0
        num_runs = 2 * len(self._plan.confirmation_seeds)
        return CONFIRMATION_MARGIN * per_epoch * self._plan.budget.max_epochs * num_runs

    def _failures(self, model: str) -> list[str]:
        records = [r for r in self._book.state.trials.values() if r.spec.model == model and r.state.is_final]
        bad = [r.reason for r in records if r.state in (TrialState.FAIL, TrialState.INFEASIBLE)]
        return bad if len(bad) == len(records) else []

    def _hopeless(self, model: str) -> bool:
        return len(self._failures(model)) >= min(HOPELESS_AFTER, self._plan.budget.num_trials)

    def _give_up_if_hopeless(self) -> None:
        if not self._running and all(self._hopeless(model) for model in self._asked):
            reasons = [reason for model in self._asked for reason in self._failures(model)]
            common = max(set(reasons), key=reasons.count)
            raise RunFailedError(f"every trial of every model failed ({len(reasons)} of them); most often: {common}")


def resumed_search(
    book: Book, plan: StudyPlan, spec: SearchSpec, interrupted: Callable[[], bool], num_lanes: int
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
        )
        mine = [r for r in records if r.spec.model == model.name]
        searches[model.name].replay(mine, book.state.attributes, book.state.log)
        stoppings[model.name] = make_stopping(spec.scheduler, book.objective, spec.max_epochs)
    for trial_id, measurement in book.state.measured:
        trial = book.state.trials[trial_id].spec
        if trial.kind is TrialKind.SEARCH:
            value = measurement.metrics[book.objective.metric]
            stoppings[trial.model].decide(trial_id, measurement.epoch, value, protected=trial.number == 0)
    return SearchConductor(
        book, plan, searches, stoppings, interrupted, num_lanes=num_lanes, spent_seconds=book.state.spent_seconds
    )


class ConfirmConductor(_Conductor):
    """Confirmation: a fixed list of runs, trained to their full budget exactly as search trains."""

    def __init__(self, book: Book, trials: Sequence[TrialSpec], interrupted: Callable[[], bool]) -> None:
        super().__init__(book, interrupted)
        for trial in trials:
            record = book.state.trials.get(trial.trial_id)
            if record is None:
                book.asked(trial, {})
                self._again.append(Assignment(trial))
            elif not record.state.is_final:
                self._again.append(Assignment(record.spec, record.num_retries + 1))


class TestConductor(_Conductor):
    """The sealed test split: every confirmed run is scored on it once."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, book: Book, trials: Sequence[TrialSpec], interrupted: Callable[[], bool]) -> None:
        super().__init__(book, interrupted)
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
            )
        else:
            assert isinstance(outcome, Failed), f"testing answered {outcome!r}"
            self._book.write("note", text=f"{trial.trial_id} could not be tested: {outcome.reason}")
        return True
