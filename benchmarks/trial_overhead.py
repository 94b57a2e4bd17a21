"""Seconds of overhead per trial: warm lanes against Ray's documented Tune + Train pattern, no-op training.

    python benchmarks/trial_overhead.py --json OUT.json

The documented pattern is the one of Ray's guide "Hyperparameter Tuning with Ray Tune": a driver function that builds
a TorchTrainer per trial and reports through TuneReportCallback. Both arms run the same trials (three epochs that do
nothing), with the same workers, in the same cluster, in alternation; each arm keeps the two cores busy (two trials at
a time with one worker each, one at a time with two). ``ratio`` is the smallest over ``--workers`` of
pattern / lanes in seconds per trial. A pool's own start is charged separately as ``pool_start_seconds``, once a sweep.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import facts, publish

from sweeper.engine.environment import prepare

prepare(own_ray=True)

from ray import tune  # noqa: E402

from sweeper.core.trial import Measurement, TrialSpec  # noqa: E402
from sweeper.engine.cluster import connection  # noqa: E402
from sweeper.engine.lanes import LaneGroup, Lanes, LaneShape  # noqa: E402
from sweeper.engine.messages import (  # noqa: E402
    Assignment,
    Command,
    Leave,
    Left,
    Measured,
    Reply,
    Start,
    Started,
    StepReport,
)
from sweeper.engine.tune import run_assignments  # noqa: E402

EPOCHS = 3


class NoTraining:
    """A lane's worker that does nothing, at once."""

    def __init__(self) -> None:
        self._epoch = 0

    def handle(self, command: Command) -> Reply:
        if isinstance(command, Start):
            self._epoch = 0
            return Started(node="", from_epoch=0)
        if isinstance(command, Leave):
            return Left()
        self._epoch += 1
        return Measured(
            Measurement(epoch=self._epoch, train_loss=1.0, validation_loss=1.0, metrics={"m": 1.0}, elapsed_seconds=0.0)
        )


class FixedList:
    """A conductor over a fixed number of trials, none stopped early."""

    stopping = False

    def __init__(self, num_trials: int) -> None:
        self._waiting = [
            TrialSpec(trial_id=f"t{i}", number=i, model="none", params={}, seed=i, max_epochs=EPOCHS)
            for i in range(num_trials)
        ]
        self._running = 0
        self.num_done = 0

    def next(self) -> Any:
        if not self._waiting:
            return "wait" if self._running else "done"
        self._running += 1
        return Assignment(self._waiting.pop())

    def lost(self, assignment: Assignment) -> None:
        raise RuntimeError(f"{assignment.trial.trial_id} was lost: the timing is void")

    def take(self, report: StepReport) -> bool:
        assert isinstance(report.outcome, Measured), report.outcome
        ended = report.outcome.measurement.epoch == EPOCHS
        self._running -= ended
        self.num_done += ended
        return ended


def lanes_arm(num_workers: int, num_trials: int, scratch: Path) -> dict[str, float]:
    """Time the trials on warm lanes."""
    began = time.perf_counter()
    shape = LaneShape(num_workers=num_workers, resources_per_worker={"CPU": 1})
    group = LaneGroup(shape=shape, count=2 // num_workers, make_worker=NoTraining)
    with Lanes([group], scratch) as lanes:
        lanes.wait_ready()
        ready = time.perf_counter()
        work = FixedList(num_trials)
        run_assignments(lanes, work, scratch=scratch, max_retries=0, epoch_timeout_seconds=60)
        ended = time.perf_counter()
    assert work.num_done == num_trials
    return {"seconds_per_trial": (ended - ready) / num_trials, "pool_start_seconds": ready - began}


def _train(config: dict[str, Any]) -> None:
    from ray import train

    for _ in range(EPOCHS):
        train.report({"loss": 1.0})


def pattern_arm(num_workers: int, num_trials: int, scratch: Path) -> dict[str, float]:
    """Time the trials with a driver function that builds a TorchTrainer per trial."""

    def driver(config: dict[str, Any]) -> None:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        TorchTrainer(
            _train,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=str(scratch / "pattern"),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    began = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(driver, {"node:__internal_head__": 0.001}),
        param_space={"lr": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=num_trials, max_concurrent_trials=2 // num_workers),
        run_config=tune.RunConfig(storage_path=str(scratch / "pattern"), name=f"p{time.time_ns()}", verbose=0),
    ).fit()
    ended = time.perf_counter()
    assert len(results) == num_trials, results
    assert not results.errors, results.errors
    return {"seconds_per_trial": (ended - began) / num_trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--lane-trials", type=int, default=100)
    parser.add_argument("--pattern-trials", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2, help="alternations of the two arms; the best of each counts")
    parser.add_argument("--workers", default="1,2", help="workers of a lane")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.workers.split(",")]
    arms: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, connection(num_cpus=2):
        scratch = Path(folder)
        for _ in range(arguments.rounds):
            for num_workers in counts:
                for name, arm, count in (
                    ("lanes", lanes_arm, arguments.lane_trials),
                    ("ray_pattern", pattern_arm, arguments.pattern_trials),
                ):
                    figures = arm(num_workers, count, scratch)
                    key = f"{name}_{num_workers}_worker{'s' * (num_workers > 1)}"
                    best = arms.setdefault(key, figures)
                    arms[key] = {k: min(best[k], v) for k, v in figures.items()}
                    print(key, {k: round(v, 3) for k, v in figures.items()}, flush=True)
    per_trial = {key: figures["seconds_per_trial"] for key, figures in arms.items()}
    ratios = {
        str(n): per_trial[f"ray_pattern_{n}_worker{'s' * (n > 1)}"] / per_trial[f"lanes_{n}_worker{'s' * (n > 1)}"]
        for n in counts
    }
    result = {
        "ratio": min(ratios.values()),
        "ratio_by_workers": ratios,
        "seconds_per_trial": per_trial,
        "pool_start_seconds": {k: v["pool_start_seconds"] for k, v in arms.items() if "pool_start_seconds" in v},
        "machine": facts(),
    }
    publish(result, arguments.json)


if __name__ == "__main__":
    main()
