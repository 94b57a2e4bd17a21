"""Several studies as one leaderboard: models x tasks, with the runs of each task resampled within it.

After Agarwal et al. 2021 (rliable): interquartile mean, probability of improvement, performance profiles, stratified
bootstrap; mean rank beside them. Models share the seeds of a task, so a resample takes the same seeds for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.core.errors import InputError, Problem
from sweeper.report.source import CONFIGS, Source
from sweeper.stats import interquartile_mean, probability_of_improvement

_RESAMPLES = 2_000
_LEVELS = (2.5, 97.5)
_PROFILE_POINTS = 101
MEANINGFUL = 0.75  # Bouthillier et al. 2021: an improvement is meaningful where P(A > B) reaches it

Runs = dict[str, dict[str, NDArray[np.float64]]]
"""By task and model: (N,) scores on the suite's scale, one a seed, the same seeds for all models of a task."""


@dataclass(frozen=True)
class Table:
    """The scores of a suite: ``runs[config]``, more is better, on one scale; ``left_out`` says what is missing why."""

    tasks: tuple[str, ...]
    models: tuple[str, ...]
    runs: dict[str, Runs]
    left_out: tuple[str, ...]
    scale: str


def gather(sources: Mapping[str, Source], normalise: str) -> Table:
    """Bring the confirmed test scores of several studies, by task, onto one scale.

    Raises
    ------
    InputError
        When no model was confirmed on every task, or the tasks' metrics cannot be averaged as they are.
    """
    metrics = {(source.objective.metric, source.objective.goal) for source in sources.values()}
    if normalise == "none" and len(metrics) > 1:
        seen = ", ".join(sorted(f"{metric} ({goal})" for metric, goal in metrics))
        rule, remedy = "metrics must be the same to be averaged as they are", "set normalise: range"
        raise InputError(Problem("normalise", rule, seen, remedy))
    confirmed = {
        task: {m for m in source.models if source.scores.get((m, "tuned", "test"))} for task, source in sources.items()
    }
    everywhere = set.intersection(*confirmed.values())
    models = [m for source in sources.values() for m in source.models if m in everywhere]
    models = list(dict.fromkeys(models))
    if not models:
        seen = "; ".join(f"{task}: {', '.join(sorted(found)) or 'none'}" for task, found in confirmed.items())
        raise InputError(
            Problem("studies", "at least one model must be confirmed on every task", seen, "name it alike")
        )
    left_out = [
        f"{model} (not confirmed on {', '.join(task for task in sources if model not in confirmed[task])})"
        for model in dict.fromkeys(m for source in sources.values() for m in source.models)
        if model not in everywhere
    ]
    runs: dict[str, Runs] = {config: {} for config in CONFIGS}
    for task, source in sources.items():
        for config, found in _scaled(source, models, normalise).items():
            runs[config][task] = found
    goal = next(iter(metrics))
    scale = "0 the lowest, 1 the highest mean of a task" if normalise == "range" else f"test {goal[0]}"
    if normalise == "none" and goal[1] == "minimize":
        scale += ", negated so that more is better"
    return Table(tuple(sources), tuple(models), runs, tuple(left_out), scale)


def summarise(table: Table) -> dict[str, Any]:
    """Return the suite's leaderboard and comparisons as JSON; all intervals are 95% stratified bootstrap ones."""
    rng = np.random.default_rng(0)
    entries = []
    found = {config: _aggregates(table, table.runs[config], rng) for config in CONFIGS if _whole(table, config)}
    tuned = found["tuned"]
    for model in table.models:
        entry: dict[str, Any] = {"model": model, "rank": 0}
        for config, aggregates in found.items():
            entry[config] = {name: aggregates[name][model] for name in ("iqm", "mean_rank")}
        entry["wins"] = sum(task["best"] == model for task in tuned["tasks"])
        entries.append(entry)
    entries.sort(key=lambda entry: (entry["tuned"]["mean_rank"]["value"], -entry["tuned"]["iqm"]["value"]))
    for rank, entry in enumerate(entries, start=1):
        entry["rank"] = rank
    return {
        "scale": table.scale,
        "tasks": tuned["tasks"],
        "leaderboard": entries,
        "improvements": _improvements(table, [entry["model"] for entry in entries], rng),
        "profiles": _profiles(table),
        "left_out": list(table.left_out),
    }


def sentences(found: dict[str, Any]) -> list[str]:
    """Return what may be said, the sentence that can be quoted first."""
    entries, tasks = found["leaderboard"], found["tasks"]
    first = entries[0]
    rank, iqm = first["tuned"]["mean_rank"], first["tuned"]["iqm"]
    lines = [
        (
            f"Over {len(tasks)} task{'s' if len(tasks) != 1 else ''} {first['model']} has the best mean rank at its "
            f"tuned best, "
            f"{rank['value']:.2f} (95% interval {rank['low']:.2f} to {rank['high']:.2f}), and an interquartile mean of "
            f"{iqm['value']:.4f} ({iqm['low']:.4f} to {iqm['high']:.4f})."
        )
    ]
    for pair in found["improvements"]:
        if pair["model"] != first["model"]:
            continue
        lines.append(f"{pair['words']}: P = {pair['value']:.2f} ({pair['low']:.2f} to {pair['high']:.2f}).")
    lines.append(
        "The tasks are those that were chosen, not a sample of tasks: intervals resample the seeds within each task "
        "and "
        "say nothing of other tasks."
    )
    return lines


