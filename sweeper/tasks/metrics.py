"""Metrics over a whole split, each finite on any valid input, edge cases included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.tasks.base import Metric

CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv 1706.04599


def _table(*metrics: Metric) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in metrics}


CLASSIFICATION = _table(
    Metric("accuracy", "maximize", "share of examples whose most probable class is right; ties go to the first"),
    Metric("macro_f1", "maximize", "mean F1 over the classes that occur in targets or predictions"),
    Metric("weighted_f1", "maximize", "F1 of each class weighted by its share of the targets"),
    Metric("balanced_accuracy", "maximize", "mean recall over the classes that occur in the targets"),
    Metric("mcc", "maximize", "Matthews correlation; 0 where targets or predictions hold one class only"),
    Metric(
        "average_precision",
        "maximize",
        "area under precision-recall: of the second of two classes (0 where it does not occur), of more the mean over "
        "those that occur",
    ),
    Metric("log_loss", "minimize", "mean negative log probability of the target, probabilities clipped at 1e-15"),
    Metric(
        "expected_calibration_error",
        "minimize",
        "mean gap between accuracy and confidence of the most probable class over 15 equal bins, weighted by their "
        "examples",
    ),
)
EXPECTED_COST = Metric(
    "expected_cost",
    "minimize",
    "mean cost of an example: `task.costs[0]` where the first of two classes was called the second, `task.costs[1]` "
    "where the second was missed",
)
MULTI_LABEL = _table(
    Metric("micro_f1", "maximize", "F1 over all pairs of example and label; 0 where nothing is asked or predicted"),
    Metric("macro_f1", "maximize", "mean F1 over all labels; one that neither occurs nor is predicted counts 0"),
    Metric("subset_accuracy", "maximize", "share of examples whose labels are all right"),
    Metric("mean_average_precision", "maximize", "mean area under precision-recall over the labels that occur, else 0"),
    Metric("hamming_loss", "minimize", "share of wrong pairs of example and label"),
)
REGRESSION = _table(
    Metric("rmse", "minimize", "root of the mean squared error, in the targets' unit"),
    Metric("mae", "minimize", "mean absolute error, in the targets' unit"),
    Metric("r2", "maximize", "share of the targets' variance explained; equal targets: 1 when all are hit, else 0"),
    Metric(
        "spearman", "maximize", "rank correlation, ties at their mean rank; 0 where targets or predictions are equal"
    ),
)

GENERATION = _table(
    Metric("perplexity", "minimize", "exp of the mean cross entropy over all answer tokens, which is cut at 50"),
    Metric(
        "token_accuracy", "maximize", "share of answer tokens that are the most probable after the true ones before"
    ),
    Metric("exact_match", "maximize", "share of answers that greedy decoding gives exactly, the end token included"),
)
WRITTEN = _table(
    Metric(
        "generated_match",
        "maximize",
        "`task.max_new_tokens`: share of written texts that are the answer, white space at the ends aside",
    ),
    Metric(
        "bleu",
        "maximize",
        "`task.max_new_tokens`: BLEU of all written texts, 0 to 100, as sacrebleu has it (13a tokens)",
    ),
    Metric(
        "chrf",
        "maximize",
        "`task.max_new_tokens`: chrF2 of all written texts, 0 to 100, as sacrebleu has it: shared pieces of words",
    ),
)
"""Beside those of `GENERATION`, where `task.max_new_tokens` lets the model write."""


DETECTION = _table(
    Metric(
        "map",
        "maximize",
        "COCO's average precision: mean over IoU .50 to .95 in steps of .05 and over the classes that occur; 0 where "
        "none does",
    ),
    Metric("map_50", "maximize", "average precision at IoU .50, Pascal VOC's overlap, with COCO's 101 recall points"),
    Metric("map_75", "maximize", "average precision at IoU .75"),
    Metric("map_small", "maximize", "map of boxes below 32 x 32 pixels; 0 where none occurs"),
    Metric("map_medium", "maximize", "map of boxes from 32 x 32 to 96 x 96 pixels; 0 where none occurs"),
    Metric("map_large", "maximize", "map of boxes above 96 x 96 pixels; 0 where none occurs"),
    Metric("mar_100", "maximize", "mean recall of at most 100 detections an image over the same IoUs and classes"),
)
_COCO_STATS = {"map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5, "mar_100": 8}


def decisions(probabilities: NDArray[Any], threshold: float | None = None) -> NDArray[np.int64]:
    """Return the most probable class (N,), ties to the first; of two classes the second from ``threshold`` on."""
    if threshold is None:
        return probabilities.argmax(axis=1)  # type: ignore[no-any-return]
    return (probabilities[:, 1] >= threshold).astype(np.int64)


def classification_scores(
    targets: NDArray[Any], probabilities: NDArray[Any], threshold: float | None = None, only: str | None = None
) -> dict[str, float]:
    """Score class probabilities (N, K) against targets (N,) in 0..K-1; ``only`` names a single metric to compute."""
    predicted = decisions(probabilities, threshold)
    table = _confusion(targets, predicted, probabilities.shape[1])
    scores: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: np.mean(predicted == targets),
        "macro_f1": lambda: _f1(table)[table.sum(0) + table.sum(1) > 0].mean(),
        "weighted_f1": lambda: np.average(_f1(table), weights=table.sum(1)),
        "balanced_accuracy": lambda: np.mean([row[k] / row.sum() for k, row in enumerate(table) if row.any()]),
        "mcc": lambda: _matthews(table),
        "average_precision": lambda: _average_precision(targets, probabilities),
        "log_loss": lambda: _log_loss(targets, probabilities),
        "expected_calibration_error": lambda: calibration_error(targets, probabilities),
    }
    return {name: float(score()) for name, score in scores.items() if only in (None, name)}


def _confusion(targets: NDArray[Any], predicted: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """Count pairs of target (row) and prediction (column), (K, K).

    scikit-learn's functions would do, but they take longer than a small model's whole epoch.
    """
    counts = np.bincount(targets * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _f1(table: NDArray[Any]) -> NDArray[np.float64]:
    """Return F1 by class (K,); 0 where a class neither occurs nor is predicted."""
    return 2 * np.diag(table) / np.maximum(table.sum(0) + table.sum(1), 1)  # type: ignore[no-any-return]


def _matthews(table: NDArray[Any]) -> float:
    """Return the correlation of predictions and targets (Gorodkin 2004); 0 where one of them never varies."""
    occurs, predicted, total = table.sum(1).astype(float), table.sum(0).astype(float), float(table.sum())
    varies = (total**2 - predicted @ predicted) * (total**2 - occurs @ occurs)
    return float((np.trace(table) * total - occurs @ predicted) / np.sqrt(varies)) if varies > 0 else 0.0


def expected_cost(
    targets: NDArray[Any], probabilities: NDArray[Any], costs: tuple[float, float], threshold: float | None = None
) -> float:
    """Return the mean cost of deciding between two classes (Elkan 2001): false alarms and misses have their own."""
    predicted = decisions(probabilities, threshold)
    false_alarms, misses = np.mean((targets == 0) & (predicted == 1)), np.mean((targets == 1) & (predicted == 0))
    return float(costs[0] * false_alarms + costs[1] * misses)


def _log_loss(targets: NDArray[Any], probabilities: NDArray[Any]) -> float:
    picked = np.clip(probabilities[np.arange(len(targets)), targets].astype(np.float64), 1e-15, 1.0)
    return float(-np.mean(np.log(picked)))


def _average_precision(targets: NDArray[Any], probabilities: NDArray[Any]) -> float:
    present = [1] if probabilities.shape[1] == 2 else np.unique(targets)
    return float(np.mean([_precision_area(targets == label, probabilities[:, label]) for label in present]))


def _precision_area(occurs: NDArray[np.bool_], shares: NDArray[Any]) -> float:
    """Return the average precision of ``shares`` (N,) for a label that ``occurs`` (N,): equal shares are one step."""
    if not occurs.any():
        return 0.0
    order = np.argsort(-shares, kind="stable")
    last = np.append(np.diff(shares[order]) != 0, True)  # of each run of equal shares
    found = np.cumsum(occurs[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float(np.diff(found, prepend=0) @ precision / found[-1])


def calibration_error(targets: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """Return the expected calibration error of the most probable class (Guo et al. 2017, eq. 3), 0 to 1."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == targets
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(targets))


