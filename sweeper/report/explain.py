"""What the search says about its space: importance, the path from default to best, and ranges that were too narrow."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from sweeper.core.space import Float, Int, Params, SearchSpace
from sweeper.report.drawing import thinned
from sweeper.report.source import Source
from sweeper.spec.space import space_from_dict
from sweeper.train.settings import LEAST, LIMITS

MOST_TRIALS = 500  # read for importance and ablation: more of them change little and cost seconds a model
WIDEN_BY = 0.5  # a suggested range is this much longer, in its own scale, at the end that was hit


def explain(source: Source) -> dict[str, dict[str, Any]]:
    """Return for each model ``importance``, ``ablation`` and ``boundaries`` (JSON).

    Needs Optuna; without it importance is empty and there is no ablation path.

    ``importance`` (name to share, empty) and ``ablation`` (see `sweeper.search.explain.Ablation`, with its ``words``,
    or None) need 50 completed trials. ``boundaries`` is what `boundaries` returns.
    """
    try:
        from sweeper.search.explain import Completed, ablation, importance
    except ImportError:
        return {
            model: {"importance": {}, "ablation": None, "boundaries": boundaries(source, model)}
            for model in source.models
        }
    found = {}
    for entry in source.manifest.content["models"]:
        model = entry["name"]
        space = space_from_dict(entry["space"])
        completed = [Completed(json.loads(t["params"]), t["value"]) for t in source.complete(model)]
        inside = [trial for trial in completed if _inside(space, trial.params)]
        completed = [inside[at] for at in thinned(len(inside), MOST_TRIALS)]
        best = source.best(model)
        default = next((t for t in source.complete(model) if t["number"] == 0), None)
        path = None
        if best is not None and default is not None and not source.imported:
            first, last = (Completed(json.loads(trial["params"]), trial["value"]) for trial in (default, best))
            path = ablation(space, completed, first, last, source.objective)
        found[model] = {
            "importance": importance(space, completed, source.objective),
            "ablation": None if path is None else asdict(path) | {"words": path.words},
            "boundaries": boundaries(source, model),
        }
    return found


def boundaries(source: Source, model: str) -> list[dict[str, Any]]:
    """Return the parameters of the best trial whose value lies within 5% of an end of their range, in its scale.

    Each with ``name``, ``value``, ``end`` (low or high), ``bound`` (where that end is), ``suggested`` (where it might
    be) and ``override`` (the words for the command line). An end that training cannot pass (dropout 0) is no finding.
    """
    entry = next(entry for entry in source.manifest.content["models"] if entry["name"] == model)
    space, best = space_from_dict(entry["space"]), source.best(model)
    if best is None:
        return []
    params = json.loads(best["params"])
    found = []
    for name, end in space.boundary_flags(params).items():
        parameter = space[name]
        assert isinstance(parameter, Float | Int)
        bound = parameter.low if end == "low" else parameter.high
        suggested = _wider(parameter, end)
        if suggested != bound:
            found.append(
                {
                    "name": name,
                    "value": params[name],
                    "end": end,
                    "bound": bound,
                    "suggested": suggested,
                    "override": f"models.{model}.space.{name}.{end}={suggested:g}",
                }
            )
    return found


def _inside(space: SearchSpace, params: Params) -> bool:
    """Whether the space holds a configuration: it may have been narrowed since, by an accepted change."""
    known = {parameter.name: parameter for parameter in space}
    return all(known[name].contains(value) for name, value in params.items() if name in known)


def _wider(parameter: Float | Int, end: str) -> float:
    """Return an end moved outwards by half the range, within what training takes; two digits are enough."""
    least, most = LIMITS.get(parameter.name, (LEAST.get(parameter.name, -math.inf), math.inf))
    sign = 1 if end == "high" else -1
    if parameter.log:
        low, high = math.log(parameter.low), math.log(parameter.high)
        moved = math.exp((high if sign > 0 else low) + sign * WIDEN_BY * (high - low))
    else:
        low, high = parameter.low, parameter.high
        moved = (high if sign > 0 else low) + sign * WIDEN_BY * (high - low)
    if isinstance(parameter, Int):
        steps = max(1, round(abs(moved - (high if sign > 0 else low)) / parameter.step)) if not parameter.log else 0
        moved = (high if sign > 0 else low) + sign * steps * parameter.step if steps else round(moved)
        return int(min(max(moved, least), most))
    return min(max(float(f"{moved:.2g}"), least), most)
