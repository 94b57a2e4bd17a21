"""Pretrains two small encoders by masked-language modelling, in about a minute on one core.

    python examples/docstrings/pretrain.py [--text FILE.csv:COLUMN | --study STUDY.yaml]

The text is that of `builtin:docstrings` without its labels (docstrings of the installed packages, library names
masked), a column of a csv file, or the training inputs of a study, whose two checkpoints are then made. Both encoders
share one WordPiece vocabulary trained on the same text.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow.csv
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
)

from sweeper import load_study
from sweeper.data.builtin import read_builtin
from sweeper.data.prepare import prepare
from sweeper.tasks.registry import needs
from sweeper.testing.pretraining import begin, descend

LENGTH = 32
VOCABULARY = 2048
MASKED = 0.15


def make_models(vocabulary: int) -> dict[str, PreTrainedModel]:
    """Build the two encoders: one wide and shallow, one narrow and deep."""
    common = {"vocab_size": vocabulary, "max_position_embeddings": 256}
    return {
        "bert": BertForMaskedLM(
            BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512, **common)
        ),
        "distilbert": DistilBertForMaskedLM(DistilBertConfig(dim=96, n_layers=4, n_heads=4, hidden_dim=384, **common)),
    }


def train_tokenizer(texts: list[str]) -> BertTokenizerFast:
    """Train an uncased WordPiece vocabulary."""
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, show_progress=False)
    return BertTokenizerFast(tokenizer_object=tokenizer._tokenizer, model_max_length=256)


def predict(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Return (M, V) logits for (M, D) hidden states: the model's own head, on the masked positions alone."""
    if isinstance(model, BertForMaskedLM):
        return model.cls(hidden)
    return model.vocab_projector(model.vocab_layer_norm(model.activation(model.vocab_transform(hidden))))


def pretrain(model: PreTrainedModel, ids: torch.Tensor, tokenizer: BertTokenizerFast, steps: int) -> float:
    """Train in place on (N, L) token ids; return the mean loss of the last steps."""
    rng = torch.Generator().manual_seed(0)

    def batch_loss() -> torch.Tensor:
        batch = ids[torch.randint(len(ids), (32,), generator=rng)]
        mask = batch != tokenizer.pad_token_id
        chosen = (torch.rand(batch.shape, generator=rng) < MASKED) & mask
        inputs = batch.masked_fill(chosen, tokenizer.mask_token_id)
        hidden = model.base_model(input_ids=inputs, attention_mask=mask.long()).last_hidden_state
        return torch.nn.functional.cross_entropy(predict(model, hidden[chosen]), batch[chosen])

    return descend(model, batch_loss, steps, learning_rate=1e-3)


def of_study(path: Path) -> tuple[list[str], dict[str, Path]]:
    """Return the training inputs of a study, as it prepares them, and where its checkpoints belong."""
    spec = load_study(path)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(spec.task, seed=spec.seed, folder=Path(folder), **needs(spec.task))
        texts = data.train().column("text").to_pylist()
    # `checkpoints/bert` could be a model of the hub as well: a study takes it for a folder only once there is one.
    return texts, {model.name: path.resolve().parent / model.checkpoint for model in spec.models}


def main() -> None:
    """Pretrain and save both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoints")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument(
        "--study", type=Path, help="take its training inputs, and make its checkpoints bert and distilbert"
    )
    parser.add_argument("--text", help="FILE.csv:COLUMN to use in the place of docstrings")
    arguments = parser.parse_args()
    begin()
    places = {name: arguments.output / name for name in ("bert", "distilbert")}
    if arguments.study:
        texts, places = of_study(arguments.study)
    elif arguments.text:
        file, _, column = arguments.text.rpartition(":")
        texts = pyarrow.csv.read_csv(file).column(column).to_pylist()
    else:
        texts = read_builtin("docstrings?per_class=1000").column("text").to_pylist()
    tokenizer = train_tokenizer(texts)
    length = 96 if arguments.study else LENGTH  # records are longer than the docstrings' first words
    encoded = tokenizer(texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
    for name, model in make_models(len(tokenizer)).items():
        began = time.perf_counter()
        loss = pretrain(model, encoded["input_ids"], tokenizer, arguments.steps)
        model.base_model.save_pretrained(places[name])
        tokenizer.save_pretrained(places[name])
        count = sum(parameter.numel() for parameter in model.base_model.parameters())
        print(f"{name}: {count:,} parameters, loss {loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
