"""What padding costs in text generation, and what packing would spare: batches of like length against packed rows.

    python benchmarks/padding.py STUDY.yaml [--model NAME] [--batch-size 16] [--batches 12] [--json OUT]

STUDY is one of text generation. One epoch's batches are formed in three ways: as training forms them (like lengths
together, padded to fixed bounds), in random order, and packed: the examples of an epoch laid end to end in rows of
`max_length` (first fit, longest first), kept apart by a block-diagonal mask and positions that begin anew. Shares of
tokens that are text come from the whole epoch, times from forward and backward passes over some batches of each way.
Losses by example of packed rows are compared with unpacked ones: a difference would mean that examples see each other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts
from numpy.typing import NDArray

from sweeper import load_study
from sweeper.models.load import load
from sweeper.tasks.text import bucket
from sweeper.tasks.text_generation import IGNORED, AnswerExamples
from sweeper.train.batches import epoch_batches
from sweeper.workflows.study import provisional

Rows = list[NDArray[np.int64]]
"""Examples (their indices) that share a row, row by row."""


def first_fit(lengths: NDArray[np.int64], width: int) -> Rows:
    """Put examples into as few rows of ``width`` tokens as first fit, longest first, makes of them."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in np.argsort(-lengths, kind="stable"):
        at = next((at for at, left in enumerate(room) if left >= lengths[index]), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(width)
        rows[at].append(int(index))
        room[at] -= int(lengths[index])
    return [np.array(row) for row in rows]


def packed(
    examples: AnswerExamples, rows: Rows, width: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return inputs, targets (R, L) and the owner of each position (R, L), -1 for padding."""
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full_like(tokens, IGNORED)
    owners = torch.full_like(tokens, -1)
    positions = torch.zeros_like(tokens)
    for at, row in enumerate(rows):
        begin = 0
        for index in row:
            one = examples.batch(np.array([index]))
            length = int(one.inputs["attention_mask"].sum())
            place = slice(begin, begin + length)
            tokens[at, place] = one.inputs["input_ids"][0, :length]
            targets[at, place] = one.targets[0, :length]
            targets[at, begin] = IGNORED  # would be predicted from the example before it
            owners[at, place], positions[at, place] = int(index), torch.arange(length)
            begin += length
    same = (owners[:, :, None] == owners[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    inputs = {"input_ids": tokens, "position_ids": positions, "attention_mask": same[:, None]}
    return inputs, targets, owners


def token_losses(module: Any, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of each position but the first (R, L - 1); 0 where none is asked."""
    logits = module(**inputs, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets[:, 1:], reduction="none", ignore_index=IGNORED
    )


def largest_difference(module: Any, examples: AnswerExamples, rows: Rows, width: int) -> float:
    """Return the largest difference between packed and unpacked losses of an example."""
    inputs, targets, owners = packed(examples, rows, width)
    with torch.no_grad():
        losses = token_losses(module, inputs, targets)
        worst = 0.0
        for index in np.concatenate(rows):
            batch = examples.batch(np.array([index]))
            alone = float(token_losses(module, batch.inputs, batch.targets).sum())
            worst = max(worst, abs(float(losses[owners[:, 1:] == int(index)].sum()) - alone))
    return worst


def seconds(
    module: Any, make: Callable[[Any], tuple[dict[str, torch.Tensor], torch.Tensor]], parts: Sequence[Any]
) -> float:
    """Return the seconds of forward and backward passes over some batches."""
    made = [make(part) for part in parts]
    began = time.perf_counter()
    for inputs, targets in made:
        token_losses(module, inputs, targets).sum().backward()
        module.zero_grad(set_to_none=True)
    return time.perf_counter() - began


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
        entry = next(model for model in study.spec.models if options.model in (None, model.name))
        model = load(entry, study.task.head)
        examples = study.task.open(study.task.encode(study.data.train(), model.preprocessor), model.preprocessor)
        assert isinstance(examples, AnswerExamples), "the study must be one of text generation"
        width = min(study.spec.task.max_length or 512, model.preprocessor.model_max_length)
    module = model.instantiate(0, {}).eval()
    lengths = examples.lengths
    like = epoch_batches(lengths, options.batch_size, 0, 0)
    order = np.random.default_rng(0).permutation(len(lengths))
    mixed = [order[at : at + options.batch_size] for at in range(0, len(order), options.batch_size)]
    rows = first_fit(lengths, width)
    per_step = max(1, round(options.batch_size * len(rows) / len(lengths)))
    steps = [rows[at : at + per_step] for at in range(0, len(rows), per_step)]

    def padded(part: NDArray[np.int64]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        batch = examples.batch(part)
        return batch.inputs, batch.targets

    def laid(part: Rows) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        inputs, targets, _ = packed(examples, part, width)
        return inputs, targets

    ways: dict[str, tuple[float, Callable[[Any], Any], Sequence[Any]]] = {
        "like lengths": (sum(len(part) * bucket(int(lengths[part].max()), width) for part in like), padded, like),
        "random order": (sum(len(part) * bucket(int(lengths[part].max()), width) for part in mixed), padded, mixed),
        "packed rows": (len(rows) * width, laid, steps),
    }
    found: dict[str, Any] = {}
    print(f"{len(lengths)} examples, {lengths.mean():.0f} tokens on average, at most {width}; {len(rows)} packed rows")
    for name, (tokens, make, parts) in ways.items():
        chosen = [parts[at] for at in np.linspace(0, len(parts) - 1, min(options.batches, len(parts))).astype(int)]
        seconds(module, make, chosen[:2])
        took = min(seconds(module, make, chosen) for _ in range(2))
        count = sum(len(np.concatenate(part)) if isinstance(part, list) else len(part) for part in chosen)
        text, each = float(lengths.sum() / tokens), 1000 * took / count
        found[name] = {"text": text, "milliseconds": each}
        print(f"  {name:13} {text:.3f} of the tokens are text, {each:.2f} ms an example")
    found["largest difference"] = largest_difference(module, examples, rows[:: max(1, len(rows) // 4)][:4], width)
    print(f"  packed and unpacked losses of an example differ by {found['largest difference']:.1e} at most")
    if options.json:
        options.json.write_text(json.dumps({"machine": facts(), "model": entry.name, "ways": found}, indent=1))


if __name__ == "__main__":
    main()
