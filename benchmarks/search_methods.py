"""What `lcbench.py` and `recorded_space.py` share: search methods, one search on simulated lanes, grids of searches.

Methods: ``random`` and ``tpe`` train everything to the end; ``random_asha`` and ``ray`` stop as Ray's ASHA does by its
defaults (grace period 1, factor 4), ``ray`` tells stopped trials as complete, as Ray's ``OptunaSearch`` does;
``sweeper`` is the default of this package, from `SearchSpec`'s own defaults; ``sweeper:SAMPLER:SCHEDULER:GRACE:FACTOR``
is another setting of it, each part may be left out from the right; ``sweeper_no_default`` begins with a draw in the
place of the default configuration, as the peers do. ``syne:CLASS`` is a class of
`syne_tune.optimizer.baselines` with its own defaults, in the Python given by ``--syne-tune``.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from machine import facts
from scipy import stats

from sweeper.core.budget import Budget
from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, Int, Parameter, SearchSpace
from sweeper.core.trial import Decision, Measurement, TrialRecord, TrialSpec, TrialState
from sweeper.plan.plan import ModelPlan, StudyPlan
from sweeper.search.samplers import Asked, ModelSearch
from sweeper.search.schedulers import AshaStopping, EarlyStopping, NoStopping, make_stopping
from sweeper.spec.study import SchedulerSpec, SearchSpec
from sweeper.store.paths import replace_file
from sweeper.store.state import StudyState
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import SearchConductor
from sweeper.workflows.simulate import MemoryLedger, SimulatedLanes

PEER = Path(__file__).parent / "peers_search" / "syne_tune_peer.py"


class Curves(Protocol):
    """A space whose learning curves are known; scores are maximised."""

    space: SearchSpace
    max_epochs: int
    objective: Objective

    def curve(self, trial: TrialSpec) -> Iterator[Measurement]:
        """Return what training would measure."""
        ...

    def effective(self, trial: TrialSpec) -> Mapping[str, Any]:
        """Return what training would read back: its unfreezing events, where there are any."""
        ...

    def reference(self) -> float:
        """Return the score from which regrets are counted."""
        ...

    def for_peers(self) -> Curves:
        """Return the same as tools see it that know no warm-up and no unfreezing events."""
        ...


class WithoutDefault(ModelSearch):
    """A search as the peers do it: the first trials are random."""

    def ask(self, number: int) -> Asked | None:
        return super().ask(number + 1)  # 0 would be the default

    def pause(self, record: TrialRecord) -> None:
        super().pause(_one_on(record))

    def tell(self, record: TrialRecord) -> None:
        super().tell(_one_on(record))


def _one_on(record: TrialRecord) -> TrialRecord:
    return replace(record, spec=replace(record.spec, number=record.spec.number + 1))


class ToldComplete(WithoutDefault):
    """A stopped trial is told as complete with its last value."""

    def tell(self, record: TrialRecord) -> None:
        if record.state is TrialState.PRUNED:
            value = record.measurements[-1].metrics[self._objective.metric]
            record = replace(record, state=TrialState.COMPLETE, value=value)
        super().tell(record)


class Unprotected(AshaStopping):
    """Ray's ASHA knows no default that is never stopped."""

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Any:  # noqa: ARG002
        return super().decide(trial_id, epoch, value)


class Peer:
    """Syne Tune in its own process: searcher and early stopping at once."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def call(self, **request: Any) -> dict[str, Any]:
        """Return the answer to one request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class PeerSearch(ModelSearch):
    """Asks the peer; it hears of results by its early stopping."""

    peer: Peer

    def ask(self, number: int) -> Asked:
        return Asked(self.peer.call(ask=number)["params"], {})

    def tell(self, record: TrialRecord) -> None:
        pass


