"""How good the probabilities of classifiers are: precision and recall at every threshold, and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweeper.report.drawing import SOFT, Figure, Trace, axis, colour, label, thinned
from sweeper.report.source import CONFIGS, Source
from sweeper.store.tables import read_table

METRICS = ("average_precision", "log_loss", "expected_calibration_error")
_COLUMNS = ("model", "config", "seed", "target", "prediction", "probabilities")
_MOST_POINTS = 200  # of a curve; more cannot be told apart on a screen


@dataclass(frozen=True)
class Curve:
    """Precision and recall of the second class on the test split, for one confirmation run.

    ``recall`` and ``precision`` (T,) go from the lowest threshold, where all is found, to recall 0, as scikit-learn
    returns them; ``area`` is their average precision, ``decided`` recall and precision of the answers given.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    area: float
    decided: tuple[float, float]


def probability_rows(source: Source) -> list[dict[str, Any]]:
    """Return a row a model and configuration with the means of `METRICS` over the seeds on the test split.

    Empty for tasks that do not measure calibration. The last row is the trivial answer's, its ``config`` empty.
    """
    if source.imported:
        return []
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in read_table(source.paths.confirmations).to_pylist():
        if row["split"] == "test" and row["metric"] in METRICS and row["value"] is not None:
            by_metric = found.setdefault((row["model"], row["config"]), {})
            by_metric.setdefault(row["metric"], []).append(row["value"])
    rows: list[dict[str, Any]] = []
    for model in source.models:
        for config in CONFIGS:
            values = found.get((model, config), {})
            if all(name in values for name in METRICS):
                rows.append({"model": model, "config": config, **{n: float(np.mean(values[n])) for n in METRICS}})
    trivial = source.manifest.data.get("trivial", {})
    if rows and all(trivial.get(name) is not None for name in METRICS):
        rows.append({"model": "the trivial answer", "config": "", **{name: trivial[name] for name in METRICS}})
    return rows


def precision_recall(source: Source) -> dict[tuple[str, str], Curve]:
    """Return by model and configuration the curve of the run with the median average precision, of two the lower.

    Empty unless the task has two classes and the study was tested.
    """
    if source.imported or len(source.manifest.data.get("classes", ())) != 2 or not source.paths.predictions.exists():
        return {}
    table = read_table(source.paths.predictions, _COLUMNS)
    shares = table.column("probabilities").combine_chunks()
    is_class = pa.types.is_integer(table.schema.field("target").type)
    if not len(table) or not is_class or set(np.unique(shares.value_lengths())) != {2}:
        return {}
    shares = shares.flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)[:, 1]
    models, configs, seeds, targets, answers = (table.column(name).to_numpy() for name in _COLUMNS[:-1])
    curves = {}
    for model in source.models:
        for config in CONFIGS:
            mine = (models == model) & (configs == config)
            runs = [mine & (seeds == seed) for seed in np.unique(seeds[mine])]
            sound = [rows for rows in runs if targets[rows].any() and np.isfinite(shares[rows]).all()]
            known = [_curve(targets[rows], shares[rows], answers[rows]) for rows in sound]
            if known:
                curves[model, config] = sorted(known, key=lambda curve: curve.area)[(len(known) - 1) // 2]
    return curves


def _curve(targets: NDArray[Any], shares: NDArray[Any], answers: NDArray[Any]) -> Curve:
    from sklearn.metrics import precision_recall_curve  # slow to import, and needed for two classes alone

    precision, recall, _ = precision_recall_curve(targets, shares)
    hits = float(np.sum((targets == 1) & (answers == 1)))
    decided = hits / float(targets.sum()), hits / max(1.0, float(answers.sum()))
    return Curve(recall, precision, float(-np.diff(recall) @ precision[:-1]), decided)


def precision_recall_figure(source: Source, curves: dict[tuple[str, str], Curve]) -> Figure | None:
    """Draw precision against recall of the second class, a line a model and configuration; dots are the decisions."""
    if not curves:
        return None
    name = label(source.manifest.data["classes"][1], 24)
    traces: list[Trace] = []
    for (model, config), curve in curves.items():
        kept = thinned(len(curve.recall), _MOST_POINTS)
        ink, words = colour(source, model), f"{label(model, 24)}, {config}"
        tuned = config == "tuned"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{words} ({curve.area:.3f})",
                "x": np.round(curve.recall[kept], 4).tolist(),
                "y": np.round(curve.precision[kept], 4).tolist(),
                "line": {"shape": "hv", "color": ink, "width": 2, "dash": "solid" if tuned else "dot"},
                "hovertemplate": f"{words}: precision %{{y:.3f}} at recall %{{x:.3f}}<extra></extra>",
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "showlegend": False,
                "x": [round(curve.decided[0], 4)],
                "y": [round(curve.decided[1], 4)],
                "marker": {
                    "symbol": "circle" if tuned else "circle-open",
                    "size": 11,
                    "color": ink,
                    "line": {"width": 2, "color": ink},
                },
                "hovertemplate": f"{words}, decisions: precision %{{y:.3f}} at recall %{{x:.3f}}<extra></extra>",
            }
        )
    counts = source.manifest.data["counts"].get("test", {})
    share = counts.get(source.manifest.data["classes"][1], 0) / max(1, sum(counts.values()))
    line = {"type": "line", "x0": 0, "x1": 1, "y0": share, "y1": share, "line": {"color": SOFT, "dash": "dot"}}
    layout = {
        "xaxis": axis(f"recall of {name}", range=[-0.02, 1.02]),
        "yaxis": axis(f"precision of {name}", range=[-0.02, 1.04]),
        "shapes": [line],
    }
    caption = (
        "On the test split, the run with the median area of each model and configuration; the area, in the legend, is "
        "the average precision. Dots: the decisions, at the threshold that the study chose. Horizontal line: the share "
        "of that class, which is the precision of calling everything so."
    )
    return Figure("precision-recall", "Precision and recall", caption, traces, layout)
