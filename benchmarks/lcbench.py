"""Search strategies on recorded learning curves: regret against full trainings spent.

    python benchmarks/lcbench.py --surrogate DIR --tasks 3945,7593 --seeds 10 --budgets 10,20,50 --json OUT.json

DIR holds the YAHPO Gym surrogate of LCBench (``model.onnx``, ``encoding.json``, ``config_space.json``): seven
hyperparameters, validation accuracy after each of 50 epochs. Every method runs on sweeper's own conductor and
simulated lanes (`sweeper.workflows.simulate`). A budget of n allows n x 50 epochs in all. Regret: best final accuracy
of 50,000 random configurations minus the best accuracy seen so far, in points.

Methods: ``random`` and ``tpe`` train everything to the end; ``random_asha`` and ``ray`` stop as Ray's ASHA does by its
defaults (grace period 1, factor 4), ``ray`` tells stopped trials as complete, as Ray's ``OptunaSearch`` does;
``sweeper`` is the default of this package, from `SearchSpec`'s own defaults. ``paired``: sweeper minus the other,
mean over tasks and seeds, with a 95% interval (Student's t over the pairs); below 0 is better.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from machine import facts
from scipy import stats

from sweeper.core.budget import Budget
from sweeper.core.objective import Objective
from sweeper.core.space import Float, Int, Params, SearchSpace
from sweeper.core.trial import Measurement, TrialRecord, TrialSpec, TrialState
from sweeper.plan.plan import ModelPlan, StudyPlan
from sweeper.search.samplers import Asked, ModelSearch
from sweeper.search.schedulers import AshaStopping, EarlyStopping, NoStopping, make_stopping
from sweeper.spec.study import SearchSpec
from sweeper.store.state import StudyState
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import SearchConductor
from sweeper.workflows.simulate import MemoryLedger, SimulatedLanes

FIRST_EPOCH, EPOCHS = 2, 50
CONTINUOUS = ("batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units", "max_dropout")
OBJECTIVE = Objective(metric="accuracy", goal="maximize")
NUM_DRAWS = 50_000
DEV_TASKS = "3945,7593,34539,126025,126029,146212,167104,167149,167161,167168"


class Surrogate:
    """Learning curves of one OpenML task."""

    def __init__(self, folder: Path, task: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self._code = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"][task]
        entries = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
        self.space = _space([e for e in entries if e["name"] in CONTINUOUS])

    def accuracies(self, configurations: Sequence[Params], epochs: Sequence[int]) -> np.ndarray:
        """(N, E) validation accuracies in percent for N configurations at E epochs counted from 1."""
        rows = [
            [epoch + FIRST_EPOCH - 1, *(float(params[name]) for name in CONTINUOUS)]  # type: ignore[arg-type]
            for params in configurations
            for epoch in epochs
        ]
        cont = np.asarray(rows, np.float32)
        cat = np.full((len(cont), 1), self._code, np.int32)
        (out,) = self._session.run(None, {"x_cat": cat, "x_cont": cont})
        return out[:, 1].reshape(len(configurations), len(epochs))

    def best_of_random(self) -> float:
        """Return the best final accuracy of 50,000 random configurations."""
        rng = np.random.default_rng(0)
        best = -math.inf
        for _ in range(NUM_DRAWS // 5000):
            drawn = [{p.name: _draw(p, rng) for p in self.space} for _ in range(5000)]
            best = max(best, float(self.accuracies(drawn, [EPOCHS]).max()))
        return best

    def curve(self, trial: TrialSpec) -> Iterator[Measurement]:
        """What training would measure."""
        values = self.accuracies([trial.params], range(1, EPOCHS + 1))[0]
        for epoch, value in enumerate(values.tolist(), 1):
            yield Measurement(
                epoch=epoch, train_loss=0, validation_loss=0, metrics={"accuracy": value}, elapsed_seconds=float(epoch)
            )


def _space(entries: list[dict[str, Any]]) -> SearchSpace:
    parameters = tuple(
        (Int if e["type"] == "uniform_int" else Float)(name=e["name"], low=e["lower"], high=e["upper"], log=e["log"])
        for e in entries
    )
    return SearchSpace(parameters=parameters, default={e["name"]: e["default"] for e in entries})


def _draw(parameter: Any, rng: np.random.Generator) -> float:
    at = rng.random()
    low, high = parameter.low, parameter.high
    if isinstance(parameter, Int):
        high += 1
    value = low * (high / low) ** at if parameter.log else low + at * (high - low)
    return min(int(value), parameter.high) if isinstance(parameter, Int) else value


class WithoutDefault(ModelSearch):
    """A search as the peers do it: the first trials are random."""

    def ask(self, number: int) -> Asked:
        return super().ask(number + 1)  # 0 would be the default

    def tell(self, record: TrialRecord) -> None:
        super().tell(replace(record, spec=replace(record.spec, number=record.spec.number + 1)))


class ToldComplete(WithoutDefault):
    """A stopped trial is told as complete with its last value."""

    def tell(self, record: TrialRecord) -> None:
        if record.state is TrialState.PRUNED:
            value = record.measurements[-1].metrics["accuracy"]
            record = replace(record, state=TrialState.COMPLETE, value=value)
        super().tell(record)


class Unprotected(AshaStopping):
    """Ray's ASHA knows no default that is never stopped."""

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Any:  # noqa: ARG002
        return super().decide(trial_id, epoch, value)


