"""Figures as plotly divs that share one inlined copy of the library. Every name is escaped: plotly reads markup."""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go

from sweeper.core.trial import TrialState
from sweeper.report.source import CONFIGS, Source

_COLOURS = ("#3366cc", "#dc7a18", "#109618", "#990099", "#0099a8", "#b82e2e", "#66aa00", "#316395")
_BAND = "Shaded: exact 95% band of the median best score; where it leaves the figure it has no bound."
_CURVES = 60  # learning curves drawn per model: the best ones


def figures(source: Source, entries: list[dict[str, Any]], curves: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (title, caption, HTML) of every figure that the data allow; ``curves`` is what `tuning_curves` returns."""
    metric = escape(source.objective.metric)
    drawn = [
        ("Tuned against default", f"Mean test {metric} with 95% intervals; dots are seeds.", _tuned(source, entries)),
        ("Search history", f"Validation {metric} by trial; the line is the best so far.", _history(source)),
        ("Tuning curves", f"Expected best validation {metric} from n trials (V). {_BAND}", _tuning(source, curves, 0)),
        (
            "Tuning curves by cost",
            f"The same against seconds: n times the model's mean time a trial. {_BAND}",
            _tuning(source, curves, 1),
        ),
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
            margin={"l": 56, "r": 16, "t": 28, "b": 48},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            font={"color": "#8a8f98"},
            modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#b8bdc5", "activecolor": "#646b76"},
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


def _tuning(source: Source, curves: dict[str, Any], by_cost: int) -> go.Figure | None:
    figure = go.Figure()
    shown = {m: e for m, e in curves["models"].items() if e["seconds_per_trial"] or not by_cost}
    drawn = [value for e in shown.values() for value in e["expected_best"]["v"]]
    if not drawn:
        return None
    bounds = [v for e in shown.values() for side in ("low", "high") for v in e["band"][side] if v is not None]
    least, most = min(drawn + bounds), max(drawn + bounds)
    room = 0.05 * (most - least) or 0.01
    for model, entry in shown.items():
        step = max(1, len(entry["n"]) // 200)
        keep = [*range(0, len(entry["n"]) - 1, step), len(entry["n"]) - 1]
        scale = entry["seconds_per_trial"] if by_cost else 1
        x = [entry["n"][i] * scale for i in keep]
        low = [entry["band"]["low"][i] if entry["band"]["low"][i] is not None else least - 9 * room for i in keep]
        high = [entry["band"]["high"][i] if entry["band"]["high"][i] is not None else most + 9 * room for i in keep]
        colour, name = _colour(source, model), escape(model)
        hidden = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
        figure.add_scatter(x=x, y=low, **hidden)
        figure.add_scatter(x=x, y=high, fill="tonexty", fillcolor=f"rgba{(*_rgb(colour), 0.13)}", **hidden)
        middle = [entry["expected_best"]["v"][i] for i in keep]
        figure.add_scatter(x=x, y=middle, mode="lines", line={"color": colour}, name=name, legendgroup=name)
    figure.update_yaxes(range=[least - room, most + room])
    figure.update_xaxes(title="seconds of search" if by_cost else "trials", type="log")
    return figure


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _curves(source: Source) -> go.Figure | None:
    figure = go.Figure()
    by_trial: dict[str, list[dict[str, Any]]] = {}
    for row in source.measurements:
        if row.get(source.objective.metric) is None:
            continue
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