class PeerStopping(NoStopping):
    """Tells the peer of every epoch but the last one, and does what it says."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def decide(self, trial_id: str, epoch: int, value: float, *, protected: bool = False) -> Decision:  # noqa: ARG002
        number = int(trial_id.rpartition("-t")[2])
        stop = self._peer.call(trial=str(number), epoch=epoch, value=value)["stop"]
        return Decision.STOP if stop else Decision.CONTINUE


@cache
def _peer(python: str) -> Peer:
    return Peer(python)


def _description(parameter: Parameter) -> dict[str, Any]:
    if isinstance(parameter, Categorical):
        return {"name": parameter.name, "choices": list(parameter.choices)}
    kind = "int" if isinstance(parameter, Int) else "float"
    return {
        "name": parameter.name, "type": kind, "low": parameter.low, "high": parameter.high, "log": parameter.log
    }  # fmt: skip


def make(method: str, curves: Curves, seed: int, syne_tune: str, lanes: int) -> tuple[ModelSearch, EarlyStopping]:
    """Build searcher and early stopping of a method."""
    objective, epochs = curves.objective, curves.max_epochs
    common = {"model": "m", "space": curves.space, "objective": objective, "study_seed": seed, "max_epochs": epochs}
    ray_asha = Unprotected(objective, epochs, reduction_factor=4, grace_fraction=1 / epochs)
    name, *settings = method.split(":")
    match name:
        case "random" | "tpe":
            return WithoutDefault(**common, sampler=name), NoStopping()
        case "random_asha":
            return WithoutDefault(**common, sampler="random"), ray_asha
        case "ray":
            return ToldComplete(**common, sampler="tpe"), ray_asha
        case "syne":
            peer = _peer(syne_tune)
            space = [_description(parameter) for parameter in curves.space]
            peer.call(new={"method": settings[0], "space": space, "max_epochs": epochs, "seed": seed})
            search = PeerSearch(**common, sampler="random")
            search.peer = peer
            return search, PeerStopping(peer)
        case "sweeper" | "sweeper_no_default":
            names = ("sampler", "type", "grace_fraction", "reduction_factor")
            changed = dict(zip(names, settings, strict=False))
            sampler = changed.pop("sampler", "") or SearchSpec().sampler
            scheduler = SchedulerSpec.model_validate({**SearchSpec().scheduler.model_dump(), **changed})
            kind = ModelSearch if name == "sweeper" else WithoutDefault
            return kind(**common, sampler=sampler, ahead=lanes > 1), make_stopping(scheduler, objective, epochs)
    raise ValueError(f"unknown method {method}")


def search(curves: Curves, method: str, seed: int, budgets: Sequence[int], lanes: int, syne_tune: str) -> list[float]:
    """Run one search; return the best score seen at each budget, in full trainings."""
    if not method.startswith("sweeper"):
        curves = curves.for_peers()
    searcher, stopping = make(method, curves, seed, syne_tune, lanes)
    models = (ModelPlan(name="m", checkpoint="", weights="", space=curves.space),)
    budget = Budget(num_trials=10**6, max_epochs=curves.max_epochs)
    plan = StudyPlan(name="benchmark", seed=seed, models=models, budget=budget, confirmation_seeds=(), content={})
    best: list[float] = []
    limit = max(budgets) * curves.max_epochs

    class Incumbent:
        seen = -math.inf

        def on_event(self, event: Any) -> None:
            if event["kind"] == "measurement" and len(best) < limit:
                self.seen = max(self.seen, event["metrics"][curves.objective.metric])
                best.append(self.seen)

    book = Book(MemoryLedger(), StudyState(), curves.objective, 1, [Incumbent()])
    conductor = SearchConductor(
        book, plan, {"m": searcher}, {"m": stopping}, lambda: len(best) >= limit, num_lanes=lanes
    )
    SimulatedLanes(curves.curve, lanes, effective=curves.effective).serve(conductor)
    return [best[n * curves.max_epochs - 1] for n in budgets]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Searches to run: every method on every task with every seed.

    Parameters
    ----------
    load:
        Returns the curves of a task; a module's function, because it is called in other processes.
    where:
        What it needs to find them.
    """

    load: Callable[[str, str], Curves]
    where: str
    tasks: Sequence[str]
    methods: Sequence[str]
    seeds: int
    budgets: Sequence[int]
    lanes: int
    syne_tune: str = ""
    unit: str = ""

    @property
    def jobs(self) -> list[tuple[str, str, int]]:
        """(method, task, seed), such that any beginning holds all methods."""
        return [(method, task, seed) for seed in range(self.seeds) for task in self.tasks for method in self.methods]


def _job(grid: Grid, job: tuple[str, str, int]) -> list[float]:
    method, task, seed = job
    return search(grid.load(grid.where, task), method, seed, grid.budgets, grid.lanes, grid.syne_tune)


def _reference(grid: Grid, task: str) -> float:
    return grid.load(grid.where, task).reference()


