"""Pretrains two small decoders on docstrings, in about a minute and a half on one core.

    python examples/generation/pretrain.py

A GPT-2 and a Llama share one byte-level vocabulary trained on the same text: `builtin:docstrings`, docstrings of the
installed packages with their names masked. Summaries of the study's test split may be among them, for both alike.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sweeper.data.builtin import read_builtin
from sweeper.testing.pretraining import begin, descend

END = "<end>"
VOCABULARY, POSITIONS = 1024, 256


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level vocabulary with one special token, which ends a text."""
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, eos_token=END, model_max_length=POSITIONS)


def make_models(vocabulary: int) -> dict[str, PreTrainedModel]:
    """Build both from their configurations, about half a million parameters each."""
    common = {"vocab_size": vocabulary, "eos_token_id": 0, "bos_token_id": 0}
    return {
        "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=96, n_layer=3, n_head=4, n_positions=POSITIONS, **common)),
        "llama": LlamaForCausalLM(
            LlamaConfig(
                hidden_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=256,
                max_position_embeddings=POSITIONS,
                **common,
            )
        ),
    }


def pretrain(model: PreTrainedModel, stream: torch.Tensor, steps: int) -> float:
    """Train in place on windows of one long text (T,) of token ids; return the mean loss of the last steps."""
    rng = torch.Generator().manual_seed(0)

    def batch_loss() -> torch.Tensor:
        starts = torch.randint(len(stream) - 64, (16,), generator=rng)
        ids = stream[starts[:, None] + torch.arange(64)]
        return model(input_ids=ids, labels=ids).loss

    return descend(model, batch_loss, steps, learning_rate=2e-3)


def main() -> None:
    """Pretrain and save both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoints")
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    begin()
    texts = read_builtin("docstrings?per_class=1000").column("text").to_pylist()
    tokenizer = train_tokenizer(texts)
    stream = torch.tensor([token for ids in tokenizer(texts)["input_ids"] for token in [*ids, 0]])
    for name, model in make_models(len(tokenizer)).items():
        began = time.perf_counter()
        loss = pretrain(model, stream, arguments.steps)
        model.save_pretrained(arguments.output / name)
        tokenizer.save_pretrained(arguments.output / name)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {count:,} parameters, loss {loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
