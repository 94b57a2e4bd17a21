"""The figures about the outcome: tuned against default, cost beside quality, confusions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.report.costs import cost_axis
from sweeper.report.drawing import SOFT, Figure, Trace, axis, colour, faint, label
from sweeper.report.examples import MOST_CLASSES, Examples
from sweeper.report.source import CONFIGS, Source

_COUNTS_SHOWN = 12  # classes up to which a confusion matrix holds its counts as text


def tuned_figure(source: Source, entries: list[dict[str, Any]]) -> Figure | None:
    """Draw each model's tuned and default mean with intervals and seeds."""
    shown = [entry for entry in entries if entry["tuned"]["mean"] is not None]
    if not shown:
        return None
    traces: list[Trace] = []
    for config, symbol, shift in zip(CONFIGS, ("circle", "circle-open"), (-0.13, 0.13), strict=True):
        have = [(at, entry) for at, entry in enumerate(shown) if entry[config]["mean"] is not None]
        if not have:
            continue
        colours = [colour(source, entry["model"]) for _, entry in have]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": config,
                "x": [entry[config]["mean"] for _, entry in have],
                "y": [at + shift for at, _ in have],
                "text": [f"{label(entry['model'])}, {config}" for _, entry in have],
                "hovertemplate": "%{text}: %{x:.4f}<extra></extra>",
                "marker": {"symbol": symbol, "size": 12, "color": colours, "line": {"width": 2, "color": colours}},
                "error_x": {
                    "type": "data",
                    "array": [_half(entry[config]) for _, entry in have],
                    "color": SOFT,
                    "thickness": 1.6,
                    "width": 5,
                },
            }
        )
        seeds = [(score, at + shift) for at, entry in have for score in entry[config]["scores"]]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "showlegend": False,
                "hoverinfo": "x",
                "x": [score for score, _ in seeds],
                "y": [at for _, at in seeds],
                "marker": {"symbol": "line-ns-open", "size": 8, "color": SOFT},
                "opacity": 0.7,
            }
        )
    ticks = {"tickvals": list(range(len(shown))), "ticktext": [label(entry["model"], 24) for entry in shown]}
    layout = {
        "xaxis": axis(f"test {label(source.objective.metric)}"),
        "yaxis": {**ticks, "range": [len(shown) - 0.5, -0.5], "zeroline": False},
    }
    caption = (
        f"Mean test {source.objective.metric} with 95% intervals: filled tuned, open default; ticks are single seeds."
    )
    height = 150 + 62 * len(shown)
    return Figure("tuned", "Tuned against default", caption, traces, layout, height=height)


def cost_figure(source: Source, rows: list[dict[str, Any]], entries: list[dict[str, Any]]) -> Figure | None:
    """Draw test quality against the cost that all models have, with the Pareto front."""
    by = cost_axis(source, rows)
    shown = [row for row in rows if row["test"] is not None]
    if by is None or not shown:
        return None
    title, scale = {
        "latency_seconds": ("latency at batch 1, milliseconds", 1000.0),
        "training_seconds": ("device-seconds of one training", 1.0),
        "search_seconds": ("device-seconds of the search", 1.0),
    }[by]
    halves = {entry["model"]: _half(entry["tuned"]) for entry in entries}
    front = sorted((row for row in shown if row["pareto"]), key=lambda row: float(row[by]))
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [row[by] * scale for row in front],
            "y": [row["test"] for row in front],
            "line": {"shape": "hv", "dash": "dot", "color": SOFT, "width": 1.5},
            "hoverinfo": "skip",
        }
    ]
    for row in shown:
        name, ink = label(row["model"], 24), colour(source, row["model"])
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": name,
                "showlegend": False,
                "x": [row[by] * scale],
                "y": [row["test"]],
                "text": [name],
                "textposition": "top center",
                "cliponaxis": False,
                "error_y": {
                    "type": "data",
                    "array": [halves[row["model"]]],
                    "color": SOFT,
                    "thickness": 1.4,
                    "width": 4,
                },
                "marker": {
                    "size": 14,
                    "color": ink if row["pareto"] else faint(ink, 0.25),
                    "line": {"color": ink, "width": 2},
                },
                "hovertemplate": f"{name}: %{{y:.4f}} at %{{x:.4g}}<extra></extra>",
            }
        )
    caption = (
        f"Mean test {source.objective.metric} with 95% intervals. Filled: on the Pareto front, no other model is both "
        "better and cheaper."
    )
    least, most = (pick(row[by] * scale for row in shown) for pick in (min, max))
    ends = [float(np.log10(least)) - 0.3, float(np.log10(most)) + 0.3]
    layout = {
        "xaxis": axis(title, type="log", range=ends),
        "yaxis": axis(f"test {label(source.objective.metric)}"),
        "showlegend": len(front) > 1,
    }
    return Figure("cost", "Cost beside quality", caption, traces, layout)


def confusion_figures(source: Source, found: Examples, matrices: dict[str, NDArray[np.int64]]) -> list[Figure]:
    """Draw each model's confusions, unless there are too many classes for a picture."""
    if len(found.classes) > MOST_CLASSES:
        return []
    names = [label(name, 18) for name in found.classes]
    figures = []
    for index, (model, matrix) in enumerate(matrices.items()):
        totals = np.maximum(1, matrix.sum(axis=1, keepdims=True))
        trace: Trace = {
            "type": "heatmap",
            "z": np.round(matrix / totals, 4).tolist(),
            "x": names,
            "y": names,
            "zmin": 0,
            "zmax": 1,
            "showscale": False,
            "xgap": 2,
            "ygap": 2,
            "colorscale": [[0, faint(colour(source, model), 0.05)], [1, faint(colour(source, model), 0.9)]],
            "customdata": matrix.tolist(),
            "hovertemplate": "target %{y}, answer %{x}: %{customdata} (%{z:.1%} of the target)<extra></extra>",
        }
        if len(names) <= _COUNTS_SHOWN:
            trace |= {
                "text": [[str(count or "") for count in row] for row in matrix.tolist()],
                "texttemplate": "%{text}",
            }
        layout = {
            "xaxis": axis("answer", type="category", tickangle=-40 if len(names) > 6 else 0, showgrid=False),
            "yaxis": axis("target", type="category", autorange="reversed", showgrid=False),
            "margin": {"l": 90},
        }
        height = 170 + 26 * max(4, len(names))
        figures.append(Figure(f"confusion-{index}", model, "", [trace], layout, height=min(height, 620)))
    return figures


def _half(scores: dict[str, Any]) -> float:
    """Return half the width of a mean's interval; 0 where it has none."""
    return 0.0 if scores["ci_high"] is None else float(scores["ci_high"] - scores["mean"])
