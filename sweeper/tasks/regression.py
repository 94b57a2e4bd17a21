"""Regression: one number per text, image or tabular record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sweeper.core.head import HeadSpec, TargetKind
from sweeper.tasks.base import PLAIN_LOSS, LossOptions, Metric
from sweeper.tasks.labelled import Labelled
from sweeper.tasks.metrics import REGRESSION, regression_scores

if TYPE_CHECKING:
    import torch


class Regression(Labelled):
    """One number per example. See `Labelled`.

    The head learns (target - mean) / deviation, both of the train split; predictions and metrics are in the targets'
    own unit again. The exported model answers in scaled units: ``target_mean`` and ``target_scale`` stand in its
    configuration.
    """

    type: ClassVar[str] = "regression"
    target_kind: ClassVar[TargetKind] = "number"
    default_metric: ClassVar[str] = "rmse"

    @property
    def head(self) -> HeadSpec:
        """A single output."""
        return HeadSpec(
            auto_class=self._inputs.auto_class,
            labels=(self._spec.columns.target or "target",),
            problem_type="regression",
            config={"target_mean": self._facts.mean, "target_scale": self._facts.scale},
            image_size=self._spec.image_size if self._is_image else None,
        )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics by name."""
        return REGRESSION

    def loss(self, outputs: Any, targets: torch.Tensor, options: LossOptions = PLAIN_LOSS) -> torch.Tensor:
        """Return the squared or Huber loss (delta 1) per example (B,), in units of the training deviation, in fp32."""
        from torch.nn import functional

        assert options == PLAIN_LOSS, "refused before"
        scaled = ((targets.double() - self._facts.mean) / self._facts.scale).float()
        loss = functional.huber_loss if self._spec.loss == "huber" else functional.mse_loss
        return loss(outputs.logits.float()[:, 0], scaled, reduction="none")

    def predict(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return numbers in the targets' unit (B, 1) in fp32."""
        return (outputs.logits.double() * self._facts.scale + self._facts.mean).float()  # type: ignore[no-any-return]

    def decide(self, predictions: NDArray[Any], threshold: float | None = None) -> NDArray[Any]:  # noqa: ARG002
        """Return the numbers (N,)."""
        return predictions[:, 0]

    def score(
        self,
        targets: NDArray[Any],
        predictions: NDArray[Any],
        threshold: float | None = None,  # noqa: ARG002
    ) -> dict[str, float]:
        """Score numbers (N, 1) against targets (N,)."""
        return regression_scores(targets, predictions[:, 0])

    def baseline(self, train: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Score the mean of the training targets, given for every example."""
        return regression_scores(targets, np.full(len(targets), np.mean(train)))
