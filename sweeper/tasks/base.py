"""The task protocol: the one plug-in point between data and models.

A task never opens files and never loads models. It receives Arrow tables (from ``data``) and a
preprocessor (from ``models``), and gives tensors to ``train``. Shapes: B examples, L tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from sweeper.core.head import HeadSpec
from sweeper.core.objective import Goal, Objective


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Model inputs by the name of ``forward``'s argument, each with B rows, and targets (B,)."""

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor


class Examples(Protocol):
    """An encoded split, memory-mapped: random access without Python objects per example."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Cost of each example in tokens (all ones for images); batches are bucketed by it."""
        ...

    @property
    def targets(self) -> NDArray[Any]:
        """Targets in row order, (N,)."""
        ...

    @property
    def example_ids(self) -> Sequence[str]:
        """Stable names of the examples in row order; they key ``predictions.parquet``."""
        ...

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Gather rows, padded to a fixed bucket bound so that results do not depend on neighbours."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric a task offers: its direction and one line of documentation."""

    name: str
    goal: Goal
    doc: str


class Task(Protocol):
    """What every task offers. Instances are plain data: picklable, cheap, without models or tables."""

    type: str
    objective: Objective

    @property
    def head(self) -> HeadSpec:
        """The head for this task's labels."""
        ...

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics by name; each is computed at every evaluation."""
        ...

    def cache_key(self) -> str:
        """What the encoding depends on beside data and preprocessor (length, image size, template)."""
        ...

    def encode(self, table: pa.Table, preprocessor: Any) -> pa.Table:
        """Tokenise or decode a raw split (columns of ``data.prepare``) into the columns ``open`` reads."""
        ...

    def open(self, encoded: pa.Table, preprocessor: Any) -> Examples:
        """Wrap an encoded split for random access."""
        ...

    def loss(
        self, outputs: Any, targets: torch.Tensor, *, label_smoothing: float = 0.0, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Per-example losses (B,) of a model's outputs; ``weights`` are per class (K,)."""
        ...

    def predict(self, outputs: Any) -> torch.Tensor:
        """What evaluation keeps of the outputs: class probabilities (B, K), in fp32."""
        ...

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> dict[str, float]:
        """Every metric by name over a whole split; each finite on any valid input."""
        ...


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's predictions on one split in row order: ids, targets (N,) and probabilities (N, K)."""

    example_ids: Sequence[str]
    targets: NDArray[Any]
    probabilities: NDArray[np.float32]
    labels: tuple[str, ...] = field(default=())
