"""Does tuning pick the truly best model? Simulated and recorded trial tables with known truth.

    python benchmarks/ranking.py [--json OUT.json] [--studies 40] [--surrogate DIR] [--recorded FILE] [--clear]

A study compares models whose learning curves are known for every configuration. Each model is tuned with n trials, its
chosen configuration is confirmed with six fresh seeds, and the model with the best mean is the winner named. The winner
should be the model that is best when tuned exhaustively: the best of 20,000 random configurations (4,000 where they are
simulated), without noise, at the best epoch of the training length that searches have.

- default: no search, the default configurations are confirmed;
- random: n random configurations, trained to the end;
- sweeper: its own search, early stopping, conductor and ledger (`sweeper.workflows.simulate`) with the epochs of n full
  trainings: so many trials as `EarlyStopping.expected_epochs` makes of them, as ``sweeper plan`` does;
- sweeper_trials: the same with n trials, which take fewer epochs than those of random search.

Sources of curves: ``simulated``, four models with random surfaces and defaults off their optimum by a random distance;
``lcbench`` with --surrogate, a YAHPO Gym surrogate as in `lcbench.py`: on each of ten data sets four networks of fixed
depth and width, five hyperparameters tuned; ``recorded`` with --recorded, two encoders of `examples/docstrings`, really
trained, as in `recorded_space.py`. A run's score has the noise of its seed (SEED_NOISE of the metric) and of each epoch
(half of it). ``clear``: studies in which the true gap between the best two models exceeds two standard errors of the
difference of two means over six seeds. Goal: at least 90% of those at 32 trials.

With --clear other studies are left out. With --seconds no further study begins after so long; the same call goes on
where OUT.json stands, also with further budgets and methods.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from lcbench import DEV_TASKS, Surrogate
from machine import facts
from search_methods import Curves, make

from sweeper.core.budget import Budget
from sweeper.core.objective import Objective
from sweeper.core.selection import best_trial
from sweeper.core.space import Categorical, Float, Int, Params, SearchSpace
from sweeper.core.trial import Measurement, TrialSpec
from sweeper.plan.plan import ModelPlan, StudyPlan
from sweeper.store.state import StudyState
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import SearchConductor
from sweeper.workflows.simulate import MemoryLedger, SimulatedLanes

BUDGETS = (32, 8, 16, 64)  # in this order: the goal is at 32
METHODS = ("default", "random", "sweeper", "sweeper_trials")
SEEDS, SEED_NOISE, DRAWS, LANES = 6, 0.01, 20_000, 4
WHOLE_CURVES = 200
NETWORKS = {"narrow": (2, 64), "shallow": (1, 512), "middle": (3, 256), "deep": (5, 512)}  # layers, units
_OBJECTIVE = Objective(metric="accuracy", goal="maximize")


class Surface:
    """A simulated model: accuracy falls off with the distance from its own optimum, more for what matters more."""

    max_epochs = 9
    objective = _OBJECTIVE
    space = SearchSpace(
        parameters=(
            Float(name="learning_rate", low=1e-6, high=1e-3, log=True),
            Float(name="weight_decay", low=1e-4, high=0.3, log=True),
            Float(name="dropout", low=0.0, high=0.4),
            Categorical(name="batch_size", choices=(16, 32, 64)),
            Categorical(name="lr_scheduler_type", choices=("linear", "cosine")),
            Categorical(name="warmup_ratio", choices=(0.0,)),
        ),
        default={"learning_rate": 2e-5, "weight_decay": 0.01, "dropout": 0.1, "batch_size": 32}
        | {"lr_scheduler_type": "linear", "warmup_ratio": 0.0},
    )

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._ceiling = rng.uniform(0.80, 0.90)
        self._optimum = {"learning_rate": rng.uniform(0.3, 0.8), "weight_decay": rng.uniform(0.2, 0.8)}
        self._optimum["dropout"] = rng.uniform(0.1, 0.6)
        self._cost = {"learning_rate": rng.uniform(0.6, 1.6), "weight_decay": rng.uniform(0.02, 0.1)}
        self._cost["dropout"] = rng.uniform(0.05, 0.2)
        self._batch = {size: rng.uniform(0, 0.015) for size in (16, 32, 64)}
        self._schedule = {"linear": 0.0, "cosine": rng.uniform(-0.005, 0.01)}
        self._pace = rng.uniform(1.5, 3.0)

    def final(self, params: Params) -> float:
        """Return the accuracy at the end, without noise."""
        away = 0.0
        for name, at in self._optimum.items():
            parameter = self.space[name]
            assert isinstance(parameter, Float)
            away += self._cost[name] * (parameter.fraction(params[name]) - at) ** 2  # type: ignore[arg-type]
        lost = away + self._batch[params["batch_size"]] - self._schedule[params["lr_scheduler_type"]]  # type: ignore[index]
        return float(max(0.1, self._ceiling - lost))

    def values(self, params: Params) -> np.ndarray:
        """Return the accuracy after each epoch; low learning rates are slow."""
        rate = self.space["learning_rate"]
        assert isinstance(rate, Float)
        pace = self._pace * (1.6 - rate.fraction(params["learning_rate"]))  # type: ignore[arg-type]
        return np.asarray(0.1 + (self.final(params) - 0.1) * (1 - 0.9 * np.exp(-np.arange(1, 10) / pace)))


class Network:
    """LCBench's networks of one depth and width on one data set."""

    max_epochs = 50
    objective = _OBJECTIVE

    def __init__(self, surrogate: Surrogate, layers: int, units: int) -> None:
        self._surrogate, self._fixed = surrogate, {"num_layers": layers, "max_units": units}
        kept = [p for p in surrogate.space if p.name not in self._fixed]
        default = {name: value for name, value in surrogate.space.default.items() if name not in self._fixed}
        self.space = SearchSpace(parameters=tuple(kept), default=default)

    def values(self, params: Params) -> np.ndarray:
        return self._surrogate.accuracies([{**params, **self._fixed}], range(1, 51))[0] / 100

    def many(self, configurations: list[Params]) -> np.ndarray:
        """Return the final accuracies of many configurations."""
        return self._surrogate.accuracies([{**c, **self._fixed} for c in configurations], [50])[:, 0] / 100


