"""The first trials of every model after its default: points that the user names, and the best of an earlier study.

Both are given to all models or to none, and are trained like any other trial within the budget.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.core.objective import Objective
from sweeper.core.space import Params, Scalar, SearchSpace
from sweeper.core.trial import TrialState
from sweeper.search.effective import effective_key
from sweeper.spec.study import SearchSpec
from sweeper.store.manifest import Manifest, read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.tables import read_tables

WARM_POINTS = 3  # configurations taken over from an earlier study, for each model


@dataclass(frozen=True)
class Start:
    """What the search begins with.

    Parameters
    ----------
    points:
        By model: active parameters of its first trials after the default.
    charged:
        Of an earlier study that was taken over: its name and plan hash, and by model the device-seconds and trials
        that its search had spent (JSON); empty without one.
    """

    points: Mapping[str, tuple[Params, ...]] = field(default_factory=dict)
    charged: Mapping[str, Any] = field(default_factory=dict)


def make_start(search: SearchSpec, spaces: Mapping[str, SearchSpace]) -> Start:
    """Check ``search.points_to_evaluate`` and ``search.warm_start`` against the spaces.

    Raises
    ------
    InputError
        With every problem at once.
    """
    problems: list[Problem] = []
    points = _named(search, spaces, problems)
    charged: dict[str, Any] = {}
    if search.warm_start is not None:
        warm, charged = _warm(search, spaces, problems)
        points = {model: (*warm.get(model, ()), *points[model]) for model in spaces}
    most = max((len(each) for each in points.values()), default=0)
    if not problems and most >= search.num_trials:
        rule = "the default and the points to begin with must leave room in num_trials"
        problems.append(Problem("search.num_trials", rule, f"{search.num_trials} with {most} points", "raise it"))
    if problems:
        raise InputError(problems)
    return Start({model: each for model, each in points.items() if each}, charged)


def _named(
    search: SearchSpec, spaces: Mapping[str, SearchSpace], problems: list[Problem]
) -> dict[str, tuple[Params, ...]]:
    """Return the user's points by model; a list is for all of them."""
    place, given = "search.points_to_evaluate", search.points_to_evaluate
    if isinstance(given, list):
        return {model: _points(f"{place}.", model, space, given, problems) for model, space in spaces.items()}
    problems.extend(
        Problem(f"{place}.{model}", "must be a model of the study", model, "correct the name")
        for model in sorted(given.keys() - spaces.keys())
    )
    counts = {model: len(given.get(model, ())) for model in spaces}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{model} {count}" for model, count in counts.items())
        problems.append(Problem(place, "every model must get the same number of points", found, "equal effort"))
    return {
        model: _points(f"{place}.{model}.", model, space, given.get(model, []), problems)
        for model, space in spaces.items()
    }


def _points(
    place: str, model: str, space: SearchSpace, given: list[dict[str, Any]], problems: list[Problem]
) -> tuple[Params, ...]:
    found = []
    for index, point in enumerate(given):
        params, wrong = fit(space, point)
        found.append(params)
        problems.extend(
            Problem(f"{place}{index}.{name}", f"{rule} (space of {model})", str(value), remedy)
            for name, rule, value, remedy in wrong
        )
    return tuple(found)


def fit(space: SearchSpace, point: Params) -> tuple[dict[str, Scalar], list[tuple[str, str, Scalar, str]]]:
    """Complete a point by the default and check it; return the active parameters and what is wrong.

    What is wrong are (name, rule, value, remedy).
    """
    known = {parameter.name for parameter in space}
    wrong = [
        (name, "must be a parameter of the space", value, "correct the name")
        for name, value in point.items()
        if name not in known
    ]
    params: dict[str, Scalar] = {}
    for parameter in space:
        if not parameter.is_active(params):
            continue
        name = parameter.name
        if name not in point and name not in space.default:
            wrong.append((name, "must be given: it is active and the default has no value", None, f"add {name}"))
            continue
        value = point.get(name, space.default.get(name))
        params[name] = value
        if not parameter.contains(value):
            wrong.append((name, "must lie in its range", value, "move it or widen the range"))
    return params, wrong


def _warm(
    search: SearchSpec, spaces: Mapping[str, SearchSpace], problems: list[Problem]
) -> tuple[dict[str, tuple[Params, ...]], dict[str, Any]]:
    """Return the earlier study's best configurations by model, and what they had cost."""
    assert search.warm_start is not None
    paths = ResultPaths(Path(search.warm_start))
    manifest, rows = read_manifest(paths), read_tables(paths).trials.to_pylist()
    objective = Objective(**manifest.content["objective"])
    points: dict[str, tuple[Params, ...]] = {}
    charged: dict[str, Any] = {"name": manifest.name, "plan_hash": manifest.plan_hash, "models": {}}
    for model, space in spaces.items():
        mine = [row for row in rows if row["model"] == model]
        complete = [row for row in mine if row["state"] == TrialState.COMPLETE]
        complete.sort(key=lambda row: (objective.loss(row["value"]), row["number"]))
        best: dict[Any, Params] = {}
        for row in complete:
            params, wrong = fit(space, json.loads(row["params"]))
            if not wrong and len(best) < WARM_POINTS:
                best.setdefault(effective_key(params, search.max_epochs), params)
        if not best:
            problems.append(_no_points(search.warm_start, manifest, model, len(complete)))
        points[model] = tuple(best.values())
        charged["models"][model] = {
            "trials": len(mine),
            "device_seconds": sum(row["device_seconds"] or 0.0 for row in mine),
        }
    return points, charged


def _no_points(results: str, manifest: Manifest, model: str, num_complete: int) -> Problem:
    known = ", ".join(entry["name"] for entry in manifest.content["models"])
    value = f"{num_complete} completed trials of {model}, none inside its space" if num_complete else f"{known} there"
    rule = f"the earlier study must hold completed trials of every model, {model} too"
    return Problem(f"search.warm_start {results}", rule, value, "all models start warm or none: remove it")
