"""The page: one HTML file that asks nothing of any network, summary first, every number also in a table."""

from __future__ import annotations

import base64
import gzip
import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from sweeper.core.trial import TrialState
from sweeper.report.costs import costs, setting
from sweeper.report.drawing import Figure, colour
from sweeper.report.effects import flips, tuning_effects
from sweeper.report.examples import Examples, agreement, confusions, disagreements, frequent_confusions
from sweeper.report.explain import explain
from sweeper.report.figures import confusion_figures, cost_figure, tuned_figure
from sweeper.report.gaps import OVERTUNING_NOTE, gaps
from sweeper.report.markdown import interval
from sweeper.report.method import dimensions, method, openings, range_words, scope, sources
from sweeper.report.probabilities import METRICS, precision_recall, precision_recall_figure, probability_rows
from sweeper.report.retention import retention_figure, retention_rows
from sweeper.report.search_figures import (
    history_figure,
    importance_figure,
    learning_figure,
    parallel_figures,
    tuning_figure,
)
from sweeper.report.source import Source
from sweeper.report.words import effort, points, summary, verdict_rows

EFFORT_KEYS = ("trials", "complete", "pruned", "fail", "infeasible", "epochs", "device_seconds", "retries")
GAP_KEYS = ("search", "validation", "test", "optimism", "gap", "overtuning", "relative_overtuning")
_MOST_ROWS = 100  # configurations and failures listed a model; the rest stands in trials.csv
_PREFIXES = ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, " "), (1e-3, " m"), (1e-6, " µ"))


def page(
    source: Source,
    entries: list[dict[str, Any]],
    curves: dict[str, Any],
    examples: Examples,
    by_example: list[dict[str, Any]],
) -> str:
    """Return the page.

    Parameters
    ----------
    entries, curves:
        What `leaderboard` and `tuning_curves` return.
    examples, by_example:
        What `read_examples` and `comparisons` return.
    """
    cost_rows = costs(source, entries)
    retained_rows = retention_rows(source)
    matrices = confusions(examples)
    confusion = confusion_figures(source, examples, matrices)
    parallel = parallel_figures(source)
    explained = explain(source)
    single = {
        "importance": importance_figure(source, explained),
        "tuned": tuned_figure(source, entries),
        "tuning": tuning_figure(source, curves, by_cost=False),
        "tuning_cost": tuning_figure(source, curves, by_cost=True),
        "history": history_figure(source),
        "learning": learning_figure(source),
        "cost": cost_figure(source, cost_rows, entries),
        "retention": retention_figure(source, retained_rows),
        "precision_recall": precision_recall_figure(source, precision_recall(source)),
    }
    manifest = source.manifest
    ranking, scale = _ranking(entries)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            name=manifest.name,
            metric=source.objective.metric,
            goal=source.objective.goal,
            plan_hash=manifest.plan_hash,
            created_at=manifest.created_at,
            num_trials=sum(entry["num_trials"] for entry in entries),
            num_seeds=max((len(entry["tuned"]["seeds"]) for entry in entries), default=0),
            summary=summary(source, entries),
            points=points(source, curves),
            ranking=ranking,
            scale=scale,
            entries=entries,
            verdicts=verdict_rows(source, entries),
            by_example=by_example,
            effects=tuning_effects(source),
            flips=flips(source),
            ablations={model: found["ablation"] for model, found in explained.items() if found["ablation"]},
            boundaries=[{**row, "model": model} for model, found in explained.items() for row in found["boundaries"]],
            curves=curves,
            effort=effort(source),
            effort_keys=EFFORT_KEYS,
            failures=_failures(source),
            parallel=parallel,
            figures=single,
            gaps=gaps(source),
            gap_keys=GAP_KEYS,
            overtuning_note=OVERTUNING_NOTE,
            openings=openings(source),
            costs=cost_rows,
            retained=retained_rows,
            probabilities=probability_rows(source),
            probability_keys=METRICS,
            has_costs=any(row["search_seconds"] or row["training_seconds"] for row in cost_rows),
            cost_setting=setting(source),
            examples=examples,
            agreement=agreement(examples),
            confusion=confusion,
            frequent={}
            if confusion
            else {m: rows for m, x in matrices.items() if (rows := frequent_confusions(examples, x))},
            disagreements=disagreements(examples),
            scope=scope(source),
            method=method(source),
            spaces=[_space(source, model) for model in source.models],
            configurations=[_configurations(source, model) for model in source.models],
            colours={model: colour(source, model) for model in source.models},
            interval=interval,
            gain=_gain,
            si=si,
            shown=_shown,
            figure_data=embedded([*single.values(), *parallel, *confusion]),
            **assets(),
        )
    )