class Encoder:
    """A recorded encoder."""

    objective = _OBJECTIVE

    def __init__(self, recorded: Any) -> None:
        self._recorded, self.space, self.max_epochs = recorded, recorded.space, recorded.max_epochs

    def values(self, params: Params) -> np.ndarray:
        trial = TrialSpec(trial_id="t", number=0, model="m", params=params, seed=0, max_epochs=self.max_epochs)
        metric = self._recorded.objective.metric
        return np.array([m.metrics[metric] for m in self._recorded.curve(trial)])

    def effective(self, trial: TrialSpec) -> Mapping[str, Any]:
        return dict(self._recorded.effective(trial))


class Noisy:
    """Curves with the noise of seeds and epochs."""

    def __init__(self, model: Any, label: str) -> None:
        self._model, self._label = model, label
        self.space, self.max_epochs, self.objective = model.space, model.max_epochs, model.objective

    def curve(self, trial: TrialSpec) -> Iterator[Measurement]:
        values = self._model.values(trial.params)
        rng = np.random.default_rng([zlib.crc32(f"{self._label} {trial.trial_id}".encode()), trial.seed % 2**32])
        drift = rng.normal(0, SEED_NOISE) * np.minimum(1, np.arange(1, len(values) + 1) / 3)
        for epoch, value in enumerate(values + drift + rng.normal(0, SEED_NOISE / 2, len(values)), start=1):
            yield Measurement(
                epoch=epoch, train_loss=0, validation_loss=0, metrics={"accuracy": float(value)}, elapsed_seconds=epoch
            )

    def effective(self, trial: TrialSpec) -> Mapping[str, Any]:
        return self._model.effective(trial) if hasattr(self._model, "effective") else {}

    def reference(self) -> float:
        return 0.0

    def for_peers(self) -> Curves:
        return self


