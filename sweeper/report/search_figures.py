"""The figures about the search: tuning curves, history, learning curves, parallel coordinates."""

from __future__ import annotations

import json
from typing import Any

from sweeper.core.space import Float
from sweeper.report.drawing import SOFT, Figure, Trace, axis, colour, dash, faint, joined, label, thinned
from sweeper.report.source import Source

_BAND = "Shaded: exact 95% band of the median best score, as far as it has a bound on both sides."
_BUDGETS = 200  # points drawn of a tuning curve
_POINTS = 600  # trials drawn a model in the history
_CURVES = 40  # learning curves drawn a model: the best ones
_LINES = 200  # configurations drawn a model in parallel coordinates: the best 50, the rest spread over the ranks
_INACTIVE = -0.14


def tuning_figure(source: Source, curves: dict[str, Any], *, by_cost: bool) -> Figure | None:
    """Draw the expected best score against trials, or against device-seconds."""
    if by_cost and source.node_labels:  # seconds of different devices
        return None
    shown = {m: e for m, e in curves["models"].items() if e["seconds_per_trial"] or not by_cost}
    drawn = [value for entry in shown.values() for value in entry["expected_best"]["v"]]
    if not drawn:
        return None
    bounds = [
        v
        for e in shown.values()
        for pair in zip(e["band"]["low"], e["band"]["high"], strict=True)
        if None not in pair
        for v in pair
    ]
    least, most = min(drawn + bounds), max(drawn + bounds)
    room = 0.05 * (most - least) or 0.01
    traces: list[Trace] = []
    for model, entry in shown.items():
        keep = thinned(len(entry["n"]), _BUDGETS)
        scale = entry["seconds_per_trial"] if by_cost else 1
        x = [entry["n"][at] * scale for at in keep]
        ink, name = colour(source, model), label(model, 24)
        bounded = [at for at in keep if entry["band"]["low"][at] is not None and entry["band"]["high"][at] is not None]
        hidden = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        for side, fill in (("low", {}), ("high", {"fill": "tonexty", "fillcolor": faint(ink, 0.15)})):
            ends = {"x": [entry["n"][at] * scale for at in bounded], "y": [entry["band"][side][at] for at in bounded]}
            traces.append({**hidden, **ends, "legendgroup": name, **fill})
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if len(x) > 1 else "markers",
                "name": name,
                "legendgroup": name,
                "x": x,
                "y": [entry["expected_best"]["v"][at] for at in keep],
                "line": {"color": ink, "width": 2.4, "dash": dash(source, model)},
                "hovertemplate": f"{name}: %{{y:.4f}} at %{{x:.4g}}<extra></extra>",
            }
        )
    metric = source.objective.metric
    layout = {
        "xaxis": axis("device-seconds of search" if by_cost else "trials", type="log"),
        "yaxis": axis(f"validation {label(metric)}", range=[least - room, most + room]),
    }
    if by_cost:
        caption = f"The same curves against device-seconds: n times the model's mean time a trial. {_BAND}"
        return Figure("tuning-cost", "What a device-second buys", caption, traces, layout)
    caption = f"Expected best validation {metric} of n trials (V, Dodge et al. 2019). {_BAND}"
    return Figure("tuning", "What a trial buys", caption, traces, layout)


def history_figure(source: Source) -> Figure | None:
    """Draw the validation score by trial, with the best so far."""
    traces: list[Trace] = []
    for model in source.models:
        done = source.complete(model)
        if not done:
            continue
        best: list[tuple[int, float]] = []
        for trial in done:
            if not best or source.objective.better(trial["value"], best[-1][1]):
                best.append((trial["number"], trial["value"]))
        best.append((done[-1]["number"], best[-1][1]))
        ink, name = colour(source, model), label(model, 24)
        points = [done[at] for at in thinned(len(done), _POINTS)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "showlegend": False,
                "legendgroup": name,
                "x": [trial["number"] for trial in points],
                "y": [trial["value"] for trial in points],
                "marker": {"color": faint(ink, 0.45), "size": 6 if len(points) < 100 else 4},
                "hovertemplate": f"{name}, trial %{{x}}: %{{y:.4f}}<extra></extra>",
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "legendgroup": name,
                "x": [number for number, _ in best],
                "y": [value for _, value in best],
                "line": {"shape": "hv", "color": ink, "width": 2.2, "dash": dash(source, model)},
                "hoverinfo": "skip",
            }
        )
    if not traces:
        return None
    caption = f"Validation {source.objective.metric} of completed trials; the line is the best so far."
    if any(len(source.complete(model)) > _POINTS for model in source.models):
        caption += f" At most {_POINTS} trials a model are drawn."
    layout = {"xaxis": axis("trial"), "yaxis": axis(f"validation {label(source.objective.metric)}")}
    return Figure("history", "Search history", caption, traces, layout)


