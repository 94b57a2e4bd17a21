"""Classification metrics over a whole split, each finite on any valid input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from sweeper.tasks.base import Metric

CLASSIFICATION: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "maximize", "share of examples whose most probable class is right; ties go to the first"),
        Metric("macro_f1", "maximize", "mean F1 over the classes that occur in targets or predictions"),
        Metric("weighted_f1", "maximize", "F1 of each class weighted by its share of the targets"),
        Metric("balanced_accuracy", "maximize", "mean recall over the classes that occur in the targets"),
        Metric("mcc", "maximize", "Matthews correlation; 0 where targets or predictions hold one class only"),
        Metric("average_precision", "maximize", "mean area under precision-recall over the classes that occur"),
        Metric("log_loss", "minimize", "mean negative log probability of the target, probabilities clipped at 1e-15"),
    )
}


def classification_scores(targets: NDArray[Any], probabilities: NDArray[Any]) -> dict[str, float]:
    """Score class probabilities (N, K) against targets (N,) in 0..K-1."""
    predicted = probabilities.argmax(axis=1)
    present = np.unique(targets)
    recalls = [float(np.mean(predicted[targets == label] == label)) for label in present]
    picked = np.clip(probabilities[np.arange(len(targets)), targets].astype(np.float64), 1e-15, 1.0)
    precisions = [sk.average_precision_score(targets == label, probabilities[:, label]) for label in present]
    return {
        "accuracy": float(np.mean(predicted == targets)),
        "macro_f1": float(sk.f1_score(targets, predicted, average="macro", zero_division=0)),
        "weighted_f1": float(sk.f1_score(targets, predicted, average="weighted", zero_division=0)),
        "balanced_accuracy": float(np.mean(recalls)),
        "mcc": float(sk.matthews_corrcoef(targets, predicted)),
        "average_precision": float(np.mean(precisions)),
        "log_loss": float(-np.mean(np.log(picked))),
    }
