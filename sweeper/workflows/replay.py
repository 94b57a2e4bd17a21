"""What a budget would have found: searches over the recorded curves of an earlier study, without training.

The study's own conductors, searchers and early stopping run on simulated lanes. What a configuration would measure is
predicted by a forest over (configuration, epoch) that was fitted to all recorded epochs, those of stopped trials too; a
configuration that was recorded to its end measures what it measured then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sweeper.core.budget import Budget
from sweeper.core.errors import InputError, Problem
from sweeper.core.objective import Objective
from sweeper.core.seeds import derive_seed
from sweeper.core.space import Params, SearchSpace
from sweeper.core.trial import Measurement, TrialSpec, TrialState
from sweeper.plan.plan import ModelPlan, StudyPlan
from sweeper.search.effective import effective_key
from sweeper.search.encoding import Encoder
from sweeper.spec.load import load_study
from sweeper.spec.space import space_from_dict
from sweeper.spec.study import SearchSpec
from sweeper.store.manifest import read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState
from sweeper.store.tables import read_tables
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import resumed_search
from sweeper.workflows.simulate import MemoryLedger, SimulatedLanes

REPEATS = 10  # searches with different seeds, over which figures are averaged
NUM_TREES = 50
DEFAULT_LANES = 2  # where the study says auto: a replay has no cluster to ask
MIN_TRIALS = 10  # recorded trials of a model below which nothing is predicted

Rows = Sequence[Mapping[str, Any]]


class RecordedCurves:
    """Predicts what trials of one model would measure.

    Parameters
    ----------
    space:
        That was searched.
    trials, measurements:
        Rows of the result tables, of this model.
    objective:
        Whose metric is predicted.
    max_epochs:
        Full budget of a recorded trial.

    Attributes
    ----------
    reliability:
        Spearman's rank correlation of predicted and measured values, over epochs that a tree had not seen.
    """

    def __init__(
        self, space: SearchSpace, trials: Rows, measurements: Rows, objective: Objective, max_epochs: int
    ) -> None:
        from sklearn.ensemble import RandomForestRegressor  # slow to import, and rarely needed

        self._objective = objective
        self._max_epochs = max_epochs
        self._encoder = Encoder(space)
        curves: dict[str, list[Mapping[str, Any]]] = {}
        for row in measurements:
            curves.setdefault(row["trial_id"], []).append(row)
        measured = [trial for trial in trials if trial["trial_id"] in curves]
        params = [json.loads(trial["params"]) for trial in measured]
        self._features = self._encoder.features(self._encoder.units(params))
        self._effective = [json.loads(trial["effective"] or "{}") for trial in measured]
        self._seconds = [curves[trial["trial_id"]][-1]["elapsed_seconds"] / trial["epochs"] for trial in measured]
        self._exact = {
            effective_key(own, max_epochs): [float(row[objective.metric]) for row in curves[trial["trial_id"]]]
            for own, trial in zip(params, measured, strict=True)
            if trial["epochs"] == max_epochs
        }
        rows = [
            (features, row["epoch"], row[objective.metric])
            for features, trial in zip(self._features, measured, strict=True)
            for row in curves[trial["trial_id"]]
        ]
        inputs = np.array([[*features, np.log(epoch)] for features, epoch, _ in rows])
        values = np.array([value for *_, value in rows])
        self._forest = RandomForestRegressor(NUM_TREES, oob_score=True, min_samples_leaf=2, random_state=0, n_jobs=1)
        self._forest.fit(inputs, values)
        self.reliability = float(spearmanr(self._forest.oob_prediction_, values).statistic)

    def curve(self, trial: TrialSpec) -> Iterator[Measurement]:
        """Yield what training would measure; see `sweeper.workflows.simulate.Curve`."""
        features = self._row(trial.params)
        values = self._exact.get(effective_key(trial.params, self._max_epochs))
        if values is None:
            epochs = np.log(np.arange(1, self._max_epochs + 1))
            predicted = self._forest.predict(np.column_stack([np.tile(features, (len(epochs), 1)), epochs]))
            values = [float(value) for value in predicted]
        seconds = self._seconds[self._nearest(features)]
        for epoch, value in enumerate(values, 1):
            yield Measurement(
                epoch=epoch,
                train_loss=0.0,
                validation_loss=0.0,
                metrics={self._objective.metric: value},
                elapsed_seconds=epoch * seconds,
            )

    def effective(self, trial: TrialSpec) -> Mapping[str, Any]:
        """Return what was read back of the nearest recorded trial: its unfreezing events."""
        found: Mapping[str, Any] = self._effective[self._nearest(self._row(trial.params))]
        return found

    def _row(self, params: Params) -> NDArray[np.float64]:
        row: NDArray[np.float64] = self._encoder.features(self._encoder.units([params]))[0]
        return row

    def _nearest(self, features: NDArray[np.float64]) -> int:
        return int(np.argmin(((self._features - features) ** 2).sum(axis=1)))


@dataclass(frozen=True)
class Found:
    """What a budget of trials finds, means over the repeated searches.

    Parameters
    ----------
    num_trials:
        Trials of the model that have ended.
    best:
        The best validation score of a completed trial; ``low`` and ``high`` are the worst and best search.
    epochs, seconds:
        Epochs trained, and simulated time since the search of all models began.
    """

    num_trials: int
    best: float
    low: float
    high: float
    epochs: float
    seconds: float


@dataclass(frozen=True)
class ReplayReport:
    """What searches over recorded curves found, by model."""

    name: str
    metric: str
    search: Mapping[str, Any]
    num_lanes: int
    repeats: int
    found: Mapping[str, Sequence[Found]]
    recorded: Mapping[str, Mapping[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """JSON for machines."""
        return asdict(self)

    def as_text(self) -> str:
        """A few lines for people."""
        search = self.search
        lines = [
            (
                f"replay of {self.name}: {self.repeats} searches of {search['num_trials']} trials a model, "
                f"{search['max_epochs']} epochs, sampler {search['sampler']}, early stopping {search['scheduler']}, "
                f"{self.num_lanes} lanes; nothing is trained, failures are not simulated"
            )
        ]
        for model, rows in self.found.items():
            known = self.recorded[model]
            lines.append(
                f"{model}: predicted from {known['trials']} recorded trials, rank correlation "
                f"{known['reliability']:.2f}; the best of them had {self.metric} {known['best']:.4g}"
            )
            lines += [
                f"  {row.num_trials:5d} trials: {row.best:.4g} ({row.low:.4g} to {row.high:.4g}), "
                f"{row.epochs:.0f} epochs, {row.seconds / 60:.1f} min"
                for row in rows
            ]
        return "\n".join(lines)


def replay_study(
    root: str | Path, study: Path | None, overrides: Sequence[str], repeats: int = REPEATS
) -> ReplayReport:
    """Search the recorded curves of a result folder, with the budget of ``study`` or else of the recorded one.

    Raises
    ------
    InputError
        As `replay`; or a wrong study file or override.
    """
    spec = load_study(study if study is not None else ResultPaths.at(root, purpose="readers").study, overrides)
    lanes = spec.search.max_concurrent_trials
    return replay(root, spec.search, lanes if isinstance(lanes, int) else DEFAULT_LANES, repeats)


def replay(root: str | Path, search: SearchSpec, num_lanes: int, repeats: int = REPEATS) -> ReplayReport:
    """Search the recorded curves of a result folder.

    Parameters
    ----------
    root:
        The result folder.
    search:
        The budget, sampler and early stopping to try; models and spaces are those recorded.
    num_lanes:
        Trials at the same time.
    repeats:
        Searches with different seeds.

    Raises
    ------
    InputError
        When the folder holds too little, or trials of another length.
    """
    paths = ResultPaths.at(root, purpose="readers")
    manifest, tables = read_manifest(paths), read_tables(paths)
    objective = Objective(**manifest.content["objective"])
    _check(root, manifest.content, search)
    models, curves, recorded = [], {}, {}
    measurements = tables.measurements.to_pylist()
    for entry in manifest.content["models"]:
        name, space = entry["name"], space_from_dict(entry["space"])
        trials = [row for row in tables.trials.to_pylist() if row["model"] == name and row["epochs"]]
        complete = [row["value"] for row in trials if row["state"] == TrialState.COMPLETE]
        if len(trials) < MIN_TRIALS or not complete:
            rule = f"a replay needs {MIN_TRIALS} measured trials of each model, one of them complete"
            remedy = "run a larger study first"
            raise InputError(Problem(f"{root} {name}", rule, f"{len(trials)} measured", remedy))
        mine = [row for row in measurements if row["model"] == name]
        curves[name] = RecordedCurves(space, trials, mine, objective, search.max_epochs)
        models.append(ModelPlan(name=name, checkpoint="", weights="", space=space))
        best = min(complete, key=objective.loss)
        recorded[name] = {"trials": len(trials), "best": best, "reliability": curves[name].reliability}
    runs = [_run(models, curves, objective, search, num_lanes, seed) for seed in range(repeats)]
    return ReplayReport(
        name=manifest.name,
        metric=objective.metric,
        search={
            "num_trials": search.num_trials,
            "max_epochs": search.max_epochs,
            "sampler": search.sampler,
            "scheduler": search.scheduler.type,
        },
        num_lanes=num_lanes,
        repeats=repeats,
        found={model.name: _means([run[model.name] for run in runs], objective) for model in models},
        recorded=recorded,
    )


def _check(root: str | Path, content: Mapping[str, Any], search: SearchSpec) -> None:
    recorded = content.get("search", {}).get("max_epochs")
    if recorded is None:
        remedy = "name the results of a study that sweeper ran"
        raise InputError(Problem(str(root), "a replay needs recorded curves and their spaces", "imported", remedy))
    if recorded != search.max_epochs:
        rule = "learning-rate schedules span max_epochs, so that curves of one length say nothing of another"
        value = f"{search.max_epochs}, recorded {recorded}"
        raise InputError(Problem("search.max_epochs", rule, value, f"set it to {recorded}"))


def _run(
    models: Sequence[ModelPlan],
    curves: Mapping[str, RecordedCurves],
    objective: Objective,
    search: SearchSpec,
    num_lanes: int,
    seed: int,
) -> dict[str, list[Found]]:
    """Search once; return what each model had found after 1, 2, 4, ... trials."""
    plan = StudyPlan(
        name="replay",
        seed=derive_seed("replay", seed),
        models=tuple(models),
        budget=Budget(num_trials=search.num_trials, max_epochs=search.max_epochs),
        confirmation_seeds=(),
        content={},
    )
    state = StudyState()
    lanes = SimulatedLanes(
        lambda trial: curves[trial.model].curve(trial),
        num_lanes,
        effective=lambda trial: curves[trial.model].effective(trial),
    )
    found: dict[str, list[Found]] = {model.name: [] for model in models}
    best = {model.name: math.inf for model in models}  # losses
    counts: dict[str, list[int]] = {model.name: [0, 0] for model in models}  # trials, epochs

    class Watch:
        def on_event(self, event: Mapping[str, Any]) -> None:
            if event["kind"] == "measurement":
                counts[state.trials[event["trial_id"]].spec.model][1] += 1
            if event["kind"] != "trial_ended":
                return
            model = state.trials[event["trial_id"]].spec.model
            counts[model][0] += 1
            ended, epochs = counts[model]
            if event["value"] is not None:
                best[model] = min(best[model], objective.loss(event["value"]))
            if ended & (ended - 1) == 0 or ended == search.num_trials:
                value = objective.loss(best[model])
                found[model].append(Found(ended, value, value, value, epochs, lanes.clock))

    book = Book(MemoryLedger(), state, objective, 1, [Watch()])
    lanes.serve(resumed_search(book, plan, search, lambda: False, num_lanes))
    return found


def _means(runs: Sequence[Sequence[Found]], objective: Objective) -> list[Found]:
    rows = []
    for same in zip(*runs, strict=False):
        if not all(math.isfinite(row.best) for row in same):
            continue  # stopped trials ended before the first one was complete
        values = sorted((row.best for row in same), key=objective.loss)
        rows.append(
            Found(
                num_trials=same[0].num_trials,
                best=mean(values),
                low=values[-1],
                high=values[0],
                epochs=mean(row.epochs for row in same),
                seconds=mean(row.seconds for row in same),
            )
        )
    return rows
