"""Memory and time of a training step with and without gradient checkpointing.

    python benchmarks/gradient_checkpointing.py --json OUT.json

An encoder of twelve blocks built from its configuration is trained on random texts of equal length by sweeper's own
loop, one step and a short evaluation. Each arm is a process of its own, on one core: ``peak_megabytes`` is the most
resident memory that it had, less what it had before the step: gradients, moments and states count, weights and imports
do not. Equal losses are tested, with several workers too (`tests/train/test_training.py`).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from encoders import Size, training
from machine import facts, publish

from sweeper.train.options import TrainOptions

SIZE, BATCH = Size(blocks=12, width=256, heads=4, length=256), 16


def step(*, checkpointing: bool) -> dict[str, float]:
    """Train for one step in this process."""
    torch.set_num_threads(1)
    options = TrainOptions(gradient_checkpointing=checkpointing, eval_batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        run = training(Path(folder), SIZE, options, batch_size=BATCH)
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        began = time.process_time()
        loss = next(run).train_loss
    return {
        "peak_megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6,
        "cpu_seconds": time.process_time() - began,
        "loss": loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--arm", choices=("kept", "again"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps(step(checkpointing=arguments.arm == "again")))
        return
    arms: dict[str, dict[str, float]] = {}
    for arm in ("kept", "again"):
        said = subprocess.run([sys.executable, __file__, "--arm", arm], stdout=subprocess.PIPE, text=True, check=True)
        arms[arm] = json.loads(said.stdout.splitlines()[-1])
    result = {
        "memory_ratio": arms["again"]["peak_megabytes"] / arms["kept"]["peak_megabytes"],
        "time_ratio": arms["again"]["cpu_seconds"] / arms["kept"]["cpu_seconds"],
        "arms": arms,
        "machine": facts(),
    }
    publish(result, arguments.json)


if __name__ == "__main__":
    main()