def tuned(curves: Noisy, method: str, num_trials: int, seed: int) -> tuple[Params, int]:
    """Search with a budget of ``num_trials``; return the configuration chosen on validation and the epochs trained."""
    searcher, stopping = make(method.partition("_")[0], curves, seed, "", LANES)
    if method == "sweeper":  # equal epochs; the default is always trained to its end
        num_trials = 1 + int((num_trials - 1) * curves.max_epochs / stopping.expected_epochs(curves.max_epochs))
    models = (ModelPlan(name="m", checkpoint="", weights="", space=curves.space),)
    budget = Budget(num_trials=num_trials, max_epochs=curves.max_epochs)
    plan = StudyPlan(name="ranking", seed=seed, models=models, budget=budget, confirmation_seeds=(), content={})
    book = Book(MemoryLedger(), StudyState(), curves.objective, 1)
    conductor = SearchConductor(book, plan, {"m": searcher}, {"m": stopping}, lambda: False, num_lanes=LANES)
    SimulatedLanes(curves.curve, LANES, effective=curves.effective).serve(conductor)
    winner = best_trial(iter(book.state.trials.values()), curves.objective)
    assert winner is not None
    return winner.spec.params, sum(len(record.measurements) for record in book.state.trials.values())


def confirmed(model: Any, params: Params, rng: np.random.Generator) -> float:
    """Return the mean test score over fresh seeds: the best epoch on validation, each seed with its own noise."""
    return float(model.values(params).max() + rng.normal(0, SEED_NOISE, SEEDS).mean())


def truth(model: Any, draws: int = DRAWS) -> float:
    """Return the best score that any of many random configurations has after any epoch, without noise."""
    rng = np.random.default_rng(0)
    configurations = [_draw(model.space, rng) for _ in range(draws)]
    if hasattr(model, "many"):  # whole curves of the most promising ones alone
        best_last = np.argsort(-model.many(configurations), kind="stable")[:WHOLE_CURVES]
        configurations = [configurations[index] for index in best_last]
    return max(float(model.values(params).max()) for params in configurations)


def _draw(space: SearchSpace, rng: np.random.Generator) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for parameter in space:
        if not parameter.is_active(params):
            continue
        if isinstance(parameter, Categorical):
            params[parameter.name] = parameter.choices[int(rng.integers(len(parameter.choices)))]
            continue
        at, low, high = rng.random(), float(parameter.low), float(parameter.high) + isinstance(parameter, Int)
        value = low * (high / low) ** at if parameter.log else low + at * (high - low)
        params[parameter.name] = min(int(value), int(parameter.high)) if isinstance(parameter, Int) else value
    return params


def gaps(best: dict[str, float]) -> dict[str, Any]:
    """Return how far the best model is ahead, and whether confirmation can be expected to see it."""
    first, second = sorted(best.values(), reverse=True)[:2]
    return {"gap": first - second, "clear": bool(first - second > 2 * SEED_NOISE * np.sqrt(2 / SEEDS))}


def run_study(models: dict[str, Any], best: dict[str, float], row: dict[str, Any], tasks: list[str]) -> None:
    """Run one study by the methods and budgets of ``tasks``, and note in ``row`` which winners were right."""
    study, order = row["study"], sorted(best, key=lambda name: -best[name])
    for key in tasks:
        method, _, trials = key.partition(" ")
        budget = int(trials or 1)
        scores, epochs = {}, 0
        rng = np.random.default_rng([study, budget, METHODS.index(method)])
        for name, model in models.items():
            params: Params = model.space.default
            if method != "default":
                curves = Noisy(model, f"{study} {name}")
                params, spent = tuned(curves, method, budget, zlib.crc32(f"{study} {name}".encode()))
                epochs += spent
            scores[name] = confirmed(model, params, rng)
        named = max(scores, key=lambda name: scores[name])
        row["right"][key] = named == order[0]
        row["regret"][key] = best[order[0]] - best[named]
        row["epochs"][key] = epochs


Source = Callable[[int], tuple[dict[str, Any], dict[str, float]]]


def simulated(study: int) -> tuple[dict[str, Any], dict[str, float]]:
    models = {f"model-{index}": Surface(1000 * study + index) for index in range(4)}
    return models, {name: truth(model, 4_000) for name, model in models.items()}


