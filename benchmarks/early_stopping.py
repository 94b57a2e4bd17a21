"""Early stopping on real training: promotion, stopping and none at the same total epochs.

    python benchmarks/early_stopping.py --schedulers none,asha,asha-promotion --seeds 0,1,2 --json OUT.json

The study is ``examples/docstrings`` (run its ``pretrain.py`` first): two encoders, conditional unfreezing schedules,
eight epochs. Each run searches on Ray lanes until all its trials together have trained ``--epochs`` epochs, whatever
number of trials that makes; then it is interrupted and what is in its ledger is read. ``best``: the best validation
score of any epoch so far; ``complete``: of trials that ran to their end, from which a winner would be chosen; means
over both models. ``seconds``: from the first trial's start to the last epoch, without the start of Ray. Runs found in
OUT.json are kept, so that a comparison can be made in parts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

from machine import facts

from sweeper.core.errors import StopRequested
from sweeper.core.trial import TrialState
from sweeper.engine.environment import prepare

prepare(own_ray=True)

from sweeper.spec.load import load_study  # noqa: E402
from sweeper.store.ledger import Ledger, LedgerTail  # noqa: E402
from sweeper.store.paths import ResultPaths  # noqa: E402
from sweeper.store.state import StudyState  # noqa: E402
from sweeper.workflows.execute import execute  # noqa: E402
from sweeper.workflows.study import provisional, settle  # noqa: E402

STUDY = Path(__file__).parent.parent / "examples" / "docstrings" / "study.yaml"
METRIC = "macro_f1"


class Meter:
    """Counts the epochs that a running study has put into its ledger."""

    def __init__(self, paths: ResultPaths, limit: int) -> None:
        self._tail = LedgerTail(paths)
        self._limit = limit
        self._epochs = 0

    def is_spent(self) -> bool:
        """Whether the limit is reached."""
        self._epochs += sum(event.kind == "measurement" for event in self._tail.poll())
        return self._epochs >= self._limit


def run(scheduler: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Search until the epochs are spent; return what was found."""
    spec = load_study(
        STUDY,
        [
            f"name={scheduler}-{seed}",
            f"seed={seed}",
            f"storage_path={folder}",
            f"task.data.train=builtin:docstrings?per_class={options.per_class}",
            f"search.scheduler.type={scheduler}",
            f"search.max_concurrent_trials={options.lanes}",
            "search.num_trials=1000",
        ],
    )
    with provisional(spec) as draft:
        study = settle(draft)
    with suppress(StopRequested):
        execute(study, Meter(study.paths, options.epochs).is_spent)
    events = Ledger.read(study.paths)
    state = StudyState.replay(events)
    began = next(event.t for event in events if event.kind == "segment_started")
    measured = [event.t for event in events if event.kind == "measurement"]
    trials = list(state.trials.values())
    models = [model.name for model in study.plan.models]

    def best(only_complete: bool) -> float:
        return mean(
            max(
                measurement.metrics[METRIC]
                for trial in trials
                if trial.spec.model == model and (trial.state is TrialState.COMPLETE or not only_complete)
                for measurement in trial.measurements
            )
            for model in models
        )

    return {
        "scheduler": scheduler,
        "seed": seed,
        "best": best(False),
        "complete": best(True),
        "seconds": measured[-1] - began,
        "epochs": len(measured),
        "trials": len(trials),
        "states": Counter(trial.state.value for trial in trials),
        "promotions": sum(event.kind == "trial_promoted" for event in events),
    }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over seeds by scheduler."""
    found = {}
    for scheduler in dict.fromkeys(run["scheduler"] for run in runs):
        mine = [run for run in runs if run["scheduler"] == scheduler]
        found[scheduler] = {key: mean(run[key] for run in mine) for key in ("best", "complete", "seconds", "trials")}
        found[scheduler]["seeds"] = [run["seed"] for run in mine]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedulers", default="none,asha,asha-promotion")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=96, help="of all trials of both models together")
    parser.add_argument("--per-class", type=int, default=150, help="examples of each class")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    settings = {"epochs": options.epochs, "per_class": options.per_class, "lanes": options.lanes}
    report: dict[str, Any] = {**settings, "runs": []}
    if options.json and options.json.exists():
        report = json.loads(options.json.read_text())
        assert {key: report[key] for key in settings} == settings, "the file holds runs of other settings"
    known = {(run["scheduler"], run["seed"]) for run in report["runs"]}
    for seed in map(int, options.seeds.split(",")):
        for scheduler in options.schedulers.split(","):
            if (scheduler, seed) in known:
                continue
            with tempfile.TemporaryDirectory(prefix="sweeper-early-stopping-") as folder:
                report["runs"].append(run(scheduler, seed, options, Path(folder)))
            report |= {"summary": summary(report["runs"]), "machine": facts()}
            if options.json:
                options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
