"""What the driver's node does at 1,000 lanes, 10,000 trials and 10 models, with stand-ins for lanes and Trainables.

    python benchmarks/thousand_lanes.py --json OUT.json

No Ray, no training: the real exchange is called by 1,000 stand-in lanes and 1,000 stand-in Trainables on its own event
loop; the real conductor, book and ledger take 10,000 trials of simulated curves from 1,000 simulated lanes with the
ledger in memory, and 1,000 with the ledger on disk, each event synced; the real tail of the tracking process reads that
ledger into a tracker that keeps nothing. Each part is measured alone, as reports per second of the clock where it
waits for a disk, else of the processor; searching is random, since `lcbench.py` and others measure searchers. From
these rates and the memory that a lane's helpers take on the driver's node, the report says how short epochs may be
before each part is the bottleneck.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import facts, publish

from sweeper.core.budget import Budget
from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, Float, SearchSpace
from sweeper.core.trial import Measurement, Segment, TrialSpec
from sweeper.engine.exchange import Exchange, Joining
from sweeper.engine.messages import Measured, NextEpoch, Start, Started
from sweeper.plan.plan import ModelPlan, StudyPlan
from sweeper.spec.study import SchedulerSpec, SearchSpec
from sweeper.store.ledger import Ledger, LedgerTail
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import resumed_search
from sweeper.workflows.simulate import MemoryLedger, SimulatedLanes

OBJECTIVE = Objective("accuracy", "maximize")
EPOCHS = 8
SPACE = SearchSpace(
    parameters=(
        Float(name="learning_rate", low=1e-5, high=1e-2, log=True),
        Float(name="dropout", low=0.0, high=0.3),
        Categorical(name="batch_size", choices=(16, 32, 64)),
    ),
    default={"learning_rate": 1e-3, "dropout": 0.1, "batch_size": 32},
)


def curve(trial: TrialSpec) -> Any:
    rng = random.Random(trial.seed)
    best, pace = rng.gauss(0.8, 0.05), rng.uniform(0.9, 1.1)
    for epoch in range(1, trial.max_epochs + 1):
        value = best * (1 - math.exp(-epoch / 2)) + rng.gauss(0, 0.01)
        metrics = {"accuracy": value, "macro_f1": value, "loss": 1 - value}
        yield Measurement(
            epoch=epoch, train_loss=1.0, validation_loss=1 - value, metrics=metrics, elapsed_seconds=epoch * pace
        )


def conduct(lanes: int, trials: int, models: int, ledger: Ledger) -> dict[str, float]:
    """Drive a search; return its rates."""
    spec = SearchSpec(num_trials=trials // models, max_epochs=EPOCHS, sampler="random", scheduler=SchedulerSpec())
    names = [f"model{index}" for index in range(models)]
    plan = StudyPlan(
        name="thousand",
        seed=0,
        models=tuple(ModelPlan(name=name, checkpoint="", weights="", space=SPACE) for name in names),
        budget=Budget(num_trials=trials // models, max_epochs=EPOCHS),
        confirmation_seeds=(),
        content={},
    )
    state = StudyState()
    book = Book(ledger, state, OBJECTIVE, 1)
    conductor = resumed_search(book, plan, spec, lambda: False, lanes)
    began, busy = time.perf_counter(), time.process_time()
    SimulatedLanes(curve, lanes).serve(conductor)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    ended = sum(record.state.is_final for record in state.trials.values())
    epochs = sum(len(record.measurements) for record in state.trials.values())
    assert ended == trials, f"{ended} of {trials} ended"
    return {
        "seconds": seconds,
        "cpu_seconds": busy,
        "epochs": epochs,
        "reports_per_second": epochs / seconds,
        "reports_per_cpu_second": epochs / busy,
        "trials_per_second": ended / seconds,
    }


async def exchange_rate(lanes: int, epochs: int) -> dict[str, float]:
    """Let stand-in Trainables command stand-in lanes through the real exchange."""
    exchange = Exchange()
    trial = TrialSpec(trial_id="t", number=0, model="m", params={}, seed=0, max_epochs=epochs)
    measured = Measured(next(curve(trial)))

    async def lane(name: str) -> None:
        await exchange.join(name, 0, 1, Joining(actor=None))
        while (item := await exchange.next_command(name, 0)) is not None:
            token, command = item
            reply = Started(node="here", from_epoch=0) if isinstance(command, Start) else measured
            await exchange.reply(name, 0, token, reply)

    async def trainable(index: int) -> None:
        await exchange.arrive("run", str(index), lanes, 20.0)
        for _ in range(2):
            mine = await exchange.acquire()
            await exchange.call(mine, Start(Segment(trial=trial, attempt=0)), 60.0)
            for _ in range(epochs):
                await exchange.call(mine, NextEpoch(), 60.0)
            await exchange.release(mine)

    serving = [asyncio.create_task(lane(f"lane-{index}")) for index in range(lanes)]
    await asyncio.sleep(0)
    began = time.process_time()
    await asyncio.gather(*(trainable(index) for index in range(lanes)))
    seconds = time.process_time() - began
    await exchange.dismiss()
    await asyncio.gather(*serving)
    calls = lanes * 2 * (epochs + 1)
    return {"calls": calls, "cpu_seconds": seconds, "calls_per_cpu_second": calls / seconds}


def tracker_rate(paths: ResultPaths) -> dict[str, float]:
    """Read the ledger as the tracking process does, and as a resume does."""
    tail, state = LedgerTail(paths), StudyState()
    began = time.process_time()
    events = tail.poll()
    read = time.process_time() - began
    for event in events:
        state.apply(event)
    folded = time.process_time() - began - read
    size = paths.ledger.stat().st_size
    return {
        "events": len(events),
        "megabytes": size / 1e6,
        "events_read_per_cpu_second": len(events) / read,
        "events_folded_per_cpu_second": len(events) / folded,
        "resume_cpu_seconds": read + folded,
    }


def judge(report: dict[str, Any], lanes: int, memory_gigabytes: float, lane_gigabytes: float) -> dict[str, Any]:
    """Say how short an epoch may be for each part, and how many lanes the driver's node can hold."""
    rates = {
        "driver with synced ledger": report["driver"]["reports_per_second"],
        "driver without disk": report["driver_memory"]["reports_per_cpu_second"],
        "exchange (event loop alone)": report["exchange"]["calls_per_cpu_second"],
        "tracking process (reading)": report["tracker"]["events_read_per_cpu_second"],
    }
    shortest = {name: lanes / rate for name, rate in rates.items()}
    return {
        "shortest_epoch_seconds": shortest,
        "helpers_gigabytes": lanes * lane_gigabytes,
        "lanes_that_fit_the_drivers_memory": int(memory_gigabytes / lane_gigabytes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--synced-trials", type=int, default=1000, help="with the ledger on disk; rates do not change")
    parser.add_argument("--memory-gigabytes", type=float, default=64.0, help="of the driver's node")
    parser.add_argument(
        "--lane-gigabytes",
        type=float,
        default=0.62,
        help="of a lane's controller, synchronisation actor and Tune actor on that node, as lane_costs.py measures it",
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    report: dict[str, Any] = {"lanes": given.lanes, "trials": given.trials, "models": given.models}
    report["driver_memory"] = conduct(given.lanes, given.trials, given.models, MemoryLedger())
    print(f"driver, ledger in memory: {report['driver_memory']['reports_per_second']:,.0f} reports/s", flush=True)
    with tempfile.TemporaryDirectory(prefix="swl-") as folder:
        paths = ResultPaths(Path(folder) / "thousand")
        paths.root.mkdir()
        with Ledger.open(paths) as ledger:
            report["driver"] = conduct(given.lanes, given.synced_trials, given.models, ledger)
        print(f"driver, ledger synced: {report['driver']['reports_per_second']:,.0f} reports/s", flush=True)
        report["tracker"] = tracker_rate(paths)
    report["exchange"] = asyncio.run(exchange_rate(given.lanes, EPOCHS))
    report["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    report |= judge(report, given.lanes, given.memory_gigabytes, given.lane_gigabytes) | {"machine": facts()}
    publish(report, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
