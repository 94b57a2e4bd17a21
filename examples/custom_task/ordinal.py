"""A task of one's own, as one small class: grades, where a near miss is better than a far one.

Everything is a text classification's (inputs, head, decisions) but for the loss and one more metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from sweeper.tasks.base import PLAIN_LOSS, LossOptions, Metric
from sweeper.tasks.text_classification import TextClassification

KAPPA = Metric(
    "quadratic_kappa", "maximize", "Cohen's kappa, misses weighted by their squared distance; 0 where all are alike"
)


class Ordinal(TextClassification):
    """Classes in their natural order, 0 to K - 1."""

    type = "ordinal:Ordinal"
    default_metric = "quadratic_kappa"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Those of classification and quadratic kappa."""
        return {**super().metrics, KAPPA.name: KAPPA}

    def loss(self, outputs: Any, targets: torch.Tensor, options: LossOptions = PLAIN_LOSS) -> torch.Tensor:
        """Return cross entropy plus the expected squared distance in classes, per example (B,)."""
        shares = outputs.logits.float().softmax(dim=-1)
        distance = torch.arange(shares.shape[1], device=shares.device) - targets[:, None]
        return super().loss(outputs, targets, options) + (shares * distance**2).sum(dim=1) / shares.shape[1]

    def score(
        self, targets: NDArray[Any], predictions: NDArray[Any], threshold: float | None = None
    ) -> dict[str, float]:
        """Score class probabilities (N, K) against classes (N,)."""
        decisions = self.decide(predictions, threshold)
        alike = len({*targets.tolist(), *decisions.tolist()}) < 2
        kappa = 0.0 if alike else float(cohen_kappa_score(targets, decisions, weights="quadratic"))
        return {**super().score(targets, predictions, threshold), KAPPA.name: kappa}
