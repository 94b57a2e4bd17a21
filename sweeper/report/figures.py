"""Figures as plotly divs that share one inlined copy of the library. Every name is escaped: plotly reads markup."""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go

from sweeper.core.trial import TrialState
from sweeper.report.source import CONFIGS, Source

_COLOURS = ("#3366cc", "#dc7a18", "#109618", "#990099", "#0099a8", "#b82e2e", "#66aa00", "#316395")
_CURVES = 60  # learning curves drawn per model: the best ones


def figures(source: Source, entries: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (title, caption, HTML) of every figure that the data allow."""
    metric = escape(source.objective.metric)
    drawn = [
        ("Tuned against default", f"Mean test {metric} with 95% intervals; dots are seeds.", _tuned(source, entries)),
        ("Search history", f"Validation {metric} by trial; the line is the best so far.", _history(source)),
        ("Learning curves", f"Validation {metric} by epoch of the best {_CURVES} trials a model.", _curves(source)),
        ("Cost beside quality", f"Mean test {metric} against device-seconds of the search.", _cost(source, entries)),
    ]
    divs = []
    for title, caption, figure in drawn:
        if figure is None:
            continue
        figure.update_layout(
            template="plotly_white",
            height=380,
            margin={"l": 56, "r": 16, "t": 16, "b": 48},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            font={"color": "#8a8f98"},
            legend={"orientation": "h", "y": -0.2},
        )
        div = figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False})
        divs.append((title, caption, div))
    return divs


def _colour(source: Source, model: str) -> str:
    return _COLOURS[source.models.index(model) % len(_COLOURS)]


def _tuned(source: Source, entries: list[dict[str, Any]]) -> go.Figure | None:
    figure = go.Figure()
    for config, symbol in zip(CONFIGS, ("circle", "diamond-open"), strict=True):
        shown = [entry for entry in entries if entry[config]["mean"] is not None]
        names = [escape(entry["model"]) for entry in shown]
        means = [entry[config]["mean"] for entry in shown]
        half = [(e[config]["ci_high"] or e[config]["mean"]) - e[config]["mean"] for e in shown]
        figure.add_scatter(
            x=means,
            y=names,
            error_x={"array": half},
            mode="markers",
            name=config,
            marker={"symbol": symbol, "size": 11},
        )
        seeds = [(score, escape(entry["model"])) for entry in shown for score in entry[config]["scores"]]
        figure.add_scatter(
            x=[s for s, _ in seeds],
            y=[n for _, n in seeds],
            mode="markers",
            showlegend=False,
            marker={"size": 4, "color": "#8a8f98"},
            opacity=0.5,
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=f"test {escape(source.objective.metric)}")
    return figure if any(entry["tuned"]["mean"] is not None for entry in entries) else None


def _history(source: Source) -> go.Figure | None:
    figure = go.Figure()
    for model in source.models:
        done = [t for t in source.of(model) if t["state"] == TrialState.COMPLETE]
        best: list[float] = []
        for trial in done:
            value = trial["value"]
            best.append(value if not best or source.objective.better(value, best[-1]) else best[-1])
        colour, numbers = _colour(source, model), [t["number"] for t in done]
        figure.add_scatter(x=numbers, y=best, mode="lines", line={"shape": "hv", "color": colour}, name=escape(model))
        figure.add_scatter(
            x=numbers,
            y=[t["value"] for t in done],
            mode="markers",
            marker={"color": colour, "size": 6},
            showlegend=False,
        )
    figure.update_xaxes(title="trial")
    return figure if any(len(trace.x) for trace in figure.data) else None


def _curves(source: Source) -> go.Figure | None:
    figure = go.Figure()
    by_trial: dict[str, list[dict[str, Any]]] = {}
    for row in source.measurements:
        by_trial.setdefault(row["trial_id"], []).append(row)
    metric = source.objective.metric
    for model in source.models:
        curves = [by_trial[t["trial_id"]] for t in source.of(model) if t["trial_id"] in by_trial]
        curves.sort(key=lambda rows: min(source.objective.loss(row[metric]) for row in rows))
        for index, rows in enumerate(curves[:_CURVES]):
            figure.add_scatter(
                x=[row["epoch"] for row in rows],
                y=[row[metric] for row in rows],
                mode="lines+markers",
                marker={"size": 3},
                line={"color": _colour(source, model), "width": 2 if index == 0 else 1},
                opacity=1.0 if index == 0 else 0.3,
                name=escape(model),
                legendgroup=escape(model),
                showlegend=index == 0,
            )
    figure.update_xaxes(title="epoch", dtick=1)
    return figure if figure.data else None


def _cost(source: Source, entries: list[dict[str, Any]]) -> go.Figure | None:
    shown = [entry for entry in entries if entry["tuned"]["mean"] is not None]
    figure = go.Figure()
    for entry in shown:
        name = escape(entry["model"])
        figure.add_scatter(
            x=[entry["device_seconds"]],
            y=[entry["tuned"]["mean"]],
            mode="markers+text",
            text=[name],
            textposition="top center",
            marker={"size": 12, "color": _colour(source, entry["model"])},
            name=name,
        )
    figure.update_xaxes(title="device-seconds of the search", type="log")
    figure.update_layout(showlegend=False)
    return figure if shown else None
