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
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers as hf
from machine import facts, publish
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sweeper.core.trial import TrialSpec
from sweeper.models.load import load
from sweeper.spec.study import DataSpec, ModelSpec, TaskSpec
from sweeper.tasks.registry import make_task
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions

WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(998))]
BLOCKS, WIDTH, LENGTH, BATCH = 12, 256, 256, 16


def training(folder: Path, options: TrainOptions) -> Any:
    """Return a training run over random texts, nothing trained yet."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        vocab_size=len(WORDS),
    )
    hf.BertModel(config).save_pretrained(folder)
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    task = make_task(TaskSpec(type="text-classification", data=DataSpec(train="x")), list("abcd"))
    model = load(ModelSpec(name="m", checkpoint=str(folder)), task.head)
    opened = []
    for count in (BATCH, 4):
        rng = np.random.default_rng(count)
        table = pa.table(
            {
                "example_id": [str(i) for i in range(count)],
                "label": pa.array(rng.integers(0, 4, count), pa.int32()),
                "text": [" ".join(rng.choice(WORDS[2:], LENGTH)) for _ in range(count)],
            }
        )
        opened.append(task.open(task.encode(table, model.preprocessor), model.preprocessor))
    params = {"learning_rate": 1e-4, "batch_size": BATCH, "unfreezing": "full"}
    trial = TrialSpec(trial_id="t", number=0, model="m", params=params, seed=0, max_epochs=1)
    return train(trial, task, model, TrainData(train=opened[0], validation=opened[1], key="k"), options)


def step(*, checkpointing: bool) -> dict[str, float]:
    """Train for one step in this process."""
    torch.set_num_threads(1)
    options = TrainOptions(gradient_checkpointing=checkpointing, eval_batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        run = training(Path(folder), options)
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
