"""Early stopping where trials are few and short, as in most fine-tuning studies.

    python benchmarks/short_trials.py --surrogate DIR --tasks 3945,7593 --epochs 4,6,8,10 --trials 8,16,32 --seeds 5

Each study runs its number of trials on two simulated lanes with the default sampler; then a winner is chosen among its
COMPLETE trials, as `sweeper` does. Curves: LCBench (see `lcbench.py`) with its 50 epochs read at as many evenly spaced
ones, and with ``--recorded`` the recorded fine-tuning space of `recorded_space.py` (9 epochs, whatever ``--epochs``
says). Each setting is TYPE, TYPE:GRACE or TYPE:GRACE:FACTOR of ``search.scheduler``. With ``--limit device-hours`` a
study of N trials is one that ends when its device-hours do, those of N full trainings, whatever number that makes.

By setting, number of trials and epochs, means over tasks and seeds: ``regret`` of the winner's best epoch, in points of
the best final value of many random configurations; ``epochs`` trained, as a share of those that all trials would have
taken; ``complete`` trials beside the default, and the ``least`` of any study.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lcbench
import numpy as np
import recorded_space
from machine import facts
from search_methods import Curves

from sweeper.core.budget import Budget
from sweeper.core.selection import best_trial
from sweeper.core.trial import Measurement, TrialSpec, TrialState
from sweeper.plan.plan import ModelPlan, StudyPlan
from sweeper.spec.study import SearchSpec
from sweeper.store.state import StudyState
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import resumed_search
from sweeper.workflows.simulate import MemoryLedger, SimulatedLanes

LANES = 2
SETTINGS = "none,asha:0.25,asha-promotion"


class Shortened:
    """Curves of LCBench at a few evenly spaced epochs, as if these were all."""

    def __init__(self, curves: lcbench.Surrogate, max_epochs: int) -> None:
        self._curves = curves
        self.space, self.objective, self.max_epochs = curves.space, curves.objective, max_epochs
        self._at = [round(epoch * lcbench.EPOCHS / max_epochs) for epoch in range(1, max_epochs + 1)]

    def curve(self, trial: TrialSpec) -> Iterator[Measurement]:
        values = self._curves.accuracies([trial.params], self._at)[0].tolist()
        for epoch, value in enumerate(values, 1):
            yield Measurement(
                epoch=epoch, train_loss=0, validation_loss=0, metrics={"accuracy": value}, elapsed_seconds=float(epoch)
            )

    def effective(self, trial: TrialSpec) -> Mapping[str, Any]:
        return self._curves.effective(trial)

    def reference(self) -> float:
        return self._curves.reference()


def study(curves: Curves | Shortened, setting: str, count: int, limit: str, seed: int) -> tuple[float, int, int]:
    """Run one study; return the winner's value, the epochs trained and the trials completed beside the default."""
    by_time = limit == "device-hours"
    num_trials = 10**6 if by_time else count
    values = dict(zip(("type", "grace_fraction", "reduction_factor"), setting.split(":"), strict=False))
    spec = SearchSpec.model_validate({"num_trials": num_trials, "max_epochs": curves.max_epochs, "scheduler": values})
    models = (ModelPlan(name="m", checkpoint="", weights="", space=curves.space),)
    hours = count * curves.max_epochs / 3600 if by_time else None  # an epoch takes a second
    budget = Budget(num_trials=num_trials, max_epochs=curves.max_epochs, device_hours_per_model=hours)
    plan = StudyPlan(name="short", seed=seed, models=models, budget=budget, confirmation_seeds=(), content={})
    book = Book(MemoryLedger(), StudyState(), curves.objective, 1)
    conductor = resumed_search(book, plan, spec, lambda: False, LANES)
    SimulatedLanes(curves.curve, LANES, effective=curves.effective).serve(conductor)
    trials = list(book.state.trials.values())
    winner = best_trial(trials, curves.objective)
    assert winner is not None
    assert winner.value is not None
    complete = sum(trial.state is TrialState.COMPLETE and trial.spec.number > 0 for trial in trials)
    return winner.value, sum(len(trial.measurements) for trial in trials), complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surrogate", type=Path)
    parser.add_argument("--tasks", default=lcbench.DEV_TASKS)
    parser.add_argument("--recorded", action="store_true")
    parser.add_argument("--settings", default=SETTINGS)
    parser.add_argument("--epochs", default="4,6,8,10")
    parser.add_argument("--trials", default="8,16,32")
    parser.add_argument("--limit", default="trials", choices=("trials", "device-hours"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further study after so long")
    parser.add_argument("--json", type=Path, help="kept studies are not run again")
    options = parser.parse_args()
    began = time.monotonic()
    report: dict[str, Any] = {"references": {}, "studies": []}
    if options.json and options.json.exists():
        report = json.loads(options.json.read_text())
    known = {tuple(row["key"]) for row in report["studies"]}
    if options.recorded:
        places = [(model, recorded_space.EPOCHS) for model in recorded_space.MODELS]
    else:
        lengths = [int(number) for number in options.epochs.split(",")]
        places = [(task, epochs) for task in options.tasks.split(",") for epochs in lengths]
    counts = [int(number) for number in options.trials.split(",")]
    keys = itertools.product(range(options.seeds), places, counts, options.settings.split(","))
    for seed, (task, epochs), count, setting in keys:
        key = (setting, count, epochs, task, seed)
        if key in known or time.monotonic() - began > options.seconds:
            continue
        curves: Any = (
            recorded_space.load(str(recorded_space.RECORDED), task)
            if options.recorded
            else Shortened(lcbench.load(str(options.surrogate), task), epochs)
        )
        if task not in report["references"]:
            report["references"][task] = curves.reference()
        report["studies"].append({"key": key, "found": study(curves, setting, count, options.limit, seed)})
    report |= {"summary": summary(report), "machine": facts()}
    for line in report["summary"]:
        print(json.dumps(line))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def summary(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Means over the tasks and seeds that all settings have run."""
    found = {tuple(row["key"]): row["found"] for row in report["studies"]}
    settings = list(dict.fromkeys(key[0] for key in found))
    lines = []
    for count, epochs in sorted({key[1:3] for key in found}):
        pairs = {key[3:] for key in found if key[1:3] == (count, epochs)}
        pairs = {pair for pair in pairs if all((setting, count, epochs, *pair) in found for setting in settings)}
        for setting in settings if pairs else ():
            rows = np.array([found[setting, count, epochs, *pair] for pair in sorted(pairs)])
            regrets = [report["references"][task] - row[0] for (task, _), row in zip(sorted(pairs), rows, strict=True)]
            lines.append(
                {
                    "setting": setting,
                    "trials": count,
                    "max_epochs": epochs,
                    "studies": len(rows),
                    "regret": round(float(np.mean(regrets)), 3),
                    "epochs": round(float(rows[:, 1].mean()) / (count * epochs), 3),
                    "complete": round(float(rows[:, 2].mean()), 1),
                    "least": int(rows[:, 2].min()),
                }
            )
    return lines


if __name__ == "__main__":
    main()