def multi_label_scores(targets: NDArray[Any], probabilities: NDArray[Any], threshold: float = 0.5) -> dict[str, float]:
    """Score label probabilities (N, K) against targets (N, K) of 0 and 1."""
    predicted = (probabilities >= threshold).astype(np.int64)
    hits, asked, given = (part.sum(axis=0) for part in (targets * predicted, targets, predicted))
    occurring = np.flatnonzero(asked)
    areas = [_precision_area(targets[:, k] > 0, probabilities[:, k]) for k in occurring]
    return {
        "micro_f1": float(2 * hits.sum() / max(asked.sum() + given.sum(), 1)),
        "macro_f1": float(np.mean(2 * hits / np.maximum(asked + given, 1))),
        "subset_accuracy": float(np.mean((predicted == targets).all(axis=1))),
        "mean_average_precision": float(np.mean(areas)) if areas else 0.0,
        "hamming_loss": float(np.mean(predicted != targets)),
    }


def regression_scores(targets: NDArray[Any], predictions: NDArray[Any]) -> dict[str, float]:
    """Score numbers (N,) against targets (N,)."""
    targets, predictions = targets.astype(np.float64), predictions.astype(np.float64)
    errors = predictions - targets
    spread = float(np.square(targets - targets.mean()).sum())
    squared = float(np.square(errors).sum())
    return {
        "rmse": float(np.sqrt(squared / len(targets))),
        "mae": float(np.mean(np.abs(errors))),
        "r2": 1 - squared / spread if spread > 0 else float(squared == 0),
        "spearman": _spearman(targets, predictions),
    }