def make(method: str, space: SearchSpace, seed: int) -> tuple[ModelSearch, EarlyStopping]:
    """Build searcher and early stopping of a method."""
    common = {"model": "m", "space": space, "objective": OBJECTIVE, "study_seed": seed, "max_epochs": EPOCHS}
    ray_asha = Unprotected(OBJECTIVE, EPOCHS, reduction_factor=4, grace_fraction=1 / EPOCHS)
    if method == "random":
        return WithoutDefault(**common, sampler="random"), NoStopping()
    if method == "tpe":
        return WithoutDefault(**common, sampler="tpe"), NoStopping()
    if method == "random_asha":
        return WithoutDefault(**common, sampler="random"), ray_asha
    if method == "ray":
        return ToldComplete(**common, sampler="tpe"), ray_asha
    name, _, sampler = method.partition(":")  # sweeper, or sweeper:SAMPLER to try another
    assert name == "sweeper", f"unknown method {method}"
    spec = SearchSpec()
    return ModelSearch(**common, sampler=sampler or spec.sampler), make_stopping(spec.scheduler, OBJECTIVE, EPOCHS)


@cache
def surrogate(folder: Path, task: str) -> Surrogate:
    """Return the surrogate of a task, loaded once a process."""
    return Surrogate(folder, task)


def search(folder: Path, task: str, method: str, seed: int, budgets: Sequence[int], lanes: int) -> list[float]:
    """Run one search; return the best accuracy seen at each budget."""
    curves = surrogate(folder, task)
    searcher, stopping = make(method, curves.space, seed)
    models = (ModelPlan(name="m", checkpoint="", weights="", space=curves.space),)
    budget = Budget(num_trials=10**6, max_epochs=EPOCHS)
    plan = StudyPlan(name="lcbench", seed=seed, models=models, budget=budget, confirmation_seeds=(), content={})
    state = StudyState()
    best: list[float] = []
    limit = max(budgets) * EPOCHS

    class Incumbent:
        seen = -math.inf

        def on_event(self, event: Any) -> None:
            if event["kind"] == "measurement" and len(best) < limit:
                self.seen = max(self.seen, event["metrics"]["accuracy"])
                best.append(self.seen)

    book = Book(MemoryLedger(), state, OBJECTIVE, 1, [Incumbent()])
    conductor = SearchConductor(
        book, plan, {"m": searcher}, {"m": stopping}, lambda: len(best) >= limit, num_lanes=lanes
    )
    SimulatedLanes(curves.curve, lanes).serve(conductor)
    return [best[n * EPOCHS - 1] for n in budgets]


def _job(arguments: tuple[Any, ...]) -> tuple[tuple[str, str, int], list[float]]:
    folder, task, method, seed, budgets, lanes = arguments
    return (task, method, seed), search(folder, task, method, seed, budgets, lanes)


def _reference(arguments: tuple[Path, str]) -> float:
    return surrogate(*arguments).best_of_random()


def paired(differences: np.ndarray) -> dict[str, float]:
    """Mean of paired differences with its 95% interval."""
    mean = float(differences.mean())
    half = (
        float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)) if len(differences) > 1 else math.nan
    )
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "median": float(np.median(differences))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all methods on all tasks and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surrogate", type=Path, required=True)
    parser.add_argument("--tasks", default=DEV_TASKS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budgets", default="10,20,50")
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--methods", default="random,tpe,random_asha,ray,sweeper")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    tasks, methods = options.tasks.split(","), options.methods.split(",")
    budgets = [int(n) for n in options.budgets.split(",")]
    began = time.monotonic()
    jobs = [
        (options.surrogate, task, method, seed, budgets, options.lanes)
        for task in tasks
        for seed in range(options.seeds)
        for method in methods
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        references = dict(zip(tasks, pool.map(_reference, [(options.surrogate, task) for task in tasks]), strict=True))
        found = dict(pool.map(_job, jobs, chunksize=4))
    regrets = {
        method: np.array(
            [
                [references[task] - value for value in found[task, method, seed]]
                for task in tasks
                for seed in range(options.seeds)
            ]
        )
        for method in methods
    }
    report: dict[str, Any] = {
        "regret": {m: dict(zip(map(str, budgets), r.mean(axis=0).tolist(), strict=True)) for m, r in regrets.items()},
        "median_regret": {
            m: dict(zip(map(str, budgets), np.median(r, axis=0).tolist(), strict=True)) for m, r in regrets.items()
        },
    }
    if "sweeper" in regrets:
        report["paired"] = {
            m: {str(n): paired(regrets["sweeper"][:, i] - r[:, i]) for i, n in enumerate(budgets)}
            for m, r in regrets.items()
            if m != "sweeper"
        }
    report |= {
        "tasks": tasks,
        "seeds": options.seeds,
        "lanes": options.lanes,
        "unit": "points of validation accuracy",
        "seconds": round(time.monotonic() - began, 1),
        "machine": facts(),
    }
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
