"""Pretrains two small encoders on the histories by hiding items (as BERT4Rec does), in about a minute on one core.

    python examples/recommendation/pretrain.py

One token an item. Only the histories of the study's training split are seen, without the items that came next.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docstrings"))
import pretrain as masked

from sweeper.testing.pretraining import begin

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token an item."""
    words = sorted({word for text in texts for word in text.split()})
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names)


def main() -> None:
    """Pretrain and save both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    begin()
    sys.path.insert(0, str(Path(__file__).parent))  # where the study's task is found
    texts, places = masked.of_study(Path(__file__).parent / "study.yaml")
    tokenizer = make_tokenizer(texts)
    encoded = tokenizer(texts, truncation=True, max_length=16, padding="max_length", return_tensors="pt")
    for name, model in masked.make_models(len(tokenizer)).items():
        began = time.perf_counter()
        loss = masked.pretrain(model, encoded["input_ids"], tokenizer, arguments.steps)
        model.base_model.save_pretrained(places[name])
        tokenizer.save_pretrained(places[name])
        print(f"{name}: loss {loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