def generation_scores(kept: NDArray[Any]) -> dict[str, float]:
    """Score answers by their summed cross entropy, tokens and most probable tokens (N, 3).

    Greedy decoding gives an answer exactly when each of its tokens is the most probable after the true ones before it,
    so an exact match needs no generation.
    """
    entropy, tokens, hits = kept.astype(np.float64).sum(axis=0)
    tokens = max(tokens, 1.0)
    return {
        "perplexity": float(np.exp(min(entropy / tokens, 50.0))),
        "token_accuracy": float(hits / tokens),
        "exact_match": float(np.mean(kept[:, 1] == kept[:, 2])),
    }


def written_scores(targets: NDArray[Any], written: NDArray[Any]) -> dict[str, float]:
    """Score generated texts (N,) against the answers (N,)."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    texts, answers = [str(text) for text in written], [[str(target) for target in targets]]
    same = [text.strip() == answer.strip() for text, answer in zip(texts, answers[0], strict=True)]
    return {
        "generated_match": float(np.mean(same)),
        "bleu": float(BLEU().corpus_score(texts, answers).score),
        "chrf": float(CHRF().corpus_score(texts, answers).score),
    }


def detection_scores(targets: NDArray[Any], detections: NDArray[Any], num_classes: int) -> dict[str, float]:
    """Score detections (N, D, 6) against boxes (N, M, 8) as pycocotools would; see `sweeper.tasks.boxes`.

    Boxes of score 0 are COCO's crowds: a detection on one counts neither for nor against.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    def rows(boxes: NDArray[Any]) -> list[dict[str, Any]]:
        image, at = np.nonzero(boxes[:, :, 0] >= 0)
        chosen = boxes[image, at].astype(np.float64)
        sizes = chosen[:, 4:6] - chosen[:, 2:4]
        return [
            {"image_id": int(i) + 1, "category_id": int(box[0]) + 1, "bbox": [*box[2:4].tolist(), *size.tolist()]}
            | {"score": float(box[1]), "area": float(size[0] * size[1])}
            for i, box, size in zip(image, chosen, sizes, strict=True)
        ]

    truth = [{**row, "id": at + 1, "iscrowd": int(row["score"] == 0)} for at, row in enumerate(rows(targets))]
    found = rows(detections)
    if not truth or not found:
        return dict.fromkeys(DETECTION, 0.0)
    images = [{"id": index + 1} for index in range(len(targets))]
    classes = [{"id": index + 1, "name": str(index)} for index in range(num_classes)]
    asked = COCO({"images": images, "annotations": truth, "categories": classes})
    evaluation = COCOeval_faster(asked, asked.loadRes(found), "bbox", print_function=lambda *_: None)
    evaluation.run()
    return {name: max(0.0, float(evaluation.stats[at])) for name, at in _COCO_STATS.items()}


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    from scipy.stats import rankdata

    ranks = [rankdata(x) for x in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