def learning_figure(source: Source) -> Figure | None:
    """Draw the learning curves of each model's best trials."""
    metric = source.objective.metric
    by_trial: dict[str, list[dict[str, Any]]] = {}
    for row in source.measurements:
        if row.get(metric) is not None:
            by_trial.setdefault(row["trial_id"], []).append(row)
    traces: list[Trace] = []
    for model in source.models:
        curves = [by_trial[t["trial_id"]] for t in source.of(model) if t["trial_id"] in by_trial]
        if not curves:
            continue
        curves.sort(key=lambda rows: min(source.objective.loss(row[metric]) for row in rows))
        ink, name = colour(source, model), label(model, 24)
        common = {"type": "scatter", "mode": "lines", "legendgroup": name}
        lines = [([row["epoch"] for row in rows], [row[metric] for row in rows]) for rows in curves[:_CURVES]]
        traces.append(
            common
            | {
                "x": joined([x for x, _ in lines[1:]]),
                "y": joined([y for _, y in lines[1:]]),
                "line": {"color": faint(ink, 0.22), "width": 1},
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
        traces.append(
            common
            | {
                "mode": "lines+markers",
                "name": name,
                "x": lines[0][0],
                "y": lines[0][1],
                "line": {"color": ink, "width": 2.4, "dash": dash(source, model)},
                "marker": {"size": 5},
                "hovertemplate": f"{name}, epoch %{{x}}: %{{y:.4f}}<extra></extra>",
            }
        )
    if not traces:
        return None
    longest = max(row["epoch"] for rows in by_trial.values() for row in rows)
    caption = f"Validation {metric} by epoch of the {_CURVES} best trials a model; the strongest line is the best."
    layout = {
        "xaxis": axis("epoch", **({"dtick": 1} if longest <= 12 else {})),
        "yaxis": axis(f"validation {label(metric)}"),
    }
    return Figure("learning", "Learning curves", caption, traces, layout)


def importance_figure(source: Source, explained: dict[str, dict[str, Any]]) -> Figure | None:
    """Draw how much each hyperparameter decided; ``explained`` is what `explain` returns."""
    shares = {model: found["importance"] for model, found in explained.items() if found["importance"]}
    if not shares:
        return None
    total: dict[str, float] = {}
    for found in shares.values():
        for name, share in found.items():
            total[name] = total.get(name, 0.0) + share
    names = sorted(total, key=lambda name: total[name])
    traces: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label(model, 24),
            "x": [found.get(name, 0.0) for name in names],
            "y": [label(name, 24) for name in names],
            "marker": {"color": colour(source, model)},
            "hovertemplate": f"{label(model, 24)}, %{{y}}: %{{x:.1%}}<extra></extra>",
        }
        for model, found in reversed(shares.items())
    ]
    caption = (
        "How much each hyperparameter decided about reaching the best tenth of trials (conditional PED-ANOVA, Watanabe "
        "et al. 2023), for models with 50 completed trials or more."
    )
    layout = {
        "xaxis": axis("share of importance", tickformat=".0%"),
        "yaxis": {"type": "category"},
        "barmode": "group",
        "bargap": 0.28,
        "legend": {"traceorder": "reversed"},
    }
    height = 130 + len(names) * max(26, 9 * len(shares) + 8)
    return Figure("importance", "Importance of hyperparameters", caption, traces, layout, height=height)


def parallel_figures(source: Source) -> list[Figure]:
    """Draw each model's configurations as lines through its hyperparameters, the best ones strongest."""
    figures = []
    for index, model in enumerate(source.models):
        figure = _parallel(source, model, index)
        if figure is not None:
            figures.append(figure)
    return figures


