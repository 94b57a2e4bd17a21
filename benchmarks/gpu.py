"""What only a GPU can show about training: bf16 against fp32, gradient checkpointing, and memory that runs out.

    python benchmarks/gpu.py --json OUT.json

An encoder as large as BERT base (random weights, texts of 128 tokens) is trained by sweeper's own loop; each arm is a
process of its own. Throughput is that of the epochs after the first, validation of four examples included; ``peak`` is
what the allocator reserved. For memory that runs out the allocator is kept to half of the peak that the same batch
took without a limit (``halved``), to less than weights and moments take (``moments``) and than weights alone
(``weights``): the first goes on with smaller micro-batches and the same losses, the others are refused with a reason.
``auto`` is the speed-up that `training.precision: auto` measures and decides by. ``--device cpu --tiny`` checks the
script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from encoders import BERT_BASE, Size, training
from machine import facts, publish

from sweeper.core.errors import InfeasibleError
from sweeper.train.options import TrainOptions
from sweeper.train.precision import bf16_speedup

TINY = Size(blocks=2, width=64, heads=2, length=16)
BATCH, LARGE_BATCH, STEPS, EPOCHS = 32, 256, 20, 3
WEIGHTS_BYTES = 440e6  # of BERT base in fp32; with gradients and moments four times that


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training: how, and how much memory it may take (bytes; None: all)."""

    precision: str = "fp32"
    checkpointing: bool = False
    batch_size: int = BATCH
    steps: int = STEPS
    limit: float | None = None


ARMS = {
    "fp32": Arm(),
    "bf16": Arm(precision="bf16"),
    "bf16, checkpointing": Arm(precision="bf16", checkpointing=True),
    "large batch": Arm(batch_size=LARGE_BATCH, steps=2),
}


def train(arm: Arm, device: str, size: Size) -> dict[str, Any]:
    """Train in this process."""
    torch.set_num_threads(1)
    cuda = device == "cuda"
    options = TrainOptions(
        device=device, precision=arm.precision, gradient_checkpointing=arm.checkpointing, eval_batch_size=4
    )
    if arm.limit is not None and cuda:
        torch.cuda.set_per_process_memory_fraction(arm.limit / torch.cuda.mem_get_info()[1])
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = training(Path(folder), size, options, batch_size=arm.batch_size, steps=arm.steps, epochs=EPOCHS)
            found = list(run)
        except InfeasibleError as error:
            return {"infeasible": str(error)}
    seconds = found[-1].elapsed_seconds - found[0].elapsed_seconds
    return {
        "examples_per_second": (EPOCHS - 1) * arm.steps * arm.batch_size / seconds,
        "peak_megabytes": torch.cuda.max_memory_reserved() / 1e6 if cuda else None,
        "micro_batch_size": run.micro_batch_size,
        "losses": [measurement.train_loss for measurement in found],
    }


def run_arm(arm: Arm, options: argparse.Namespace) -> dict[str, Any]:
    """Train in a process of its own."""
    command = [sys.executable, __file__, "--device", options.device, "--arm", json.dumps(vars(arm))]
    command += ["--tiny"] if options.tiny else []
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    print(vars(arm), found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a model that trains anywhere")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = TINY if options.tiny else BERT_BASE
    if options.arm:
        print(json.dumps(train(Arm(**json.loads(options.arm)), options.device, size)))
        return
    arms = {name: run_arm(arm, options) for name, arm in ARMS.items()}
    peak = arms["large batch"]["peak_megabytes"] or 0.0
    limits = {"halved": peak * 1e6 / 2, "moments": 3 * WEIGHTS_BYTES, "weights": WEIGHTS_BYTES / 2}
    for name, limit in limits.items():
        arms[name] = run_arm(Arm(batch_size=LARGE_BATCH, steps=2, limit=limit), options)
    whole, parts = arms["large batch"]["losses"], arms["halved"]["losses"]
    publish(
        {
            "bf16_ratio": arms["bf16"]["examples_per_second"] / arms["fp32"]["examples_per_second"],
            "auto": bf16_speedup(options.device),
            "largest_loss_difference_after_halving": max(abs(a - b) / a for a, b in zip(whole, parts, strict=True)),
            "arms": arms,
            "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
            "machine": facts(),
        },
        options.json,
    )


if __name__ == "__main__":
    main()
