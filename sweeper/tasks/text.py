"""Text inputs of any task: tokenised once, padded per batch to a fixed bucket bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweeper.core.errors import InputError, Problem
from sweeper.tasks.base import Batch, NamedTargets, target_array

DEFAULT_MAX_LENGTH = 256
_BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class TextInputs:
    """One text or a pair of texts an example.

    Parameters
    ----------
    max_length:
        Longest input in tokens; None: 256, or less where the model takes less.
    """

    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, max_length: int | None) -> None:
        self._max_length = max_length or DEFAULT_MAX_LENGTH

    def cache_key(self) -> str:
        """Encoding depends on the length limit only."""
        return f"text-1 max_length={self._max_length}"

    def encode(self, table: pa.Table, preprocessor: Any) -> pa.Table:
        """Tokenise ``text`` (and ``text_pair``), truncated to the limit, without padding."""
        texts = table.column("text").to_pylist()
        pairs = table.column("text_pair").to_pylist() if "text_pair" in table.column_names else None
        encoded = preprocessor(
            texts,
            pairs,
            truncation=True,
            max_length=min(self._max_length, preprocessor.model_max_length),
            return_attention_mask=False,
        )
        columns = {"example_id": table.column("example_id"), "label": table.column("label")}
        for name in ("input_ids", "token_type_ids"):
            if name in encoded:
                columns[name] = pa.array(encoded[name], pa.list_(pa.int32()))
        return pa.table(columns)

    def open(self, encoded: pa.Table, preprocessor: Any, num_labels: int = 0) -> TokenExamples:
        """Wrap for random access; ``num_labels`` is K where targets are lists of labels.

        Raises
        ------
        InputError
            When the tokenizer has no token to pad with.
        """
        limit = min(self._max_length, preprocessor.model_max_length)
        return TokenExamples(encoded, pad_token(preprocessor), limit, num_labels)


def pad_token(tokenizer: Any) -> int:
    """Return the id that fills up short inputs.

    Raises
    ------
    InputError
        When the tokenizer has no token to pad with.
    """
    pad = tokenizer.pad_token_id
    if pad is None:  # decoders often have none; the attention mask hides whatever stands there
        pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.unk_token_id
    if pad is None:
        rule = "must have a padding, end or unknown token"
        raise InputError(Problem("tokenizer", rule, type(tokenizer).__name__, "set its pad_token"))
    return int(pad)


class TokenExamples(NamedTargets):
    """Token lists in Arrow memory, gathered and padded without a Python loop over tokens."""

    def __init__(self, table: pa.Table, pad_token_id: int, max_length: int, num_labels: int = 0) -> None:
        pad = {"input_ids": pad_token_id, "token_type_ids": 0}
        self._max_length = max_length
        self._columns = {name: ragged(table, name) for name in pad if name in table.column_names}
        self._pad = {name: pad[name] for name in self._columns}
        offsets, _ = self._columns["input_ids"]
        self._lengths = np.diff(offsets).astype(np.int64)
        super().__init__(table, target_array(table, num_labels))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example (N,)."""
        return self._lengths

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Gather B rows, padded to the bucket bound of the longest: (B, L) int64."""
        import torch

        lengths = self._lengths[indices]
        width = bucket(int(lengths.max()), self._max_length)
        inside = np.arange(width) < lengths[:, None]
        inputs = {"attention_mask": torch.from_numpy(inside.astype(np.int64))}
        for name, (offsets, values) in self._columns.items():
            padded = np.full(inside.shape, self._pad[name], dtype=np.int64)
            at = (offsets[indices][:, None] + np.arange(width))[inside]
            padded[inside] = values[at]
            inputs[name] = torch.from_numpy(padded)
        return Batch(inputs=inputs, targets=torch.from_numpy(self._targets[indices]), fill=self._pad)


def bucket(length: int, max_length: int) -> int:
    """Return the bound to which inputs of ``length`` tokens are padded, at most ``max_length``.

    Fixed bounds keep an example's result independent of its neighbours in the batch: the padded length alone can
    change a result in the last digits.
    """
    bound = next((b for b in _BUCKETS if length <= b), -(-length // 128) * 128)
    return max(length, min(bound, max_length))


def ragged(table: pa.Table, name: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return offsets (N + 1,) and values of a list column without copying it."""
    column = table.column(name)
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return chunk.offsets.to_numpy().astype(np.int64), chunk.values.to_numpy()