def lcbench(folder: str, study: int) -> tuple[dict[str, Any], dict[str, float]]:
    return _networks(folder, DEV_TASKS.split(",")[study % 10])


@cache
def _networks(folder: str, task: str) -> tuple[dict[str, Any], dict[str, float]]:
    surrogate = Surrogate(Path(folder), task)
    models = {name: Network(surrogate, *size) for name, size in NETWORKS.items()}
    return models, {name: truth(model) for name, model in models.items()}


@cache
def recorded(path: str) -> tuple[dict[str, Any], dict[str, float]]:
    from recorded_space import MODELS, Recorded

    models = {name: Encoder(Recorded(Path(path), name)) for name in MODELS}
    return models, {name: truth(model, 2_000) for name, model in models.items()}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the share of right winners by method and budget, over all studies and over the clear ones."""
    keys = list(dict.fromkeys(key for row in rows for key in row["right"]))

    def mean(chosen: list[dict[str, Any]], what: str) -> dict[str, float]:
        known = {key: [row[what][key] for row in chosen if key in row[what]] for key in keys}
        return {key: float(np.mean(values)) for key, values in known.items() if values}

    clear = [row for row in rows if row["clear"]]
    return {
        "studies": {key: sum(key in row["right"] for row in rows) for key in keys},
        "clear": {key: sum(key in row["right"] for row in clear) for key in keys},
        "share_all": mean(rows, "right"),
        "share_clear": mean(clear, "right"),
        "mean_epochs": mean(rows, "epochs"),
        "mean_regret": mean(rows, "regret"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--studies", type=int, default=40, help="of each source")
    parser.add_argument("--surrogate", help="folder of the LCBench surrogate")
    parser.add_argument("--recorded", help="parquet file that record_space.py wrote")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no study after so long")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="full trainings of each model")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--without-simulated", action="store_true")
    parser.add_argument("--clear", action="store_true", help="leave out studies that are not clear")
    arguments = parser.parse_args()
    budgets, methods = map(int, arguments.budgets.split(",")), arguments.methods.split(",")
    sources: dict[str, Source] = {} if arguments.without_simulated else {"simulated": simulated}
    if arguments.surrogate:
        sources["lcbench"] = partial(lcbench, arguments.surrogate)
    if arguments.recorded:
        sources["recorded"] = lambda study: recorded(arguments.recorded)  # noqa: ARG005 - noise alone differs
    known: dict[str, list[dict[str, Any]]] = {}
    if arguments.json and arguments.json.exists():
        known = json.loads(arguments.json.read_text())["rows"]
    began, left = time.perf_counter(), 0
    for budget, study, name in product(budgets, range(arguments.studies), sources):
        rows = known.setdefault(name, [])
        row = next((row for row in rows if row["study"] == study), None)
        keys = [method if method == "default" else f"{method} {budget}" for method in methods]
        tasks = [key for key in keys if row is None or key not in row["right"]]
        if not tasks or (row is not None and arguments.clear and not row["clear"]):
            continue
        if time.perf_counter() - began > arguments.seconds:
            left += 1
            continue
        models, best = sources[name](study)
        if row is None:
            rows.append(row := {"study": study, **gaps(best), "right": {}, "regret": {}, "epochs": {}})
        if row["clear"] or not arguments.clear:
            run_study(models, best, row, tasks)
        if arguments.json:
            _write(arguments.json, known)
    found = _write(arguments.json, known)
    print(json.dumps({key: value for key, value in found.items() if key != "rows"}, indent=2))
    if left:
        print(f"{left} studies at one budget are left: call it again")


def _write(path: Path | None, known: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    sources = {name: summary(rows) for name, rows in known.items() if rows}
    goal = {name: s["share_clear"].get("sweeper 32", 0.0) >= 0.9 for name, s in sources.items()}
    found = {"seeds": SEEDS, "seed_noise": SEED_NOISE, "sources": sources, "passed": goal}
    found |= {"machine": facts(), "rows": known}
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
