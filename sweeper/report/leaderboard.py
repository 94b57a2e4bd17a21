"""The leaderboard: every model at its tuned best, ranked by its mean test score, with verdicts for every pair.

Imported trials without confirmation runs are ranked by the test score of the trial that validation chose: one score, no
interval, no seed. Where there is no test score either, the best validation score decides.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sweeper.core.trial import TrialState
from sweeper.report.source import CONFIGS, Source
from sweeper.report.words import device_seconds
from sweeper.stats import mean_interval, verdicts


def leaderboard(source: Source) -> list[dict[str, Any]]:
    """Return the entries of ``leaderboard.json`` by rank; models without a test score come last."""
    comparisons = _verdicts(source)
    entries = []
    for model in source.models:
        trials = source.of(model)
        best = source.best(model)
        entries.append(
            {
                "model": model,
                "rank": 0,
                **{config: _scores(source, model, config) for config in CONFIGS},
                "validation": best["value"] if best else None,
                "best_params": json.loads(best["params"]) if best else {},
                "num_trials": sum(TrialState(trial["state"]).is_final for trial in trials),
                "device_seconds": device_seconds(trials),
                "verdicts": comparisons.get(model, []),
            }
        )

    def key(entry: dict[str, Any]) -> tuple[bool, bool, float, str]:
        mean, value = entry["tuned"]["mean"], entry["validation"]
        score = mean if mean is not None else value
        return mean is None, score is None, source.objective.loss(score) if score is not None else 0.0, entry["model"]

    entries.sort(key=key)
    for rank, entry in enumerate(entries, start=1):
        entry["rank"] = rank
    return entries


def _scores(source: Source, model: str, config: str) -> dict[str, Any]:
    by_seed = source.scores.get((model, config, "test"), {})
    if not by_seed:
        chosen = _chosen_test(source, model) if config == "tuned" else None
        if chosen is not None:
            return {"mean": chosen, "ci_low": None, "ci_high": None, "scores": [chosen], "seeds": []}
        return {"mean": None, "ci_low": None, "ci_high": None, "scores": [], "seeds": []}
    interval = mean_interval(list(by_seed.values()))
    return {
        "mean": interval.mean,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "scores": list(by_seed.values()),
        "seeds": list(by_seed),
    }


def _verdicts(source: Source) -> dict[str, list[dict[str, Any]]]:
    """Compare the models over the seeds that all of them finished."""
    tuned = {m: source.scores[m, "tuned", "test"] for m in source.models if (m, "tuned", "test") in source.scores}
    common = set.intersection(*(set(scores) for scores in tuned.values())) if tuned else set()
    if not tuned:
        return _unconfirmed(source)
    if len(tuned) < 2 or not common:
        return {}
    seeds = [seed for seed in source.manifest.seeds["confirmation"] if seed in common]
    paired = {model: [scores[seed] for seed in seeds] for model, scores in tuned.items()}
    found = verdicts(paired, maximize=source.objective.goal == "maximize", delta=source.delta)
    return {model: [asdict(verdict) for verdict in items] for model, items in found.items()}


def _chosen_test(source: Source, model: str) -> float | None:
    """Return the test score of the imported trial that validation chose, where it has one."""
    best = source.best(model) if source.imported else None
    value: float | None = best.get("test_value") if best else None
    return value


def _unconfirmed(source: Source) -> dict[str, list[dict[str, Any]]]:
    """Compare imported models by one test score each: never more than undecided."""
    chosen = {model: _chosen_test(source, model) for model in source.models}
    single = {model: [value] for model, value in chosen.items() if value is not None}
    if len(single) < 2:
        return {}
    found = verdicts(single, maximize=source.objective.goal == "maximize")
    return {model: [{**asdict(item), "unit": "chosen trial"} for item in items] for model, items in found.items()}
