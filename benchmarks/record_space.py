"""Record a real fine-tuning space: many full learning curves of two small encoders, from a random sweep.

    python examples/quickstart/pretrain.py
    python benchmarks/record_space.py --work DIR --seconds 420      # again, until all 240 trials are recorded

Task, models and space are those of the quickstart: a ViT and a ResNet that know the digits 0 to 4 learn 5 to 9 from 100
images, under conditional unfreezing schedules; 30% of the images are for validation. Trial 0 of each model is the
default; the others are uniform draws. All trials train to the end, in this process and without Ray.
``DIR/trials.jsonl`` begins with the trials of `benchmarks/data/digits.parquet`, grows with each, and becomes that file
in the end: columns ``model, number, state, params`` (JSON), ``metric`` (macro-F1 on validation after each epoch) and
``seconds``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from recorded_space import EPOCHS, EXAMPLE, METRIC, MODELS, RECORDED
from transformers.utils import logging

from sweeper.core.errors import DivergedError, InfeasibleError
from sweeper.core.seeds import search_seed
from sweeper.core.space import Params, SearchSpace
from sweeper.core.trial import TrialSpec, TrialState
from sweeper.data.prepare import prepare
from sweeper.models.load import load
from sweeper.search.encoding import Encoder
from sweeper.spec.space import load_space
from sweeper.spec.study import DataSpec, MetricSpec, ModelSpec, TaskSpec
from sweeper.tasks.registry import make_task
from sweeper.train.activation_cache import ActivationStore
from sweeper.train.loop import TrainData, TrainOptions, train


def configurations(space: SearchSpace, model: str, count: int) -> list[Params]:
    """Return the default, then uniform draws."""
    rng = np.random.default_rng(search_seed(0, model, 0))
    rows = rng.random((count - 1, len(space.parameters)))
    return [space.active(space.default), *(Encoder(space).decode(row.tolist()) for row in rows)]


class Trainer:
    """Trains trials of one model on the recorded task."""

    def __init__(self, work: Path, model: str) -> None:
        spec = TaskSpec(
            type="image-classification",
            data=DataSpec(train="builtin:digits?classes=5-9", validation=0.3, test=0.3, max_train_examples=100),
            metric=MetricSpec(name=METRIC),
        )
        data = prepare(spec, kind="image", seed=0, folder=work / "data")
        self._task = make_task(spec, data.facts)
        self._model = load(ModelSpec(name=model, checkpoint=str(EXAMPLE / "checkpoints" / model)), self._task.head)
        opened = [
            self._task.open(self._task.encode(table, self._model.preprocessor), self._model.preprocessor)
            for table in (data.train(), data.validation())
        ]
        self._data = TrainData(train=opened[0], validation=opened[1], key=model)
        self._store = ActivationStore(folder=work / "activations" / model, limit_bytes=10**9)
        self._name = model

    def run(self, number: int, params: Params) -> dict[str, Any]:
        """Train one trial to its end."""
        trial = TrialSpec(
            trial_id=f"{self._name}-{number}",
            number=number,
            model=self._name,
            params=params,
            seed=search_seed(0, self._name, number),
            max_epochs=EPOCHS,
        )
        curve, seconds, state = [], 0.0, TrialState.COMPLETE
        try:
            for measured in train(trial, self._task, self._model, self._data, TrainOptions(), None, self._store):
                curve.append(round(measured.metrics[METRIC], 5))
                seconds = measured.elapsed_seconds
        except DivergedError:
            state = TrialState.FAIL
        except InfeasibleError:
            state = TrialState.INFEASIBLE
        return {
            "model": self._name,
            "number": number,
            "state": str(state),
            "params": dict(params),
            "metric": curve,
            "seconds": round(seconds, 2),
        }


def finish(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the recorded trials, in order."""
    ordered = sorted(rows, key=lambda row: (row["model"], row["number"]))
    columns: dict[str, Any] = {key: [row[key] for row in ordered] for key in ordered[0]}
    columns["params"] = [json.dumps(row["params"]) for row in ordered]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd")
    print(f"{len(ordered)} trials in {path}, {path.stat().st_size / 1000:.0f} kB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and what is recorded")
    parser.add_argument("--trials", type=int, default=120, help="of each model")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further trial after so long")
    parser.add_argument("--output", type=Path, default=RECORDED)
    arguments = parser.parse_args()
    began = time.monotonic()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    journal = arguments.work / "trials.jsonl"
    if not journal.exists() and arguments.output.exists():
        recorded = [row | {"params": json.loads(row["params"])} for row in pq.read_table(arguments.output).to_pylist()]
        journal.write_text("".join(json.dumps(row) + "\n" for row in recorded))
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    known = {(row["model"], row["number"]) for row in rows}
    space = load_space(str(EXAMPLE / "space.yaml"))
    drawn = {model: configurations(space, model, arguments.trials) for model in MODELS}
    trainers: dict[str, Trainer] = {}
    for number in range(arguments.trials):
        for model in MODELS:
            if (model, number) in known:
                continue
            if time.monotonic() - began > arguments.seconds:
                print(f"of {arguments.trials * len(MODELS)} trials intended:")
                finish(rows, arguments.output)
                return 0
            if model not in trainers:
                trainers[model] = Trainer(arguments.work, model)
            rows.append(trainers[model].run(number, drawn[model][number]))
            with journal.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    finish(rows, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
