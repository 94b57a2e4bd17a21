"""Texts that a model writes by itself, and how they travel: as code points, each of them exact in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

NOTHING = -1.0  # fills up shorter texts


def write_greedily(module: Any, inputs: dict[str, torch.Tensor], max_new_tokens: int, tokenizer: Any) -> list[str]:
    """Continue prompts (B, L), padded on the left, by the most probable tokens up to the end token.

    A checkpoint's own settings for generation (sampling, beams, penalties) are set aside: all models write alike.
    """
    import torch
    from transformers import GenerationConfig

    own = module.generation_config
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    module.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad
    )
    try:
        with torch.no_grad():
            made = module.generate(**inputs)
    finally:
        module.generation_config = own
    return tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)  # type: ignore[no-any-return]


def as_numbers(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return texts as code points (N, C), C the longest one's length, filled up with -1."""
    found = np.full((len(texts), max(map(len, texts), default=0)), NOTHING, dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        row[: len(text)] = [ord(character) for character in text]
    return found


def as_texts(numbers: NDArray[Any]) -> NDArray[Any]:
    """Return what `as_numbers` was given, an array (N,) of texts."""
    return np.array(["".join(chr(int(code)) for code in row[row >= 0]) for row in numbers], dtype=object)
