"""What a suggestion costs after many trials of a model.

    python benchmarks/suggestion_cost.py --trials 3000 --json OUT

The preset of BERT for text classification, made-up learning curves of 8 epochs of which most were stopped at the
default rungs and one in twenty failed. ``median`` and ``p90`` are seconds of `ModelSearch.ask`, over 30 suggestions
after the given numbers of trials; ``processor_median`` counts this process alone, for machines with other work.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import facts

from sweeper.core.objective import Objective
from sweeper.core.space import Params
from sweeper.core.trial import Measurement, TrialRecord, TrialSpec, TrialState
from sweeper.search.encoding import Encoder
from sweeper.search.samplers import ModelSearch
from sweeper.search.schedulers import make_stopping
from sweeper.spec.space import load_space, preset_path
from sweeper.spec.study import SearchSpec

OBJECTIVE = Objective(metric="accuracy", goal="maximize")
EPOCHS, NUM_ASKED = 8, 30


def ended(number: int, params: Params, rungs: tuple[int, ...], rng: np.random.Generator) -> TrialRecord:
    """Return a trial that ended, better the nearer its rate is to 3e-5."""
    end = int(rng.choice([*rungs, EPOCHS], p=[0.66, *[0.34 / len(rungs)] * len(rungs)]))
    height = 0.9 - 0.1 * (math.log10(float(params["learning_rate"])) + 4.5) ** 2  # type: ignore[arg-type]
    measurements = tuple(
        Measurement(
            epoch=epoch,
            train_loss=0,
            validation_loss=0,
            metrics={"accuracy": height - 0.3 / epoch + 0.01 * rng.standard_normal()},
            elapsed_seconds=float(epoch),
        )
        for epoch in range(1, end + 1)
    )
    failed = rng.random() < 0.05
    state = TrialState.FAIL if failed else TrialState.COMPLETE if end == EPOCHS else TrialState.PRUNED
    spec = TrialSpec(trial_id=f"m-t{number}", number=number, model="m", params=params, seed=0, max_epochs=EPOCHS)
    value = max(m.metrics["accuracy"] for m in measurements) if state is TrialState.COMPLETE else None
    return TrialRecord(spec=spec, state=state, measurements=() if failed else measurements, value=value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="30,300,3000")
    parser.add_argument("--sampler", default=SearchSpec().sampler)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": facts(), "sampler": arguments.sampler, "seconds": {}}
    space = load_space(preset_path("bert", "text-classification", "text"))
    rungs = make_stopping(SearchSpec().scheduler, OBJECTIVE, EPOCHS).rungs
    for count in (int(number) for number in arguments.trials.split(",")):
        rng = np.random.default_rng(0)
        common: dict[str, Any] = {"space": space, "objective": OBJECTIVE, "study_seed": 0, "max_epochs": EPOCHS}
        search = ModelSearch(model="m", sampler=arguments.sampler, **common)
        encoder = Encoder(space)
        drawn = [encoder.decode(row.tolist()) for row in rng.random((count, encoder.num_parameters))]
        records = [ended(number, params, rungs, rng) for number, params in enumerate(drawn)]
        log = [(what, record.spec.trial_id, 0) for record in records for what in ("asked", "ended")]
        search.replay(records, {record.spec.trial_id: {} for record in records}, log)
        seconds, processor = [], []
        for number in range(count, count + NUM_ASKED):
            began, began_here = time.perf_counter(), time.process_time()
            asked = search.ask(number)
            seconds.append(time.perf_counter() - began)
            processor.append(time.process_time() - began_here)
            assert asked is not None
            search.tell(ended(number, asked.params, rungs, rng))
        found = {
            "median": float(np.median(seconds)),
            "p90": float(np.quantile(seconds, 0.9)),
            "processor_median": float(np.median(processor)),
        }
        result["seconds"][str(count)] = found
        print(f"{count} trials:", ", ".join(f"{key} {value:.4f} s" for key, value in found.items()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
