"""Encoders of any size built from their configuration, and a training run of them over random texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sweeper.core.trial import TrialSpec
from sweeper.models.load import load
from sweeper.spec.study import DataSpec, ModelSpec, TaskSpec
from sweeper.tasks.registry import make_task
from sweeper.train.loop import TrainData, TrainingRun, train
from sweeper.train.options import TrainOptions

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(998))]


@dataclass(frozen=True)
class Size:
    """Blocks, their width and heads, and the tokens of a text."""

    blocks: int
    width: int
    heads: int
    length: int
    vocabulary: int = len(WORDS)


BERT_BASE = Size(blocks=12, width=768, heads=12, length=128, vocabulary=30_522)  # 109 million parameters


def save_encoder(folder: Path, size: Size, tokenizer: Any) -> None:
    """Save a BERT with random weights, the same every time."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        hidden_size=size.width,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        vocab_size=size.vocabulary,
    )
    hf.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def word_tokenizer() -> Any:
    """Return a tokenizer of one token a word."""
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def random_texts(size: Size, counts: Sequence[int]) -> list[pa.Table]:
    """Return splits of texts of equal length with one of four labels each."""
    tables = []
    for count in counts:
        rng = np.random.default_rng(count)
        tables.append(
            pa.table(
                {
                    "example_id": [str(i) for i in range(count)],
                    "label": pa.array(rng.integers(0, 4, count), pa.int32()),
                    "text": [" ".join(rng.choice(WORDS[2:], size.length)) for _ in range(count)],
                }
            )
        )
    return tables


def training(
    folder: Path, size: Size, options: TrainOptions, *, batch_size: int, steps: int = 1, epochs: int = 1
) -> TrainingRun:
    """Return a training run of ``steps`` steps an epoch, nothing trained yet; four examples are for validation."""
    save_encoder(folder, size, word_tokenizer())
    task = make_task(TaskSpec(type="text-classification", data=DataSpec(train="x"), max_length=512), list("abcd"))
    model = load(ModelSpec(name="m", checkpoint=str(folder)), task.head)
    opened = [
        task.open(task.encode(table, model.preprocessor), model.preprocessor)
        for table in random_texts(size, (steps * batch_size, 4))
    ]
    params = {"learning_rate": 1e-4, "batch_size": batch_size, "unfreezing": "full"} | NO_DROPOUT
    trial = TrialSpec(trial_id="t", number=0, model="m", params=params, seed=0, max_epochs=epochs)
    return train(trial, task, model, TrainData(train=opened[0], validation=opened[1], key="k"), options)