def _parallel(source: Source, model: str, index: int) -> Figure | None:
    trials = sorted(source.complete(model), key=lambda t: (source.objective.loss(t["value"]), t["number"]))
    params = [json.loads(trial["params"]) for trial in trials]
    names = list(dict.fromkeys(name for values in params for name in values))
    scales = {name: scale for name in names if (scale := _Scale.of(source, model, name, params)) is not None}
    if len(trials) < 3 or not scales:
        return None
    best, worst = trials[0]["value"], trials[-1]["value"]
    score = _Scale(f"validation {source.objective.metric}", low=min(best, worst), high=max(best, worst))
    rest = thinned(len(trials) - 50, _LINES - 50) if len(trials) > _LINES else range(max(0, len(trials) - 50))
    keep = [*range(min(50, len(trials))), *(50 + at for at in rest)]
    lines = []
    for rank in keep:
        y = [scale.at(params[rank].get(name)) for name, scale in scales.items()] + [score.at(trials[rank]["value"])]
        lines.append((rank / max(1, len(trials) - 1), y, trials[rank]))
    ink = colour(source, model)
    groups = (
        ("lower half", 0.5, 2.0, faint(SOFT, 0.22), 1),
        ("upper half", 0.1, 0.5, faint(ink, 0.3), 1.2),
        ("best tenth", -1.0, 0.1, faint(ink, 0.8), 1.6),
    )
    axes = [*scales.values(), score]
    traces: list[Trace] = []
    for name, above, upto, stroke, width in groups:
        mine = [line for line in lines if above < line[0] <= upto]
        told = [f"trial {t['number']}: {t['value']:.4f}" for _, _, t in mine]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": joined([range(len(axes))] * len(mine)),
                "y": joined([[round(value, 4) for value in y] for _, y, _ in mine]),
                "text": joined([[text] * len(axes) for text in told]),
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": stroke, "width": width},
            }
        )
    notes = [mark for at, scale in enumerate(axes) for mark in scale.marks(at)]
    layout = {
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": [label(scale.name, 22) for scale in axes],
            "tickangle": 24,
            "range": [-0.3, len(axes) - 0.3],
            "zeroline": False,
        },
        "yaxis": {"visible": False, "range": [-0.22, 1.12]},
        "annotations": notes,
        "margin": {"l": 24, "r": 110, "b": 90},
    }
    count = (
        f"{len(keep)} of {len(trials)} completed trials"
        if len(keep) < len(trials)
        else f"{len(trials)} completed trials"
    )
    caption = f"{count}; a line below an axis: the parameter was not active."
    width = 120 + 92 * len(axes)
    return Figure(f"parallel-{index}", model, caption, traces, layout, height=400, min_width=width)


class _Scale:
    """One upright axis: where a value stands between 0 and 1."""

    def __init__(
        self, name: str, *, low: float = 0.0, high: float = 1.0, choices: list[Any] | None = None, log: bool = False
    ) -> None:
        self.name = name
        self._range = Float(name=name, low=low, high=high, log=log)
        self._choices = choices

    @classmethod
    def of(cls, source: Source, model: str, name: str, params: list[dict[str, Any]]) -> _Scale | None:
        """Make a parameter's axis from its space, or from the values tried; None where it never changes."""
        known = source.space(model)["parameters"].get(name)
        values = [found[name] for found in params if name in found]
        if len({str(value) for value in values}) < 2:
            return None
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if not numeric or (known is not None and known["type"] == "categorical"):
            choices = [str(choice) for choice in (known or {}).get("choices", ())]
            return cls(name, choices=list(dict.fromkeys([*choices, *sorted(map(str, values))])))
        low, high = min(values), max(values)
        log = known["log"] if known is not None else low > 0 and high / low > 30
        if known is not None:
            low, high = min(low, known["low"]), max(high, known["high"])
        return cls(name, low=low, high=high, log=log)

    def at(self, value: Any) -> float:
        """Return a value's height; below 0 where it is not active."""
        if value is None:
            return _INACTIVE
        if self._choices is not None:
            return self._choices.index(str(value)) / max(1, len(self._choices) - 1)
        return self._range.fraction(value)

    def marks(self, x: int) -> list[dict[str, Any]]:
        """Return the axis' tick labels."""
        if self._choices is None:
            pairs = [(0.0, f"{self._range.low:.3g}"), (1.0, f"{self._range.high:.3g}")]
        else:
            most = thinned(len(self._choices), 8)
            pairs = [(self.at(self._choices[at]), label(self._choices[at], 14)) for at in most]
        common = {"x": x, "xanchor": "left", "xshift": 4, "showarrow": False, "font": {"size": 10}}
        return [{**common, "y": y, "text": text} for y, text in pairs]
