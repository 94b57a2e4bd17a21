"""What text and image classification share: the head, the loss, the predictions and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray

from sweeper.core.errors import InputError, Problem
from sweeper.core.head import HeadSpec
from sweeper.core.objective import Objective
from sweeper.spec.study import TaskSpec
from sweeper.tasks.base import Metric
from sweeper.tasks.metrics import CLASSIFICATION, classification_scores


class Classification:
    """One label of K per example; a base for tasks that differ in their inputs.

    Parameters
    ----------
    spec:
        The task section of the study.
    classes:
        Labels in the order of their index.

    Raises
    ------
    InputError
        When the metric is unknown.
    """

    type: ClassVar[str]
    input_kind: ClassVar[str]
    auto_class: ClassVar[str]
    default_metric: ClassVar[str] = "accuracy"

    def __init__(self, spec: TaskSpec, classes: Sequence[str]) -> None:
        self._spec = spec
        self._classes = tuple(classes)
        name = spec.metric.name if spec.metric else self.default_metric
        if name not in self.metrics:
            raise InputError(
                Problem("task.metric.name", f"must be one of {', '.join(self.metrics)}", name, "choose one of them")
            )
        goal = (spec.metric.goal if spec.metric else None) or self.metrics[name].goal
        self.objective = Objective(name, goal)

    @property
    def head(self) -> HeadSpec:
        """A classifier over the classes."""
        return HeadSpec(auto_class=self.auto_class, labels=self._classes, problem_type="single_label_classification")

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics by name."""
        return CLASSIFICATION

    def loss(
        self, outputs: Any, targets: torch.Tensor, *, label_smoothing: float = 0.0, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return cross entropy per example (B,), in fp32; a class weight multiplies its examples' losses."""
        logits = outputs.logits.float()
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        return losses if weights is None else losses * weights[targets]

    def predict(self, outputs: Any) -> torch.Tensor:
        """Return class probabilities (B, K) in fp32."""
        return outputs.logits.float().softmax(dim=-1)  # type: ignore[no-any-return]

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> dict[str, float]:
        """Score probabilities (N, K) against targets (N,)."""
        return classification_scores(targets, predictions)
