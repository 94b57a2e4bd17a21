"""What the engine itself costs in large studies: three models, thousands of simulated trials, no training.

    python benchmarks/scale.py --trials 10000 --json OUT.json

Trials are split over three models with a conditional space; simulated lanes, curves of nine epochs, the study's real
conductors, searchers, early stopping, ledger (on disk, synced) and tables. ``engine_ms_per_trial`` is the time of
everything but training and the sampler's own thinking, over ``windows`` of the search, so that growth shows;
``thinking_ms`` is the time of ``ask``; ``engine_cpu_ms_per_trial`` is this process's own processor time, which other
load does not stretch as it does the rest. Then the ledger is read and folded as a resume does, searchers and rungs are
replayed, tables are written and the report is built from them. ``--suggestions N``: the median thinking of a sampler at
N trials of one model, in a study of its own; ``waited_ahead_ms`` is what is left to wait for where it thinks ahead, as
with several lanes, and a fifth of a second of training lies between two suggestions. Memory is the peak resident set of
this process.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from machine import facts, publish

from sweeper.core.budget import Budget
from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, Float, Int, SearchSpace
from sweeper.core.trial import Measurement, TrialRecord, TrialSpec, TrialState
from sweeper.plan.plan import ModelPlan, StudyPlan
from sweeper.report.build import build_report
from sweeper.search.samplers import Asked, ModelSearch
from sweeper.spec.space import space_as_dict
from sweeper.spec.study import SchedulerSpec, SearchSpec
from sweeper.store.ledger import Ledger
from sweeper.store.manifest import Manifest, write_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState
from sweeper.store.tables import write_tables
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import SearchConductor, resumed_search
from sweeper.workflows.simulate import SimulatedLanes

OBJECTIVE = Objective("accuracy", "maximize")
MODELS = ("bert", "vit", "resnet")
EPOCHS = 9
EPOCH_SECONDS = 0.2  # of training between two suggestions ahead of need
NUM_WINDOWS = 10
SPACE = SearchSpace(
    parameters=(
        Float(name="learning_rate", low=1e-5, high=1e-2, log=True),
        Categorical(name="batch_size", choices=(16, 32, 64)),
        Float(name="weight_decay", low=1e-4, high=0.1, log=True),
        Float(name="warmup_ratio", low=0.0, high=0.3),
        Float(name="dropout", low=0.0, high=0.4),
        Categorical(name="unfreezing", choices=("full", "head_only", "last_blocks", "gradual")),
        Int(name="num_unfrozen_blocks", low=1, high=6, when={"unfreezing": ("last_blocks",)}),
        Int(name="epochs_per_stage", low=1, high=2, when={"unfreezing": ("gradual",)}),
        Float(name="layer_decay", low=0.5, high=1.0, when={"unfreezing": ("full", "last_blocks")}),
    ),
    default={
        "learning_rate": 1e-3,
        "batch_size": 32,
        "weight_decay": 0.01,
        "warmup_ratio": 0.1,
        "dropout": 0.1,
        "unfreezing": "full",
        "layer_decay": 1.0,
    },
)


def curve(trial: TrialSpec) -> Iterator[Measurement]:
    """A learning curve that depends on configuration and seed alone."""
    rng = random.Random(trial.seed)
    off = math.log10(float(trial.params["learning_rate"])) + 3  # type: ignore[arg-type]
    best = 0.9 - 0.1 * off**2 + rng.gauss(0, 0.02)
    for epoch in range(1, trial.max_epochs + 1):
        value = best * (1 - math.exp(-epoch / 2)) + rng.gauss(0, 0.005)
        yield Measurement(
            epoch=epoch,
            train_loss=1 - value,
            validation_loss=1.1 - value,
            metrics={"accuracy": value, "macro_f1": value},
            elapsed_seconds=float(epoch),
        )


class Clock:
    """Wraps a model's search and measures its thinking."""

    def __init__(self, search: ModelSearch) -> None:
        self._search = search
        self.thinking: list[float] = []
        self.seconds = self.cpu_seconds = 0.0

    def ask(self, number: int) -> Asked | None:
        """Suggest, against the clock."""
        began, cpu_began = time.perf_counter(), time.process_time()
        asked = self._search.ask(number)
        self.thinking.append(time.perf_counter() - began)
        self.seconds += self.thinking[-1]
        self.cpu_seconds += time.process_time() - cpu_began
        return asked

    def tell(self, record: TrialRecord) -> None:
        """Take an end."""
        self._search.tell(record)

    def pause(self, record: TrialRecord) -> None:
        """Take a pause."""
        self._search.pause(record)


