"""Multi-label classification: any number of K labels per example, each with a sigmoid of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sweeper.core.head import HeadSpec, TargetKind
from sweeper.tasks.base import PLAIN_LOSS, LossOptions, Metric
from sweeper.tasks.labelled import Labelled
from sweeper.tasks.metrics import MULTI_LABEL, multi_label_scores

if TYPE_CHECKING:
    import torch


class MultiLabelClassification(Labelled):
    """Texts or images with any number of labels, the target a list or a separated string. See `Labelled`."""

    type: ClassVar[str] = "multi-label-classification"
    target_kind: ClassVar[TargetKind] = "labels"
    default_metric: ClassVar[str] = "micro_f1"

    @property
    def head(self) -> HeadSpec:
        """A logit for each label."""
        return HeadSpec(
            auto_class=self._inputs.auto_class,
            labels=self._facts.classes,
            problem_type="multi_label_classification",
            image_size=self._spec.image_size if self._is_image else None,
        )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics by name."""
        return MULTI_LABEL

    def loss(self, outputs: Any, targets: torch.Tensor, options: LossOptions = PLAIN_LOSS) -> torch.Tensor:
        """Return binary cross entropy per example (B,), the mean over labels, in fp32."""
        import torch
        from torch.nn import functional

        logits = outputs.logits.float()
        wanted = targets.float()
        smooth = wanted * (1 - options.label_smoothing) + options.label_smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        if options.focal_gamma > 0:
            losses = options.focus(losses, torch.where(wanted > 0, logits.sigmoid(), (-logits).sigmoid()))
        if options.class_weights is not None:
            losses = losses * options.class_weights
        return losses.mean(dim=1)

    def predict(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return a probability for each label (B, K) in fp32."""
        return outputs.logits.float().sigmoid()  # type: ignore[no-any-return]

    def decide(self, predictions: NDArray[Any], threshold: float | None = None) -> NDArray[np.int64]:
        """Return 0 or 1 for each label (N, K): labels of probability at least ``threshold``, one half."""
        return (predictions >= (0.5 if threshold is None else threshold)).astype(np.int64)

    def score(
        self, targets: NDArray[Any], predictions: NDArray[Any], threshold: float | None = None
    ) -> dict[str, float]:
        """Score probabilities (N, K) against targets (N, K)."""
        return multi_label_scores(targets, predictions, 0.5 if threshold is None else threshold)

    def baseline(self, train: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Score the training split's share of each label, given for every example."""
        return self.score(targets, np.tile(train.mean(axis=0), (len(targets), 1)))
