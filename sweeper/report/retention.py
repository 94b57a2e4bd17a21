"""What fine-tuning forgot: the target score beside what is retained of something else."""

from __future__ import annotations

from typing import Any

import numpy as np

from sweeper.report.drawing import SOFT, Figure, Trace, axis, colour, label
from sweeper.report.source import CONFIGS, Source

_WORDS = {
    "probe_accuracy": ("accuracy of a probe on the frozen features of another set", True),
    "perplexity": ("perplexity of another text", False),
    "masked_perplexity": ("perplexity of masked tokens of another text", False),
}


def retention_rows(source: Source) -> list[dict[str, Any]]:
    """Return a row a model and configuration: ``schedule``, ``metric``, ``before``, means ``after`` and ``test``.

    ``runs`` holds the seeds as (after, test score).
    """
    rows = []
    for model in source.models:
        for config in CONFIGS:
            found = [run for run in source.manifest.retention if (run["model"], run["config"]) == (model, config)]
            scores = source.scores.get((model, config, "test"), {})
            runs = [(run["after"], scores[run["seed"]]) for run in found if run["seed"] in scores]
            if not runs:
                continue
            after, test = (float(value) for value in np.mean(runs, axis=0))
            before = found[0]["before"]
            rows.append(
                {
                    "model": model,
                    "config": config,
                    "schedule": found[0]["schedule"],
                    "metric": found[0]["metric"],
                    "before": before,
                    "after": after,
                    "change": after - before,
                    "test": test,
                    "runs": runs,
                }
            )
    return rows


def retention_figure(source: Source, rows: list[dict[str, Any]]) -> Figure | None:
    """Draw each run's target score against what it retained; lines mark the checkpoints before fine-tuning."""
    if not rows:
        return None
    traces: list[Trace] = []
    for row in rows:
        ink, name = colour(source, row["model"]), f"{label(row['model'], 24)}, {row['config']} ({row['schedule']})"
        symbol = "circle" if row["config"] == "tuned" else "circle-open"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [after for after, _ in row["runs"]],
                "y": [test for _, test in row["runs"]],
                "marker": {"symbol": symbol, "size": 11, "color": ink, "line": {"width": 2, "color": ink}},
                "hovertemplate": f"{name}: %{{y:.4f}} with %{{x:.4f}} retained<extra></extra>",
            }
        )
    before = {row["model"]: row["before"] for row in rows}
    marks = [
        {"type": "line", "x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "paper"}
        | {"line": {"color": colour(source, model), "dash": "dot", "width": 1.5}}
        for model, value in before.items()
    ]
    notes = [
        {"x": value, "y": 1.02 + 0.05 * at, "yref": "paper", "text": f"{label(model, 18)} before", "showarrow": False}
        | {"font": {"color": SOFT, "size": 11}}
        for at, (model, value) in enumerate(before.items())
    ]
    words, higher = _WORDS[rows[0]["metric"]]
    layout = {
        "xaxis": axis(words),
        "yaxis": axis(f"test {label(source.objective.metric)}"),
        "shapes": marks,
        "annotations": notes,
        "margin": {"t": 50 + 16 * len(before)},
    }
    side = "left" if higher else "right"
    caption = (
        f"Each confirmation run: filled tuned, open default. Dotted lines: the checkpoint before fine-tuning; "
        f"what lies {side} of its own line has forgotten."
    )
    return Figure("retention", "Target score against retention", caption, traces, layout)