def _scaled(source: Source, models: Sequence[str], normalise: str) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return by configuration and model the scores of the seeds that all these models share."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for config in CONFIGS:
        scores = {m: source.scores[m, config, "test"] for m in models if source.scores.get((m, config, "test"))}
        if len(scores) < len(models):
            continue
        seeds = [s for s in scores[models[0]] if all(s in other for other in scores.values())]
        if not seeds:
            place, remedy = str(source.paths.root), "confirm them with the same seeds"
            raise InputError(Problem(place, "the models must share confirmation seeds", config, remedy))
        found[config] = {m: source.sign * np.array([scores[m][s] for s in seeds]) for m in models}
    if normalise == "range":
        means = [float(values.mean()) for by_model in found.values() for values in by_model.values()]
        low, span = min(means), (max(means) - min(means)) or 1.0
        found = {config: {m: (v - low) / span for m, v in by_model.items()} for config, by_model in found.items()}
    return found


def _whole(table: Table, config: str) -> bool:
    return len(table.runs[config]) == len(table.tasks)


def _aggregates(table: Table, runs: Runs, rng: np.random.Generator) -> dict[str, Any]:
    point = _measures(table, runs)
    drawn = [_measures(table, _resampled(runs, rng)) for _ in range(_RESAMPLES)]
    result: dict[str, Any] = {}
    for name in ("iqm", "mean_rank"):
        result[name] = {}
        for at, model in enumerate(table.models):
            low, high = np.percentile([draw[name][at] for draw in drawn], _LEVELS)
            result[name][model] = {"value": float(point[name][at]), "low": float(low), "high": float(high)}
    result["tasks"] = []
    for task in table.tasks:
        means = {model: float(runs[task][model].mean()) for model in table.models}
        best = max(means, key=lambda model: means[model])
        result["tasks"].append({"task": task, "means": means, "best": best, "num_seeds": len(runs[task][best])})
    return result


def _measures(table: Table, runs: Runs) -> dict[str, NDArray[np.float64]]:
    """Return each model's interquartile mean over runs x tasks (each task weighs the same) and its mean rank."""
    means = np.array([[runs[task][model].mean() for model in table.models] for task in table.tasks])
    above = (means[:, None, :] > means[:, :, None]).sum(axis=2)
    equal = (means[:, None, :] == means[:, :, None]).sum(axis=2)
    ranks = 1 + above + (equal - 1) / 2
    counts = [len(runs[task][table.models[0]]) for task in table.tasks]
    times = np.lcm.reduce(counts) // np.array(counts) if np.lcm.reduce(counts) <= 10_000 else np.ones(len(counts), int)
    iqm = [
        interquartile_mean(
            np.concatenate([np.tile(runs[task][m], n) for task, n in zip(table.tasks, times, strict=True)])
        )
        for m in table.models
    ]
    return {"iqm": np.array(iqm), "mean_rank": ranks.mean(axis=0)}


def _resampled(runs: Runs, rng: np.random.Generator) -> Runs:
    drawn: Runs = {}
    for task, by_model in runs.items():
        size = len(next(iter(by_model.values())))
        rows = rng.integers(size, size=size)
        drawn[task] = {model: values[rows] for model, values in by_model.items()}
    return drawn


def _improvements(table: Table, order: Sequence[str], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return P(A > B) for every ordered pair, A ranked before B."""
    runs = table.runs["tuned"]
    pairs = [(a, b) for a, b in permutations(order, 2) if order.index(a) < order.index(b)]

    def measured(found: Runs) -> list[float]:
        return [
            float(np.mean([probability_of_improvement(found[task][a], found[task][b]) for task in table.tasks]))
            for a, b in pairs
        ]

    point = measured(runs)
    drawn = np.array([measured(_resampled(runs, rng)) for _ in range(_RESAMPLES // 4)]) if pairs else np.empty((0, 0))
    rows = []
    for at, (a, b) in enumerate(pairs):
        low, high = (float(value) for value in np.percentile(drawn[:, at], _LEVELS))
        words = f"whether {a} improves on {b} is not established"
        if low > 0.5:
            words = f"{a} improves on {b}" + (", meaningfully" if high > MEANINGFUL else ", but not meaningfully")
        elif high < 0.5:
            words = f"{b} improves on {a}"
        words = words[0].upper() + words[1:] if words.startswith("whether") else words
        rows.append({"model": a, "other": b, "value": point[at], "low": low, "high": high, "words": words})
    return rows


def _profiles(table: Table) -> dict[str, Any]:
    """Return by model the share of runs, tasks weighing the same, that score above each threshold."""
    runs = table.runs["tuned"]
    every = np.concatenate([values for by_model in runs.values() for values in by_model.values()])
    thresholds = np.linspace(every.min(), every.max(), _PROFILE_POINTS)
    shares = {
        model: np.mean([(runs[task][model][:, None] > thresholds).mean(axis=0) for task in table.tasks], axis=0)
        for model in table.models
    }
    return {"thresholds": thresholds.tolist(), "shares": {model: share.tolist() for model, share in shares.items()}}