def make_plan(num_trials: int) -> StudyPlan:
    """Three models with the same space."""
    models = tuple(ModelPlan(name=name, checkpoint="c", weights="w", space=SPACE) for name in MODELS)
    content = {
        "objective": {"metric": OBJECTIVE.metric, "goal": OBJECTIVE.goal},
        "task": {"type": "text-classification"},
        "models": [
            {"name": m.name, "checkpoint": m.checkpoint, "weights": m.weights, "space": space_as_dict(SPACE)}
            for m in models
        ],
        "search": {},
        "confirm": {"seeds": [], "vary": ["seed"], "delta": None},
    }
    budget = Budget(num_trials=num_trials, max_epochs=EPOCHS)
    return StudyPlan(name="scale", seed=0, models=models, budget=budget, confirmation_seeds=(), content=content)


def search(paths: ResultPaths, plan: StudyPlan, spec: SearchSpec, lanes: int) -> dict[str, Any]:
    """Run the search; return what it cost."""
    ends: list[tuple[float, float]] = []  # (time, thinking so far) at each trial's end
    cpu_began = time.process_time()
    clocks: dict[str, Clock] = {}

    class Ends:
        def on_event(self, event: Any) -> None:
            if event["kind"] == "trial_ended":
                ends.append((time.perf_counter(), sum(clock.seconds for clock in clocks.values())))

    with Ledger.open(paths) as ledger:
        state = StudyState.replay(ledger.events())
        book = Book(ledger, state, OBJECTIVE, 1, [Ends()])
        conductor = resumed_search(book, plan, spec, lambda: False, lanes)
        clocks.update({name: Clock(inner) for name, inner in conductor._searches.items()})
        conductor._searches = clocks  # type: ignore[assignment]
        began = time.perf_counter()
        SimulatedLanes(curve, lanes).serve(conductor)
    cpu = time.process_time() - cpu_began - sum(clock.cpu_seconds for clock in clocks.values())
    thinking = [seconds for clock in clocks.values() for seconds in clock.thinking]
    total = ends[-1][0] - began
    marks = [(began, 0.0), *(ends[len(ends) * k // NUM_WINDOWS - 1] for k in range(1, NUM_WINDOWS + 1))]
    per_window = len(ends) / NUM_WINDOWS
    engine = [
        1000 * ((later[0] - earlier[0]) - (later[1] - earlier[1])) / per_window for earlier, later in pairwise(marks)
    ]
    num_events = sum(1 for _ in ledger.events())
    return {
        "trials": len(ends),
        "epochs": sum(len(record.measurements) for record in state.trials.values()),
        "pruned": sum(record.state is TrialState.PRUNED for record in state.trials.values()),
        "seconds": total,
        "engine_ms_per_trial": 1000 * (total - sum(thinking)) / len(ends),
        "engine_trials_per_second": len(ends) / (total - sum(thinking)),
        "engine_cpu_ms_per_trial": 1000 * cpu / len(ends),
        "windows_ms_per_trial": engine,
        "thinking_ms_median": 1000 * median(thinking),
        "thinking_seconds": sum(thinking),
        "events": num_events,
        "ledger_megabytes": paths.ledger.stat().st_size / 1e6,
    }


def timed(work: Any) -> tuple[dict[str, float], Any]:
    """Return seconds, by the clock and of the processor, and the result."""
    began, cpu_began = time.perf_counter(), time.process_time()
    result = work()
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}
    return spent, result


def rebuild(paths: ResultPaths, plan: StudyPlan, spec: SearchSpec) -> dict[str, Any]:
    """Read everything back, as a resume and a report do."""
    read, events = timed(lambda: Ledger.read(paths))
    fold, state = timed(lambda: StudyState.replay(events))
    with Ledger.open(paths) as ledger:
        book = Book(ledger, state, OBJECTIVE, 1)
        replay, conductor = timed(lambda: resumed_search(book, plan, spec, lambda: False, 1))
    assert isinstance(conductor, SearchConductor)
    content = {**plan.content, "search": {**spec.model_dump(mode="json")}}
    manifest = Manifest(
        name=plan.name,
        plan_hash=plan.plan_hash,
        content=content,
        versions={},
        data={"fingerprint": "f" * 12, "classes": [], "counts": {s: {} for s in ("train", "validation", "test")}},
        seeds={"study": 0, "confirmation": []},
        created_at="",
    )
    write_manifest(paths, manifest)
    tables, _ = timed(lambda: write_tables(paths, state, OBJECTIVE))
    report, page = timed(lambda: build_report(paths.root))
    return {
        "read_ledger": read,
        "fold": fold,
        "replay": replay,
        "write_tables": tables,
        "report": report,
        "report_megabytes": page.stat().st_size / 1e6,
    }


def suggestions(sampler: str, at: int, asks: int) -> dict[str, Any]:
    """Return the thinking of a sampler at ``at`` trials of one model, four of them under way."""
    common: dict[str, Any] = {
        "model": "m", "space": SPACE, "objective": OBJECTIVE, "study_seed": 0, "max_epochs": EPOCHS
    }  # fmt: skip
    search, drawn = ModelSearch(**common, sampler=sampler), ModelSearch(**common, sampler="random")
    records, log, rng = [], [], random.Random(0)
    for number in range(at):
        asked = drawn.ask(number)
        assert asked is not None
        trial = TrialSpec(
            trial_id=f"t{number}", number=number, model="m", params=asked.params, seed=number, max_epochs=EPOCHS
        )
        epochs = EPOCHS if rng.random() < 0.15 or number == 0 else 3
        measured = tuple(curve(trial))[:epochs]
        complete = epochs == EPOCHS
        records.append(
            TrialRecord(
                spec=trial,
                measurements=measured,
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                value=max(m.metrics["accuracy"] for m in measured) if complete else None,
            )
        )
        log += [("asked", trial.trial_id, 0), ("ended", trial.trial_id, 0)]
    replayed, _ = timed(lambda: search.replay(records, {r.spec.trial_id: {} for r in records}, log))
    spent = [timed(lambda n=at + k: search.ask(n))[0] for k in range(asks)]
    ahead = ModelSearch(**common, sampler=sampler, ahead=True)
    ahead.replay(records, {r.spec.trial_id: {} for r in records}, log)
    waited = []
    for k in range(asks):
        time.sleep(EPOCH_SECONDS)
        waited.append(timed(lambda n=at + k: ahead.ask(n))[0]["seconds"])
    times = [1000 * each["seconds"] for each in spent]
    return {
        "trials": at,
        "replay": replayed,
        "median_ms": median(times),
        "median_cpu_ms": median(1000 * each["cpu_seconds"] for each in spent),
        "first_ms": times[0],
        "slowest_ms": max(times),
        "waited_ahead_ms": 1000 * median(waited),
        "suggestions": asks,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help="of all three models together")
    parser.add_argument("--sampler", default="random", help="of the study")
    parser.add_argument("--scheduler", default="asha")
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--suggestions", type=int, default=3000, help="trials of one model; 0: not measured")
    parser.add_argument("--samplers", default="auto,tpe", help="whose thinking is measured there")
    parser.add_argument("--asks", type=int, default=20, help="suggestions of which the median is taken")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    spec = SearchSpec(
        num_trials=-(-options.trials // len(MODELS)),
        max_epochs=EPOCHS,
        sampler=options.sampler,
        scheduler=SchedulerSpec(type=options.scheduler),
    )
    plan = make_plan(spec.num_trials)
    report: dict[str, Any] = {"sampler": options.sampler, "scheduler": options.scheduler, "lanes": options.lanes}
    with tempfile.TemporaryDirectory(prefix="sweeper-scale-") as folder:
        paths = ResultPaths(Path(folder) / "scale")
        paths.root.mkdir()
        if options.trials:
            report["search"] = search(paths, plan, spec, options.lanes)
            report["rebuild"] = rebuild(paths, plan, spec)
    report["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.suggestions:
        report["suggestions"] = {
            sampler: suggestions(sampler, options.suggestions, options.asks) for sampler in options.samplers.split(",")
        }
    report["machine"] = facts()
    publish(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
