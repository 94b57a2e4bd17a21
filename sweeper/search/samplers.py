"""The searcher of one model: ask and tell, rebuilt exactly from the ledger.

Every ask uses a fresh sampler seeded by (study, model, trial number), so that a resumed search continues as an
uninterrupted one would: nothing lives in the sampler. What an Optuna sampler keeps in the attributes of study and
trials is returned with the suggestion and stands in the ledger. CMA-ES keeps a pickled optimizer there, which is
never stored or loaded: its searches are rebuilt by asking again in the recorded order.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweeper.core.errors import InputError, Problem
from sweeper.core.objective import Objective
from sweeper.core.seeds import derive_seed
from sweeper.core.space import Float, Int, Parameter, Params, Scalar, SearchSpace
from sweeper.core.trial import TrialRecord, TrialState
from sweeper.search.effective import Key, effective_key, untried
from sweeper.search.surrogate import MIN_OBSERVED, NUM_STARTUP, SPREAD_EVERY, Observed, Suggestion, Surrogate, startup

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

NUM_STARTUP_TRIALS = 10  # random draws before a model of the scores is fitted: Optuna's default
STARTUP_STRIDE = 1024  # points further on in the Sobol sequence, where one repeats a configuration
NUM_REDRAWS = 20  # further suggestions when one repeats an earlier configuration
REFIT_SHARE = 0.1  # the surrogate is fitted anew once so many more results are known, of those at its last fit
AHEAD_FROM = 32  # trials from which on one result more or less matters little, and a suggestion takes tens of ms


@dataclass(frozen=True)
class Asked:
    """A suggestion: the active parameters, and what the sampler needs to be rebuilt (JSON)."""

    params: dict[str, Scalar]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class _Thought:
    """A suggestion of the surrogate, perhaps still on its way, from what was known when it began.

    Parameters
    ----------
    num_results:
        Results that were known.
    refit:
        Whether the surrogate is fitted anew for it.
    found:
        Returns it, waiting where need be.
    """

    num_results: int
    refit: bool
    found: Callable[[], Suggestion]


class ModelSearch:
    """Ask and tell for one model; an Optuna study in memory that mirrors the ledger.

    Parameters
    ----------
    model:
        Its name: part of every seed.
    space:
        What is searched; its default is suggestion 0.
    objective:
        The direction.
    study_seed:
        The study's seed.
    sampler:
        ``auto`` for the package's own (`sweeper.search.surrogate`), or Optuna's ``tpe``, ``random``, ``qmc``, ``gp``,
        ``cmaes``.
    max_epochs:
        The full budget of a trial.
    points:
        Suggestions after the default, before the sampler's own.
    ahead:
        Whether ``auto`` thinks of its next suggestion, from trial 32 on, in a thread as soon as one was asked for, so
        that nobody waits for it. It then knows what was known at that moment, not what came since, as with one more
        trial under way. A search with one lane knows everything.

    Raises
    ------
    InputError
        When the sampler needs a package that is not installed.
    """

    def __init__(
        self,
        *,
        model: str,
        space: SearchSpace,
        objective: Objective,
        study_seed: int,
        sampler: str,
        max_epochs: int,
        points: Sequence[Params] = (),
        ahead: bool = False,
    ) -> None:
        self._model = model
        self._space = space
        self._objective = objective
        self._seed = study_seed
        self._sampler = sampler
        self._max_epochs = max_epochs
        self._points = points
        _check_package(self._sampler)
        self._study = optuna.create_study(direction=objective.goal, sampler=self._fresh_sampler(0, 0))
        self._trials: dict[int, optuna.Trial] = {}
        self._seen: set[Key] = set()
        self._observed: list[Observed] = []  # what ended, in the order of its ends
        self._paused: dict[int, int] = {}  # by number of a trial that waits: its place among the observed
        self._num_results = 0  # pauses and ends so far
        self._theta: list[float] | None = None  # the surrogate's last fit
        self._fitted_with = 0  # results that it knew
        self._ahead = ahead and sampler == "auto"
        self._thought: dict[int, _Thought] = {}  # ahead of need, by number of the trial

    @property
    def optuna_study(self) -> optuna.Study:
        """The study as Optuna sees it, for reading only."""
        return self._study

    def ask(self, number: int) -> Asked | None:
        """Suggest the configuration of search trial ``number``; it counts as running from now on.

        A suggestion that repeats an earlier effective configuration is drawn again, up to 20 times, then replaced by a
        random one that does not. None: the space holds no other.
        """
        asked = self._ask(number)
        if asked is not None:
            self._think_ahead(number + 1)
        return asked

    def _ask(self, number: int) -> Asked | None:
        if number == 0:
            return Asked(self._add(0, self._space.active(self._space.default), {}), {})
        point = next((point for point in self._points if self._is_new(point)), None)
        if point is not None:
            return Asked(self._add(number, point, {}), {})
        if self._sampler == "auto":
            return self._ask_surrogate(number)
        for redraw in range(NUM_REDRAWS + 1):
            self._study.sampler = self._fresh_sampler(number, redraw)
            trial = self._study.ask()
            params = self._draw(trial)
            if self._is_new(params):
                break
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            return self._ask_untried(number, {})
        self._trials[number] = trial
        self._seen.add(effective_key(params, self._max_epochs))
        return Asked(params, self._attributes(trial))

    def _is_new(self, params: Params) -> bool:
        return effective_key(params, self._max_epochs) not in self._seen

    def _ask_untried(self, number: int, attributes: dict[str, Any]) -> Asked | None:
        """Suggest any configuration that would not repeat another; None when there is none."""
        seed = derive_seed(self._seed, "untried", self._model, number)
        params = untried(self._space, self._seen, self._max_epochs, seed)
        return None if params is None else Asked(self._add(number, params, {}), attributes)

    def tell(self, record: TrialRecord) -> None:
        """Take the end of a trial.

        COMPLETE with its value; PRUNED as pruned with its intermediate values, never as complete; FAIL and
        INFEASIBLE as failed. A value that is not finite is told as failed: it would stay running for ever.
        """
        trial = self._trials.pop(record.spec.number)
        metric = self._metric_values(record)
        self._observe(record, metric, failed=record.state not in (TrialState.COMPLETE, TrialState.PRUNED))
        self._paused.pop(record.spec.number, None)
        state = optuna.trial.TrialState
        if record.state is TrialState.COMPLETE and record.value is not None and math.isfinite(record.value):
            self._study.tell(trial, record.value)
        elif record.state is TrialState.PRUNED and metric:
            self._report(trial, metric)
            self._study.tell(trial, state=state.PRUNED)
        else:
            self._study.tell(trial, state=state.FAIL)

    def pause(self, record: TrialRecord) -> None:
        """Take what is known of a trial that waits at a rung: it stays under way, its values so far are known."""
        metric = self._metric_values(record)
        self._report(self._trials[record.spec.number], metric)
        self._observe(record, metric)

    def replay(
        self,
        records: Sequence[TrialRecord],
        attributes: Mapping[str, Mapping[str, Any]],
        log: Sequence[tuple[str, str, int]],
    ) -> None:
        """Rebuild everything from the ledger.

        Parameters
        ----------
        records:
            This model's search trials.
        attributes:
            `Asked.attributes` by trial id.
        log:
            ``("asked" | "paused" | "ended", trial_id, epoch of the pause)`` in order; ids of other models are passed
            over.
        """
        mine = {record.spec.trial_id: record for record in records}
        steps = [step for step in log if step[1] in mine]
        last_asked = max((at for at, step in enumerate(steps) if step[0] == "asked"), default=-1)
        for at, (what, trial_id, epoch) in enumerate(steps):
            record = mine[trial_id]
            if what == "ended":
                self.tell(record)
            elif what == "paused":
                known = tuple(m for m in record.measurements if m.epoch <= epoch)
                self.pause(replace(record, measurements=known))
            elif self._sampler == "cmaes":
                self.ask(record.spec.number)
            else:
                self._add(record.spec.number, record.spec.params, attributes[trial_id])
                if (theta := attributes[trial_id].get("surrogate")) is not None:
                    self._theta = theta
                    self._fitted_with = attributes[trial_id].get("num_results", self._num_results)
            if at == last_asked:
                self._think_ahead(record.spec.number + 1)

    def _observe(self, record: TrialRecord, metric: Mapping[int, float], *, failed: bool = False) -> None:
        """Note a trial's curve; one that waited before is known by the longer curve."""
        losses = {epoch: self._objective.loss(value) for epoch, value in metric.items()}
        observed = Observed(record.spec.params, losses, failed or not losses)
        self._num_results += 1
        at = self._paused.setdefault(record.spec.number, len(self._observed))
        self._observed[at : at + 1] = [observed]

    def _report(self, trial: optuna.Trial, metric: Mapping[int, float]) -> None:
        known = self._study._storage.get_trial(trial._trial_id).intermediate_values
        for epoch, value in metric.items():
            if epoch not in known:  # told before a pause
                trial.report(value, epoch)

    def _ask_surrogate(self, number: int) -> Asked | None:
        """Suggest by the package's own model of configuration and epoch, or for its start."""
        thought = self._thought.pop(number, None)
        if thought is None:
            if (index := self._spread_index(number)) is not None:
                return self._ask_spread(number, index)
            thought = self._think(number)
        found = thought.found()
        attributes: dict[str, Any] = {}
        if thought.refit:
            self._theta, self._fitted_with = found.theta, thought.num_results
            attributes = {"surrogate": found.theta, "num_results": thought.num_results}
        if found.params is None:
            return self._ask_untried(number, attributes)
        return Asked(self._add(number, found.params, {}), attributes)

    def _spread_index(self, number: int) -> int | None:
        """Return which point of the Sobol sequence trial ``number`` gets; None: the surrogate suggests."""
        usable = sum(not observed.failed for observed in self._observed)
        if number < NUM_STARTUP or usable < MIN_OBSERVED:
            return number - 1
        since, step = divmod(number - NUM_STARTUP, SPREAD_EVERY)
        return NUM_STARTUP - 1 + since if step == SPREAD_EVERY - 1 else None

    def _think_ahead(self, number: int) -> None:
        """Begin with the suggestion for trial ``number`` if it is to be the surrogate's."""
        is_given = any(self._is_new(point) for point in self._points)
        if self._ahead and number >= AHEAD_FROM and not is_given and self._spread_index(number) is None:
            thought = self._think(number)
            self._thought = {number: replace(thought, found=self._thinker.submit(thought.found).result)}

    @cached_property
    def _thinker(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="suggestion")

    def _think(self, number: int) -> _Thought:
        """Gather what the surrogate's suggestion for trial ``number`` depends on; results told later do not count."""
        refit = self._num_results > self._fitted_with * (1 + REFIT_SHARE)
        problem = Surrogate(
            space=self._space,
            observed=list(self._observed),
            running=[dict(trial.params) for n, trial in self._trials.items() if n not in self._paused],
            max_epochs=self._max_epochs,
            is_new=self._is_new,
            theta=self._theta,
            refit=refit,
        )
        seed = derive_seed(self._seed, "surrogate", self._model, number)
        return _Thought(self._num_results, refit, partial(problem.suggest, seed))

    def _ask_spread(self, number: int, index: int) -> Asked | None:
        """Suggest point ``index`` of this search's Sobol sequence, a later one where it repeats a configuration."""
        seed = derive_seed(self._seed, "startup", self._model)
        for redraw in range(NUM_REDRAWS + 1):
            params = startup(self._space, index + redraw * STARTUP_STRIDE, seed)
            if self._is_new(params):
                return Asked(self._add(number, params, {}), {})
        return self._ask_untried(number, {})

    # -- Optuna --------------------------------------------------------------------------------------------

    def _fresh_sampler(self, number: int, redraw: int) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._seed, "sampler", self._model, number, redraw)
        match self._sampler:
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "qmc":
                # One scrambling for the whole search: the sequence is what spreads the points.
                seed = derive_seed(self._seed, "sampler", self._model)
                return optuna.samplers.QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
            case "gp":
                return optuna.samplers.GPSampler(
                    seed=seed, n_startup_trials=NUM_STARTUP_TRIALS, warn_independent_sampling=False
                )
            case "cmaes":
                return optuna.samplers.CmaEsSampler(
                    seed=seed, n_startup_trials=NUM_STARTUP_TRIALS, warn_independent_sampling=False
                )
            case _:
                return optuna.samplers.TPESampler(
                    seed=seed,
                    n_startup_trials=NUM_STARTUP_TRIALS,
                    multivariate=True,
                    group=True,  # conditional parameters are modelled jointly where they are active together
                    constant_liar=True,
                )

    def _draw(self, trial: optuna.Trial) -> dict[str, Scalar]:
        """Suggest parents before children, and children only where their condition holds."""
        params: dict[str, Scalar] = {}
        for parameter in self._space:
            if parameter.is_active(params):
                params[parameter.name] = trial._suggest(parameter.name, distribution(parameter))
        return params

    def _add(self, number: int, params: Params, attributes: Mapping[str, Any]) -> dict[str, Scalar]:
        """Enter a trial that was suggested before, or not by a sampler, as running."""
        known = {p.name: distribution(p) for p in self._space if p.name in params}
        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={name: params[name] for name in known},
            distributions=known,
            system_attrs=dict(attributes.get("trial", {})),
        )
        self._study.add_trial(frozen)
        storage, study_id = self._study._storage, self._study._study_id
        for key, value in attributes.get("study", {}).items():
            storage.set_study_system_attr(study_id, key, value)
        self._trials[number] = optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[-1]._trial_id)
        self._seen.add(effective_key(params, self._max_epochs))
        return dict(params)

    def _attributes(self, trial: optuna.Trial) -> dict[str, Any]:
        if self._sampler == "cmaes":
            return {}
        storage = self._study._storage
        study = storage.get_study_system_attrs(self._study._study_id)
        own = storage.get_trial(trial._trial_id).system_attrs
        return {key: dict(value) for key, value in (("trial", own), ("study", study)) if value}

    def _metric_values(self, record: TrialRecord) -> dict[int, float]:
        values = {m.epoch: m.metrics[self._objective.metric] for m in record.measurements}
        return {epoch: value for epoch, value in values.items() if math.isfinite(value)}


def _check_package(sampler: str) -> None:
    if sampler == "cmaes" and find_spec("cmaes") is None:
        remedy = "install it with pip install 'fairsweep[cmaes]', or choose another sampler"
        raise InputError(Problem("search.sampler", "cmaes needs the package cmaes", "not installed", remedy))


def distribution(parameter: Parameter) -> BaseDistribution:
    """Return a parameter in Optuna's words."""
    if isinstance(parameter, Float):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
    if isinstance(parameter, Int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return CategoricalDistribution(parameter.choices)
