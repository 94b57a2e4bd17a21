"""The task protocol: the one plug-in point between data and models.

A task never opens files and never loads models. It receives Arrow tables (from ``data``) and a
preprocessor (from ``models``), and gives tensors to ``train``. Shapes: B examples, L tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweeper.core.head import HeadSpec
from sweeper.core.objective import Goal, Objective

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Model inputs by the name of ``forward``'s argument, each with B rows, and targets with B rows (fewer if packed).

    ``follow`` moves targets the way augmentation moved the images: given the batch, (B, 2) pixels down and to the right
    and (B,) whether mirrored, it returns the batch with everything but the pixels moved. None: targets have no place.
    ``fill`` names the inputs (B, L) that hold tokens and what stands in them after a row's last one. None: rows cannot
    be shortened.
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor
    follow: Callable[[Batch, NDArray[np.int64], NDArray[np.bool_]], Batch] | None = None
    fill: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """How a trial changes the loss of its training batches; the default is the plain loss of evaluation.

    Parameters
    ----------
    label_smoothing:
        Share of each target that is spread over all classes, [0, 1).
    focal_gamma:
        Exponent of the focal loss, 0 or more; 0 is off (Lin et al. 2017, arXiv 1708.02002).
    class_weights:
        Weights (K,) by class; None: all alike.
    """

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_weights: torch.Tensor | None = None

    def focus(self, losses: torch.Tensor, certainty: torch.Tensor) -> torch.Tensor:
        """Multiply losses by (1 - p) ** gamma, p the probability given to the target; both of one shape."""
        if self.focal_gamma == 0:
            return losses
        # Away from 0, where a power below 1 has no finite slope.
        return losses * (1 - certainty).clamp_min(1e-6) ** self.focal_gamma


PLAIN_LOSS = LossOptions()


class Examples(Protocol):
    """An encoded split, memory-mapped: random access without Python objects per example."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Cost of each example in tokens (all ones for images); batches are bucketed by it."""
        ...

    @property
    def targets(self) -> NDArray[Any]:
        """Targets in row order, N of them: class indices, numbers, rows of labels (N, K), texts or boxes (N, M, 8)."""
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


class NamedTargets:
    """The part of `Examples` that is the same for every kind of input: names and targets, in row order.

    Parameters
    ----------
    table:
        The encoded split.
    targets:
        Its targets, N of them.
    """

    def __init__(self, table: pa.Table, targets: NDArray[Any]) -> None:
        self._targets = targets
        self._ids = table.column("example_id")

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def targets(self) -> NDArray[Any]:
        """Class indices (N,), numbers (N,), labels (N, K), texts (N,) or boxes (N, M, 8)."""
        return self._targets

    @property
    def example_ids(self) -> Sequence[str]:
        """Names of the examples."""
        return self._ids.to_pylist()  # type: ignore[no-any-return]


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

    @property
    def not_applicable(self) -> Mapping[str, str]:
        """Hyperparameters that would do nothing here, each with the reason; they are refused."""
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

    def loss(self, outputs: Any, targets: torch.Tensor, options: LossOptions = PLAIN_LOSS) -> torch.Tensor:
        """Per-example losses (B,) of a model's outputs."""
        ...

    def predict(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """What evaluation keeps of the outputs, (B, K) in fp32: probabilities, or numbers in the targets' unit.

        Of boxes it keeps (B, M, 6). ``targets`` serve tasks that keep how well a given text was predicted; all others
        must not look at the answers.
        """
        ...

    def choose_threshold(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float | None:
        """Return the decision threshold chosen on validation; None where decisions need none."""
        ...

    def decide(self, predictions: NDArray[Any], threshold: float | None = None) -> NDArray[Any]:
        """Turn what `predict` kept into answers, N of them, comparable with the targets."""
        ...

    def score(
        self, targets: NDArray[Any], predictions: NDArray[Any], threshold: float | None = None
    ) -> dict[str, float]:
        """Every metric by name over a whole split; each finite on any valid input."""
        ...

    def baseline(self, train: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Every metric of the trivial answer, learnt from the training targets alone: majority class or mean."""
        ...


@runtime_checkable
class Writing(Protocol):
    """A task whose model may also write answers of its own; they stand behind what ``predict`` kept.

    ``num_kept`` is how many columns ``predict`` keeps.
    """

    num_kept: int

    @property
    def writes(self) -> bool:
        """Whether the study asks for it."""
        ...

    def write(self, module: Any, examples: Any, rows: NDArray[np.int64], device: torch.device) -> NDArray[np.float32]:
        """Return what the model, in evaluation mode, answers to rows by itself: (B, C) numbers."""
        ...


@runtime_checkable
class Packing(Protocol):
    """A task whose training examples may share rows, so that less is padded."""

    def packed(self, examples: Any, rows: NDArray[np.int64]) -> Batch:
        """Gather B examples in fewer rows; ``loss`` of the outputs is that of each example by itself, (B,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's predictions on one split in row order.

    Parameters
    ----------
    targets, decisions:
        N answers each, asked and given.
    probabilities:
        What the task's ``predict`` kept, (N, K): probabilities, or numbers.
    scores:
        Every metric by name.
    threshold:
        The decision threshold that was chosen on validation, if any.
    """

    example_ids: Sequence[str]
    targets: NDArray[Any]
    decisions: NDArray[Any]
    probabilities: NDArray[np.float32]
    scores: Mapping[str, float]
    threshold: float | None = None
    labels: tuple[str, ...] = field(default=())


def target_array(table: pa.Table, num_labels: int) -> NDArray[Any]:
    """Return an encoded split's targets: (N,) indices or numbers, or (N, ``num_labels``) of 0 and 1 for lists."""
    column = table.column("label").combine_chunks()
    if pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    if not pa.types.is_list(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)
    counts = np.asarray(column.value_lengths().to_numpy(zero_copy_only=False))
    hot = np.zeros((len(column), num_labels), dtype=np.int64)
    hot[np.repeat(np.arange(len(column)), counts), column.flatten().to_numpy(zero_copy_only=False)] = 1
    return hot