def assets() -> dict[str, Markup]:
    """Return what every page carries: plotly's library (packed), the style and the script."""
    plotly = Markup(_plotly())  # noqa: S704 - base64
    return {"plotly": plotly, "style": _asset("style.css"), "script": _asset("page.js")}


def si(value: float | None, unit: str = "") -> str:
    """Return a number with three digits and a prefix: ``98.7 k``, ``3.21 ms``; empty for None."""
    if value is None:
        return ""
    factor, prefix = next((item for item in _PREFIXES if abs(value) >= item[0] * 0.9995), _PREFIXES[-1])
    return f"{value / factor:.3g}{prefix}{unit}".rstrip()


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the templates' environment: everything that is not ours is escaped."""
    return Environment(loader=PackageLoader("sweeper.report"), autoescape=True, trim_blocks=True)


def _asset(name: str) -> Markup:
    text = files("sweeper.report").joinpath("templates", name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704 - our own file


@lru_cache(maxsize=1)
def _plotly() -> str:
    """Return plotly's library, packed: a quarter of its size, unpacked by the page itself."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def embedded(found: list[Figure | None]) -> Markup:
    """Return the figures as JSON that cannot end the script element it stands in."""
    text = json.dumps({figure.key: figure.spec for figure in found if figure is not None}, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704 - escaped


def _ranking(entries: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], tuple[str, str]]:
    """Return where the bars of the summary begin and end, in percent of their track, and the track's ends."""
    shown = [entry for entry in entries if entry["tuned"]["mean"] is not None]
    known = [
        value
        for entry in shown
        for value in (*(entry["tuned"][key] for key in ("mean", "ci_low", "ci_high")), entry["default"]["mean"])
        if value is not None
    ]
    if not known:
        return [], ("", "")
    room = 0.04 * (max(known) - min(known)) or 0.01
    least, most = min(known) - room, max(known) + room

    def at(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - least) / (most - least), 2)

    rows = []
    for entry in shown:
        low, high = at(entry["tuned"]["ci_low"]), at(entry["tuned"]["ci_high"])
        width = None if low is None or high is None else round(high - low, 2)
        mean, default = at(entry["tuned"]["mean"]), at(entry["default"]["mean"])
        rows.append({"entry": entry, "mean": mean, "low": low, "width": width, "default": default})
    return rows, (f"{least:.4g}", f"{most:.4g}")


def _failures(source: Source) -> dict[str, Any]:
    found = [trial for trial in source.trials if TrialState(trial["state"]).has_failed]
    return {"total": len(found), "shown": found[:_MOST_ROWS]} if found else {}


def _space(source: Source, model: str) -> dict[str, Any]:
    space = source.space(model)
    whole, own = sources(space)
    rows = [
        {
            "name": name,
            "range": range_words(parameter),
            "default": space["default"].get(name, ""),
            "when": "; ".join(f"{k} is {' or '.join(map(str, v))}" for k, v in parameter.get("when", {}).items()),
            "source": own.get(name, ""),
        }
        for name, parameter in space["parameters"].items()
    ]
    return {"model": model, "dimensions": dimensions(space), "rows": rows, "source": whole}


def _configurations(source: Source, model: str) -> dict[str, Any]:
    """Return a model's trials for the table: all of them, or the best where there are too many."""
    trials = source.of(model)
    if len(trials) > _MOST_ROWS:
        worst = float("inf")
        trials = sorted(
            trials, key=lambda t: (worst if t["value"] is None else source.objective.loss(t["value"]), t["number"])
        )[:_MOST_ROWS]
    params = [json.loads(trial["params"]) for trial in trials]
    names = list(dict.fromkeys(name for values in params for name in values))
    rows = [
        {**trial, "params": [_shown(values.get(name, "")) for name in names]}
        for trial, values in zip(trials, params, strict=True)
    ]
    return {"model": model, "names": names, "rows": rows, "total": len(source.of(model))}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _gain(entry: dict[str, Any]) -> str:
    tuned, default = entry["tuned"]["mean"], entry["default"]["mean"]
    return "" if tuned is None or default is None else f"{tuned - default:+.4f}"
