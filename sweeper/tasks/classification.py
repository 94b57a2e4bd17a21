"""One label of K per example: the head, the loss, the predictions and the metrics of text and image classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweeper.core.head import HeadSpec
from sweeper.tasks.base import PLAIN_LOSS, LossOptions, Metric
from sweeper.tasks.labelled import Labelled
from sweeper.tasks.metrics import CLASSIFICATION, EXPECTED_COST, classification_scores, decisions, expected_cost

if TYPE_CHECKING:
    import torch

_MAX_THRESHOLDS = 512


class Classification(Labelled):
    """One label of K per example; a base for tasks that differ in their inputs. See `Labelled`."""

    @property
    def head(self) -> HeadSpec:
        """A classifier over the classes."""
        return HeadSpec(
            auto_class=self._inputs.auto_class,
            labels=self._facts.classes,
            problem_type="single_label_classification",
            image_size=self._spec.image_size if self._is_image else None,
        )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics by name."""
        return CLASSIFICATION if self._spec.costs is None else {**CLASSIFICATION, EXPECTED_COST.name: EXPECTED_COST}

    def loss(self, outputs: Any, targets: torch.Tensor, options: LossOptions = PLAIN_LOSS) -> torch.Tensor:
        """Return cross entropy per example (B,), in fp32; a class weight multiplies its examples' losses."""
        from torch.nn import functional

        logits = outputs.logits.float()
        losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=options.label_smoothing)
        if options.focal_gamma > 0:
            losses = options.focus(losses, logits.softmax(dim=-1).gather(1, targets[:, None])[:, 0])
        return losses if options.class_weights is None else losses * options.class_weights[targets]

    def predict(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return class probabilities (B, K) in fp32."""
        return outputs.logits.float().softmax(dim=-1)  # type: ignore[no-any-return]

    def choose_threshold(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float | None:
        """Return the study's own threshold, or the one with the best objective on validation; ties go to the middle.

        A metric that no threshold changes (``average_precision``, ``log_loss``) gives way to macro-F1.
        """
        asked = self._spec.threshold
        if asked is None or isinstance(asked, float):
            return asked
        shares = np.unique(predictions[:, 1].astype(np.float64))
        middles = (shares[1:] + shares[:-1]) / 2
        step = -(-len(middles) // _MAX_THRESHOLDS) if len(middles) else 1
        candidates = [0.5, *sorted(middles[::step].tolist(), key=lambda t: abs(t - 0.5))]
        values = [self._at(targets, predictions, threshold) for threshold in candidates]
        return float(candidates[int(np.argmin(values))])

    def _at(self, targets: NDArray[Any], predictions: NDArray[Any], threshold: float) -> float:
        """Return the loss of deciding at a threshold."""
        name = self.objective.metric
        if name in ("average_precision", "log_loss", "expected_calibration_error"):
            return -classification_scores(targets, predictions, threshold, only="macro_f1")["macro_f1"]
        if name == EXPECTED_COST.name:
            return self.objective.loss(self._cost(targets, predictions, threshold)[name])
        return self.objective.loss(classification_scores(targets, predictions, threshold, only=name)[name])

    def _cost(self, targets: NDArray[Any], predictions: NDArray[Any], threshold: float | None) -> dict[str, float]:
        if self._spec.costs is None:
            return {}
        alarm, miss = self._spec.costs
        return {EXPECTED_COST.name: expected_cost(targets, predictions, (alarm, miss), threshold)}

    def decide(self, predictions: NDArray[Any], threshold: float | None = None) -> NDArray[np.int64]:
        """Return class indices (N,): the most probable, or the second of two from ``threshold`` on."""
        return decisions(predictions, threshold)

    def score(
        self, targets: NDArray[Any], predictions: NDArray[Any], threshold: float | None = None
    ) -> dict[str, float]:
        """Score probabilities (N, K) against targets (N,)."""
        return classification_scores(targets, predictions, threshold) | self._cost(targets, predictions, threshold)

    def baseline(self, train: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Score the training split's class shares, given for every example: the majority class is the answer."""
        shares = np.bincount(train, minlength=len(self._facts.classes)) / len(train)
        return self.score(targets, np.tile(shares, (len(targets), 1)))