def run(grid: Grid, known: dict[str, Any], processes: int, seconds: float, path: Path | None = None) -> dict[str, Any]:
    """Run what an earlier report does not hold, starting nothing new after ``seconds``; return the report.

    ``known`` is a report of the same budgets and lanes, or empty. After each search the report is written to ``path``,
    so that a run which is killed can be resumed.
    """
    began = time.monotonic()
    if known:
        same = (known["lanes"], known["budgets"]) == (grid.lanes, list(grid.budgets))
        assert same, f"recorded with {known['lanes']} lanes and budgets {known['budgets']}"
    references: dict[str, float] = dict(known.get("references", {}))
    found = {(row["method"], row["task"], row["seed"]): row["best"] for row in known.get("searches", [])}
    with ProcessPoolExecutor(processes) as pool:
        for task in grid.tasks:
            if task not in references and time.monotonic() - began < seconds:
                references[task] = pool.submit(_reference, grid, task).result()
        left = iter([job for job in grid.jobs if job not in found and job[1] in references])
        under_way: dict[Any, tuple[str, str, int]] = {}
        while True:
            while len(under_way) < processes and time.monotonic() - began < seconds and (job := next(left, None)):
                under_way[pool.submit(_job, grid, job)] = job
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                found[under_way.pop(future)] = future.result()
                spent = round(known.get("seconds", 0.0) + time.monotonic() - began, 1)
                write(report(grid, references, found, spent), path)
    spent = round(known.get("seconds", 0.0) + time.monotonic() - began, 1)
    return report(grid, references, found, spent)


def report(
    grid: Grid, references: dict[str, float], found: dict[tuple[str, str, int], list[float]], seconds: float
) -> dict[str, Any]:
    """Return means and medians over the searches that all methods have done, and differences over those of each two."""
    everywhere = [(task, seed) for task in grid.tasks for seed in range(grid.seeds)]
    regrets = {
        method: {
            pair: references[pair[0]] - np.array(found[method, *pair])
            for pair in everywhere
            if (method, *pair) in found
        }
        for method in grid.methods
    }
    pairs = [pair for pair in everywhere if all(pair in known for known in regrets.values())]

    def by_budget(values: Any) -> dict[str, Any]:
        return dict(zip(map(str, grid.budgets), values, strict=True))

    common = {method: np.array([known[pair] for pair in pairs]) for method, known in regrets.items() if pairs}
    result: dict[str, Any] = {
        "regret": {method: by_budget(r.mean(axis=0).tolist()) for method, r in common.items()},
        "median_regret": {method: by_budget(np.median(r, axis=0).tolist()) for method, r in common.items()},
        "paired": {},
    }
    for method, other in regrets.items():
        shared = [pair for pair in other if pair in regrets.get("sweeper", {})]
        if method != "sweeper" and shared:
            differences = np.array([regrets["sweeper"][pair] - other[pair] for pair in shared])
            result["paired"][method] = {"num_pairs": len(shared), **by_budget([paired(d) for d in differences.T])}
    return result | {
        "num_pairs": len(pairs),
        "complete": len(pairs) == len(grid.tasks) * grid.seeds,
        "tasks": list(grid.tasks),
        "seeds": grid.seeds,
        "budgets": list(grid.budgets),
        "lanes": grid.lanes,
        "unit": grid.unit,
        "seconds": seconds,
        "machine": facts(),
        "references": references,
        "searches": [
            {"method": method, "task": task, "seed": seed, "best": best}
            for (method, task, seed), best in sorted(found.items())
        ],
    }


def paired(differences: np.ndarray) -> dict[str, float]:
    """Mean of paired differences with its 95% interval (Student's t over the pairs)."""
    mean = float(differences.mean())
    half = (
        float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)) if len(differences) > 1 else math.nan
    )
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "median": float(np.median(differences))}


def load_known(path: Path | None, *, resume: bool, without: Sequence[str] = ()) -> dict[str, Any]:
    """Read the report that is to be gone on with; empty where there is none. ``without``: methods to run anew."""
    if not resume or path is None or not path.exists():
        return {}
    known: dict[str, Any] = json.loads(path.read_text())
    known["searches"] = [row for row in known["searches"] if row["method"] not in without]
    return known


def publish(result: dict[str, Any], path: Path | None) -> None:
    """Print the report without its single searches, and write all of it."""
    print(json.dumps({key: value for key, value in result.items() if key != "searches"}, indent=2))
    write(result, path)


def write(result: dict[str, Any], path: Path | None) -> None:
    """Write the report whole, or not at all."""
    if path is not None:
        replace_file(path, lambda draft: draft.write_text(json.dumps(result, indent=1) + "\n"))
