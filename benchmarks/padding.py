"""What padding costs in text generation, and what `training.packing` spares.

    python benchmarks/padding.py STUDY.yaml [--model NAME] [--batch-size 16] [--batches 12] [--json OUT]

STUDY is one of text generation. The first epoch's batches are gathered as training gathers them, of like length and
padded to fixed bounds, and packed; and both again in random order, which shows what putting like lengths together
spares by itself. Shares of tokens that are text come from the whole epoch, milliseconds of an example (processor time)
from forward and backward passes over some of its batches. Losses of packed and unpacked examples are compared.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts

from sweeper import load_study
from sweeper.models.load import load
from sweeper.tasks.base import Batch, Packing, Task
from sweeper.train.batches import epoch_batches
from sweeper.workflows.study import provisional


def seconds(module: Any, task: Task, batches: list[Batch]) -> float:
    """Return the processor seconds of forward and backward passes over some batches."""
    began = time.process_time()
    for batch in batches:
        task.loss(module(**batch.inputs, use_cache=False), batch.targets).sum().backward()
        module.zero_grad(set_to_none=True)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--model", help="the first of the study when left out")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=12, help="of each way that are timed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with provisional(load_study(options.study)) as study:
        task = study.task
        entry = next(model for model in study.spec.models if options.model in (None, model.name))
        model = load(entry, task.head)
        examples = task.open(task.encode(study.data.train(), model.preprocessor), model.preprocessor)
    assert isinstance(task, Packing), "the study must be one of text generation"
    module = model.instantiate(0, {}).eval()
    lengths = examples.lengths
    like = epoch_batches(lengths, options.batch_size, 0, 0)
    order = np.random.default_rng(0).permutation(len(lengths))
    mixed = [order[at : at + options.batch_size] for at in range(0, len(order), options.batch_size)]
    ways = {
        "like lengths": (like, examples.batch),
        "like lengths, packed": (like, lambda rows: task.packed(examples, rows)),
        "random order": (mixed, examples.batch),
        "random order, packed": (mixed, lambda rows: task.packed(examples, rows)),
    }
    print(f"{entry.name}: {len(lengths)} examples of {lengths.mean():.0f} tokens on average, {lengths.max()} at most")
    found: dict[str, Any] = {}
    for name, (parts, gather) in ways.items():
        text = float(lengths.sum() / sum(gather(rows).inputs["input_ids"].numel() for rows in parts))
        chosen = [parts[at] for at in np.linspace(0, len(parts) - 1, min(options.batches, len(parts))).astype(int)]
        batches = [gather(rows) for rows in chosen]
        seconds(module, task, batches[:2])
        each = 1000 * min(seconds(module, task, batches) for _ in range(2)) / sum(map(len, chosen))
        found[name] = {"text": text, "milliseconds": each}
        print(f"  {name:21} {text:.3f} of the tokens are text, {each:.2f} ms an example", flush=True)
    both = task.packed(examples, mixed[0]), examples.batch(mixed[0])
    with torch.no_grad():
        losses = [task.loss(module(**batch.inputs, use_cache=False), batch.targets) for batch in both]
    found["largest difference"] = float((losses[0] - losses[1]).abs().max())
    print(f"  losses of packed and unpacked examples differ by {found['largest difference']:.1e} at most")
    if options.json:
        options.json.write_text(json.dumps({"machine": facts(), "model": entry.name, "ways": found}, indent=1))


if __name__ == "__main__":
    main()
