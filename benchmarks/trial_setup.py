"""Seconds to set a trial up on a warm lane with a real model of about 20 MB, by unfreezing schedule.

    python benchmarks/trial_setup.py --json OUT.json

Clone and head, optimizer of every stage, read-back, and the check of stored states, in one process and on one core,
median of processor seconds: what a lane spends between two trials beside the messages that `trial_overhead.py` times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from activation_cache import SCHEDULES, bodies, prepared
from machine import facts

from sweeper.core.trial import TrialSpec
from sweeper.train.activation_cache import ActivationStore
from sweeper.train.loop import train
from sweeper.train.options import TrainOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10, help="for each schedule")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": facts(), "median_seconds": {}}
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore(folder=Path(folder) / "states", limit_bytes=10**10)
        task, model, data = prepared(bodies()["encoder"], Path(folder) / "encoder", 64)
        for name, more in SCHEDULES.items():
            params = {"learning_rate": 1e-3, "batch_size": 32, "unfreezing": name, **more}
            seconds = []
            for number in range(arguments.trials + 1):  # the first one fills the store
                trial = TrialSpec(trial_id="t", number=number, model="m", params=params, seed=number, max_epochs=4)
                began = time.process_time()
                train(trial, task, model, data, TrainOptions(), None, store).close()
                seconds.append(time.process_time() - began)
            result["median_seconds"][name] = statistics.median(seconds[1:])
            print(f"{name:15} {result['median_seconds'][name]:.3f} s", flush=True)
    result["median_of_medians"] = statistics.median(result["median_seconds"].values())
    print(f"median {result['median_of_medians']:.3f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
