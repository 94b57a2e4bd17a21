"""What three schedules forget: the models of a study with `task.retention`, trained here without Ray.

    python benchmarks/forgetting.py [examples/generation/study.yaml] [--examples 200] [--epochs 2] [--models gpt2]

Each schedule trains the study's default configuration otherwise; target scores are those of validation. One seed: an
illustration of the measure, no claim about schedules.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from machine import facts

from sweeper import load_study
from sweeper.core.selection import best_measurement
from sweeper.core.trial import TrialSpec
from sweeper.data.prepare import load_prepared, retention_folder
from sweeper.models.load import load
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions
from sweeper.train.retention import ProbeData, retained
from sweeper.workflows.study import provisional

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCHEDULES = {
    "full": {"unfreezing": "full"},
    "last block": {"unfreezing": "last_blocks", "num_unfrozen_blocks": 1},
    "lora, rank 8": {"unfreezing": "lora", "lora_rank": 8, "lora_learning_rate": 1e-2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, default=EXAMPLES / "generation" / "study.yaml")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--models", help="comma-separated names; all of the study when left out")
    parser.add_argument("--schedule", action="append", choices=list(SCHEDULES), help="may be given again; all if not")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    spec = load_study(options.study, [f"task.data.max_train_examples={options.examples}"])
    assert spec.task.retention is not None, "the study names no task.retention"
    chosen = {name: SCHEDULES[name] for name in options.schedule or SCHEDULES}
    with provisional(spec) as study:
        other = load_prepared(retention_folder(study.data.folder))
        for entry in spec.models:
            if options.models and entry.name not in options.models.split(","):
                continue
            model = load(entry, study.task.head)
            data = ProbeData.of(spec, other, model)
            splits = {
                split: study.task.open(study.task.encode(table, model.preprocessor), model.preprocessor)
                for split, table in (("train", study.data.train()), ("validation", study.data.validation()))
            }
            metric, before = retained(model.instantiate(0, {}), model, data)
            space = study.spaces[entry.name]
            for name, schedule in chosen.items():
                params = {**space.active(space.default), **schedule}
                trial = TrialSpec(
                    trial_id="t", number=0, model=entry.name, params=params, seed=1, max_epochs=options.epochs
                )
                run = train(trial, study.task, model, TrainData(**splits), TrainOptions())
                best = best_measurement(list(run), study.objective)
                assert best is not None
                with tempfile.TemporaryDirectory() as folder:
                    run.save_best(Path(folder))
                    _, after = retained(model.load_weights(Path(folder)), model, data)
                score = best.metrics[study.objective.metric]
                rows.append({"model": entry.name, "schedule": name, "score": score, "before": before, "after": after})
                print(
                    f"{entry.name} {name}: validation {study.objective.metric} {score:.4f}; "
                    f"{metric} of the other set {before:.4f} -> {after:.4f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
