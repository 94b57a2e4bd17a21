"""Search strategies on recorded learning curves: regret against full trainings spent.

    python benchmarks/lcbench.py --surrogate DIR --tasks 3945,7593 --seeds 10 --budgets 10,20,50 --lanes 4 --json OUT

DIR holds the YAHPO Gym surrogate of LCBench (``model.onnx``, ``encoding.json``, ``config_space.json``): seven
hyperparameters, validation accuracy after each of 50 epochs. Every method runs on sweeper's own conductor and
simulated lanes (`sweeper.workflows.simulate`). A budget of n allows n x 50 epochs in all. Regret: best final accuracy
of 50,000 random configurations minus the best accuracy seen so far, in points.

The methods are those of `search_methods`. ``paired``: sweeper minus the other, mean over tasks and seeds, with a 95%
interval; below 0 is better. ``--resume`` goes on with the searches that OUT lacks, ``--seconds`` ends a run early.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from search_methods import Grid, load_known, publish, run

from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, Float, Int, Parameter, Params, SearchSpace
from sweeper.core.trial import Measurement, TrialSpec

FIRST_EPOCH, EPOCHS = 2, 50
CONTINUOUS = ("batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units", "max_dropout")
BLOCKS = (1, 5, 17, EPOCHS + 1)
NUM_DRAWS, BLOCK = 50_000, 5_000
DEV_TASKS = "3945,7593,34539,126025,126029,146212,167104,167149,167161,167168"
METHODS = "random,tpe,random_asha,ray,sweeper"


class Surrogate:
    """Learning curves of one OpenML task."""

    max_epochs = EPOCHS
    objective = Objective(metric="accuracy", goal="maximize")

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
        return self._accuracies(np.asarray(rows)).reshape(len(configurations), len(epochs))

    def _accuracies(self, rows: np.ndarray) -> np.ndarray:
        cat = np.full((len(rows), 1), self._code, np.int32)
        (out,) = self._session.run(None, {"x_cat": cat, "x_cont": rows.astype(np.float32)})
        return np.asarray(out[:, 1])

    def reference(self) -> float:
        """Return the best final accuracy of 50,000 random configurations."""
        rng = np.random.default_rng(0)
        best = -math.inf
        for _ in range(NUM_DRAWS // BLOCK):
            columns = [_draws(self.space[name], rng.random(BLOCK)) for name in CONTINUOUS]
            last = np.full(BLOCK, EPOCHS + FIRST_EPOCH - 1.0)
            best = max(best, float(self._accuracies(np.column_stack([last, *columns])).max()))
        return best

    def effective(self, trial: TrialSpec) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing is frozen here."""
        return {}

    def for_peers(self) -> Surrogate:
        """There is nothing that they could not know."""
        return self

    def curve(self, trial: TrialSpec) -> Iterator[Measurement]:
        """Return what training would measure."""
        for first, last in pairwise(BLOCKS):  # most trials are stopped early
            for epoch, value in enumerate(self.accuracies([trial.params], range(first, last))[0].tolist(), first):
                metrics = {"accuracy": value}
                yield Measurement(
                    epoch=epoch, train_loss=0, validation_loss=0, metrics=metrics, elapsed_seconds=float(epoch)
                )


def _draws(parameter: Parameter, at: np.ndarray) -> np.ndarray:
    """Return the values at uniform positions in [0, 1), in the parameter's own scale."""
    assert isinstance(parameter, Float | Int)
    low, high = float(parameter.low), float(parameter.high) + isinstance(parameter, Int)
    values = low * (high / low) ** at if parameter.log else low + at * (high - low)
    return np.floor(values) if isinstance(parameter, Int) else values


def _space(entries: list[dict[str, Any]]) -> SearchSpace:
    parameters: list[Parameter] = [
        (Int if e["type"] == "uniform_int" else Float)(name=e["name"], low=e["lower"], high=e["upper"], log=e["log"])
        for e in entries
    ]
    # These networks are trained without warm-up; without a word about it sweeper would assume its own default.
    parameters.append(Categorical(name="warmup_ratio", choices=(0.0,)))
    default = {e["name"]: e["default"] for e in entries} | {"warmup_ratio": 0.0}
    return SearchSpace(parameters=tuple(parameters), default=default)


@cache
def load(folder: str, task: str) -> Surrogate:
    """Return the surrogate of a task, loaded once a process."""
    return Surrogate(Path(folder), task)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all methods on all tasks and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surrogate", type=Path, required=True)
    parser.add_argument("--tasks", default=DEV_TASKS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budgets", default="10,20,50")
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--syne-tune", default="", help="Python of an environment with syne-tune, for syne:CLASS")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further search after so long")
    parser.add_argument("--resume", action="store_true", help="run only what the file of --json does not hold")
    parser.add_argument("--again", default="", help="with --resume: methods to run anew")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    grid = Grid(
        load=load,
        where=str(options.surrogate),
        tasks=options.tasks.split(","),
        methods=options.methods.split(","),
        seeds=options.seeds,
        budgets=[int(n) for n in options.budgets.split(",")],
        lanes=options.lanes,
        syne_tune=options.syne_tune,
        unit="points of validation accuracy",
    )
    known = load_known(options.json, resume=options.resume, without=options.again.split(","))
    publish(run(grid, known, options.processes, options.seconds, options.json), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
